#!/usr/bin/env python3
"""bench/gpu/run on the processor: what it runs, prints and writes, as far as no accelerator and no PyTorch is needed.

Last line: `N passed, N failed`.
"""
import json
import os
import subprocess
import sys
import tarfile

import tiny_run

RUN = os.path.join(tiny_run.ROOT, "bench/gpu/run")
CASES = []


def case(function):
    CASES.append(function)
    return function


def bench(folder, *arguments, status=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, RUN, "--program", tiny_run.TRIREME, *arguments], cwd=folder, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, f"status {done.returncode}: {done.stdout}{done.stderr}"
    return done


@case
def trains_the_tiny_shape_and_writes_its_figures(folder):
    done = bench(folder, "--device", "cpu", "--without-torch", "--only", "train", "--shapes", "tiny", "--rounds", "2", "--steps",
                 "2", "--out", "figures.json")
    with open(os.path.join(folder, "figures.json"), encoding="utf-8") as file:
        (figures,) = json.load(file)["train"]
    (row,) = figures["rows"]
    assert row["name"] == "trireme" and 0 < row["min"] <= row["median"] <= row["max"], row
    assert (figures["micro"], figures["seq_len"], figures["layers"]) == (2, 32, 1), figures
    assert figures["flops_per_token"] > 0 and figures["predicted_peak_bytes"] > 0 and row["peak_bytes"] > 0
    assert figures["kernels"] and all(kernel["calls"] > 0 for kernel in figures["kernels"])
    # The longest first, and only so many are shown.
    seconds = [kernel["seconds"] for kernel in figures["kernels"]]
    assert seconds == sorted(seconds, reverse=True)
    assert "memory: " in done.stdout and "predicted" in done.stdout, done.stdout


@case
def takes_the_largest_size_that_the_prediction_allows(folder):
    sys.path.insert(0, os.path.dirname(RUN))
    import importlib.machinery
    import importlib.util
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("gpu_run", RUN)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_run", loader))
    loader.exec_module(module)

    class Predictor:
        device = "cuda"

        def document(self, *arguments):
            words = [str(word) for word in arguments]
            layers = int(words[words.index("--layers") + 1]) if "--layers" in words else 32
            return {"predicted_peak_bytes": int(words[words.index("--micro") + 1]) * layers * 2**30}

    assert module.largest_that_fits(Predictor(), "llama2-7b", 200 * 2**30) == (2, 0, 64 * 2**30)
    assert module.largest_that_fits(Predictor(), "llama2-7b", 26 * 2**30) == (1, 12, 12 * 2**30)
    assert module.largest_that_fits(Predictor(), "llama2-7b", 2**30) == (1, 2, 2 * 2**30)


@case
def wrong_names_are_refused(folder):
    assert "'llama-1b'" in bench(folder, "--shapes", "llama-1b", status=2).stderr
    assert "'gem'" in bench(folder, "--only", "gem", status=2).stderr
    assert "there is no program" in bench(folder, "--program", "nowhere", "--without-torch", status=4).stderr


@case
def a_device_that_is_not_there_is_said(folder):
    done = bench(folder, "--device", "xpu", "--without-torch", "--only", "conformance", status=4)
    assert "libtrireme_xpu.so" in done.stderr, done.stderr


@case
def the_program_knows_the_benchmarks_questions(folder):
    def document(*arguments):
        return json.loads(tiny_run.run(folder, "bench", "train", "--json", *arguments).stdout)
    one, two = (document("--preset", "llama2-7b", "--layers", layers, "--micro", "1", "--seq-len", "64", "--precision", "bf16",
                         "--print-memory")["predicted_peak_bytes"] for layers in ("1", "2"))
    # By hand: a layer has 4 * 4096^2 + 3 * 4096 * 11008 weights, each at least 18 bytes (master, two states, gradient, bf16).
    assert two - one >= 18 * (4 * 4096**2 + 3 * 4096 * 11008), (one, two)


@case
def what_another_machine_needs_is_packed(folder):
    if os.path.realpath(tiny_run.TRIREME) != os.path.realpath(os.path.join(tiny_run.ROOT, "build/trireme")):
        print("        not tried: it packs build/trireme, which is not the program under test")
        return
    done = subprocess.run([os.path.join(tiny_run.ROOT, "bench/gpu/pack"), os.path.join(folder, "out.tar.gz")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(os.path.join(folder, "out.tar.gz")) as archive:
        names = archive.getnames()
    for name in ("trireme", "bench/gpu/run", "bench/peers/train_torch.py"):
        assert f"trireme-bench/{name}" in names, names
    assert any("/lib/libfmt" in name for name in names) and not any("libtorch" in name for name in names), names


sys.exit(tiny_run.run_cases(CASES, lambda folder: folder))
