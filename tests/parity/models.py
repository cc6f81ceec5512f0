#!/usr/bin/env python3
"""Live parity with transformers: logits, loss and every parameter's gradient of all families, fp32.

For every case of goldens/model_cases.py, and PARITY_DRAWS (20) random configs of every family (goldens/model_draws.py), with a
fresh random seed: transformers saves the model, the probe program (build/tests/model_probe) reads that folder, runs forward and
backward through the executor's own path and writes what it got. Sequences are longer than the context that a rotary scaling began
with, and of LongRoPE's also shorter. Where transformers adds a balancing loss of one layer to its loss, so does the probe.
Arguments: families to do alone; PARITY_SEED repeats a run.
Bounds: logits of a position within 1e-5 of its largest magnitude, gradients within 1e-4 of theirs.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from safetensors.torch import load_file

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
sys.path.insert(0, os.path.join(here, "..", "goldens"))
import model_cases  # noqa: E402
import model_draws  # noqa: E402

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()  # the draws are odd on purpose
os.environ.setdefault("OMP_NUM_THREADS", "1")
probe = os.environ.get("TRIREME_MODEL_PROBE", os.path.join(root, "build", "tests", "model_probe"))
seed = int(os.environ.get("PARITY_SEED", time.time_ns() % 1_000_000))
count = int(os.environ.get("PARITY_DRAWS", 20))
only = sys.argv[1:]
print(f"PARITY_SEED={seed}")


def differences(got, want):
    """By name (logits, loss, every gradient): the largest difference relative to the largest value, and its bound."""
    def relative(a, b):
        return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30))

    # Every position on its own scale: a rotary error far out may hide behind larger logits.
    apart = (got["logits"].double() - want["logits"].double()).abs().amax(-1)
    logits = float((apart / want["logits"].double().abs().amax(-1).clamp_min(1e-30)).max())
    worst = {"logits": (logits, 1e-5), "loss": (relative(got["loss"], want["loss"]), 1e-5)}
    overall = max(float(tensor.abs().max()) for name, tensor in want.items() if name.startswith("gradient."))
    for name, tensor in want.items():
        if name.startswith("gradient.") and name in got:
            # A gradient that is zero in exact arithmetic (a key's bias) is compared on the scale of its layer.
            scale = max(float(tensor.abs().max()), 1e-3 * overall)
            worst[name] = (float((got[name].double() - tensor.double()).abs().max()) / scale, 1e-4)
    return worst


def reference(model, ids):
    logits, loss, gradients = model_cases.reference(model, ids)
    return {"logits": logits, "loss": loss.reshape(1), **{f"gradient.{key}": value for key, value in gradients.items()}}


def rounding(model, ids, want):
    """What transformers' own numbers move by, in shares of the bounds, when every weight moves by half a unit in its last place."""
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    moved = 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, weight in zip(model.parameters(), weights):
                parameter.copy_(weight * (1 + 6e-8 * torch.sign(torch.randn(weight.shape, generator=generator))))
        moved = max(moved, *(value / bound for value, bound in differences(reference(model, ids), want).values()))
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights):
            parameter.copy_(weight)
    return moved


def model_and_reference(config, number, length):
    """Random weights with which the bounds mean something: two tokens' experts that are equal but for rounding, or a norm of
    next to nothing, make numbers that no two programs share. How many others there were before."""
    # transformers gives the padding's row of the embedding no gradient: it does not occur.
    allowed = torch.tensor([i for i in range(config.vocab_size) if i != config.pad_token_id])
    for attempt in range(10):
        seed = number + 10_000 * attempt
        model = model_cases.build_of(config, seed)
        ids = allowed[torch.randint(0, len(allowed), (2, length), generator=torch.Generator().manual_seed(seed))]
        want = reference(model, ids)
        if rounding(model, ids, want) < 0.2:
            return model, ids, want, attempt
    raise AssertionError("transformers' own numbers are within the bounds of nothing with ten sets of weights")


redrawn = 0


def compare(config, number, length):
    """What lies outside its bound, and a line on what was found."""
    global redrawn
    model, ids, want, others = model_and_reference(config, number, length)
    redrawn += others
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ids_file, out = os.path.join(folder, "ids.json"), os.path.join(folder, "out.safetensors")
        with open(ids_file, "w") as file:
            json.dump(ids.tolist(), file)
        done = subprocess.run([probe, folder, ids_file, out], capture_output=True, text=True)
        if done.returncode != 0:
            return [done.stderr.strip()], ""
        got = load_file(out)
    worst = differences(got, want)
    bad = [f"{key} {value:.1e} > {bound}" for key, (value, bound) in worst.items() if not value <= bound]
    bad += [f"no {key}" for key in sorted(set(want) - set(worst))]
    gradient = max(value for key, (value, _) in worst.items() if key.startswith("gradient."))
    return bad, (f"logits {worst['logits'][0]:.1e}, worst gradient {gradient:.1e}"
                 + ", with its balancing loss" * model_cases.balance_in_loss(model))


passed = failed = 0


def check(label, config, number, length):
    global passed, failed
    try:
        bad, found = compare(config, number, length)
    except Exception as problem:  # of the peer too: every failure is a line of the result
        bad, found = [f"{type(problem).__name__}: {problem}"], ""
    print(("FAILED " if bad else "ok     ") + f"{label}: {found}" + "".join("\n  " + line for line in bad), flush=True)
    if bad:
        print(f"  {length} tokens, {json.dumps(config.to_diff_dict(), default=str)}")
    passed, failed = (passed, failed + 1) if bad else (passed + 1, failed)


def wanted(name):
    return not only or name.split("-")[0] in only


for number, name in enumerate(model_cases.CASES):
    if wanted(name):
        check(name, model_cases.CASES[name](), seed + number, 48)
for family in filter(wanted, model_draws.FAMILIES):
    configs = model_draws.draws(family, seed, count)
    rng = random.Random(seed)
    for i, config in enumerate(configs):
        shortest = 2 if i % 4 == 0 else 33
        check(f"{family} drawn {i}", config, seed + 1000 + i, rng.randint(shortest, config.max_position_embeddings))
    same = model_draws.undrawn(family, configs) if count >= 20 else []
    if same:
        print(f"FAILED {family}: nothing draws {', '.join(same)}")
        failed += 1
print(f"{redrawn} sets of weights were drawn anew: transformers' own numbers depend on their rounding")
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
