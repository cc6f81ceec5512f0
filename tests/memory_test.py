#!/usr/bin/env python3
"""Memory through the program: what --dry-run predicts is what a step holds, offload changes no bit, and a run that does not fit
is told what would.

Last line: `N passed, N failed`.
"""
import json
import os
import re
import sys

import tiny_run

CASES = []
# Wide and long enough that tensors count and not the small change of each.
CONFIG = {**tiny_run.CONFIG, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 128}
EXPERTS = {**CONFIG, "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "moe_intermediate_size": 96,
           "num_experts": 8, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 128, "decoder_sparse_step": 1}
# The output head decides; one expert gets almost everything.
WORDY = {**CONFIG, "vocab_size": 20000, "hidden_size": 64, "num_hidden_layers": 1}
ONE_EXPERT = {**EXPERTS, "num_experts": 16, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 16}
BASE = {"data.seq_len": 128, "batch.sequences": 8, "batch.micro": 4, "batch.lanes": 2, "schedule.steps": 2, "schedule.warmup": 1,
        "log.report": "false", "export.enabled": "false", "log.tensorboard": "false"}


def case(function):
    CASES.append(function)
    return function


def train(folder, out, settings, *more, status=0, **environment):
    sets = [part for key, value in {**BASE, "out": out, **settings}.items() for part in ("--set", f"{key}={value}")]
    return tiny_run.checked(folder, "train", "run.toml", *sets, *more, status=status, **environment)


def predicted(folder, settings, **environment):
    return json.loads(train(folder, "looked_at", settings, "--dry-run", "--json", **environment).stdout)


