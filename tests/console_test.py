#!/usr/bin/env python3
"""What goes where: `--quiet` empties stderr and leaves stdout as it is; an interrupted command leaves nothing behind.

Last line: `N passed, N failed`.
"""
import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import tiny_run

CASES = []


def case(function):
    CASES.append(function)
    return function


def on_a_terminal(folder, *arguments):
    """(status, what a terminal behind stderr gets, stdout)"""
    master, slave = pty.openpty()
    with open(os.path.join(folder, "stdout.txt"), "w+", encoding="utf-8") as out:
        process = subprocess.Popen([tiny_run.TRIREME, *map(str, arguments)], cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=slave, env={**os.environ, "OMP_NUM_THREADS": "1"})
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError as error:  # Linux says so when the last writer is gone
                assert error.errno == errno.EIO
                break
            if not piece:
                break
            shown += piece
        os.close(master)
        status = process.wait(timeout=300)
        out.seek(0)
        return status, shown.decode(errors="replace"), out.read()


def fresh(folder, *names):
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.remove(path)


# Commands whose stdout does not depend on the clock, and what has to go before each run.
SAME_OUTPUT = [
    (["tokenize", "train", "text.txt", "--vocab-size", "300", "--out", "second.json"], ["second.json"]),
    (["tokenize", "encode", "--tokenizer", "tokenizer.json", "valid.txt"], []),
    (["tokenize", "decode", "--tokenizer", "tokenizer.json", "--ids", "40,41,42"], []),
    (["data", "prepare", "--tokenizer", "tokenizer.json", "--out", "prepared", "text.txt"], ["prepared.idx"]),
    (["data", "inspect", "valid.txt", "--tokenizer", "tokenizer.json"], []),
    (["eval", "run", "--data", "valid.txt"], []),
    (["eval", "run", "--ids", "lines.ids"], []),
    (["generate", "run", "--prompt", "The quick", "-n", "8", "--seed", "3"], []),
    (["convert", "export", "run", "exported"], ["exported"]),
    (["convert", "import", "run/export", "imported"], ["imported"]),
    (["checkpoint", "list", "run"], []),
    (["checkpoint", "verify", "run"], []),
    (["checkpoint", "digest", "run"], []),
    (["checkpoint", "diff", "run", f"run/checkpoints/step-{tiny_run.STEPS}"], []),
    (["trace", "summary", "run/trace.json"], []),
    (["trace", "compare", "run/trace.json", "run/trace.json"], []),
    (["trace", "export", "run/trace.json"], []),
    (["plan", "simulate", "run.toml", "--gemm-gflops", "100"], []),
    (["plan", "explain", "run.toml"], []),
]


@case
def quiet_leaves_stdout_and_empties_stderr(folder):
    with open(os.path.join(folder, "lines.ids"), "w", encoding="utf-8") as file:
        file.write("[40, 41, 42]\n")
    for arguments, made in SAME_OUTPUT:
        results = []
        for more in ([], ["--quiet"]):
            fresh(folder, *made)
            done = tiny_run.run(folder, *arguments, *more)
            assert done.returncode == 0, f"{arguments} {more}: {done.stderr}"
            results.append(done)
        assert results[0].stdout, arguments
        plain, quiet = (result.stdout for result in results)
        assert plain == quiet, f"{arguments}: {plain!r} and {quiet!r}"
        assert results[1].stderr == "", f"{arguments}: {results[1].stderr}"


@case
def quiet_training_shows_its_result_alone(folder):
    fresh(folder, "again")
    more = ["--set", "out=\"again\"", "--set", "schedule.steps=3", "--set", "sample.prompts=[\"The\"]"]
    done = tiny_run.run(folder, "train", "run.toml", *more, "--quiet")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "--- The" in done.stdout and "done" in done.stdout, done.stdout
    fresh(folder, "again")
    noisy = tiny_run.run(folder, "train", "run.toml", *more)
    assert noisy.returncode == 0 and "tokens" in noisy.stderr, noisy.stderr
    fresh(folder, "again")


