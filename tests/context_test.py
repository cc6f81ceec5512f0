#!/usr/bin/env python3
"""Sequences that ranks share, as a user trains on them: threads and processes, going on with another layout, and what is refused. Last
line: `N passed, N failed`."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import tiny_run

CASES = []
LANES = ("--set", "batch.lanes=4", "--set", "checkpoint.every=4")
# Rounding of float32 over forty steps of AdamW, which double what is left of it every few steps.
CLOSE = 1e-3


def case(function):
    CASES.append(function)
    return function


def command(*ranks, out, sets=()):
    launch = ["launch", *map(str, ranks), "--"] if ranks else []
    words = [word for one in (f"out={out}", *sets) for word in ("--set", one)]
    return [tiny_run.TRIREME, *launch, "train", "run.toml", *LANES, *words]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def train(folder, *ranks, status=0, **options):
    done = subprocess.run(command(*ranks, **options), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == status, f"status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def digest(folder, out):
    text = tiny_run.checked(folder, "checkpoint", "digest", f"{out}/checkpoints", "--json")
    return json.loads(text.stdout if hasattr(text, "stdout") else text)["digest"]


def lines(folder, out):
    with open(os.path.join(folder, out, "metrics.jsonl"), encoding="utf-8") as file:
        return list(map(json.loads, file))


def losses(folder, out):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines(folder, out)]


def near(got, want):
    assert [one[0] for one in got] == [one[0] for one in want]
    for (step, loss, norm), (_, want_loss, want_norm) in zip(got, want):
        assert abs(loss / want_loss - 1) < CLOSE and abs(norm / want_norm - 1) < 20 * CLOSE, (step, loss, want_loss, norm, want_norm)


def interrupt(*ranks, folder, out, sets):
    process = subprocess.Popen(command(*ranks, out=out, sets=sets), cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = os.path.join(folder, out, "metrics.jsonl")
    end = time.monotonic() + 120
    while not (os.path.exists(path) and len(lines(folder, out)) >= 3):
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert len(lines(folder, out)) < 60, "the run ended before it was interrupted"


@case
def threads_and_processes_end_alike_and_near_one_rank(folder):
    evaluated = ("eval.every=20",)
    train(folder, out="one", sets=evaluated)
    train(folder, "--threads", 2, out="gathers", sets=("parallel.cp=2", "parallel.cp_kind=gather"))
    near(losses(folder, "gathers"), losses(folder, "one"))
    train(folder, "--threads", 2, out="pair", sets=("parallel.cp=2", *evaluated))
    near(losses(folder, "pair"), losses(folder, "one"))
    for name, ranks, layout in (("processes", ("--nproc", 2), ("zero=1",)), ("grid", ("--threads", 4), ("dp=2", "zero=2")),
                                ("gathered", ("--nproc", 4), ("dp=2", "zero=3"))):
        text = train(folder, *ranks, out=name, sets=("parallel.cp=2", *evaluated, *(f"parallel.{one}" for one in layout)))
        assert "done: " in text, text
        assert losses(folder, name) == losses(folder, "pair"), name
        assert digest(folder, name) == digest(folder, "pair"), name
    for got, want in zip(lines(folder, "grid"), lines(folder, "one")):
        assert got["tokens"] == want["tokens"], (got, want)
        if "valid_loss" in want and want["valid_loss"] is not None:
            assert abs(got["valid_loss"] / want["valid_loss"] - 1) < CLOSE, (got, want)


@case
def tensor_parallel_ranks_share_sequences_too(folder):
    steps = ("schedule.steps=60", "eval.every=20")
    shares = ("parallel.tp=2", "parallel.cp=2")
    train(folder, out="single", sets=steps)
    train(folder, "--threads", 4, out="square", sets=(*shares, *steps))
    near(losses(folder, "square"), losses(folder, "single"))
    for got, want in zip(lines(folder, "square"), lines(folder, "single")):
        assert got["tokens"] == want["tokens"], (got, want)
        if "valid_loss" in want and want["valid_loss"] is not None:
            assert abs(got["valid_loss"] / want["valid_loss"] - 1) < CLOSE, (got, want)
    # Interrupted, and on with as many shares in another layout: the same bits. With one rank: close.
    interrupt("--nproc", 4, folder=folder, out="moved", sets=("parallel.zero=1", *shares, *steps))
    shutil.copytree(os.path.join(folder, "moved"), os.path.join(folder, "alone"))
    train(folder, "--threads", 8, out="moved", sets=("parallel.dp=2", "parallel.zero=3", *shares, *steps))
    assert losses(folder, "moved") == losses(folder, "square")
    assert digest(folder, "moved") == digest(folder, "square")
    train(folder, out="alone", sets=steps)
    near(losses(folder, "alone"), losses(folder, "single"))


@case
def an_interrupted_run_goes_on_under_another_cp(folder):
    steps = ("schedule.steps=60",)
    interrupt("--nproc", 2, folder=folder, out="pieces", sets=("parallel.cp=2", *steps))
    train(folder, out="pieces", sets=steps)
    train(folder, out="whole", sets=steps)
    near(losses(folder, "pieces"), losses(folder, "whole"))
    train(folder, "--threads", 4, out="four", sets=("parallel.cp=4", *steps))
    near(losses(folder, "four"), losses(folder, "whole"))


@case
def what_cannot_be_is_refused_by_name(folder):
    for sets, words in ((("parallel.cp=3", "data.seq_len=30"), "use parallel.cp = 2 or 4"),
                        (("parallel.cp=2", "data.seq_len=30"), "does not divide data.seq_len = 30"),
                        (("parallel.cp=2", "parallel.cp_kind=ulysses"), 'use parallel.cp_kind = "ring" or "gather"')):
        ranks = sets[0].split("=")[1]
        text = train(folder, "--threads", ranks, out="none", sets=sets, status=2)
        assert words in text, text


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
