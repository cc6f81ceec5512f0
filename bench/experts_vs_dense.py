#!/usr/bin/env python3
"""Training with experts beside the dense model of as many active operations: tokens/s, interleaved.

A round runs both presets one after the other, each in a process of its own, in turn first; its ratio is that of the two medians
over its steps. Prints every round and each pair's min, median and max, and ends with status 1 if a pair's median ratio is below
what is required of it.

Usage: bench/experts_vs_dense.py [--pairs a,b] [--precisions fp32,bf16] [--rounds N] [--steps N] [--require R] [--out FILE]
"""
import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# with experts: (dense, sequences in a forward pass, sequence length)
PAIRS = {"qwen3moe-32m-a11m": ("llama-11m", 16, 256), "trireme-moe": ("trireme-default", 8, 512)}


def rate(arguments, preset, micro, seq_len, precision):
    command = [arguments.trireme, "bench", "train", "--preset", preset, "--micro", str(micro), "--seq-len", str(seq_len),
               "--precision", precision, "--warmup", "2", "--steps", str(arguments.steps), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)["results"][0]["median"]


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trireme", default=os.path.join(HERE, "..", "build", "trireme"))
    parser.add_argument("--pairs", default="qwen3moe-32m-a11m", help="of " + ", ".join(PAIRS))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--require", type=float, default=0.93, help="least median ratio")
    parser.add_argument("--out", help="write the results there as JSON")
    arguments = parser.parse_args()

    rows = {(pair, precision): [] for pair in arguments.pairs.split(",") for precision in arguments.precisions.split(",")}
    for round_number in range(arguments.rounds):
        for (pair, precision), rounds in rows.items():
            dense, micro, seq_len = PAIRS[pair]
            rates = {preset: rate(arguments, preset, micro, seq_len, precision)
                     for preset in ([dense, pair] if round_number % 2 == 0 else [pair, dense])}
            rounds.append({"dense": rates[dense], "experts": rates[pair], "ratio": rates[pair] / rates[dense]})
            print(f"round {round_number + 1}  {pair:18} {precision:5} {rates[pair]:7.0f} tokens/s, {dense} {rates[dense]:7.0f}: "
                  f"{rounds[-1]['ratio']:.2f}", flush=True)
    results = []
    for (pair, precision), rounds in rows.items():
        ratio = spread([r["ratio"] for r in rounds])
        results.append({"name": f"{pair}.{precision}", "peer": PAIRS[pair][0], "unit": "tokens/s",
                        **spread([r["experts"] for r in rounds]), "ratio": ratio["median"], "rounds": rounds})
        print(f"{pair:18} {precision:5} {ratio['median']:.3f} [{ratio['min']:.2f} .. {ratio['max']:.2f}] of {PAIRS[pair][0]}")
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump({"date": datetime.date.today().isoformat(), "results": results}, file, indent=1)
    short = [r for r in results if r["ratio"] < arguments.require]
    for r in short:
        print(f"{r['name']}: {r['ratio']:.3f} is below {arguments.require}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
