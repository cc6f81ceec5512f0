"""Tiny models of every family with all their options on, shared by the goldens and by the live parity check."""
import torch
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig,
                          Olmo2Config, Phi3Config, Qwen2Config, Qwen3Config)

_llama = dict(vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
              attention_dropout=0.0)
_gpt2 = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
             resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)
_llama3_rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=16)

CASES = {
    "gpt2": lambda: GPT2Config(**_gpt2),
    "gpt2-options": lambda: GPT2Config(**_gpt2, n_inner=24, activation_function="gelu", scale_attn_by_inverse_layer_idx=True,
                                       tie_word_embeddings=False, layer_norm_epsilon=1e-4),
    "gpt2-relu": lambda: GPT2Config(**_gpt2, activation_function="relu", scale_attn_weights=False),
    "llama": lambda: LlamaConfig(**_llama, rms_norm_eps=1e-5),
    "llama-options": lambda: LlamaConfig(**_llama, head_dim=8, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
                                         rope_parameters=_llama3_rope),
    "llama-linear": lambda: LlamaConfig(**dict(_llama, num_key_value_heads=4),
                                        rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    "qwen2": lambda: Qwen2Config(**_llama, tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen2-untied": lambda: Qwen2Config(**dict(_llama, num_key_value_heads=1), tie_word_embeddings=False,
                                        rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "qwen3": lambda: Qwen3Config(**_llama, head_dim=8, tie_word_embeddings=True),
    "qwen3-options": lambda: Qwen3Config(**_llama, head_dim=6, attention_bias=True, tie_word_embeddings=False,
                                         rope_parameters=dict(rope_type="default", rope_theta=1000000.0)),
    "llama-yarn": lambda: LlamaConfig(**_llama, rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0,
                                                                    original_max_position_embeddings=16)),
    "qwen3-window": lambda: Qwen3Config(**_llama, head_dim=8, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "mistral": lambda: MistralConfig(**_llama, sliding_window=11),
    "phi3": lambda: Phi3Config(**_llama, pad_token_id=None, sliding_window=20),
    # 24 tokens: past the original context, so that the long factors act.
    "phi3-longrope": lambda: Phi3Config(**dict(_llama, hidden_size=32), pad_token_id=None, original_max_position_embeddings=16,
                                        rope_parameters=dict(rope_type="longrope", rope_theta=10000.0,
                                                             partial_rotary_factor=0.5, original_max_position_embeddings=16,
                                                             short_factor=[1.0, 1.5], long_factor=[2.0, 3.5])),
    "olmo2": lambda: Olmo2Config(**_llama, attention_bias=True, pad_token_id=None),
    "gemma2": lambda: Gemma2Config(**_llama, head_dim=8, pad_token_id=None, sliding_window=7, query_pre_attn_scalar=5,
                                   attn_logit_softcapping=3.0, final_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(**dict(_llama, num_hidden_layers=3), head_dim=8, pad_token_id=None, sliding_window=7,
                                       query_pre_attn_scalar=9, attention_bias=True,
                                       layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                       rope_parameters=dict(
                                           full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=2.0),
                                           sliding_attention=dict(rope_type="default", rope_theta=50.0))),
}


def build(name, seed):
    """The model in fp32 with every parameter random, norms and biases too; eager attention as the plainest reference."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CASES[name](), attn_implementation="eager").float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_((1.0 if "norm" in key or "ln_" in key else 0.0) * (1 - ("bias" in key))
                                + 0.2 * torch.randn_like(parameter))
    return model.eval()


def reference(model, ids):
    """Logits, mean next-token loss and every parameter's gradient (Hugging Face names and layout)."""
    model.zero_grad(set_to_none=True)
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    gradients = {key: p.grad.detach().clone() for key, p in model.named_parameters()}
    return output.logits.detach(), output.loss.detach(), gradients
