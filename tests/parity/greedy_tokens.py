#!/usr/bin/env python3
"""Greedy tokens beside transformers.generate, 256 of them through the key-value caches of both, fp32, all families.

For every case of goldens/model_cases.py and GREEDY_DRAWS (4) random configs of every family (goldens/model_draws.py), with a
fresh random seed: `trireme generate` continues two prompts of different length at once, the cases' from an imported checkpoint
and the draws' from the folder that transformers wrote. Both prompts begin within the context that a rotary scaling began with
and go far past it. Then the same with the ids that end a text, which generation_config.json or config.json names.

Two logits that are equal but for rounding may come out in either order. Where the tokens differ, transformers' own logits of both
must lie within 1e-5 of the largest apart; that is a line of the output, and both go on from Trireme's token.
Arguments: families to do alone; PARITY_SEED repeats a run. The last line is `N passed, N failed`.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from transformers import GenerationConfig

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
sys.path.insert(0, os.path.join(here, "..", "goldens"))
import model_cases  # noqa: E402
import model_draws  # noqa: E402

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()  # the draws are odd on purpose
os.environ.setdefault("OMP_NUM_THREADS", "1")
trireme = os.environ.get("TRIREME", os.path.join(root, "build", "trireme"))
seed = int(os.environ.get("PARITY_SEED", time.time_ns() % 1_000_000))
count = int(os.environ.get("GREEDY_DRAWS", 4))
only = sys.argv[1:]
print(f"PARITY_SEED={seed}")
NEW = 256
PROMPTS = (5, 13)  # tokens
TIE = 1e-5  # of the largest logit
LIVELY = 16  # different tokens


def run(*arguments):
    done = subprocess.run([trireme, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"trireme {' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def transformers_tokens(model, ids, new, ends=None):
    ids = torch.tensor([ids])
    pad = model.config.vocab_size - 1  # of no meaning to a single sequence
    settings = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=ends, pad_token_id=pad, use_cache=True)
    model.generation_config = settings
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return out[0, ids.shape[1]:].tolist()


def gap(model, ids, ours, theirs):
    """By how much transformers prefers its token, on the scale of the largest logit."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return float((logits[theirs] - logits[ours]).abs() / logits.abs().max())


def follow(model, prompt, ours):
    """Compares all of `ours`; the near-ties on the way, as lines."""
    ties, at = [], 0
    while at < len(ours):
        theirs = transformers_tokens(model, prompt + ours[:at], len(ours) - at)
        assert len(theirs) == len(ours) - at, f"transformers ends after {at + len(theirs)} of {len(ours)} tokens"
        different = next((i for i, (a, b) in enumerate(zip(ours[at:], theirs)) if a != b), None)
        if different is None:
            break
        at += different
        apart = gap(model, prompt + ours[:at], ours[at], theirs[different])
        assert apart < TIE, f"token {at} after {len(prompt)}: {ours[at]} for {theirs[different]}, whose logit is {apart:.1e} larger"
        ties.append(f"near-tie at token {at}: {ours[at]} and {theirs[different]} are {apart:.1e} apart")
        at += 1
    return ties


class Trial:
    """A model with random weights, and what Trireme makes of the prompts."""

    def __init__(self, folder, config, number, imported):
        self.model = model_cases.build_of(config, number)
        allowed = [i for i in range(config.vocab_size) if i != config.pad_token_id]
        generator = torch.Generator().manual_seed(number)
        self.prompts = [[allowed[i] for i in torch.randint(0, len(allowed), (length,), generator=generator)] for length in PROMPTS]
        source, lines = os.path.join(folder, f"source-{number}"), os.path.join(folder, f"prompts-{number}")
        self.model.save_pretrained(source)
        if imported:
            run("convert", "import", source, os.path.join(folder, f"ours-{number}"))
            source = os.path.join(folder, f"ours-{number}")
        with open(lines, "w") as file:
            file.writelines(json.dumps(prompt) + "\n" for prompt in self.prompts)
        self.command = ("generate", source, "--ids", lines, "--greedy", "-n", str(NEW))
        self.free = self.tokens("--ignore-eos")
        self.distinct = len({token for ids, _ in self.free for token in ids})

    def tokens(self, *options):
        return [(output["ids"], output["finish"]) for output in run(*self.command, *options)["outputs"]]


def compare(config, number, imported):
    config.max_position_embeddings = NEW + 32
    with tempfile.TemporaryDirectory() as folder:
        # Random weights easily repeat one token for ever: the liveliest of a few.
        trial = None
        for attempt in range(6):
            other = Trial(folder, config, number + 10_000 * attempt, imported)
            if trial is None or other.distinct > trial.distinct:
                trial = other
            if trial.distinct >= LIVELY:
                break
        ended = trial.tokens()
    ties = []
    for prompt, (ours, finish) in zip(trial.prompts, trial.free):
        assert len(ours) == NEW and finish == "length", f"{len(ours)} tokens, {finish}"
        ties += follow(trial.model, prompt, ours)
    # The same tokens, up to the first that ends a text: transformers shows that one.
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    cuts = 0
    for prompt, (ours, _), (cut, finish) in zip(trial.prompts, trial.free, ended):
        first = next((i for i, token in enumerate(ours) if token in ends), None)
        assert (cut, finish) == ((ours, "length") if first is None else (ours[:first], "eos")), f"with {ends}: {len(cut)} tokens, {finish}"
        if first is not None and not ties:
            theirs = transformers_tokens(trial.model, prompt, NEW, config.eos_token_id)
            assert theirs == ours[:first + 1], f"with {ends} transformers ends after {len(theirs)} tokens, not {first + 1}"
            cuts += 1
    return ties, f"{len(trial.free)} x {NEW} tokens, {trial.distinct} different ones" + f", {cuts} ended early" * (cuts > 0)


passed = failed = 0


def check(label, config, number, imported):
    global passed, failed
    try:
        ties, found = compare(config, number, imported)
        print(f"ok      {label}: {found}" + "".join(f"\n  {line}" for line in ties), flush=True)
        passed += 1
    except Exception as problem:  # of the peer too: every failure is a line of the result
        print(f"FAILED  {label}: {type(problem).__name__}: {problem}\n  {json.dumps(config.to_diff_dict(), default=str)}", flush=True)
        failed += 1


def wanted(name):
    return not only or name.split("-")[0] in only


for number, name in enumerate(model_cases.CASES):
    if wanted(name):
        check(name, model_cases.CASES[name](), seed + number, True)
for family in filter(wanted, model_draws.FAMILIES):
    for i, config in enumerate(model_draws.draws(family, seed, count)):
        check(f"{family} drawn {i}", config, seed + 1000 + i, False)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
