#!/usr/bin/env python3
"""A run on the simulated accelerator, through the program: the bits of the processor, exact resume across devices, errors.

Last line: `N passed, N failed`.
"""
import json
import os
import sys
import tempfile
import traceback

import tiny_run

CASES = []


def case(function):
    CASES.append(function)
    return function


def run(folder, *arguments, status=0, **environment):
    done = tiny_run.run(folder, *arguments, env=environment)
    assert done.returncode == status, f"{arguments}: status {done.returncode}: {done.stdout[-2000:]}{done.stderr}"
    return done


def train(folder, out, *more, status=0, **environment):
    return run(folder, "train", "run.toml", "--set", f"out={out}", *more, status=status, **environment)


def losses(folder, name):
    with open(os.path.join(folder, name, "metrics.jsonl"), encoding="utf-8") as file:
        return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in map(json.loads, file)]


def digest(folder, name):
    return json.loads(run(folder, "checkpoint", "digest", name, "--json").stdout)["digest"]


@case
def the_simulated_device_trains_to_the_same_bits(folder):
    train(folder, "on_cpu")
    train(folder, "on_sim", "--device", "sim")
    assert losses(folder, "on_sim") == losses(folder, "on_cpu")
    assert digest(folder, "on_sim") == digest(folder, "on_cpu")


@case
def so_it_does_in_bf16_with_another_order_of_its_queues(folder):
    train(folder, "on_cpu", "--set", "precision.recipe=bf16")
    train(folder, "on_sim", "--set", "precision.recipe=bf16", "--device", "sim:2", TRIREME_SIM_SCHEDULE="shuffled",
          TRIREME_SIM_SEED="5")
    assert digest(folder, "on_sim") == digest(folder, "on_cpu")


@case
def a_run_goes_on_on_another_device(folder):
    train(folder, "whole")
    train(folder, "half", "--set", "checkpoint.every=20")
    train(folder, "rest", "--set", "checkpoint.every=20", "--device", "sim", "--resume", "half/checkpoints/step-20")
    assert digest(folder, "rest") == digest(folder, "whole")


@case
def generates_and_evaluates(folder):
    train(folder, "trained")
    texts = [run(folder, "generate", "trained", "--prompt", "a", "--greedy", "--max-new-tokens", "8", "--device", device).stdout
             for device in ("cpu", "sim")]
    assert texts[0] == texts[1] and texts[0], texts
    figures = [json.loads(run(folder, "eval", "trained", "--data", "valid.txt", "--json", "--device", device).stdout)
               for device in ("cpu", "sim")]
    assert figures[0] == figures[1], figures


@case
def memory_that_ends_is_said(folder):
    done = train(folder, "small", "--device", "sim", status=2, TRIREME_SIM_MEMORY_BYTES="65536")
    assert "memory" in done.stderr and "the device has" in done.stderr, done.stderr


@case
def an_unknown_device_is_refused(folder):
    done = train(folder, "none", "--device", "smi", status=2)
    assert '"smi"' in done.stderr and "'sim'" in done.stderr, done.stderr


def main():
    failed = 0
    for function in CASES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                tiny_run.write_files(folder)
                run(folder, *tiny_run.TRAIN_TOKENIZER)
                function(folder)
            except Exception:  # pylint: disable=broad-except
                failed += 1
                print(f"FAILED {function.__name__}")
                traceback.print_exc(file=sys.stdout)
    print(f"{len(CASES) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
