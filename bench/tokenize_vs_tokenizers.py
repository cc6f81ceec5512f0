#!/usr/bin/env python3
"""Trireme's tokenizers beside the `tokenizers` library: encoding on one core and loading, interleaved.

The library trains a tokenizer with each family's settings on a mix of text; then both encode the same texts in turn, `--rounds`
times, each on one thread: ids alone (the library's encode_batch_fast), and ids with offsets (its encode_batch). Loading is of the
same file. Prints MB/s and seconds (min, median, max), and checks that the ids are equal; writes the table as JSON.

Usage: bench/tokenize_vs_tokenizers.py [--rounds N] [--megabytes N] [--vocab N] [--only NAME ...] [--trained FOLDER] [--out FILE]
Training takes minutes and measuring less: --trained FOLDER does the two at different times.
Run with the peers' Python (scripts/setup peers) after `scripts/build release tokenizer_probe`.
"""
import argparse
import array
import itertools
import json
import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer, __version__  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/goldens"), str(ROOT / "tests/tokenizers")]
from text_mix import mixed_texts, training_texts  # noqa: E402
from tokenizer_cases import decoded, families, variants  # noqa: E402
from tokenizer_probe import Probe  # noqa: E402


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure(name, peer, probe, texts, folder, rounds):
    path = folder / "tokenizer.json"
    peer.save(str(path))
    data = b"".join(t.encode() for t in texts)
    (folder / "texts").write_bytes(data)
    request = {"ids": str(folder / "texts"), "lengths": [len(t.encode()) for t in texts]}
    seconds = {k: [] for k in ("load", "peer load", "ids", "peer ids", "offsets", "peer offsets")}
    for _ in range(rounds):
        seconds["load"].append(probe.ask(path=str(path))["load_s"])
        taken, peer = timed(lambda: Tokenizer.from_file(str(path)))
        seconds["peer load"].append(taken)
        seconds["ids"].append(probe.ask(**request)["seconds"][0])
        taken, wanted = timed(lambda: peer.encode_batch_fast(texts, add_special_tokens=False))
        seconds["peer ids"].append(taken)
        seconds["offsets"].append(probe.ask(**request, offsets=True)["seconds"][0])
        seconds["peer offsets"].append(timed(lambda: peer.encode_batch(texts, add_special_tokens=False))[0])
    probe.ask(**request, write=str(folder / "ids"))
    ids, at = array.array("i", (folder / "ids").read_bytes()), 0
    for want in wanted:
        if ids[at + 1:at + 1 + ids[at]].tolist() != want.ids:
            sys.exit(f"{name}: the ids differ")
        at += 1 + ids[at]
    rate = {k: spread([len(data) / 1e6 / s for s in v]) for k, v in seconds.items() if "load" not in k}
    load = {k: spread(v) for k, v in seconds.items() if "load" in k}
    return {"tokenizer": name, "vocabulary": peer.get_vocab_size(), "mb_per_s": rate, "load_s": load}


def shown(values, digits):
    return f"{values['median']:.{digits}f} [{values['min']:.{digits}f} .. {values['max']:.{digits}f}]"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--trained", help="a folder of NAME.json to measure, in place of training; where it is empty, it is filled and nothing is measured")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    mix = [(k, d) for k, d in mixed_texts(max(24, arguments.megabytes)) if k != "adversarial"]
    rng = random.Random(5)
    rng.shuffle(mix)
    training = training_texts(mix, rng, 6)
    texts, total = [], 0
    for _, data in mix:
        texts.append(decoded(data[:32_000]))
        total += len(texts[-1].encode())
        if total > arguments.megabytes * 1e6:
            break
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    print(f"{cpu}, {platform.platform()}; tokenizers {__version__}; {len(texts)} texts, {total / 1e6:.1f} MB, one thread each", flush=True)
    print("| tokenizer (vocabulary) | ids, MB/s | library | times | with offsets, MB/s | library | times | load, ms | library | times |\n|" + "---|" * 10, flush=True)
    probe = Probe()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        known = ((n, p) for n, p in variants(training, arguments.vocab) if n in ("gpt2", "llama3", "qwen2"))
        peers = itertools.chain(known, families(training, arguments.vocab))
        if arguments.trained:
            folder = pathlib.Path(arguments.trained)
            folder.mkdir(parents=True, exist_ok=True)
            if not list(folder.glob("*.json")):
                for number, (name, peer) in enumerate(peers):
                    peer.save(str(folder / f"{number:02}-{name}.json"))
                print(f"trained {number + 1} tokenizers")
                return
            peers = ((path.stem.split("-", 1)[1], Tokenizer.from_file(str(path))) for path in sorted(folder.glob("*.json")))
        for name, peer in peers:
            if arguments.only and name not in arguments.only:
                continue
            row = measure(name, peer, probe, texts, pathlib.Path(scratch), arguments.rounds)
            rows.append(row)
            rate, load = row["mb_per_s"], row["load_s"]
            milliseconds = {k: {m: v * 1e3 for m, v in values.items()} for k, values in load.items()}
            print(f"| {name} ({row['vocabulary']}) | " + " | ".join([
                shown(rate["ids"], 1), shown(rate["peer ids"], 1), f"{rate['ids']['median'] / rate['peer ids']['median']:.1f}x",
                shown(rate["offsets"], 1), shown(rate["peer offsets"], 1), f"{rate['offsets']['median'] / rate['peer offsets']['median']:.1f}x",
                shown(milliseconds["load"], 0), shown(milliseconds["peer load"], 0), f"{load['peer load']['median'] / load['load']['median']:.1f}x"]) + " |", flush=True)
    probe.close()
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps({"cpu": cpu, "tokenizers": __version__, "megabytes": total / 1e6, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
