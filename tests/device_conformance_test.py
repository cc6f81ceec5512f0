#!/usr/bin/env python3
"""The conformance suite for devices, through the program: it passes on the processor, on the simulated accelerator and on a
plug-in, and it finds each thing that the plug-in of tests/devices/abacus can be told to do wrong.

Last line: `N passed, N failed`.
"""
import json
import os
import sys

import tiny_run

DEVICES = os.path.join(os.environ.get("TRIREME_BUILD_DIR", os.path.join(tiny_run.ROOT, "build")), "tests", "devices")
ON_ABACUS = ["--device", "abacus", "--plugin", os.path.join(DEVICES, "libabacus.so")]
BEHAVIOURS = ["queue-order", "queue-events", "events", "synchronize", "event-times", "recorded-work", "copies", "peer-copies",
              "memory-statistics", "out-of-memory", "memory-reuse", "random-numbers", "views", "host-reads"]
CASES = []


def case(function):
    CASES.append(function)
    return function


def conformance(folder, *arguments, status=0, defect=""):
    return json.loads(tiny_run.checked(folder, "bench", "conformance", *arguments, "--json", status=status, ABACUS_DEFECT=defect).stdout)


def every_behaviour(folder, *device, **options):
    names = [word for name in BEHAVIOURS for word in ("--behaviour", name)]
    got = conformance(folder, *names, *device, **options)
    assert [row["behaviour"] for row in got["behaviours"]] == BEHAVIOURS
    return {row["behaviour"]: row for row in got["behaviours"]}


@case
def the_processor_passes(folder):
    rows = every_behaviour(folder)
    assert all(row["trials"] > 0 for row in rows.values() if row["behaviour"] not in ("peer-copies", "recorded-work")), rows
    assert rows["peer-copies"]["skipped"], rows


@case
def the_simulated_accelerator_passes(folder):
    rows = every_behaviour(folder, "--device", "sim")
    assert all(row["trials"] > 0 and not row["skipped"] for row in rows.values()), rows


@case
def a_plug_in_passes(folder):
    rows = every_behaviour(folder, *ON_ABACUS)
    # PyTorch has no word for recording that a plug-in could be asked with.
    assert "records no work" in rows.pop("recorded-work")["skipped"], rows
    assert all(row["trials"] > 0 and not row["skipped"] for row in rows.values()), rows
    ops = conformance(folder, "--op", "rms_norm", "--op", "linear", *ON_ABACUS)
    assert {row["op"] for row in ops["results"]} == {"rms_norm", "linear"} and not ops["behaviours"], ops


@case
def the_whole_suite_says_that_it_is_ready(folder):
    got = conformance(folder, *ON_ABACUS)
    assert got["ok"] and len(got["results"]) > 35 and len(got["training"]) == 2, got
    assert {row["kernel"] for row in got["results"]} == {"aten"}, got
    assert [row["behaviour"] for row in got["behaviours"]] == BEHAVIOURS
    assert sum(row["trials"] for row in got["results"]) > 2000, got


@case
def what_a_plug_in_leaves_out_is_skipped_with_the_reason(folder):
    rows = every_behaviour(folder, *ON_ABACUS, defect="plain_allocator,plain_guard,plain_hooks,late_hooks,no_name")
    assert "c10::DeviceAllocator" in rows["memory-statistics"]["skipped"], rows
    assert "no generator" in rows["random-numbers"]["skipped"], rows
    assert sum(bool(row["skipped"]) for row in rows.values()) == 3, rows


@case
def everything_that_is_wrong_is_found(folder):
    for defect, behaviour in {"stack": "queue-order", "no_block": "queue-events", "lying_event": "events",
                              "no_synchronize": "synchronize", "backward_clock": "event-times", "early_copy": "copies",
                              "no_strides": "copies", "no_peer_wait": "peer-copies",
                              "leaky_count": "memory-statistics", "stuck": "out-of-memory", "early_free": "memory-reuse",
                              "no_seed": "random-numbers", "no_state": "random-numbers", "wrong_mul": "views",
                              "early_item": "host-reads"}.items():
        got = conformance(folder, "--behaviour", behaviour, *ON_ABACUS, status=4, defect=defect)
        row, = got["behaviours"]
        assert not got["ok"] and row["failed"] == len(row["problems"]) > 0, (defect, row)


@case
def a_table_for_people(folder):
    done = tiny_run.run(folder, "bench", "conformance", "--behaviour", "events", *ON_ABACUS, env={"ABACUS_DEFECT": "lying_event"})
    assert done.returncode == 4 and "trials break the contract" in done.stderr, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    row, = (words for words in lines if words[:3] == ["events", "abacus", "3"])
    assert int(row[3]) > 0, done.stdout
    assert "done() is true when the work before is done" in done.stdout, done.stdout


@case
def an_unknown_behaviour_is_refused(folder):
    done = tiny_run.run(folder, "bench", "conformance", "--behaviour", "event")
    assert done.returncode == 2 and "did you mean 'events'?" in done.stderr, done.stderr


@case
def training_is_compared_with_the_processor(folder):
    for defect, status in (("", 0), ("wrong_mul", 4)):
        done = tiny_run.run(folder, "bench", "conformance", "--training", *ON_ABACUS, "--json", env={"ABACUS_DEFECT": defect})
        assert done.returncode == status, (defect, done.stdout, done.stderr)
        runs = json.loads(done.stdout)["training"]
        assert [run["run"] for run in runs] == ["dense, fp32, adamw", "experts, fp32, adamw"], runs
        for run in runs:
            assert len(run["steps"]) == 4 and bool(run["problem"]) == (status != 0), run
    got = conformance(folder, "--training", "--device", "sim")
    assert all(run["same_bits"] for run in got["training"]), got


sys.exit(tiny_run.run_cases(CASES, lambda folder: folder))
