#!/usr/bin/env python3
"""Writes quantised.json: what torch and transformers make of weights that are stored as small numbers beside scales.

* e4m3: the float32 bits of all 256 bytes of torch.float8_e4m3fn; of float32 numbers the byte that torch rounds them to (within its range).
* fp8: transformers' Fp8Dequantize of random bytes in blocks of 4 x 4 (it takes the size of blocks from the number of scales).
* mxfp4: transformers' convert_moe_packed_tensors of random blocks, as gpt_oss stores experts.
Floats are stored as the bits of their float32 values. Run with torch 2.11 and transformers 5.23: python make_quantised_goldens.py
"""

import json
import pathlib

import numpy
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

torch.manual_seed(7)


def bits(tensor):
    return [int(v) for v in tensor.to(torch.float32).contiguous().reshape(-1).numpy().view(numpy.uint32)]


def e4m3():
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    finite = values[torch.isfinite(values)].unique()
    middles = (finite[1:] + finite[:-1]) / 2  # ties
    around = torch.cat([middles, torch.nextafter(middles, torch.tensor(1e9)), torch.nextafter(middles, torch.tensor(-1e9))])
    return {"values": bits(values), "rounded": bits(around), "to": around.to(torch.float8_e4m3fn).view(torch.uint8).tolist()}


def fp8():
    rows, columns, block = 12, 8, 4
    stored = torch.randint(0, 256, (rows, columns), dtype=torch.int32).to(torch.uint8)
    stored[(stored & 0x7F) == 0x7F] = 0x7E  # no NaN
    scales = torch.rand(rows // block, columns // block) * 0.01
    whole = Fp8Dequantize(None)._dequantize_one(stored.view(torch.float8_e4m3fn), scales, torch.float32)
    return {"rows": rows, "columns": columns, "block": block, "stored": stored.flatten().tolist(), "scales": bits(scales),
            "dequantised": bits(whole)}


def mxfp4():
    experts, rows, groups = 2, 6, 3
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.int32).to(torch.uint8)
    scales = torch.randint(100, 140, (experts, rows, groups), dtype=torch.int32).to(torch.uint8)
    scales[0, 0, 0], scales[1, 5, 2] = 1, 251  # the smallest and the largest whose numbers bfloat16 and 2^x in float32 hold
    whole = convert_moe_packed_tensors(blocks, scales)
    assert torch.isfinite(whole).all() and whole.shape == (experts, groups * 32, rows)
    return {"experts": experts, "rows": rows, "groups": groups, "blocks": blocks.flatten().tolist(),
            "scales": scales.flatten().tolist(), "dequantised": bits(whole)}


path = pathlib.Path(__file__).parent / "quantised.json"
path.write_text(json.dumps({"e4m3": e4m3(), "fp8": fp8(), "mxfp4": mxfp4()}) + "\n")
