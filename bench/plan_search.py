#!/usr/bin/env python3
"""Time and counts of `trireme plan search` on models and clusters of several sizes.

    bench/plan_search.py [--program build/trireme] [--threads 2] [--only NAME] [--out RESULT.md]

Each search runs once, for the five best and the front of time against memory, without advice. The goal is 10^5 candidates in 10 s on
two cores. Seconds are of the wall, and of the processor: on a machine that others use, the second say what the first would be. Exit
status 1 if the search of about 10^5 candidates takes more processor time than as many threads have in 10 s.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
MODELS = {
    "llama3-8b": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "llama3-70b": {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "llama3-405b": {**LLAMA, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
                    "num_attention_heads": 128},
    "deepseek-v3": {"model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
                    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
                    "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
                    "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
                    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5,
                    "max_position_embeddings": 4096},
}
# Name: model, cluster, accelerators, sequences, tokens of one, more arguments.
SEARCHES = {
    "8B on 64": ("llama3-8b", "dgx-h100", 64, 128, 8192, []),
    "10^5": ("llama3-70b", "dgx-h100", 256, 256, 8192, ["--vary", "cp=1,2"]),
    "70B on 512": ("llama3-70b", "dgx-h100", 512, 1024, 8192, []),
    "DeepSeek-V3 on 2,048": ("deepseek-v3", "h800", 2048, 15360, 4096,
                             ["--parallel", "cp=1", "--parallel", "etp=1", "--vary", "micro=1,2,4", "--vary", "tp=1,2,4,8"]),
    "405B on 16,384": ("llama3-405b", "dgx-h100", 16384, 2048, 8192, []),
}
LIMIT_S = 10.0


def run_search(arguments, folder, name):
    model, cluster, accelerators, sequences, seq_len, more = SEARCHES[name]
    (folder / "config.json").write_text(json.dumps(MODELS[model]))
    (folder / "run.toml").write_text(
        f'out = "run"\n[model]\nconfig = "config.json"\n[data]\ntrain = ["x.txt"]\nseq_len = {seq_len}\n'
        f'[batch]\nsequences = {sequences}\nmicro = 1\nlanes = 1\n[precision]\nrecipe = "bf16"\n')
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [arguments.program, "plan", "search", "run.toml", "--cluster", cluster, "--accelerators", str(accelerators), "--stack",
         "megatron-core", "--threads", str(arguments.threads), "--no-advice", "--quiet", "--json", *more],
        cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{name}: status {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    got = json.loads(done.stdout)
    got["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return got


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--program", default=str(ROOT / "build" / "trireme"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(SEARCHES))
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.program = os.path.abspath(arguments.program)
    lines = ["| search | candidates | not allowed | left out by memory | by work | by the timeline | priced | wall s | processor s | best |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    status = 0
    with tempfile.TemporaryDirectory(prefix="trireme-search-") as path:
        for name in SEARCHES:
            if arguments.only and name != arguments.only:
                continue
            got = run_search(arguments, pathlib.Path(path), name)
            counts = got["counts"]
            best = got["best"][0]
            lines.append(f"| {name} | {got['candidates']:,} | {counts['left_out']:,} | {counts['by_memory_bound']:,} | "
                         f"{counts['by_work_bound']:,} | {counts['by_timeline_bound']:,} | {counts['priced']:,} | "
                         f"{got['seconds']:.1f} | {got['cpu_s']:.1f} | {best['step_s']:.3f} s: {best['text']} |")
            print(lines[-1], flush=True)
            if name == "10^5" and got["cpu_s"] > LIMIT_S * arguments.threads:
                print(f"{name}: {got['cpu_s']:.1f} s of the processor, more than {LIMIT_S} s of {arguments.threads} threads",
                      file=sys.stderr)
                status = 1
    text = "\n".join(lines) + "\n"
    if arguments.out:
        arguments.out.write_text(f"# Searching strategies\n\n`bench/plan_search.py --threads {arguments.threads}`\n\n{text}")
    return status


if __name__ == "__main__":
    sys.exit(main())
