#!/usr/bin/env python3
"""Ranks as processes: `trireme launch`, torchrun, mpirun and srun's variables. Last line: `N passed, N failed`."""
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import tiny_run

BUILD = os.environ.get("TRIREME_BUILD_DIR", os.path.join(tiny_run.ROOT, "build"))
PROBE = os.path.join(BUILD, "tests", "rank_probe")
CASES = []
TOKEN = "a token of the tests"


def case(function):
    CASES.append(function)
    return function


def clean_environment(**more):
    """Without what the launcher of this test itself may have set."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI", "SLURM_", "TRIREME_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return {**kept, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def run(folder, *command, timeout=120, **environment):
    return subprocess.run([str(word) for word in command], cwd=folder, env=clean_environment(**environment),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)


def launch(folder, *arguments, **options):
    return run(folder, tiny_run.TRIREME, "launch", *arguments, **options)


def ranks_of(text):
    """What each rank wrote, by rank; every line must have one in front."""
    ranks = {}
    for line in text.splitlines():
        match = re.match(r"\[(\d+)\] (.*)", line)
        assert match, f"no rank in front of {line!r}"
        ranks.setdefault(int(match.group(1)), []).append(match.group(2))
    return ranks


def expect_met(done, size, ranks_in_front=True):
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}"
    said = re.findall(r"rank (\d+) of (\d+), local \d+: the ranks add up to (\d+)", done.stdout)
    assert sorted(said) == [(str(r), str(size), str(size * (size - 1) // 2)) for r in range(size)], done.stdout + done.stderr
    if ranks_in_front:
        for rank, lines in ranks_of(done.stdout).items():
            assert [f"rank {rank} of {size}" in line for line in lines] == [True], done.stdout


# --- trireme launch -------------------------------------------------------------------------------------------------
@case
def only_train_is_launched(folder):
    for arguments, words in ((["--", "plan", "explain", "run.toml"], ["'plan' does not run on several ranks", "-- train RUN.toml"]),
                             (["--", "trian", "run.toml"], ["'trian'", "did you mean 'train'?"]),
                             ([], ["nothing to launch is given"]),
                             (["--nproc", "0", "--", "train"], ["--nproc"]),
                             (["--nnodes", "2", "--", "train"], ["--rdzv HOST:PORT"]),
                             (["--rdzv", "h:1", "--", "train"], ["--nnodes is 1"]),
                             (["--threads", "2", "--nproc", "2", "--", "train"], ["--threads 2"]),
                             (["--nprox", "2", "--", "train"], ["unknown option '--nprox'", "--nproc"])):
        done = launch(folder, *arguments)
        assert done.returncode == 2 and all(word in done.stderr for word in words), (arguments, done.returncode, done.stderr)
        assert done.stdout == "", done.stdout


@case
def several_machines_need_a_token(folder):
    done = launch(folder, "--nnodes", "2", "--rdzv", "127.0.0.1:29500", "--", "train", "run.toml")
    assert done.returncode == 2 and "TRIREME_TOKEN is not set" in done.stderr, done.stderr
    done = launch(folder, "--nnodes", "2", "--rdzv", "127.0.0.1:29500", "--", "train", "run.toml", TRIREME_TOKEN="short")
    assert done.returncode == 2 and "5 characters" in done.stderr, done.stderr


@case
def one_launched_rank_trains_as_one_alone(folder):
    done = launch(folder, "--nproc", "1", "--", "train", "run.toml", "--set", "out=\"launched\"", "--set", "schedule.steps=3")
    assert done.returncode == 0, done.stderr
    assert set(ranks_of(done.stdout)) == {0} and set(ranks_of(done.stderr)) == {0}, done.stderr
    tiny_run.checked(folder, "train", "run.toml", "--set", "out=\"alone\"", "--set", "schedule.steps=3")
    digests = [tiny_run.checked(folder, "checkpoint", "digest", out).stdout for out in ("launched", "alone")]
    assert digests[0] == digests[1], digests
    # Threads of this process are ranks without anything in front.
    done = launch(folder, "--threads", "1", "--", "train", "run.toml", "--set", "out=\"threads\"", "--set", "schedule.steps=3")
    assert done.returncode == 0 and not done.stdout.startswith("["), done.stdout + done.stderr
    assert tiny_run.checked(folder, "checkpoint", "digest", "threads").stdout == digests[0]


@case
def json_is_one_document(folder):
    for arguments in (["--json", "--", "train", "run.toml"], ["--", "train", "run.toml", "--json"]):
        done = launch(folder, *arguments, "--dry-run")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == tiny_run.STEPS
        assert set(ranks_of(done.stderr)) <= {0}, done.stderr


@case
def errors_of_ranks_have_their_rank_and_status(folder):
    done = launch(folder, "--nproc", "3", "--", "train", "absent.toml")
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    for rank in range(3):
        assert any(line.startswith(f"[{rank}] error: ") for line in lines), done.stderr
    assert re.fullmatch(r"launch: rank \d failed with exit status 2", lines[-1]), done.stderr


@case
def an_interrupted_run_ends_with_130_and_a_checkpoint(folder):
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen([tiny_run.TRIREME, "launch", "--nproc", "1", "--", "train", "run.toml", "--set", f"out=\"i{number}\"",
                                    "--set", "schedule.steps=100000", "--set", "checkpoint.every=0"], cwd=folder, text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
        seen = ""
        while "step" not in seen.rpartition("[0]")[2] or "loss" not in seen:  # the first step is done
            line = process.stderr.readline()
            assert line, f"it ended early: {seen}"
            seen += line
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, (process.returncode, seen, errors)
        assert "is passed on to the ranks that run (1)" in errors and "[0] error: interrupted" in errors, errors
        assert glob.glob(os.path.join(folder, f"i{int(number)}", "checkpoints", "step-*")), os.listdir(folder)


# --- ranks that meet ------------------------------------------------------------------------------------------------
@case
def launched_ranks_meet(folder):
    for size in (1, 2, 5):
        expect_met(run(folder, PROBE, "launch", size, "meet"), size)


@case
def a_dead_rank_ends_the_others(folder):
    for victim in (0, 1, 3):
        done = run(folder, PROBE, "launch", 4, "die", victim)
        assert done.returncode == 128 + signal.SIGKILL, (done.returncode, done.stderr)
        errors = ranks_of("\n".join(line for line in done.stderr.splitlines() if not line.startswith("launch: ")))
        assert set(errors) == set(range(4)) - {victim}, done.stderr
        for lines in errors.values():
            assert re.fullmatch(rf"error: rank {victim} \([^)]*\)(, where the ranks meet,)? is gone(: .*)?", lines[-1]), lines
        assert f"launch: rank {victim} failed with signal 9" in done.stderr, done.stderr
        assert "is stopped" not in done.stderr, done.stderr  # they ended by themselves


@case
def a_rank_that_stops_the_run_says_why(folder):
    done = run(folder, PROBE, "launch", 3, "abort", 1)
    assert done.returncode in (4, 5), (done.returncode, done.stderr)
    for rank in (0, 2):
        assert re.search(rf"^\[{rank}\] error: rank 1 \(.*\) stopped the run: the loss is nan$", done.stderr, re.M), done.stderr


@case
def a_rank_that_hangs_is_stopped(folder):
    done = run(folder, PROBE, "launch", 3, "hang", 1)
    assert done.returncode == 3, (done.returncode, done.stderr)
    assert re.search(r"launch: rank 1 has not ended 5 s after rank [02] failed: it is stopped", done.stderr), done.stderr


@case
def missing_ranks_are_named(folder):
    done = run(folder, PROBE, "launch", 3, "meet", PROBE_TIMEOUT_S="1", PROBE_ABSENT="2")
    assert done.returncode == 4, (done.returncode, done.stderr)
    assert re.search(r"2 of 3 ranks came to 127\.0\.0\.1:\d+ within 1 s: rank 2 \(.*\) is missing", done.stderr), done.stderr


@case
def ranks_do_not_outlive_a_killed_launcher(folder):
    process = subprocess.Popen([PROBE, "launch", "2", "hang", "5"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env=clean_environment(PROBE_TIMEOUT_S="60", PROBE_ABSENT="1"))
    # Rank 0 waits for rank 1, which never comes.
    def children():
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            return file.read().split()
    end = time.monotonic() + 60
    while not children() and time.monotonic() < end:
        pass
    ranks = children()
    assert ranks, "no rank was started"
    process.kill()
    process.communicate(timeout=60)
    while any(os.path.exists(f"/proc/{pid}") for pid in ranks) and time.monotonic() < end:
        pass
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks), ranks


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@case
def launchers_of_two_machines_meet(folder):
    """Both are this machine; every rank says which rank it would be, for train refuses two of them as yet or trains."""
    port = free_port()
    command = [tiny_run.TRIREME, "launch", "--nproc", "2", "--nnodes", "2", "--rdzv", f"127.0.0.1:{port}", "--", "train", "absent.toml"]
    both = [subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=clean_environment(TRIREME_TOKEN=TOKEN)) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], outputs
    seen = sorted(tuple(sorted({int(rank) for rank in re.findall(r"^\[(\d)\]", output, re.M)})) for output in outputs)
    assert seen == [(0, 1), (2, 3)], outputs


# --- other launchers ------------------------------------------------------------------------------------------------
def by_hand(folder, variables, size, **common):
    """Starts the ranks with variables as another launcher sets them."""
    ranks = [subprocess.Popen([PROBE, "meet"], cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, env=clean_environment(XDG_RUNTIME_DIR=folder, **variables(rank), **common))
             for rank in range(size)]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    for rank, (process, (out, errors)) in enumerate(zip(ranks, outputs)):
        assert process.returncode == 0, errors
        assert out == f"rank {rank} of {size}, local {rank}: the ranks add up to {size * (size - 1) // 2}\n", (out, errors)


@case
def variables_of_mpirun_are_enough(folder):
    by_hand(folder, lambda rank: {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "3",
                                  "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, 3)


@case
def variables_of_srun_are_enough(folder):
    by_hand(folder, lambda rank: {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "77",
                                  "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODELIST": "here"}, 2)


@case
def variables_of_torchrun_and_a_token_are_enough(folder):
    port = free_port()
    by_hand(folder, lambda rank: {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                                  "MASTER_PORT": str(port), "TRIREME_TOKEN": TOKEN}, 2)


def torchrun():
    # `make parity` makes the environment in which PyTorch's Python works; the other one has its libraries alone.
    found = [path for name in ("peers", "venv") for path in glob.glob(os.path.join(tiny_run.ROOT, ".deps", name, "bin/torchrun"))]
    if not found:
        raise tiny_run.Skipped("there is no torchrun in .deps")
    program = found[0]
    try:
        asked = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:  # an environment of another machine, whose Python is not here
        raise tiny_run.Skipped(f"{program} does not run: {error}") from error
    if asked.returncode != 0:
        raise tiny_run.Skipped(f"{program} does not run: " + asked.stderr.strip().splitlines()[-1])
    return program


@case
def torchrun_starts_ranks_unchanged(folder):
    program = torchrun()
    expect_met(run(folder, program, "--no-python", "--nproc-per-node", 2, "--master-port", free_port(), PROBE, "meet",
                   XDG_RUNTIME_DIR=folder), 2, ranks_in_front=False)
    # Two agents, as on two machines: the ranks learn the address from the first agent's store.
    port = free_port()
    agents = [subprocess.Popen([program, "--no-python", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2",
                                "--master-addr", "127.0.0.1", "--master-port", str(port), PROBE, "meet"], cwd=folder,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=clean_environment(TRIREME_TOKEN=TOKEN, XDG_RUNTIME_DIR=folder)) for node in range(2)]
    outputs = [agent.communicate(timeout=300) for agent in agents]
    assert all(agent.returncode == 0 for agent in agents), outputs
    said = "".join(out for out, _ in outputs)
    assert sorted(re.findall(r"rank (\d) of 4, local (\d): the ranks add up to 6", said)) == \
        [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")], outputs


@case
def mpirun_starts_ranks_unchanged(folder):
    program = shutil.which("mpirun")
    if program is None:
        raise tiny_run.Skipped("there is no mpirun (Debian: openmpi-bin)")
    expect_met(run(folder, program, "--allow-run-as-root", "--oversubscribe", "-n", 3, PROBE, "meet", OMPI_ALLOW_RUN_AS_ROOT="1",
                   OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", XDG_RUNTIME_DIR=folder), 3, ranks_in_front=False)


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
