#!/usr/bin/env python3
"""The peer of `trireme bench train`: the same model, batch and data in plain PyTorch.

A decoder written the way PyTorch users write it (nn.Linear, scaled_dot_product_attention, RMSNorm,
experts in a loop over those that got tokens, fused AdamW), run eagerly or through torch.compile, in fp32 or bf16 autocast. Prints one JSON line per
measured step: seconds, tokens, minor page faults, peak resident bytes.

Run by bench/train_vs_torch.py; needs the full torch package.
"""
import argparse
import json
import math
import os
import resource
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Rotary:
    def __init__(self, dim, length, theta, device):
        inverse = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(length).float(), inverse)
        table = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = table.cos()[None, None].to(device), table.sin()[None, None].to(device)

    def __call__(self, x):
        half = x.shape[-1] // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return x * self.cos.to(x.dtype) + rotated * self.sin.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.gate = nn.Linear(d, h, bias=False)
        self.up = nn.Linear(d, h, bias=False)
        self.down = nn.Linear(h, d, bias=False)

    def forward(self, y):
        return self.down(F.silu(self.gate(y)) * self.up(y))


class Experts(nn.Module):
    """Softmax, the best k renormalised, a loop over the experts that got tokens, index_add; the balancing loss of the Switch
    Transformer over the batch (what transformers' mixtral and qwen3_moe do eagerly)."""

    def __init__(self, d, h, count, top_k):
        super().__init__()
        self.count, self.top_k = count, top_k
        self.router = nn.Linear(d, count, bias=False)
        self.experts = nn.ModuleList(Mlp(d, h) for _ in range(count))
        self.balance = None

    def forward(self, y):
        shape = y.shape
        y = y.reshape(-1, shape[-1])
        scores = F.softmax(self.router(y).float(), dim=-1)
        weights, chosen = scores.topk(self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(y.dtype)
        mask = F.one_hot(chosen, self.count).permute(2, 1, 0)
        self.balance = self.count * (mask.float().mean((1, 2)) * self.top_k * scores.mean(0)).sum()
        result = torch.zeros_like(y)
        for expert in mask.sum((1, 2)).nonzero().flatten().tolist():
            slot, token = torch.where(mask[expert])
            result.index_add_(0, token, (self.experts[expert](y[token]) * weights[token, slot, None]).to(y.dtype))
        return result.view(shape)


class LlamaBlock(nn.Module):
    def __init__(self, c, rotary):
        super().__init__()
        d = c["hidden_size"]
        self.heads, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or d // self.heads
        self.rotary = rotary
        if c["model_type"] == "qwen3_moe":
            self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim, eps=c["rms_norm_eps"]) for _ in range(2))
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.norm1 = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        self.q = nn.Linear(d, self.heads * self.head_dim, bias=False)
        self.k = nn.Linear(d, self.kv * self.head_dim, bias=False)
        self.v = nn.Linear(d, self.kv * self.head_dim, bias=False)
        self.o = nn.Linear(self.heads * self.head_dim, d, bias=False)
        self.norm2 = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        experts = c.get("num_experts") or c.get("num_local_experts")
        if experts:
            width = c.get("moe_intermediate_size") or c["intermediate_size"]
            self.mlp = Experts(d, width, experts, c["num_experts_per_tok"])
        else:
            self.mlp = Mlp(d, c["intermediate_size"])

    def forward(self, x):
        b, t, _ = x.shape
        y = self.norm1(x)
        q = self.rotary(self.q_norm(self.q(y).view(b, t, self.heads, self.head_dim)).transpose(1, 2))
        k = self.rotary(self.k_norm(self.k(y).view(b, t, self.kv, self.head_dim)).transpose(1, 2))
        v = self.v(y).view(b, t, self.kv, self.head_dim).transpose(1, 2)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, -1))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    def __init__(self, c, length, device):
        super().__init__()
        d = c["hidden_size"]
        rotary = Rotary(d // c["num_attention_heads"], length, c.get("rope_theta", 10000.0), device)
        self.embed = nn.Embedding(c["vocab_size"], d)
        self.blocks = nn.ModuleList(LlamaBlock(c, rotary) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        self.head = nn.Linear(d, c["vocab_size"], bias=False)
        self.aux = c.get("router_aux_loss_coef", 0.0) / c["num_hidden_layers"]
        if c.get("tie_word_embeddings"):
            self.head.weight = self.embed.weight

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        balances = [block.mlp.balance for block in self.blocks if isinstance(block.mlp, Experts)]
        return loss + self.aux * sum(balances) if balances else loss


class GptBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["n_embd"]
        self.heads = c["n_head"]
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc, self.proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.norm1(x)).split(d, dim=2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, d))
        return x + self.proj(F.gelu(self.fc(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, c, length, device):
        super().__init__()
        d = c["n_embd"]
        self.embed, self.positions = nn.Embedding(c["vocab_size"], d), nn.Embedding(c["n_positions"], d)
        self.blocks = nn.ModuleList(GptBlock(c) for _ in range(c["n_layer"]))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, c["vocab_size"], bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, targets):
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, help="a Hugging Face config.json (gpt2, llama, mixtral or qwen3_moe)")
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = json.load(open(arguments.config))
    accelerator = arguments.device != "cpu"
    with torch.device(arguments.device):
        model = (Gpt if config["model_type"] == "gpt2" else Llama)(config, arguments.seq_len, arguments.device)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    step_model = torch.compile(model) if arguments.compile else model
    shape = (arguments.micro, arguments.seq_len + 1)
    windows = [torch.randint(0, config["vocab_size"], shape).to(arguments.device) for _ in range(arguments.micro_batches)]

    for step in range(arguments.warmup + arguments.steps):
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if accelerator:
            torch.accelerator.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        total = 0.0
        for window in windows:
            with torch.autocast(arguments.device.split(":")[0], dtype=torch.bfloat16, enabled=arguments.precision == "bf16"):
                loss = step_model(window[:, :-1], window[:, 1:])
            (loss / arguments.micro_batches).backward()
            total += loss.item() / arguments.micro_batches
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if accelerator:
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_SELF)
        if step >= arguments.warmup:
            print(json.dumps({
                "step_s": seconds,
                "tokens": arguments.micro * arguments.seq_len * arguments.micro_batches,
                "page_faults": usage.ru_minflt - faults,
                "peak_rss_bytes": usage.ru_maxrss * 1024,
                "peak_bytes": torch.cuda.max_memory_allocated() if accelerator else usage.ru_maxrss * 1024,
                "loss": total,
                "grad_norm": float(norm),
            }), flush=True)
        assert math.isfinite(total)


if __name__ == "__main__":
    main()
