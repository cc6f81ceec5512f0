"""Tiny models of every family with all their options on, shared by the goldens and by the live parity check."""
import torch
from transformers import (AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, Gemma2Config, Gemma3TextConfig,
                          Glm4MoeConfig, GPT2Config, GptOssConfig, LlamaConfig, MistralConfig, MixtralConfig, Olmo2Config,
                          OlmoeConfig, Phi3Config, Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig)

_llama = dict(vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
              attention_dropout=0.0)
_gpt2 = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
             resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2)
_llama3_rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                    original_max_position_embeddings=16)

_yarn = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=32.0,
             beta_slow=1.0, mscale=1.0, mscale_all_dim=0.8)
# Two groups of groups: 8 experts in 4 groups, the best 2 groups are chosen from.
_deepseek = dict(_llama, num_key_value_heads=4, kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=5,
                 n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=12, n_shared_experts=2, n_group=4,
                 topk_group=2, routed_scaling_factor=2.5, first_k_dense_replace=1, attention_bias=False,
                 pad_token_id=None, num_hidden_layers=3)

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
    "mixtral": lambda: MixtralConfig(**_llama, num_local_experts=4, num_experts_per_tok=2, sliding_window=11,
                                     pad_token_id=None),
    "qwen2_moe": lambda: Qwen2MoeConfig(**dict(_llama, num_hidden_layers=3), moe_intermediate_size=12, num_experts=6,
                                        shared_expert_intermediate_size=20, num_experts_per_tok=3, norm_topk_prob=False,
                                        decoder_sparse_step=1, mlp_only_layers=[1], pad_token_id=None),
    "qwen2_moe-window": lambda: Qwen2MoeConfig(**dict(_llama, num_hidden_layers=3), moe_intermediate_size=12,
                                               num_experts=4, shared_expert_intermediate_size=8, num_experts_per_tok=2,
                                               norm_topk_prob=True, decoder_sparse_step=2, use_sliding_window=True,
                                               sliding_window=7, max_window_layers=2, pad_token_id=None),
    "qwen3_moe": lambda: Qwen3MoeConfig(**dict(_llama, num_hidden_layers=3), head_dim=8, moe_intermediate_size=12,
                                        num_experts=6, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0],
                                        pad_token_id=None),
    "qwen3_moe-plain": lambda: Qwen3MoeConfig(**_llama, head_dim=6, moe_intermediate_size=8, num_experts=4,
                                              num_experts_per_tok=3, norm_topk_prob=False, attention_bias=True,
                                              use_sliding_window=True, sliding_window=9, max_window_layers=1,
                                              tie_word_embeddings=True, pad_token_id=None),
    "olmoe": lambda: OlmoeConfig(**_llama, num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, pad_token_id=None),
    "olmoe-normed": lambda: OlmoeConfig(**_llama, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
                                        attention_bias=True, pad_token_id=None),
    "gpt_oss": lambda: GptOssConfig(**dict(_llama, num_hidden_layers=2), head_dim=8, num_local_experts=4,
                                    num_experts_per_tok=2, sliding_window=7, swiglu_limit=0.9, pad_token_id=None,
                                    rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=4.0, truncate=False,
                                                         beta_fast=32.0, beta_slow=1.0,
                                                         original_max_position_embeddings=16)),
    "glm4_moe": lambda: Glm4MoeConfig(**dict(_llama, num_hidden_layers=3), head_dim=8, moe_intermediate_size=12,
                                      n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, n_group=2,
                                      topk_group=1, routed_scaling_factor=1.5, norm_topk_prob=True, use_qk_norm=True,
                                      first_k_dense_replace=1, attention_bias=True, pad_token_id=None,
                                      num_nextn_predict_layers=0),
    "deepseek_v2": lambda: DeepseekV2Config(**_deepseek, q_lora_rank=None, topk_method="group_limited_greedy",
                                            norm_topk_prob=False),
    "deepseek_v2-yarn": lambda: DeepseekV2Config(**_deepseek, q_lora_rank=10, topk_method="greedy", norm_topk_prob=False,
                                                 rope_parameters=_yarn),
    "deepseek_v3": lambda: DeepseekV3Config(**_deepseek, q_lora_rank=10, norm_topk_prob=True, rope_parameters=_yarn,
                                            num_nextn_predict_layers=0),
    "deepseek_v3-plain": lambda: DeepseekV3Config(**_deepseek, q_lora_rank=None, norm_topk_prob=True,
                                                  rope_interleave=False, num_nextn_predict_layers=0),
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
    return build_of(CASES[name](), seed)


def build_of(config, seed):
    """The model in fp32 with every parameter random, norms and biases too; eager attention as the plainest reference."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager").float()
    norm = 0.0 if config.model_type.startswith("gemma") else 1.0  # gemma adds one to the weights of its norms
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 or key.endswith("_bias"):
                parameter.copy_((norm if "norm" in key or "ln_" in key else 0.0) * (1 - ("bias" in key))
                                + 0.2 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(0.2 * torch.randn_like(buffer))
    return model.eval()


def balance_in_loss(model):
    """True where transformers adds a balancing loss to its loss that Trireme has too: it counts the rows of all layers together."""
    config = model.config
    if not getattr(config, "output_router_logits", False) or not hasattr(config, "router_aux_loss_coef"):
        return False
    return sum(name.endswith(".experts") for name, _ in model.named_modules()) == 1


def reference(model, ids):
    """Logits, mean next-token loss and every parameter's gradient (Hugging Face names and layout)."""
    model.zero_grad(set_to_none=True)
    options = {} if not hasattr(model.config, "output_router_logits") else {"output_router_logits": balance_in_loss(model)}
    output = model(input_ids=ids, labels=ids, use_cache=False, **options)
    output.loss.backward()
    gradients = {key: p.grad.detach().clone() for key, p in model.named_parameters()}
    return output.logits.detach(), output.loss.detach(), gradients
