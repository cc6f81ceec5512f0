#!/usr/bin/env python3
"""Training over ranks as a user starts it: one result for threads and processes, lost ranks, interruption and going on with another
number of ranks. Last line: `N passed, N failed`."""
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

CASES = []
LANES = ("--set", "batch.lanes=4", "--set", "checkpoint.every=4")


def case(function):
    CASES.append(function)
    return function


def environment():
    names = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI", "SLURM_", "TRIREME_TOKEN")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(names)}, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def over(*ranks, out, dp, zero=0, sets=()):
    """The command that trains over ranks; `ranks` says what they are, () for one."""
    launch = ["launch", *map(str, ranks), "--"] if ranks else []
    return [tiny_run.TRIREME, *launch, "train", "run.toml", *LANES, "--set", f"out={out}", "--set", f"parallel.dp={dp}", "--set",
            f"parallel.zero={zero}", *sets]


def train(folder, *ranks, status=0, **options):
    done = subprocess.run(over(*ranks, **options), cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == status, f"status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def digest(folder, out):
    text = tiny_run.checked(folder, "checkpoint", "digest", f"{out}/checkpoints", "--json")
    return json.loads(text.stdout if hasattr(text, "stdout") else text)["digest"]


def losses(folder, out):
    with open(os.path.join(folder, out, "metrics.jsonl"), encoding="utf-8") as file:
        return [(line["step"], line["loss"], line["grad_norm"]) for line in map(json.loads, file)]


def started(folder, steps, *ranks, **options):
    """A run that is under way, once it has done so many steps."""
    process = subprocess.Popen(over(*ranks, **options),
                               cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    path = os.path.join(folder, options["out"], "metrics.jsonl")
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if os.path.exists(path) and len(losses(folder, options["out"])) >= steps:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("the run did not begin: " + process.communicate()[0])


def children(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


@case
def threads_and_processes_end_as_one_rank_does(folder):
    train(folder, out="one", dp=1)
    for name, ranks, dp, zero in (("threads", ("--threads", 3), 3, 1), ("processes", ("--nproc", 2), 2, 2),
                                  ("more", ("--nproc", 4), 4, 0), ("gathered", ("--nproc", 3), 3, 3),
                                  ("gathered-threads", ("--threads", 4), 4, 3), ("gathered-blocks", ("--nproc", 4), 4, 3)):
        sets = staged("shard=2") if name == "gathered-blocks" else ()
        text = train(folder, *ranks, out=name, dp=dp, zero=zero, sets=sets)
        assert "done: " in text, text
        assert digest(folder, name) == digest(folder, "one"), name
        assert losses(folder, name) == losses(folder, "one"), name


def deep_model(folder):
    """Settings of a run whose model can be cut into stages."""
    config = {**tiny_run.CONFIG, "num_hidden_layers": 4, "tie_word_embeddings": False}
    with open(os.path.join(folder, "deep.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return ("--set", "model.config=deep.json")


def staged(*sets):
    return [word for one in sets for word in ("--set", f"parallel.{one}")]


@case
def pipelines_of_threads_and_processes_end_as_one_rank_does(folder):
    deep = deep_model(folder)
    train(folder, out="deep", dp=1, sets=deep)
    for name, ranks, dp, zero, layout in (("grid", ("--threads", 4), 2, 1, ("pp=2",)),
                                          ("stages", ("--nproc", 2), 1, 0, ("pp=2", "schedule=zbv", "chunks=2")),
                                          ("more-stages", ("--nproc", 4), 2, 2, ("pp=2", "schedule=zb-h1")),
                                          ("gathered-stages", ("--nproc", 4), 2, 3, ("pp=2", "schedule=dualpipev", "chunks=2"))):
        text = train(folder, *ranks, out=name, dp=dp, zero=zero, sets=(*deep, *staged(*layout)))
        assert "done: " in text, text
        assert digest(folder, name) == digest(folder, "deep"), name
        assert losses(folder, name) == losses(folder, "deep"), name


def model_of_experts(folder):
    """Settings of a run whose model has four experts a layer."""
    config = {**tiny_run.CONFIG, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
              "num_experts_per_tok": 2, "tie_word_embeddings": False, "router_aux_loss_coef": 0.01, "output_router_logits": True}
    with open(os.path.join(folder, "experts.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return ("--set", "model.config=experts.json")


@case
def sums_may_be_rounded_or_left_to_the_transport(folder):
    in_bf16 = ("--set", "precision.gradient_sums=bf16")
    train(folder, out="rounded", dp=1, sets=in_bf16)
    for name, ranks, dp, zero in (("rounded-2", ("--nproc", 2), 2, 1), ("rounded-4", ("--threads", 4), 4, 3)):
        train(folder, *ranks, out=name, dp=dp, zero=zero, sets=in_bf16)
        assert digest(folder, name) == digest(folder, "rounded"), name
    exact = losses(folder, "rounded")
    for name, zero, sums in (("fast-0", 0, ()), ("fast-3", 3, ()), ("fast-bf16", 1, in_bf16)):
        train(folder, "--nproc", 2, out=name, dp=2, zero=zero, sets=(*staged("reduction=fast"), *sums))
        # The first step's loss knows no gradient yet, and its norm but the rounding of sums: at most two roundings to bf16, of 2^-8.
        # Then they differ by what follows from that.
        fast = losses(folder, name)
        assert fast[0][1] == exact[0][1], (fast[0], exact[0])
        assert abs(fast[0][2] - exact[0][2]) < 2 ** -7 * exact[0][2], (fast[0], exact[0])
        assert all(abs(a[1] - b[1]) < 0.02 * b[1] for a, b in zip(fast, exact)), name


@case
def experts_on_threads_and_processes_end_as_one_rank_does(folder):
    experts = model_of_experts(folder)
    train(folder, out="experts", dp=1, sets=experts)
    for name, ranks, dp, zero, layout in (("spread", ("--threads", 4), 4, 1, ("ep=4",)),
                                          ("spread-twice", ("--nproc", 4), 4, 2, ("ep=2",)),
                                          ("spread-gathered", ("--threads", 4), 4, 3, ("ep=2",)),
                                          ("spread-stages", ("--nproc", 4), 2, 0, ("ep=2", "pp=2", "schedule=1f1b"))):
        text = train(folder, *ranks, out=name, dp=dp, zero=zero, sets=(*experts, *staged(*layout)))
        assert "done: " in text, text
        assert digest(folder, name) == digest(folder, "experts"), name
        assert losses(folder, name) == losses(folder, "experts"), name
    # What one layout wrote another one goes on from.
    steps = ("--set", "schedule.steps=120")
    process = started(folder, 3, "--threads", 4, out="moved", dp=4, sets=(*experts, *steps, *staged("ep=4")))
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    train(folder, "--nproc", 2, out="moved", dp=2, zero=2, sets=(*experts, *steps, *staged("ep=2")))
    train(folder, out="straight", dp=1, sets=(*experts, *steps))
    assert losses(folder, "moved") == losses(folder, "straight")
    assert digest(folder, "moved") == digest(folder, "straight")


@case
def experts_that_cannot_be_spread_so_are_refused_by_name(folder):
    experts = model_of_experts(folder)
    text = train(folder, "--threads", 3, out="odd", dp=3, sets=(*experts, *staged("ep=3")), status=2)
    assert "parallel.ep = 3" in text and "experts of a layer" in text, text
    text = train(folder, "--threads", 4, out="blocks", dp=4, zero=1, sets=(*experts, *staged("ep=2", "shard=2")), status=2)
    assert "use parallel.shard = 0" in text, text


@case
def a_lost_stage_ends_the_pipeline(folder):
    process = started(folder, 6, "--nproc", 2, out="broken", dp=1,
                      sets=(*deep_model(folder), *staged("pp=2"), "--set", "schedule.steps=100000"))
    os.kill(children(process)[1], signal.SIGKILL)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGKILL, text
    assert re.search(r"\[0\] error: .*rank 1 \(.*\) is (gone|lost)", text), text
    tiny_run.checked(folder, "checkpoint", "verify", "broken/checkpoints")


@case
def what_a_pipeline_cannot_do_is_refused_by_name(folder):
    text = train(folder, "--threads", 2, out="tied", dp=1, sets=staged("pp=2"), status=2)
    assert "head multiplies with its embedding" in text and "use parallel." in text, text
    text = train(folder, "--threads", 2, out="none", dp=1, sets=(*deep_model(folder), *staged("pp=2", "schedule=zbv")), status=2)
    assert "use parallel.chunks = 2" in text, text


class TwoMachines:
    """Two network namespaces with a cable between them, each with a host name of its own."""

    def __init__(self):
        self.names = [f"trireme-{os.getpid()}-{side}" for side in "ab"]
        self.made = []

    def ip(self, *words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60, check=False)

    def __enter__(self):
        if shutil.which("ip") is None:
            raise tiny_run.Skipped("there is no `ip` (Debian: iproute2)")
        cable = [f"tr{os.getpid()}{side}" for side in "ab"]
        try:
            for name in self.names:
                done = self.ip("netns", "add", name)
                if done.returncode != 0:
                    raise tiny_run.Skipped("no network namespace can be made here: " + done.stderr.strip())
                self.made.append(name)
            wanted = [("link", "add", cable[0], "netns", self.names[0], "type", "veth", "peer", "name", cable[1], "netns", self.names[1])]
            for i, name in enumerate(self.names):
                inside = ("-n", name)
                wanted += [(*inside, "addr", "add", f"10.213.7.{i + 1}/24", "dev", cable[i]), (*inside, "link", "set", cable[i], "up"),
                           (*inside, "link", "set", "lo", "up")]
            for words in wanted:
                done = self.ip(*words)
                if done.returncode != 0:
                    raise tiny_run.Skipped(f"ip {' '.join(words)}: {done.stderr.strip()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.made:
            self.ip("netns", "del", name)

    def start(self, machine, command, folder, **more):
        inside = f"hostname machine-{machine} && exec \"$@\""
        return subprocess.Popen(["ip", "netns", "exec", self.names[machine], "unshare", "--uts", "sh", "-c", inside, "sh", *command],
                                cwd=folder, env={**environment(), **more}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)


@case
def two_machines_end_as_one_rank_does(folder):
    with TwoMachines() as machines:
        train(folder, out="alone", dp=1)
        for name, dp, zero, each in (("two-machines", 2, 1, 1), ("four-ranks", 4, 2, 2)):
            command = over("--nproc", each, "--nnodes", 2, "--rdzv", "10.213.7.1:29511", out=name, dp=dp, zero=zero)
            both = [machines.start(machine, command, folder, TRIREME_TOKEN="a token of more than 16") for machine in (0, 1)]
            texts = [process.communicate(timeout=120)[0] for process in both]
            assert [process.returncode for process in both] == [0, 0], texts
            assert digest(folder, name) == digest(folder, "alone"), name


@case
def a_killed_rank_ends_all_and_loses_no_checkpoint(folder):
    process = started(folder, 6, "--nproc", 3, out="killed", dp=3, sets=("--set", "schedule.steps=100000"))
    os.kill(children(process)[1], signal.SIGKILL)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGKILL, text
    for rank in (0, 2):
        assert re.search(rf"\[{rank}\] error: .*rank 1 \(.*\) is (gone|lost)", text), text
    assert "has not ended" not in text, text
    tiny_run.checked(folder, "checkpoint", "verify", "killed/checkpoints")


@case
def an_interrupted_run_goes_on_with_another_number_of_ranks(folder):
    steps = ("--set", "schedule.steps=120")
    process = started(folder, 3, "--nproc", 2, out="pieces", dp=2, zero=1, sets=steps)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    train(folder, "--threads", 3, out="pieces", dp=3, zero=2, sets=steps)
    train(folder, out="whole", dp=1, sets=steps)
    assert losses(folder, "pieces") == losses(folder, "whole")
    assert digest(folder, "pieces") == digest(folder, "whole")


@case
def another_number_of_ranks_than_the_run_asks_for_is_an_error(folder):
    text = train(folder, "--nproc", 2, out="none", dp=1, status=2)
    assert "[parallel] asks for 1 rank, and 2 are here" in text and "parallel.dp = 2" in text, text
    text = train(folder, out="none", dp=3, status=2)
    assert "asks for 3 ranks, and 1 is here" in text and "trireme launch --nproc 3" in text, text


@case
def ranks_that_were_given_different_things_say_what(folder):
    with open(os.path.join(folder, "run.toml"), encoding="utf-8") as file:
        text = file.read()
    with open(os.path.join(folder, "other.toml"), "w", encoding="utf-8") as file:
        file.write(text.replace("lr = 1e-2", "lr = 2e-2"))
    common = {**environment(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TRIREME_TOKEN": "sixteen letters!"}

    with socket.create_server(("127.0.0.1", 0)) as free:
        common["MASTER_PORT"] = str(free.getsockname()[1])
    processes = [subprocess.Popen([tiny_run.TRIREME, "train", name, *LANES, "--set", "parallel.dp=2", "--set", "out=differing"], cwd=folder, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                 for rank, name in enumerate(("run.toml", "other.toml"))]
    statuses = []
    for process in processes:
        text = process.communicate(timeout=120)[0]
        assert "run file differs" in text, text
        statuses.append(process.returncode)
    # Who sees it first ends with it; the other one sees it too, or that a peer ended for it.
    assert 2 in statuses and set(statuses) <= {2, 4}, statuses


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
