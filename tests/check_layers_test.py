#!/usr/bin/env python3
"""scripts/check_layers.py accepts this tree and rejects each broken rule in a made-up one."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("TRIREME_SOURCE_DIR", pathlib.Path(__file__).resolve().parent.parent))
ROOMS = """
trireme_library(NAME base LAYER 0 LINK fmt::fmt)
trireme_library(NAME model LAYER 1 DEPS base)
trireme_library(NAME device LAYER 1 DEPS base TORCH)
trireme_library(NAME comm LAYER 1 DEPS base TORCH)
trireme_library(NAME nn LAYER 3 DEPS base device
                LINK PkgConfig::HWY TORCH)
"""


sys.path.insert(0, str(ROOT / "scripts"))
sys.dont_write_bytecode = True
import check_layers  # noqa: E402


def without_indirect(graph):
    """Leaves out each dependency that follows from another one."""
    def reachable(room):
        return set(graph[room]).union(*(reachable(dep) for dep in graph[room]))
    return {room: {dep for dep in deps if not any(dep in reachable(other) for other in deps)}
            for room, deps in graph.items()}


def check(root):
    result = subprocess.run([sys.executable, str(ROOT / "scripts/check_layers.py"), str(root)],
                            capture_output=True, text=True, check=False)
    return result.returncode, result.stdout


class CheckLayersTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.put("src/trireme/CMakeLists.txt", ROOMS)
        self.put("src/trireme/base/error.h", "#include <string>\n")
        self.put("src/trireme/base/torch_compat.h", "#include <torch/headeronly/version.h>\n")
        self.put("src/trireme/nn/part.h", '#include <ATen/core/Tensor.h>\n#include "trireme/device/device.h"\n')
        self.put("src/trireme/nn/part.cpp", '#include "trireme/nn/part.h"\n#include <ATen/ops/mm.h>\n')

    def put(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def assert_rejected(self, path, text, reason):
        self.put(path, text)
        status, output = check(self.root)
        self.assertEqual(status, 1, output)
        self.assertIn(path, output)
        self.assertIn(reason, output)

    def test_this_tree_keeps_the_rules(self):
        status, output = check(ROOT)
        self.assertEqual(status, 0, output)

    def test_a_tree_that_keeps_the_rules_is_accepted(self):
        status, output = check(self.root)
        self.assertEqual(status, 0, output)

    def test_upward_include(self):
        self.assert_rejected("src/trireme/base/up.cpp", '#include "trireme/model/model_spec.h"\n', "upward")

    def test_undeclared_room_of_a_lower_layer(self):
        self.assert_rejected("src/trireme/nn/x.cpp", '  #  include "trireme/model/model_spec.h"\n', "DEPS")

    def test_undeclared_room_of_the_same_layer(self):
        self.assert_rejected("src/trireme/model/x.cpp", '#include "trireme/device/device.h"\n', "DEPS")

    def test_unknown_room(self):
        self.assert_rejected("src/trireme/attic/x.cpp", "", "no declared room")
        self.assert_rejected("src/trireme/nn/y.cpp", '#include "trireme/cellar/x.h"\n', "no declared room")

    def test_torch_in_a_room_without_it(self):
        self.assert_rejected("src/trireme/model/x.cpp", "#include <ATen/core/Tensor.h>\n", "without TORCH")
        self.assert_rejected("src/trireme/model/y.cpp", '#include "trireme/base/torch_compat.h"\n', "without TORCH")

    def test_heavy_headers(self):
        self.assert_rejected("src/trireme/nn/x.cpp", "#include <torch/torch.h>\n", "torch/torch.h")
        self.assert_rejected("src/trireme/nn/x.h", "#include <ATen/ATen.h>\n", "ATen/core/Tensor.h")

    def test_c10d_only_in_comm(self):
        text = "#include <torch/csrc/distributed/c10d/Store.hpp>\n"
        self.put("src/trireme/comm/x.cpp", text)
        self.assertEqual(check(self.root)[0], 0)
        self.assert_rejected("src/trireme/nn/x.cpp", text, "c10d")

    def test_a_vendors_name_outside_its_folder(self):
        for code in ("if (x.is_cuda()) {}", "c10::Device d(at::kCUDA);", "CUDAStream s;", "cudaMalloc(&p, n);",
                     "at::kHIP", "musaStream_t s;", "ncclComm_t c;", "bool use_nvidia_path;",
                     "#include <c10/cuda/CUDAStream.h>", '#include "trireme/device/musa/queue.h"'):
            self.assert_rejected("src/trireme/device/x.cpp", "\n" + code + "\n", "outside its folder")
            self.assert_rejected("src/trireme/nn/x.cpp", "/* one\n two */\n" + code + "\n", "x.cpp:3")
        self.put("src/trireme/nn/x.cpp", "")
        self.assert_rejected("src/trireme/device/sim/y.cpp", "at::kCUDA\n", "outside its folder")
        self.assert_rejected("src/trireme/device/musa/y.cpp", "at::kCUDA\n", "outside its folder")

    def test_a_vendors_name_in_its_folder_and_in_prose(self):
        self.put("src/trireme/device/cuda/x.cpp", "#include <c10/cuda/CUDAStream.h>\ncudaMalloc(&p, n);\n")
        self.put("src/trireme/comm/nccl/x.cpp", "ncclComm_t c; cudaStream_t s;\n")
        self.put("src/trireme/device/x.cpp", "// Ownership as of cuda\nint ownership; f(\"cuda:0\"); /* kCUDA\n cuda */\n"
                                             "int cutoff, musically, ampersand, amplitude, chip, hipster, cu_seqlens;\n")
        status, output = check(self.root)
        self.assertEqual(status, 0, output)

    def test_names_that_say_nothing(self):
        self.assert_rejected("src/trireme/nn/tensor_utils.h", "", "says nothing")
        self.assert_rejected("scripts/helper.sh", "", "says nothing")

    def test_long_files_are_a_warning(self):
        self.put("src/trireme/nn/long.cpp", "\n" * 601)
        status, output = check(self.root)
        self.assertEqual(status, 0)
        self.assertIn("warning: src/trireme/nn/long.cpp: 601 lines", output)


class ArchitecturePageTest(unittest.TestCase):
    def setUp(self):
        self.page = (ROOT / "docs/architecture.md").read_text()
        self.rooms = check_layers.read_rooms(ROOT)

    def test_the_picture_shows_the_declared_dependencies(self):
        drawn = {name: set() for name in self.rooms}
        for room, dep in re.findall(r"^  (\w+) --> (\w+)$", self.page, re.MULTILINE):
            drawn[room].add(dep)
        self.assertEqual(drawn, without_indirect({name: room.deps for name, room in self.rooms.items()}))
        for layer, members in re.findall(r"subgraph layer(\d)[^\n]*\n(.*?)  end", self.page, re.DOTALL):
            for name in members.split():
                self.assertEqual(self.rooms[name].layer, int(layer), name)

    def test_the_table_lists_every_room_with_its_layer(self):
        rows = re.findall(r"^\| (\d) \| `(\w+)` \|.*\| (yes|no) \|$", self.page, re.MULTILINE)
        self.assertEqual({name: (int(layer), torch == "yes") for layer, name, torch in rows},
                         {name: (room.layer, room.torch) for name, room in self.rooms.items()})


if __name__ == "__main__":
    outcome = unittest.main(exit=False, verbosity=0).result
    bad = len(outcome.failures) + len(outcome.errors)
    sys.stderr.flush()
    print(f"{outcome.testsRun - bad} passed, {bad} failed")
    sys.exit(1 if bad else 0)
