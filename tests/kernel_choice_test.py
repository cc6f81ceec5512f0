#!/usr/bin/env python3
"""Kernels of one's own and the choice among kernels, through the program: doctor, conformance, training.

The libraries are those that tests/CMakeLists.txt builds: the one of examples/kernel, a wrong one, and two of other
releases. Last line: `N passed, N failed`.
"""
import json
import os
import sys

import tiny_run

LIBRARIES = os.path.join(os.environ.get("TRIREME_BUILD_DIR", os.path.join(tiny_run.ROOT, "build")), "tests")
OURS = os.path.join(LIBRARIES, "my_rms_norm.so")
CASES = []


def case(function):
    CASES.append(function)
    return function


def document(folder, *arguments, status=0):
    return json.loads(tiny_run.checked(folder, *arguments, "--json", status=status).stdout)


def train(folder, name, kernels="", status=0, *more):
    with open(os.path.join(folder, f"{name}.toml"), "w", encoding="utf-8") as file:
        file.write(tiny_run.RUN.replace('out = "run"', f'out = "{name}"') + "\n[kernels]\n" + kernels + "\n")
    return tiny_run.checked(folder, "train", f"{name}.toml", *more, status=status)


def losses(folder, name):
    with open(os.path.join(folder, name, "metrics.jsonl"), encoding="utf-8") as file:
        return [entry["loss"] for entry in map(json.loads, file) if "loss" in entry]


@case
def doctor_lists_every_op(folder):
    rows = document(folder, "doctor", "--kernels")["kernels"]
    assert len({row["op"] for row in rows}) > 35
    for row in rows:
        assert row["device"] == "cpu" and row["chosen"] == "cpu", row
        assert [(c["name"], c["priority"]) for c in row["candidates"]] == [("cpu", 100), ("aten", 0)], row
    for row in document(folder, "doctor", "--kernels", "--device", "sim")["kernels"]:
        assert row["device"] == "sim" and row["chosen"] == "sim", row
    table = tiny_run.checked(folder, "doctor", "--kernels").stdout
    assert any(line.split()[:4] == ["rms_norm", "cpu", "bfloat16", "cpu"] for line in table.splitlines()), table


@case
def doctor_takes_a_library(folder):
    rows = document(folder, "doctor", "--kernels", "--load", OURS)["kernels"]
    for row in rows:
        assert row["chosen"] == ("my_rms_norm" if row["op"] == "rms_norm" else "cpu"), row


@case
def the_example_keeps_its_contract(folder):
    got = document(folder, "bench", "conformance", "--op", "rms_norm", "--load", OURS)
    assert got["ok"] and [result["kernel"] for result in got["results"]] == ["aten", "cpu", "my_rms_norm"]
    for result in got["results"]:
        assert result["trials"] > 50 and result["failed"] == 0 and 0 < result["worst"] <= 1, result


@case
def a_wrong_kernel_is_found(folder):
    library = os.path.join(LIBRARIES, "wrong_kernel.so")
    arguments = ["bench", "conformance", "--op", "rms_norm", "--kernel", "no_eps", "--load", library]
    got = document(folder, *arguments, status=4)
    result, = got["results"]
    assert not got["ok"] and result["failed"] == len(result["problems"]) > 0, result
    done = tiny_run.checked(folder, *arguments, status=4)
    assert "trials break the contract" in done.stderr and "the reference" in done.stdout, done.stdout


@case
def conformance_of_the_simulated_device(folder):
    got = document(folder, "bench", "conformance", "--op", "rms_norm", "--device", "sim")
    assert got["ok"] and {row["kernel"] for row in got["results"]} == {"sim", "aten"}, got


@case
def conformance_knows_names(folder):
    assert "did you mean 'rms_norm'?" in tiny_run.checked(folder, "bench", "conformance", "--op", "rmsnorm", status=2).stderr
    done = tiny_run.checked(folder, "bench", "conformance", "--op", "rms_norm", "--kernel", "cpy", status=2)
    assert "rms_norm has no kernel 'cpy'" in done.stderr, done.stderr


@case
def a_run_uses_it(folder):
    train(folder, "plain")
    train(folder, "ours", f'load = ["{OURS}"]\nuse = {{ rms_norm = "my_rms_norm" }}')
    plain, ours = losses(folder, "plain"), losses(folder, "ours")
    # The same function in another order of operations: float32 roundings over 40 steps apart, yet not the same bits.
    assert len(plain) == len(ours) == tiny_run.STEPS and plain != ours
    assert max(abs(a - b) for a, b in zip(plain, ours)) < 1e-2, (plain, ours)
    with open(os.path.join(folder, "ours", "run.toml"), encoding="utf-8") as file:
        text = file.read()
    assert 'use = { "rms_norm" = "my_rms_norm" }' in text, text
    # The effective file is a run file.
    tiny_run.checked(folder, "train", "ours/run.toml", "--dry-run")


@case
def a_run_goes_on_with_the_same_kernels_only(folder):
    train(folder, "changed", "", 0, "--set", "schedule.steps=4", "--set", "schedule.warmup=1")
    done = train(folder, "changed", 'use = { rms_norm = "aten" }', 2, "--set", "schedule.steps=4", "--set",
                 "schedule.warmup=1")
    assert "kernels.use" in done.stderr, done.stderr


@case
def the_reference_trains(folder):
    ops = sorted({row["op"] for row in document(folder, "doctor", "--kernels")["kernels"]})
    use = ", ".join(f'{op} = "aten"' for op in ops)
    train(folder, "plain2")
    train(folder, "reference", f"use = {{ {use} }}")
    plain, reference = losses(folder, "plain2"), losses(folder, "reference")
    assert len(plain) == len(reference) and max(abs(a - b) for a, b in zip(plain, reference)) < 1e-2, (plain, reference)


@case
def mistakes_are_named(folder):
    def refused(kernels):
        return train(folder, "wrong", kernels, 2).stderr

    assert "did you mean 'rms_norm'?" in refused('use = { rmsnorm = "aten" }')
    text = refused(f'load = ["{OURS}"]\nuse = {{ rms_norm = "my_rms_nrm" }}')
    assert "rms_norm has no kernel 'my_rms_nrm'" in text and "did you mean 'my_rms_norm'?" in text, text
    assert "./nothing.so: there is no such library" in refused('load = ["./nothing.so"]')
    stale = os.path.join(LIBRARIES, "stale_torch_kernel.so")
    assert "was built for torch 1.13.1" in refused(f'load = ["{stale}"]')
    assert "text.txt does not open" in refused('load = "text.txt"')
    assert "kernels.use wants a table of texts" in refused('use = "aten"')


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