@case
def quiet_measuring_shows_its_result_alone(folder):
    dry_run = ["train", "run.toml", "--dry-run", "--set", "out=\"dry\"", "--set", "data.cache=\"dry-cache\""]
    for arguments, note in ((["doctor"], "measuring"), (["plan", "simulate", "run.toml"], "measured"), (dry_run, "tokenizing"),
                            (["bench", "gemm", "--shape", "16x16x16", "--seconds", "0.01"], "")):
        done = tiny_run.run(folder, *arguments)
        assert done.returncode == 0 and note in done.stderr, done.stderr
        fresh(folder, "dry-cache")
        quiet = tiny_run.run(folder, *arguments, "--quiet")
        assert quiet.returncode == 0 and quiet.stdout and quiet.stderr == "", quiet.stderr


@case
def quiet_leaves_a_terminal_blank(folder):
    tokenizer, prepared = SAME_OUTPUT[0], SAME_OUTPUT[3]
    for arguments, made in (tokenizer, prepared):
        fresh(folder, *made)
        status, shown, _ = on_a_terminal(folder, *arguments)
        assert status == 0 and "\r" in shown, repr(shown)  # a line that is written over
        fresh(folder, *made)
        status, shown, out = on_a_terminal(folder, *arguments, "--quiet")
        assert status == 0 and shown == "" and out, repr(shown)


@case
def quiet_keeps_warnings_and_errors(folder):
    done = tiny_run.run(folder, "tokenize", "train", "valid.txt", "--vocab-size", "5000", "--out", "third.json", "--quiet")
    assert done.returncode == 0 and "warning" in done.stderr, done.stderr
    done = tiny_run.run(folder, "eval", "run", "--data", "missing.txt", "--quiet")
    assert done.returncode == 3 and "missing.txt" in done.stderr, done.stderr


def interrupted_eval(folder, number, ready, *arguments):
    """Sends a signal once `ready(stderr line)` or, without lines to wait for, once the temporary folder is there."""
    scratch = os.path.join(folder, "scratch")
    fresh(folder, "scratch")
    os.mkdir(scratch)
    process = subprocess.Popen([tiny_run.TRIREME, "eval", "run", *arguments, "--verbose"], cwd=folder,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"})
    if ready is None:
        end = time.monotonic() + 120
        while not os.listdir(scratch) and process.poll() is None and time.monotonic() < end:
            pass
    else:
        while not ready(process.stderr.readline()) and process.poll() is None:
            pass
    process.send_signal(number)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130, f"status {process.returncode}: {errors}"
    assert "interrupted" in errors and out == "", (out, errors)
    assert os.listdir(scratch) == [], os.listdir(scratch)


@case
def an_interrupted_evaluation_leaves_no_temporary_folder(folder):
    with open(os.path.join(folder, "long.txt"), "w", encoding="utf-8") as file:
        file.write(tiny_run.TEXT * 1000)
    evaluating = lambda line: " windows" in line
    for number in (signal.SIGINT, signal.SIGTERM):
        interrupted_eval(folder, number, evaluating, "--data", "long.txt", "--rows", "1")
    interrupted_eval(folder, signal.SIGINT, None, "--data", "long.txt", "--rows", "1")


@case
def an_interrupted_evaluation_of_ids_says_so(folder):
    with open(os.path.join(folder, "many.ids"), "w", encoding="utf-8") as file:
        file.write((json.dumps(list(range(40, 80))) + "\n") * 50000)
    process = subprocess.Popen([tiny_run.TRIREME, "eval", "run", "--ids", "many.ids"], cwd=folder, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    # Its handlers are in place: both signals are caught.
    caught = (1 << (signal.SIGINT - 1)) | (1 << (signal.SIGTERM - 1))
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt:"))
        if mask & caught == caught:
            break
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "interrupted" in errors and out == "", (process.returncode, errors)


sys.exit(tiny_run.run_cases(CASES, tiny_run.train))
