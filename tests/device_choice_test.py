#!/usr/bin/env python3
"""A run on the simulated accelerator, through the program: the bits of the processor, exact resume across devices, errors.

Last line: `N passed, N failed`.
"""
import json
import os
import sys

import tiny_run

CASES = []


def case(function):
    CASES.append(function)
    return function


def train(folder, out, *more, status=0, **environment):
    return tiny_run.checked(folder, "train", "run.toml", "--set", f"out={out}", *more, status=status, **environment)


def losses(folder, name):
    with open(os.path.join(folder, name, "metrics.jsonl"), encoding="utf-8") as file:
        return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in map(json.loads, file)]


def digest(folder, name):
    return json.loads(tiny_run.checked(folder, "checkpoint", "digest", name, "--json").stdout)["digest"]


@case
def the_simulated_device_trains_to_the_same_bits(folder):
    train(folder, "on_cpu")
    train(folder, "on_sim", "--device", "sim")
    assert losses(folder, "on_sim") == losses(folder, "on_cpu")
    assert digest(folder, "on_sim") == digest(folder, "on_cpu")


@case
def so_it_does_in_bf16_with_another_order_of_its_queues(folder):
    train(folder, "bf16_on_cpu", "--set", "precision.recipe=bf16")
    train(folder, "bf16_on_sim", "--set", "precision.recipe=bf16", "--device", "sim:2", TRIREME_SIM_SCHEDULE="shuffled",
          TRIREME_SIM_SEED="5")
    assert digest(folder, "bf16_on_sim") == digest(folder, "bf16_on_cpu")


@case
def recorded_work_gives_the_same_bits(folder):
    stream = ["--device", "sim", "--set", "data.packing=stream"]
    train(folder, "issued", *stream)
    train(folder, "recorded", *stream, "--set", "device.graphs=true")
    assert losses(folder, "recorded") == losses(folder, "issued")
    assert digest(folder, "recorded") == digest(folder, "issued")
    text = train(folder, "neither", "--device", "sim", "--set", "device.graphs=true", status=2).stderr
    assert 'data.packing = "documents"' in text and 'data.packing = "stream"' in text, text
    text = tiny_run.checked(folder, "plan", "explain", "run.toml", "--set", "device.name=sim", "--set", "device.graphs=true").stdout
    assert "recorded work" in text, text
    text = train(folder, "neither", *stream, "--set", "device.graphs=true", "--set", "memory.offload_optimizer=true", status=2).stderr
    assert "device.graphs and memory.offload" in text, text
    # Known before the run: such a kernel would end the second step.
    text = train(folder, "neither", *stream, "--set", "device.graphs=true", "--set", 'kernels.use={attention="aten"}', "--dry-run",
                 status=2).stderr
    assert "'aten' of attention cannot be recorded" in text and "kernels.use.attention" in text, text
    train(folder, "recorded_but_loss", *stream, "--set", "device.graphs=true", "--set", 'kernels.use={linear_cross_entropy="aten"}')


@case
def a_fault_of_the_simulated_device_ends_the_run(folder):
    for fault, said in (("fail:200", "failed"), ("fail:3:rms_norm", "rms_norm")):
        done = train(folder, "faulty", "--device", "sim", status=4, TRIREME_SIM_FAULT=fault)
        assert said in done.stderr, done.stderr
    done = train(folder, "faulty", "--device", "sim", status=2, TRIREME_SIM_FAULT="fail")
    assert "TRIREME_SIM_FAULT=fail" in done.stderr and "flip:3:linear" in done.stderr, done.stderr
    done = train(folder, "clocked", "--device", "sim", status=2, TRIREME_SIM_CLOCK="h100-sxm-80g")
    assert "h100-sxm-80gb" in done.stderr, done.stderr
    train(folder, "clocked", "--device", "sim", TRIREME_SIM_CLOCK="h100-sxm-80gb")

    # A bit that is wrong is a wrong result, and nothing else.
    train(folder, "whole", "--device", "sim")
    train(folder, "flipped", "--device", "sim", TRIREME_SIM_FAULT="flip:40:linear")
    assert digest(folder, "flipped") != digest(folder, "whole")


@case
def a_run_goes_on_on_another_device(folder):
    train(folder, "whole")
    train(folder, "half", "--set", "checkpoint.every=20")
    train(folder, "rest", "--set", "checkpoint.every=20", "--device", "sim", "--resume", "half/checkpoints/step-20")
    assert digest(folder, "rest") == digest(folder, "whole")


@case
def generates_and_evaluates(folder):
    train(folder, "trained")
    texts = [tiny_run.checked(folder, "generate", "trained", "--prompt", "a", "--greedy", "--max-new-tokens", "8", "--device", device).stdout
             for device in ("cpu", "sim")]
    assert texts[0] == texts[1] and texts[0], texts
    figures = [json.loads(tiny_run.checked(folder, "eval", "trained", "--data", "valid.txt", "--json", "--device", device).stdout)
               for device in ("cpu", "sim")]
    assert figures[0] == figures[1], figures


@case
def memory_that_ends_is_said(folder):
    done = train(folder, "small", "--device", "sim", status=2, TRIREME_SIM_MEMORY_BYTES="65536")
    assert "memory" in done.stderr and "the device has" in done.stderr, done.stderr
    # What no plan foresees is the device's error, and no defect.
    train(folder, "model")
    done = tiny_run.checked(folder, "generate", "model", "--prompt", "a", "--device", "sim", status=4, TRIREME_SIM_MEMORY_BYTES="20000")
    assert "out of memory" in done.stderr and "defect" not in done.stderr, done.stderr


@case
def an_unknown_device_is_refused(folder):
    done = train(folder, "none", "--device", "smi", status=2)
    listing = train(folder, "none", "--device", "smi", "--dry-run", status=2).stdout
    assert listing.count('"smi"') == 2, listing  # the run file's value, and one problem
    assert '"smi"' in done.stderr and "'sim'" in done.stderr, done.stderr


@case
def a_device_that_is_not_there_is_its_own_error(folder):
    done = tiny_run.checked(folder, "bench", "train", "--device", "xpu", status=4)
    assert "libtrireme_xpu.so" in done.stderr and "docs/gpu.md" in done.stderr, done.stderr
    if os.path.exists("/dev/nvidiactl"):
        print("        not tried: --device cuda on a machine without such a device, for this one has one")
        return
    # Without the library, without what it links, or without a driver: each is said.
    done = train(folder, "none", "--device", "cuda", status=4)
    said = ("libtrireme_cuda.so is neither", "libtrireme_cuda.so does not open", "there is no NVIDIA device")
    assert any(text in done.stderr for text in said), done.stderr


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
