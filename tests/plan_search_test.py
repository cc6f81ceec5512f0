#!/usr/bin/env python3
"""`trireme plan search`: what it finds is what `plan simulate` prices, the run file that it writes trains, and what cannot be is
refused with what is short. Last line: `N passed, N failed`.
"""
import json
import math
import os
import signal
import subprocess
import sys

import tiny_run

CASES = []
# Two layers do not suit a pipeline with tied embeddings; a model of its own.
CONFIG = {**tiny_run.CONFIG, "num_hidden_layers": 4, "tie_word_embeddings": False}
LARGE = {**CONFIG, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
         "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}
SEARCH = ("plan", "search", "run.toml", "--cluster", "dgx-h100", "--accelerators", 4)


def case(function):
    CASES.append(function)
    return function


class Folder:
    """The working folder that all cases share."""

    def __init__(self, path):
        self.path = tiny_run.prepare(path)
        for name, config in {"config.json": CONFIG, "large.json": LARGE}.items():
            with open(os.path.join(path, name), "w", encoding="utf-8") as file:
                json.dump(config, file)

    def json(self, *arguments):
        return json.loads(tiny_run.checked(self.path, *arguments, "--json").stdout)

    def refused(self, *arguments):
        done = tiny_run.checked(self.path, *arguments, status=2)
        assert "Traceback" not in done.stderr and done.stderr.count("\n") <= 4, done.stderr
        return done.stderr


def near(got, expected, relative=1e-9):
    assert math.isclose(got, expected, rel_tol=relative), (got, expected)


@case
def best_are_ordered_and_fill_the_accelerators(folder):
    got = folder.json(*SEARCH, "--top", 7)
    assert len(got["best"]) == 7 and got["complete"] and 0 < got["feasible"] <= got["candidates"]
    steps = [one["step_s"] for one in got["best"]]
    assert steps == sorted(steps)
    for one in got["best"]:
        strategy = one["strategy"]
        assert strategy["dp"] * strategy["tp"] * strategy["pp"] * strategy["cp"] == 4, strategy
        assert 0 < one["peak_bytes"] <= got["limit_bytes"]
        near(sum(one["shares"].values()), 1.0, 0.05)
    front = [(one["step_s"], one["peak_bytes"]) for one in got["pareto"]]
    assert front[0] == (steps[0], got["best"][0]["peak_bytes"])
    for before, after in zip(front, front[1:]):
        assert before[0] <= after[0] and before[1] > after[1], front
    counts = got["counts"]
    assert got["candidates"] == sum(counts[key] for key in ("left_out", "by_memory_bound", "by_work_bound",
                                                              "by_timeline_bound", "priced")), counts


@case
def prices_are_those_of_simulate(folder):
    for one in folder.json(*SEARCH, "--top", 12, "--parallel", "sp=1")["best"]:
        strategy = one["strategy"]
        if "of" in strategy["recompute"]:
            continue  # several layers: a list in a run file
        sizes = [argument for key in ("dp", "zero", "tp", "pp", "chunks", "cp", "ep", "etp")
                 for argument in ("--parallel", f"{key}={strategy[key]}")]
        got = folder.json("plan", "simulate", "run.toml", "--cluster", "dgx-h100", *sizes,
                          "--set", f"parallel.schedule={strategy['schedule']}", "--set", f"batch.micro={strategy['micro']}",
                          "--set", f"parallel.cp_kind={strategy['cp_kind']}", "--set", "batch.lanes=1",
                          "--set", f"memory.recompute={strategy['recompute']}",
                          "--set", f"precision.recipe={strategy['precision']}")
        near(got["step_s"], one["step_s"])
        assert max(got["peak_bytes"]) == one["peak_bytes"], (one, got["peak_bytes"])


@case
def fixed_dimensions_stay(folder):
    got = folder.json(*SEARCH, "--parallel", "pp=2", "--parallel", "micro=1", "--parallel", "schedule=zb-h1")
    assert {(one["strategy"]["pp"], one["strategy"]["micro"], one["strategy"]["schedule"]) for one in got["best"]} == {
        (2, 1, "zb-h1")}


@case
def the_run_file_trains(folder):
    tiny_run.checked(folder.path, *SEARCH, "--parallel", "pp=2", "--parallel", "zero=1", "--trainable", "--out", "best.toml")
    plan = folder.json("train", "best.toml", "--dry-run")
    assert plan["problems"] == [], plan["problems"]
    done = tiny_run.checked(folder.path, "launch", "--threads", 4, "--", "train", "best.toml",
                            "--set", "schedule.steps=3", "--set", "out=trained")
    with open(os.path.join(folder.path, "trained", "metrics.jsonl"), encoding="utf-8") as file:
        losses = [json.loads(line)["loss"] for line in file]
    assert len(losses) == 3 and losses[-1] < losses[0], (losses, done.stderr)
    with open(os.path.join(folder.path, "best.toml"), encoding="utf-8") as file:
        text = file.read()
    assert "trireme plan search --cluster dgx-h100 --accelerators 4" in text


@case
def so_does_one_that_shares_its_weights(folder):
    tiny_run.checked(folder.path, *SEARCH, "--parallel", "dp=4", "--parallel", "zero=3", "--out", "shared.toml")
    assert folder.json("train", "shared.toml", "--dry-run")["problems"] == []


@case
def what_train_lacks_is_named(folder):
    done = tiny_run.checked(folder.path, *SEARCH, "--parallel", "dp=4", "--vary", "precision=bf16,fp8", "--set", "model.preset=llama-110m",
                            "--set", "model.config=", "--out", "second.toml")
    assert "precision fp8, which train does not have yet" in done.stderr and "second.toml" in done.stderr, done.stderr
    assert folder.json("train", "second.toml", "--dry-run")["problems"] == []
    stderr = folder.refused(*SEARCH, "--vary", "precision=fp8", "--out", "none.toml")
    assert "precision fp8" in stderr and "train does not have yet" in stderr, stderr
    assert not os.path.exists(os.path.join(folder.path, "none.toml"))


@case
def what_ranks_share_is_in_the_run_file(folder):
    for name in ("tp", "cp"):
        tiny_run.checked(folder.path, *SEARCH, "--parallel", f"{name}=2", "--parallel", "cp_kind=ring", "--out", f"{name}.toml")
        assert folder.json("train", f"{name}.toml", "--dry-run")["problems"] == []
        with open(os.path.join(folder.path, f"{name}.toml"), encoding="utf-8") as file:
            assert f"{name} = 2" in file.read()


@case
def nothing_that_fits_says_what_is_short(folder):
    large = (*SEARCH, "--set", "model.config=large.json", "--seq-len", 8192, "--batch", 8)
    stderr = folder.refused(*large)
    assert "GiB more than the 77.00 GiB" in stderr and "optimizer" in stderr, stderr
    done = tiny_run.run(folder.path, *large, "--json")
    got = json.loads(done.stdout)
    assert done.returncode == 2 and got["best"] == [] and got["feasible"] == 0
    # 405e9 parameters in float32 and bfloat16 with their moments, on four accelerators.
    assert got["short_bytes"] > 405e9 * 12 / 4 - 80e9, got["short_bytes"]
    assert got["smallest"]["peak_bytes"] - got["limit_bytes"] == got["short_bytes"]
    stderr = folder.refused(*SEARCH, "--batch", 7, "--parallel", "micro=2")
    assert "7 sequences" in stderr, stderr


@case
def wrong_arguments_are_named(folder):
    for arguments, words in ((("--parallel", "tpp=2"), ["tpp", "tp"]), (("--parallel", "tp"), ["tp", "value"]),
                             (("--parallel", "tp=3"), ["tp = 3", "4"]), (("--parallel", "recompute=most"), ["most", "full"]),
                             (("--vary", "precision=fp4"), ["fp4"]), (("--price", "2"), ["--tokens"]),
                             (("--reliability", "lama3-h100"), ["llama3-h100"]), (("--top", "0"), ["--top"])):
        stderr = folder.refused(*SEARCH, *arguments)
        assert all(word in stderr for word in words), (arguments, stderr)
    assert "h100" in folder.refused("plan", "search", "run.toml", "--cluster", "dgx-h10", "--accelerators", 4)


@case
def days_and_cost_follow_from_the_step(folder):
    got = folder.json(*SEARCH, "--tokens", 1e9, "--price", 3, "--checkpoint-s", 5, "--reliability", "rsc-a100")
    time = got["time"]
    tokens = tiny_run.SEQUENCES * tiny_run.SEQ_LEN
    assert time["steps"] == math.ceil(1e9 / tokens)
    near(time["days_without_failures"], time["steps"] * got["best"][0]["step_s"] / 86400)
    near(time["days"], time["days_without_failures"] / time["goodput"])
    near(time["hours_between_failures"], 7.9 * 1024 / 4, 1e-3)
    near(time["accelerator_hours"], time["days"] * 24 * 4)
    near(time["cost"], time["accelerator_hours"] * 3)
    # Young: the square root of twice the checkpoint times the time between failures, nearly.
    near(time["checkpoint_interval_s"], math.sqrt(2 * 5 * time["hours_between_failures"] * 3600), 0.02)


@case
def what_would_help_and_what_is_instead(folder):
    got = folder.json(*SEARCH)
    changes = {one["change"] for one in got["would_help"]}
    assert {"twice the peak operations", "twice the memory", "twice the batch"} <= changes, changes
    speedups = [one["speedup"] for one in got["would_help"] if one["fits"]]
    assert speedups == sorted(speedups, reverse=True)
    # More of anything never makes the best one slower.
    for one in got["would_help"]:
        if "batch" not in one["change"]:
            assert one["speedup"] >= 1 - 1e-9, one
    assert got["instead"] and all(one["step_s"] >= got["best"][0]["step_s"] for one in got["instead"] if one["fits"])


@case
def people_read_it(folder):
    text = tiny_run.checked(folder.path, *SEARCH, "--tokens", 1e9).stdout
    for words in ("candidates in", "the best", "bound by", "time against memory", "what would help most", "goodput",
                  "one thing changed"):
        assert words in text, (words, text)


@case
def an_interrupt_ends_it(folder):
    command = [tiny_run.TRIREME, "plan", "search", "run.toml", "--cluster", "dgx-h100", "--accelerators", "16384", "--set",
               "model.config=large.json", "--seq-len", "8192", "--batch", "2048", "--threads", "1"]
    with subprocess.Popen(command, cwd=folder.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as search:
        shown = search.stderr.readline()  # the first line of progress
        assert "search:" in shown, shown
        search.send_signal(signal.SIGINT)
        out, err = search.communicate(timeout=120)
    assert search.returncode == 130, (search.returncode, err)
    assert "interrupted" in out and "Traceback" not in err, (out, err)


sys.exit(tiny_run.run_cases(CASES, Folder))
