#!/usr/bin/env python3
"""Training runs on the kernels of accelerators, in their emulation (kernels/cuda): with the layouts, aliases and sizes that
layers give them, they end where the processor's kernels do.

Last line: `N passed, N failed`.
"""
import json
import os
import sys

import tiny_run

LIBRARY = os.path.join(os.environ.get("TRIREME_BUILD_DIR", os.path.join(tiny_run.ROOT, "build")), "tests/emulated_kernels.so")
STEPS = 3
LLAMA = tiny_run.CONFIG
# A head of 16, so that bfloat16 takes the flash path; experts, their shared one, groups and latent attention.
WIDE = {**LLAMA, "hidden_size": 64, "head_dim": 16}
QWEN = {**WIDE, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "norm_topk_prob": True, "router_aux_loss_coef": 0.01}
GPT = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4,
       "n_positions": 64}
GPT_OSS = {**WIDE, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4,
           "num_experts_per_tok": 2, "intermediate_size": 24, "sliding_window": 8, "attention_bias": True,
           "tie_word_embeddings": False, "layer_types": ["sliding_attention", "full_attention"],
           "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
CASES = []


def case(name, config, recipe, tolerance, *changes):
    def compare(folder):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        text = tiny_run.RUN.replace('config = "config.json"', f'config = "{name}.json"')
        text = text.replace("steps = 40", f"steps = {STEPS}").replace("sequences = 8", "sequences = 4")
        text = text.replace('recipe = "fp32"', f'recipe = "{recipe}"').replace("trace_step = 3", "trace_step = 2")
        for before, after in changes:
            assert before in text, before
            text = text.replace(before, after)
        figures = []
        for kernels in ("cpu", "emulated"):
            out = f"{name}-{recipe}-{kernels}"
            with open(os.path.join(folder, f"{out}.toml"), "w", encoding="utf-8") as file:
                file.write(text.replace('out = "run"', f'out = "{out}"'))
                if kernels == "emulated":
                    file.write(f'\n[kernels]\nload = ["{LIBRARY}"]\n')
            done = tiny_run.run(folder, "train", f"{out}.toml")
            assert done.returncode == 0, f"{out}: status {done.returncode}: {done.stderr}"
            with open(os.path.join(folder, out, "metrics.jsonl"), encoding="utf-8") as file:
                figures.append([(entry["loss"], entry["grad_norm"]) for entry in map(json.loads, file) if "grad_norm" in entry])
        assert len(figures[0]) == STEPS and len(figures[1]) == STEPS, figures
        for cpu, emulated in zip(*figures):
            for one, other in zip(cpu, emulated):
                assert abs(one - other) <= tolerance * abs(one), (name, recipe, figures)
        # Other kernels ran: no sum of theirs has the same order.
        assert figures[0] != figures[1], figures
    compare.__name__ = f"{name}_in_{recipe}_ends_where_the_processors_kernels_do"
    CASES.append(compare)


# float32: sums of a few hundred terms in another order, over three steps. bfloat16: a step of 2^-8 in what is rounded.
case("llama", LLAMA, "fp32", 1e-4)
case("llama_documents", WIDE, "bf16", 0.02, ('train = ["text.txt"]', 'train = ["documents.jsonl"]\npacking = "documents"'))
case("llama_muon", WIDE, "bf16", 0.02, ("lr = 1e-2", 'name = "muon"\nlr = 1e-2'))
case("qwen_experts", QWEN, "fp32", 1e-4)
case("qwen_experts", QWEN, "bf16", 0.03)
case("gpt2", GPT, "fp32", 1e-4)
case("gpt2", GPT, "bf16", 0.02)
case("gpt_oss", GPT_OSS, "bf16", 0.03)


def prepare(folder):
    with open(os.path.join(folder, "documents.jsonl"), "w", encoding="utf-8") as file:
        for number in range(200):
            file.write(json.dumps({"text": "The lazy dog rows on. " * (1 + number % 3)}) + "\n")
    return tiny_run.prepare(folder)


sys.exit(tiny_run.run_cases(CASES, prepare))
