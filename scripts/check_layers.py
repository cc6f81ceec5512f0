#!/usr/bin/env python3
"""Checks the rules of the rooms: scripts/check_layers.py [ROOT].

Reads the rooms and their layers from src/trireme/CMakeLists.txt and rejects

* an include of a room that is not declared as a dependency, or that lies in a higher layer;
* torch in a room that is declared without TORCH (base/torch_compat.h is the one exception);
* torch/torch.h anywhere, c10d outside comm/, and in headers any ATen header but ATen/core/Tensor.h
  (headers that only tests include, test_*.h and testing/*.h, are free);
* a vendor's name in an identifier or an include outside device/<vendor>, comm/<library> and kernels/<vendor>, so that the
  next vendor's device is a folder, not a search (comments and strings are prose and free);
* file names that say nothing (utils, helpers, common, misc, manager).

Files over 600 lines are named as a warning. Exit status 1 if a rule is broken.
"""

import pathlib
import re
import sys

LIBRARY = re.compile(r"trireme_library\(\s*NAME\s+(\w+)\s+LAYER\s+(\d+)([^)]*)\)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
VAGUE = re.compile(r"^(utils?|helpers?|common|misc|manager)$")
# Folders of a vendor: their names, and what the vendor's own names begin with. "accelerator" and "sim" are nobody's.
VENDORS = {
    "cuda": ("cuda", "nvidia", "cudnn", "cublas", "cublaslt", "cutlass", "nvml", "nvtx", "nvrtc", "cupti"),
    "nccl": ("nccl",),
    "hip": ("hip", "rocm", "amd", "hipblas", "rocblas", "miopen"),
    "rccl": ("rccl",),
    "musa": ("musa", "mublas", "mudnn", "mupti", "mthreads"),
    "mccl": ("mccl",),
    "xpu": ("xpu", "sycl", "oneccl"),
    "npu": ("npu", "ascend", "cann", "hccl"),
    "mps": ("mps",),
    "mlu": ("mlu", "cnnl", "cncl"),
    "hpu": ("hpu", "habana"),
}
VENDOR_FOLDERS = {"device", "comm", "kernels"}
# A library of collectives belongs to a device's vendor, so either folder may speak of both.
VENDOR_OF_LIBRARY = {"nccl": "cuda", "rccl": "hip", "mccl": "musa"}
PROSE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SOURCES = {".h", ".cpp", ".inc", ".cu", ".cuh"}
MAX_LINES = 600


class Room:
    def __init__(self, name, layer, arguments):
        words = arguments.split()
        self.name = name
        self.layer = layer
        self.torch = "TORCH" in words
        self.deps = set()
        keyword = None
        for word in words:
            if word in ("DEPS", "LINK", "TORCH"):
                keyword = word
            elif keyword == "DEPS":
                self.deps.add(word)


def read_rooms(root):
    text = (root / "src/trireme/CMakeLists.txt").read_text()
    rooms = {}
    for name, layer, arguments in LIBRARY.findall(text):
        rooms[name] = Room(name, int(layer), arguments)
    return rooms


def is_torch(header):
    return header.startswith(("ATen/", "c10/", "torch/", "caffe2/")) or header == "trireme/base/torch_compat.h"


def check_include(room, rooms, relative, header):
    """Yields what is wrong with one #include of one file."""
    if header == "torch/torch.h":
        yield "torch/torch.h costs 20 s a file; include ATen/core/Tensor.h and ATen/ops/<operator>.h"
    if "c10d" in header and room.name != "comm":
        yield "only comm/ includes c10d"
    if is_torch(header) and not room.torch and relative.as_posix() != "base/torch_compat.h":
        yield f"{room.name}/ is declared without TORCH, but includes {header}"
    for_tests = relative.name.startswith("test_") or "testing" in relative.parts
    if header.startswith("ATen/") and relative.suffix == ".h" and header != "ATen/core/Tensor.h" and not for_tests:
        yield f"a header may include no ATen header but ATen/core/Tensor.h, not {header}"
    if not header.startswith("trireme/"):
        return
    other = rooms.get(header.split("/")[1])
    if other is None:
        yield f"{header} is in no declared room"
    elif other.name != room.name:
        if other.layer > room.layer:
            yield f"{room.name}/ (layer {room.layer}) includes {header} of layer {other.layer}: upward"
        elif other.name not in room.deps:
            yield f"{room.name}/ includes {header}, but does not declare {other.name} in DEPS"


def vendor_of(identifier):
    """The vendor whose name one of an identifier's words is (kCUDA, is_cuda, CudaStream; not Ownership), or None."""
    for word in WORD.findall(identifier):
        for vendor, names in VENDORS.items():
            if word.lower() in names:
                return vendor
    return None


def check_vendors(relative, text):
    """Yields (line number, what is wrong) for each vendor's name outside the vendor's folder."""
    own = set()
    if relative.parts[0] in VENDOR_FOLDERS and len(relative.parts) > 2:
        folder = VENDOR_OF_LIBRARY.get(relative.parts[1], relative.parts[1])
        own = {folder} | {library for library, vendor in VENDOR_OF_LIBRARY.items() if vendor == folder}
    lines = text.splitlines()
    code = PROSE.sub(lambda match: "\n" * match.group().count("\n"), text).splitlines()
    for number, line in enumerate(code, 1):
        include = INCLUDE.match(lines[number - 1])
        names = re.split(r"[/.]", include.group(2)) if include else IDENTIFIER.findall(line)
        for name in names:
            vendor = vendor_of(name)
            if vendor is not None and vendor not in own:
                yield number, f"'{name}' is {vendor}'s; outside its folder ask the Device interface instead"


def check_tree(root):
    """Returns (errors, warnings), each a list of 'path:line: text'."""
    rooms = read_rooms(root)
    errors, warnings = [], []
    if not rooms:
        return ["src/trireme/CMakeLists.txt: no trireme_library(NAME ... LAYER ...) found"], warnings
    source = root / "src/trireme"
    for path in sorted(source.rglob("*")):
        if path.suffix not in SOURCES:
            continue
        relative = path.relative_to(source)
        shown = path.relative_to(root)
        room = rooms.get(relative.parts[0])
        if room is None:
            errors.append(f"{shown}: in no declared room")
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        for number, problem in check_vendors(relative, text):
            errors.append(f"{shown}:{number}: {problem}")
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if match:
                for problem in check_include(room, rooms, relative, match.group(2)):
                    errors.append(f"{shown}:{number}: {problem}")
        if len(lines) > MAX_LINES and path.suffix != ".inc":
            warnings.append(f"{shown}: {len(lines)} lines; is there a part that wants a file of its own?")
    for folder in ("src", "tests", "bench", "fuzz", "scripts", "cmake", "examples"):
        for path in sorted((root / folder).rglob("*")):
            words = re.split(r"[_\-.]", path.name.lower())
            if any(VAGUE.match(word) for word in words):
                errors.append(f"{path.relative_to(root)}: the name says nothing about what is inside")
    return errors, warnings


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    errors, warnings = check_tree(root)
    for line in warnings:
        print(f"warning: {line}")
    for line in errors:
        print(f"error: {line}")
    print(f"layers: {len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
