#!/usr/bin/env python3
"""Trireme and PyTorch side by side: the same model, batch and data, interleaved.

For every shape and precision it runs, in turn and `--rounds` times: `trireme bench train`, PyTorch eager
with a tuned allocator, torch.compile with a tuned allocator (and, with --plain, eager as a user starts
it). A round measures a few steps of each, so that a slow minute of the machine hits all alike. Prints
tokens/s (min, median, max), share of the GEMM rate measured in the same run, peak resident memory and
page faults a step; writes the table as JSON with the machine's description.

Usage: bench/train_vs_torch.py [--python PY] [--trireme PROGRAM] [--shapes a,b] [--precisions fp32,bf16]
                               [--rounds N] [--out FILE]
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# name: (preset, sequences in a forward pass, sequence length)
SHAPES = {
    "llama-11m": ("llama-11m", 8, 256),
    "llama-110m": ("llama-110m", 2, 1024),
    "gpt2-124m": ("gpt2-124m", 2, 1024),
    # with experts: beside the dense model of as many active operations
    "trireme-moe": ("trireme-moe", 8, 512),
    "qwen3moe-32m-a11m": ("qwen3moe-32m-a11m", 16, 256),
}
DENSE_OF = {"trireme-moe": "trireme-default", "qwen3moe-32m-a11m": "llama-11m"}
DEFAULT_SHAPES = ["llama-11m", "llama-110m", "gpt2-124m"]
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 28)}


def run(command, extra=None):
    environment = dict(os.environ, **(extra or {}))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return done.stdout


def machine(program):
    doctor = {}
    try:
        doctor = json.loads(run([program, "doctor", "--json"]))
    except (SystemExit, json.JSONDecodeError):
        pass
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "system": platform.platform(), "doctor": doctor}


def spread(values):
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", default=os.path.join(HERE, "..", ".deps", "peers", "bin", "python"))
    parser.add_argument("--trireme", default=os.path.join(HERE, "..", "build", "trireme"))
    parser.add_argument("--shapes", default=",".join(DEFAULT_SHAPES), help="of " + ", ".join(SHAPES))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="also PyTorch eager with the default allocator")
    parser.add_argument("--no-eager", action="store_true", help="leave eager PyTorch out")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", help="write the results there as JSON")
    arguments = parser.parse_args()

    results = []
    for shape in arguments.shapes.split(","):
        preset, micro, seq_len = SHAPES[shape]
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, "config.json")
            with open(config, "w") as file:
                file.write(run([arguments.trireme, "bench", "train", "--preset", preset, "--print-config"]))
            for precision in arguments.precisions.split(","):
                sizes = ["--micro", str(micro), "--seq-len", str(seq_len), "--steps", str(arguments.steps)]
                peer = [arguments.python, os.path.join(HERE, "peers", "train_torch.py"), "--config", config,
                        "--precision", precision] + sizes
                contenders = {
                    "trireme": lambda: json.loads(run([arguments.trireme, "bench", "train", "--preset", preset,
                                                       "--precision", precision, "--json"] + sizes))["steps"],
                }
                if shape in DENSE_OF:
                    contenders["trireme, dense"] = lambda: json.loads(run(
                        [arguments.trireme, "bench", "train", "--preset", DENSE_OF[shape], "--precision", precision,
                         "--json"] + sizes))["steps"]
                if not arguments.no_eager:
                    contenders["torch eager, tuned"] = lambda: [json.loads(l) for l in run(peer, TUNED).splitlines()]
                if not arguments.no_compile:
                    contenders["torch.compile, tuned"] = lambda: [
                        json.loads(l) for l in run(peer + ["--compile"], TUNED).splitlines()]
                if arguments.plain:
                    contenders["torch eager"] = lambda: [json.loads(l) for l in run(peer).splitlines()]
                measured = {name: [] for name in contenders}
                gemm = []
                for _ in range(arguments.rounds):
                    rate = json.loads(run([arguments.trireme, "bench", "gemm", "--json"]))
                    # bf16 may be widened and multiplied in fp32 where that is quicker: the roof is the better of both.
                    usable = ("gemm.fp32",) if precision == "fp32" else ("gemm.fp32", "gemm.bf16")
                    gemm.append(max(r["median"] for r in rate["results"] if r["name"].startswith(usable)))
                    for name, measure in contenders.items():
                        measured[name] += measure()
                flops = json.loads(run([arguments.trireme, "bench", "train", "--preset", preset, "--print-flops",
                                        "--json"] + sizes))["flops_per_token"]
                reference = None
                for name, steps in measured.items():
                    rates = [s["tokens"] / s["step_s"] for s in steps]
                    row = {"shape": shape, "precision": precision, "name": name, "unit": "tokens/s", **spread(rates),
                           "gemm_share": statistics.median(rates) * flops / 1e9 / statistics.median(gemm),
                           "peak_rss_bytes": max(s["peak_rss_bytes"] for s in steps),
                           "page_faults": statistics.median(s["page_faults"] for s in steps)}
                    reference = reference or row
                    row["trireme_ratio"] = reference["median"] / row["median"]
                    results.append(row)
                    print(f"{shape:11} {precision:5} {name:22} {row['median']:8.0f} tokens/s "
                          f"[{row['min']:.0f} .. {row['max']:.0f}]  {row['gemm_share']:.2f} of the GEMM rate  "
                          f"{row['peak_rss_bytes'] / 2**20:7.0f} MiB  {row['page_faults']:8.0f} faults/step  "
                          f"Trireme is {row['trireme_ratio']:.2f}x", flush=True)
    document = {"date": datetime.date.today().isoformat(), "machine": machine(arguments.trireme), "results": results}
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
