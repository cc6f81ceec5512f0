#!/usr/bin/env python3
"""`trireme eval --tasks` against lm-evaluation-harness itself (scripts/setup peers installs it), question by question.

The harness's own task class and evaluator score the file's questions with its own model class on transformers, and say which are right by
`acc`, `acc_norm` and `acc_bytes`. Beside it the definition is written out here; the two must agree on every score. Fails where the harness is
not installed. The last line is "N passed, M failed".
"""

import json
import logging
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ["TQDM_DISABLE"] = "1"  # before the harness is imported

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from huggingface_hub.utils import disable_progress_bars  # noqa: E402
from lm_eval import evaluator  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZERS = ROOT / "tests/goldens/tokenizers"
CONTEXT = 48
MEASURES = ("acc", "acc_norm", "acc_bytes")
# Tokenizers with and without a beginning-of-text token, byte-level and on characters.
FAMILIES = {"qwen2": {"eos_token": "<|endoftext|>"}, "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
            "llama2": {"bos_token": "<s>", "eos_token": "</s>"}, "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
            "deepseek3": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}}


def make_model(folder, family):
    (folder / "tokenizer.json").write_text((TOKENIZERS / f"{family}.tokenizer.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **FAMILIES[family])
    (folder / "tokenizer_config.json").write_text(json.dumps(FAMILIES[family]))
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    return model, tokenizer


def questions(tokenizer, count):
    rng = random.Random(5)
    words = ["the", "answer", "Wien", "naïve", "日本", "2+2", "=", "is", "a", "an", "I", "don't", "🦜", "x", "tokenizer", "longer", "ß", "\n", "  "]
    for i in range(count):
        context = " ".join(rng.choices(words, k=rng.choice([0, 1, 3, 8, 8, 60])))
        context += rng.choice(["", "", " ", "  ", "\n", "\u00a0 "])
        if i % 17 == 0 and tokenizer.bos_token:
            context = tokenizer.bos_token + context
        delimiter = rng.choice(["", " ", " "])
        choices = [(rng.choice(["", " "]) if not delimiter else "") + " ".join(rng.choices(words[:-2], k=rng.choice([1, 2, 4]))) for _ in range(4)]
        yield {"task": f"q{i:04}", "context": context, "choices": choices, "delimiter": delimiter}


def encode(tokenizer, context, continuation):
    """Context and continuation ids, or None where the harness stops."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    spaces = len(context) - len(context.rstrip())
    if context == "":
        ids = tokenizer.encode(continuation, add_special_tokens=False)
        return ([prefix], ids) if ids[0] != prefix else (ids[:1], ids[1:])
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    add = {"add_special_tokens": False} if context.startswith(tokenizer.decode(prefix)) else {}
    first = tokenizer.encode(context, **add)
    rest = tokenizer.encode(context + continuation, **add)[len(first):]
    return (first, rest) if first and rest else None


@torch.no_grad()
def score(model, first, rest):
    ids = torch.tensor((first + rest)[-(CONTEXT + 1):])
    logits = model(ids[None, :-1]).logits[0].log_softmax(-1)
    return sum(logits[t, ids[t + 1]].item() for t in range(len(ids) - 1 - len(rest), len(ids) - 1))


def best(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def harness_scores(harness, question):
    """The log-likelihood of every choice."""
    requests = [Instance("loglikelihood", {}, (question["context"], question["delimiter"] + choice), i)
                for i, choice in enumerate(question["choices"])]
    return [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]


def harness_verdicts(harness, asked):
    """(acc, acc_norm, acc_bytes) of every question by its name, from the harness's evaluator and its class for tasks that a configuration describes."""
    tasks = {}
    for delimiter in sorted({question["delimiter"] for question in asked}):
        docs = [question for question in asked if question["delimiter"] == delimiter]
        name = f"delimiter {delimiter!r}"
        tasks[name] = ConfigurableTask(config={
            "task": name, "custom_dataset": lambda docs=docs, **_: {"test": Dataset.from_list(docs)}, "test_split": "test", "num_fewshot": 0,
            "output_type": "multiple_choice", "target_delimiter": delimiter, "doc_to_text": lambda doc: doc["context"],
            "doc_to_choice": lambda doc: doc["choices"], "doc_to_target": lambda doc: doc["answer"],
            "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in MEASURES]})
    samples = evaluator.evaluate(harness, tasks, bootstrap_iters=0, log_samples=True)["samples"]
    return {sample["doc"]["task"]: tuple(sample[measure] for measure in MEASURES) for task in samples.values() for sample in task}


def verdicts(folder, family):
    """Yields (question, whether it passes, what is wrong); at last whether the questions tell the measures apart."""
    model, tokenizer = make_model(folder, family)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=CONTEXT, device="cpu")
    asked, defined = [], {}
    for question in questions(tokenizer, 60):
        pairs = [encode(tokenizer, question["context"], question["delimiter"] + c) for c in question["choices"]]
        if None in pairs or any(len(rest) > CONTEXT for _, rest in pairs):
            continue
        scores = [score(model, *pair) for pair in pairs]
        theirs = harness_scores(harness, question)
        yield question, max(abs(a - b) for a, b in zip(scores, theirs)) < 1e-3, f"scores: harness {theirs}, here {scores}"
        lengths = [len(c) for c in question["choices"]], [len(c.encode()) for c in question["choices"]]
        picks = [best(theirs)] + [best([s / n for s, n in zip(theirs, ns)]) for ns in lengths]
        question["answer"] = picks[random.Random(len(asked)).randrange(3)]
        defined[question["task"]] = tuple(float(pick == question["answer"]) for pick in picks)
        asked.append(question)
    (folder / "tasks.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    out = subprocess.run([ROOT / "build/trireme", "eval", folder, "--tasks", folder / "tasks.jsonl", "--json"],
                         capture_output=True, text=True, check=False)
    if out.returncode:
        yield family, False, out.stderr
        return
    got = {t["name"]: tuple(t[measure] for measure in MEASURES) for t in json.loads(out.stdout)["tasks"]}
    theirs = harness_verdicts(harness, asked)
    for question in asked:
        name = question["task"]
        yield question, got.get(name) == theirs[name] == defined[name], f"got {got.get(name)}, harness {theirs[name]}, here {defined[name]}"
    differ = sum(len(set(w)) > 1 for w in defined.values())
    print(f"{family}: {len(asked)} questions, {differ} on which the three measures differ")
    yield family, len(asked) > 40 and differ > 5, "too few questions"


def main():
    disable_progress_bars()
    passed = failed = 0
    logging.disable(logging.WARNING)
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as name:
            for what, good, problem in verdicts(pathlib.Path(name), family):
                passed += good
                failed += not good
                if not good:
                    print(f"FAILED {family} {what}: {problem}")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
