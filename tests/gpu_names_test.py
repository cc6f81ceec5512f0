#!/usr/bin/env python3
"""Device code uses no name of a runtime but those of the table, and the table's exchange leaves none behind."""
import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(os.environ.get("TRIREME_SOURCE_DIR", pathlib.Path(__file__).resolve().parent.parent))
SCRIPT = ROOT / "scripts/gpu_names"
FOLDER = ROOT / "src/trireme/kernels/cuda"

sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("gpu_names", str(SCRIPT))
spec = importlib.util.spec_from_loader("gpu_names", loader)
gpu_names = importlib.util.module_from_spec(spec)
loader.exec_module(gpu_names)


def device_code():
    return sorted(FOLDER.glob("*.cu")) + [FOLDER / "gpu.h", FOLDER / "launch.h"]


class GpuNamesTest(unittest.TestCase):
    def test_device_code_uses_listed_names_only(self):
        self.assertGreater(len(device_code()), 5)
        done = subprocess.run([sys.executable, SCRIPT, "check", *device_code()], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_other_names_are_found_where_they_stand(self):
        for word in ("cudaMalloc", "cuLaunchKernel", "cublasSgemm", "cub", "CUDA_VERSION", "__CUDA_ARCH__", "__nv_bfloat16",
                     "nvtxRangePush", "NVCC", "cudnnHandle_t", "CUDART_INF_F", "CU_STREAM_LEGACY"):
            with self.subTest(word):
                self.assertEqual(gpu_names.unlisted(f"int a;\nx = {word}(1);\n", {}), [(2, word)])

    def test_a_bad_file_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            bad = pathlib.Path(folder) / "bad.cu"
            bad.write_text("// cudaMalloc in prose\nvoid f(void** p) { cudaMalloc(p, 1); }\n")
            done = subprocess.run([sys.executable, SCRIPT, "check", bad], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("bad.cu:2: cudaMalloc", done.stdout)

    def test_words_that_only_look_like_it_are_free(self):
        text = 'int current, cumulative, accuracy, custom, invalid, envelope, cut; // cudaFree\nf("cudaFree");\n'
        self.assertEqual(gpu_names.unlisted(text, {}), [])

    def test_each_listed_name_is_used(self):
        text = "".join(path.read_text() for path in device_code())
        for name in gpu_names.read_table():
            self.assertRegex(text, rf"\b{name}\b")

    def test_the_exchange_leaves_no_name_behind(self):
        table = gpu_names.read_table()
        self.assertEqual(len(set(table.values())), len(table))
        for path in device_code():
            with self.subTest(path.name):
                text = gpu_names.exchanged(path.read_text(), table)
                self.assertEqual(gpu_names.unlisted(text, {}), [])
                # Nothing but those words: the way back is the same.
                back = {theirs: ours for ours, theirs in table.items()}
                self.assertEqual(gpu_names.exchanged(text, back), path.read_text())

    def test_prose_stays(self):
        text = '// cudaSuccess\n#include "trireme/kernels/cuda/gpu.h"\nif (e == cudaSuccess) f("cudaSuccess");\n'
        self.assertEqual(gpu_names.exchanged(text, {"cudaSuccess": "musaSuccess"}),
                         text.replace("e == cudaSuccess", "e == musaSuccess"))


if __name__ == "__main__":
    result = unittest.main(exit=False).result
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed} passed, {failed} failed")
    sys.exit(failed != 0)
