#!/usr/bin/env python3
"""Writes tests/goldens/models/<case>/: a transformers-saved tiny model, ids, and what transformers computes from them.

golden.safetensors holds `ids` [rows, length], `logits`, `loss` and `gradient.<Hugging Face name>`, all fp32.
Run with the peers' environment: .deps/peers/bin/python tests/goldens/make_model_goldens.py
"""
import os

import torch
from safetensors.torch import save_file

import model_cases

here = os.path.dirname(os.path.abspath(__file__))
for number, name in enumerate(model_cases.CASES):
    folder = os.path.join(here, "models", name)
    model = model_cases.build(name, seed=number)
    model.save_pretrained(folder)
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(100 + number))
    logits, loss, gradients = model_cases.reference(model, ids)
    tensors = {"ids": ids, "logits": logits, "loss": loss.reshape(1)}
    tensors.update({f"gradient.{key}": value.contiguous() for key, value in gradients.items()})
    save_file(tensors, os.path.join(folder, "golden.safetensors"))
    print(name, float(loss))
