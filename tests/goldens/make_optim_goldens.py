#!/usr/bin/env python3
"""Writes optim.json: what torch.optim.AdamW and torch.optim.Muon make of fixed inputs.

Weights and gradients come from a 32-bit linear congruential generator whose values are exact in float32, so the
test makes the same inputs without a file. Results are stored as the bits of their float32 values.
Run with PyTorch 2.11: python make_optim_goldens.py
"""

import json
import pathlib

import numpy
import torch

torch.set_num_threads(1)


class Generator:
    """x <- 1664525 x + 1013904223 mod 2^32; a value is (x >> 8) / 2^24 - 1/2, times a power of two."""

    def __init__(self, seed):
        self.x = seed

    def tensor(self, shape, scale):
        count = int(numpy.prod(shape))
        values = []
        for _ in range(count):
            self.x = (self.x * 1664525 + 1013904223) % 2**32
            values.append(((self.x >> 8) / 2**24 - 0.5) * scale)
        return torch.tensor(values, dtype=torch.float32).reshape(shape)


def bits(tensor):
    return [int(v) for v in tensor.detach().contiguous().reshape(-1).numpy().view(numpy.uint32)]


def adamw(foreach):
    generator = Generator(1)
    matrix = torch.nn.Parameter(generator.tensor((7, 5), 2.0))
    vector = torch.nn.Parameter(generator.tensor((9,), 2.0))
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, foreach=foreach)
    result = {"steps": 100, "lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_norm": 0.5, "norms": [], "snapshots": {}}
    for step in range(1, 101):
        for parameter in (matrix, vector):
            parameter.grad = generator.tensor(parameter.shape, 0.25)
        norm = torch.nn.utils.clip_grad_norm_([matrix, vector], 0.5)
        result["norms"].append(float(norm))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1.0 if step < 50 else 0.5)
        optimizer.step()
        if step in (1, 10, 100):
            result["snapshots"][str(step)] = {
                "matrix": bits(matrix),
                "vector": bits(vector),
                "matrix.exp_avg": bits(optimizer.state[matrix]["exp_avg"]),
                "matrix.exp_avg_sq": bits(optimizer.state[matrix]["exp_avg_sq"]),
            }
    return result


def muon(shape, adjust, nesterov):
    generator = Generator(2)
    weight = torch.nn.Parameter(generator.tensor(shape, 2.0))
    optimizer = torch.optim.Muon([weight], lr=2e-2, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn=adjust)
    for _ in range(5):
        weight.grad = generator.tensor(shape, 0.25)
        optimizer.step()
    return {
        "shape": list(shape),
        "adjust": adjust,
        "nesterov": nesterov,
        "steps": 5,
        "lr": 2e-2,
        "weight_decay": 0.1,
        "weight": bits(weight),
        "momentum_buffer": bits(optimizer.state[weight]["momentum_buffer"]),
    }


def main():
    cases = [muon((12, 20), "match_rms_adamw", True), muon((20, 12), "original", True), muon((16, 16), "original", False), muon((3, 40), "match_rms_adamw", False)]
    goldens = {"torch": torch.__version__, "adamw": adamw(False), "muon": cases}
    path = pathlib.Path(__file__).with_name("optim.json")
    path.write_text(json.dumps(goldens) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
