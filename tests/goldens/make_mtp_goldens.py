#!/usr/bin/env python3
"""Writes tests/goldens/mtp/<case>/: a tiny model with modules for multi-token prediction, and what they should give.

The modules are written down here from section 2.2 of DeepSeek-V3's report (arXiv 2412.19437), plainly and one document after
the other; model and block are transformers' own, which has no such modules. model.safetensors holds them under the names of
the published checkpoints, copies of embedding and head included. golden.safetensors holds, all fp32,
  ids [rows, length + 1], starts [documents, 2] (row, first position of a document),
  hidden.<k> [tokens, hidden]  what the head multiplies with, of module k (0: the model) at every position that has a target,
  places.<k> [tokens, 2]       where that is (row, position), logits.<k> [tokens, vocabulary],
  losses [modules + 1], weight, and gradient.<name in the files> of losses[0] + weight / modules * (losses[1] + ...).
Run with the peers' environment: .deps/peers/bin/python tests/goldens/make_mtp_goldens.py
"""
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, Glm4MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeDecoderLayer, Glm4MoeRMSNorm

import model_cases

WEIGHT = 0.3
ROWS, LENGTH = 2, 20
STARTS = [(0, 0), (0, 9), (1, 0), (1, 1), (1, 4)]  # documents of 9, 12; of 1, 3 and 17 tokens
CASES = {
    "deepseek_v3": (lambda: DeepseekV3Config(**model_cases._deepseek, q_lora_rank=10, norm_topk_prob=True,
                                             rope_parameters=model_cases._yarn, num_nextn_predict_layers=2),
                    DeepseekV3DecoderLayer, DeepseekV3RMSNorm),
    "glm4_moe": (lambda: Glm4MoeConfig(**model_cases._llama, head_dim=8, moe_intermediate_size=12, n_routed_experts=8,
                                       num_experts_per_tok=3, n_shared_experts=1, n_group=2, topk_group=1,
                                       routed_scaling_factor=1.5, norm_topk_prob=True, use_qk_norm=True,
                                       first_k_dense_replace=1, attention_bias=True, pad_token_id=None,
                                       tie_word_embeddings=True, num_nextn_predict_layers=1),
                 Glm4MoeDecoderLayer, Glm4MoeRMSNorm),
}


class Module(torch.nn.Module):
    """h_k = block(W [norm(embedding) | norm(h_{k-1})]), then its own norm."""

    def __init__(self, config, number, layer, norm):
        super().__init__()
        self.enorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = layer(config, number)
        self.norm = norm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, model, state, embedded):
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(state)], dim=-1))
        length = x.shape[1]
        positions = torch.arange(length).unsqueeze(0)
        mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
        x = self.block(x, attention_mask=mask, position_ids=positions,
                       position_embeddings=model.model.rotary_emb(x, positions))
        return self.norm(x)


def name_in_files(prefix, key):
    for ours, theirs in (("block.", ""), ("norm.", "shared_head.norm.")):
        if key.startswith(ours):
            return prefix + theirs + key[len(ours):]
    return prefix + key


def per_expert(tensors):
    """Stacks of experts as the files have them."""
    result = {}
    for key, tensor in tensors.items():
        if key.endswith("mlp.experts.gate_up_proj"):
            for e, both in enumerate(tensor):
                for name, half in zip(("gate_proj", "up_proj"), both.chunk(2)):
                    result[key.replace("gate_up_proj", f"{e}.{name}.weight")] = half
        elif key.endswith("mlp.experts.down_proj"):
            for e, one in enumerate(tensor):
                result[key.replace("down_proj", f"{e}.down_proj.weight")] = one
        else:
            result[key] = tensor
    return {key: tensor.detach().clone().contiguous() for key, tensor in result.items()}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for number, (name, (make_config, layer, norm)) in enumerate(CASES.items()):
        model_cases.CASES["mtp"] = make_config
        model = model_cases.build("mtp", seed=200 + number)
        config = model.config
        depth = config.num_nextn_predict_layers
        modules = [Module(config, config.num_hidden_layers + k, layer, norm).float() for k in range(depth)]
        with torch.no_grad():
            for module in modules:
                for key, parameter in module.named_parameters():
                    scale = 1.0 if "norm" in key and "bias" not in key else 0.0
                    parameter.copy_(scale * (parameter.dim() == 1) + 0.2 * torch.randn_like(parameter))
                for key, buffer in module.named_buffers():
                    if key.endswith("e_score_correction_bias"):
                        buffer.copy_(0.2 * torch.randn_like(buffer))

        folder = os.path.join(here, "mtp", name)
        model.save_pretrained(folder)
        os.remove(os.path.join(folder, "generation_config.json"))
        tensors = load_file(os.path.join(folder, "model.safetensors"))
        for k, module in enumerate(modules):
            prefix = f"model.layers.{config.num_hidden_layers + k}."
            state = per_expert({name_in_files(prefix, key): value for key, value in module.state_dict().items()})
            state[prefix + "embed_tokens.weight"] = model.model.embed_tokens.weight.detach().clone()
            state[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
            tensors.update(state)
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

        ids = torch.randint(0, 64, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(300 + number))
        found = [{"hidden": [], "logits": [], "places": [], "losses": []} for _ in range(depth + 1)]
        for which, (row, start) in enumerate(STARTS):
            ends = [s for r, s in STARTS[which + 1:] if r == row]
            x = ids[row:row + 1, start:ends[0] if ends else LENGTH + 1]
            n = x.shape[1]
            if n < 2:
                continue
            state = model.model(input_ids=x[:, :-1], use_cache=False).last_hidden_state
            for k in range(depth + 1):
                if n - 1 - k <= 0:
                    break
                if k > 0:  # position i reads token i + k and predicts token i + k + 1
                    state = modules[k - 1](model, state[:, :n - 1 - k], model.model.embed_tokens(x[:, k:n - 1]))
                logits = model.lm_head(state)
                at = found[k]
                at["losses"].append(torch.nn.functional.cross_entropy(logits[0], x[0, k + 1:], reduction="sum"))
                at["hidden"].append(state[0].detach())
                at["logits"].append(logits[0].detach())
                at["places"].append(torch.tensor([(row, start + i) for i in range(n - 1 - k)]))
        losses = [sum(at["losses"]) / sum(len(p) for p in at["places"]) for at in found]
        total = losses[0] + WEIGHT / depth * sum(losses[1:])
        model.zero_grad(set_to_none=True)
        total.backward()
        golden = {"ids": ids, "starts": torch.tensor(STARTS), "weight": torch.tensor([WEIGHT]),
                  "losses": torch.stack(losses).detach()}
        for k, at in enumerate(found):
            for key in ("hidden", "logits", "places"):
                golden[f"{key}.{k}"] = torch.cat(at[key])
        gradients = {key: p.grad for key, p in model.named_parameters()}
        for k, module in enumerate(modules):
            prefix = f"model.layers.{config.num_hidden_layers + k}."
            gradients.update({name_in_files(prefix, key): p.grad for key, p in module.named_parameters()})
        golden.update({f"gradient.{key}": value for key, value in per_expert(gradients).items()})
        save_file(golden, os.path.join(folder, "golden.safetensors"))
        print(name, golden["losses"].tolist())


main()