def metrics(folder, out):
    with open(os.path.join(folder, out, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digest(folder, out):
    return json.loads(tiny_run.checked(folder, "checkpoint", "digest", out, "--json").stdout)["digest"]


@case
def a_step_holds_what_was_predicted(folder):
    offload = {"memory.offload_activations": "all", "memory.offload_optimizer": "true"}
    runs = [("cpu", {}), ("cpu", {"precision.recipe": "bf16", "memory.recompute": "full"}),
            ("cpu", {"model.config": "experts.json", "memory.recompute": "selective"}),
            ("cpu", {"optim.name": "muon", "batch.micro": 2}),
            ("sim", {}), ("sim", {"precision.recipe": "bf16", "memory.recompute": "selective", "optim.name": "muon"}),
            ("sim", {"model.config": "experts.json"}),
            ("sim", {**offload}), ("sim", {"memory.recompute": "full", **offload}),
            ("sim", {"model.config": "experts.json", "precision.recipe": "bf16", **offload})]
    # Kernels that say themselves what they hold: an accelerator's, in their emulation.
    emulated = {"kernels.load": os.path.join(os.environ["TRIREME_BUILD_DIR"], "tests/emulated_kernels.so")}
    runs += [("cpu", {**emulated}), ("cpu", {"precision.recipe": "bf16", **emulated}),
             ("cpu", {"model.config": "experts.json", "precision.recipe": "bf16", **emulated}),
             ("cpu", {"model.config": "wordy.json", **emulated}),
             ("cpu", {"model.config": "wordy.json", "precision.recipe": "bf16", **emulated}),
             ("cpu", {"model.config": "one_expert.json", "precision.recipe": "bf16", **emulated}),
             ("sim", {"data.packing": "stream", "device.graphs": "true"}),
             ("sim", {"kernels.use": '{attention = "aten", attention_backward = "aten"}'})]
    for number, (device, settings) in enumerate(runs):
        settings = {"device.name": device, **settings}
        plan = predicted(folder, settings)
        assert not plan["peak_is_estimate"], plan
        train(folder, f"held_{number}", settings)
        held = max(entry["peak_bytes"] for entry in metrics(folder, f"held_{number}"))
        ratio = plan["peak_bytes"] / held
        print(f"        {ratio:.4f} of {held} bytes: {settings}")
        assert 0.98 <= ratio <= 1.02, f"{settings}: predicted {plan['peak_bytes']}, held {held}"


@case
def offload_changes_no_bit_and_checkpoints_go_both_ways(folder):
    four = {"schedule.steps": 4, "device.name": "sim"}
    both = {**four, "memory.offload_activations": "all", "memory.offload_optimizer": "true"}
    train(folder, "plain", {**four, "device.name": "cpu"})
    train(folder, "offloaded", both, TRIREME_SIM_SCHEDULE="shuffled")
    assert digest(folder, "offloaded") == digest(folder, "plain")
    assert [e["loss"] for e in metrics(folder, "offloaded")] == [e["loss"] for e in metrics(folder, "plain")]
    # Begun with the states on the host, gone on without, and the other way round.
    for name, first, then in (("there", both, four), ("back", four, both)):
        train(folder, f"{name}_half", {**first, "checkpoint.every": 2})
        train(folder, name, {**then, "checkpoint.every": 2}, "--resume", f"{name}_half/checkpoints/step-2")
        assert digest(folder, name) == digest(folder, "plain"), name


def advised(text):
    """The first setting that an error proposes, as --set takes it, and what it is said to need."""
    found = re.search(r"hint: (.*?) needs ([0-9.]+ \w+), which fits", text)
    assert found, text
    return {key: value for key, value in (one.split(" = ") for one in found.group(1).split(", "))}


@case
def what_does_not_fit_is_told_what_would(folder):
    sim = {"device.name": "sim"}
    peak = predicted(folder, sim)["peak_bytes"]
    cap = str(int(0.9 * peak))
    done = train(folder, "large", sim, status=2, TRIREME_SIM_MEMORY_BYTES=cap)
    assert "a step needs" in done.stderr and "the device has" in done.stderr, done.stderr
    setting = advised(done.stderr)
    train(folder, "smaller", {**sim, **setting}, TRIREME_SIM_MEMORY_BYTES=cap)
    assert max(e["peak_bytes"] for e in metrics(folder, "smaller")) <= int(cap)
    # Where nothing helps, that is said.
    done = train(folder, "hopeless", sim, status=2, TRIREME_SIM_MEMORY_BYTES="2000000")
    assert "even " in done.stderr and "smaller model" in done.stderr, done.stderr


@case
def memory_that_ends_in_a_step_is_told_by_kind(folder):
    # The planner does not know what these kernels hold, says so, and learns of it when memory ends.
    wide = {"device.name": "sim", "kernels.use": '{linear_cross_entropy = "aten"}', "memory.loss_chunk_rows": 512}
    plan = predicted(folder, wide)
    assert plan["peak_is_estimate"]
    assert "an estimate" in train(folder, "looked_at", wide, "--dry-run").stdout
    cap = str(int(1.01 * plan["peak_bytes"]))
    done = train(folder, "wide", wide, status=4, TRIREME_SIM_MEMORY_BYTES=cap)
    for word in ("step 1: out of memory at ", "loss head micro-batch", "were asked for", "held: weights ", "optimizer states ",
                 "activations ", "attention ", "mlp ", "workspace "):
        assert word in done.stderr, f"{word}: {done.stderr}"
    setting = advised(done.stderr)
    train(folder, "wide_but_less", {**wide, **setting}, TRIREME_SIM_MEMORY_BYTES=cap)


@case
def the_processor_has_nowhere_to_offload_to(folder):
    for key, value in (("memory.offload_activations", "all"), ("memory.offload_optimizer", "true")):
        done = train(folder, "on_cpu", {key: value}, status=2)
        assert key in done.stderr and '"cpu" has no other' in done.stderr, done.stderr
    done = train(folder, "on_sim", {"memory.offload_activations": "mlpp", "device.name": "sim"}, status=2)
    assert '"mlpp"' in done.stderr and '"mlp"' in done.stderr, done.stderr


@case
def the_plan_shows_it(folder):
    sets = [part for key, value in {**BASE, "device.name": "sim", "memory.offload_activations": "all"}.items()
            for part in ("--set", f"{key}={value}")]
    text = tiny_run.checked(folder, "plan", "explain", "run.toml", *sets).stdout
    assert "offload layer.0.mlp" in text and "copy-out" in text and "copy-in" in text, text
    assert "offloaded to the host" in text, text
    figures = json.loads(tiny_run.checked(folder, "plan", "simulate", "run.toml", *sets, "--json").stdout)
    assert figures["copy_s"] > 0 and figures["host_peak_bytes"] > 0, figures


def prepare(folder):
    tiny_run.prepare(folder)
    for name, config in (("config.json", CONFIG), ("experts.json", EXPERTS), ("wordy.json", WORDY), ("one_expert.json", ONE_EXPERT)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(config, file)
    return folder


sys.exit(tiny_run.run_cases(CASES, prepare))
