"""Random configs of every family, drawn within what its config class allows and Trireme does not refuse.

Every option is a deck of values that is dealt from and shuffled anew when empty, so that a few draws show all of them.
undrawn() names the fields of a config class that stay the same in all draws, but for those of NOT_DRAWN.
"""
import dataclasses
import random

from transformers import (DeepseekV2Config, DeepseekV3Config, Gemma2Config, Gemma3TextConfig, Glm4MoeConfig, GPT2Config,
                          GptOssConfig, LlamaConfig, MistralConfig, MixtralConfig, Olmo2Config, OlmoeConfig, Phi3Config,
                          Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig)
from transformers.configuration_utils import PreTrainedConfig

ABSENT = object()  # a key that is not written
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
SMOOTH = ACTIVATIONS[:-1]  # where a norm follows the MLP, which must not be of next to nothing


class Deck:
    """Deals every option's values in random order."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.rest = {}

    def deal(self, option, *values):
        rest = self.rest.setdefault((option, len(values)), [])
        if not rest:
            rest += range(len(values))
            self.rng.shuffle(rest)
        return values[rest.pop()]

    def flag(self, option):
        return self.deal(option, False, True)


def written(**options):
    return {key: value for key, value in options.items() if value is not ABSENT}


def rotary(deck, kinds=("default", "linear", "llama3", "yarn", "yarn"), name="rope", **more):
    """Rotary parameters; the original context is shorter than what models.py reads, so that every scaling acts."""
    kind = deck.deal(name, *kinds)
    parameters = dict(rope_type=kind, rope_theta=deck.deal(f"{name} theta", 50.0, 10000.0, 500000.0), **more)
    original = deck.deal(f"{name} original", 16, 24)
    if kind == "linear":
        parameters.update(factor=deck.deal(f"{name} linear", 1.0, 3.5, 4.0))
    if kind == "llama3":
        low = deck.deal(f"{name} low", 1.0, 0.5)
        parameters.update(factor=deck.deal(f"{name} llama3", 8.0, 2.5), low_freq_factor=low, original_max_position_embeddings=original,
                          high_freq_factor=low * deck.deal(f"{name} high", 4.0, 1.5))
    if kind == "yarn":
        mscale, all_dims = deck.deal(f"{name} mscale", (1.0, 0.8), (0.7, 0.7), (ABSENT, ABSENT), (ABSENT, 1.0), (0.5, ABSENT))
        parameters.update(written(
            factor=deck.deal(f"{name} yarn", 4.0, 2.5, 1.0), original_max_position_embeddings=original,
            beta_fast=deck.deal(f"{name} fast", ABSENT, 32.0, 4.0), beta_slow=deck.deal(f"{name} slow", ABSENT, 1.0, 0.5),
            mscale=mscale, mscale_all_dim=all_dims, attention_factor=deck.deal(f"{name} attention", ABSENT, ABSENT, 1.2),
            # transformers looks for it beside the layers' kinds, where a config with several kinds does not have it.
            truncate=ABSENT if name != "rope" else deck.deal(f"{name} truncate", ABSENT, True, False)))
    return parameters


def common(deck, heads=True, activation="hidden_act", activations=ACTIVATIONS, rope=True):
    """What llama and its descendants share. Heads are so wide that hidden_size is their sum."""
    width = deck.deal("width", 4, 8, 12)
    num_heads, kv = deck.deal("heads", (1, 1), (2, 1), (2, 2), (4, 2), (3, 3), (6, 2), (4, 1), (3, None))
    width *= {1: 4, 2: 2, 3: 2}.get(num_heads, 1)
    pad = deck.deal("pad", None, 3)
    return dict(
        vocab_size=deck.deal("vocabulary", 64, 67, 96), hidden_size=num_heads * width,
        intermediate_size=deck.deal("intermediate", 12, 30, 44), num_hidden_layers=deck.deal("layers", 1, 2, 3, 4),
        num_attention_heads=num_heads, num_key_value_heads=kv if heads else num_heads,
        max_position_embeddings=deck.deal("positions", 64, 96), initializer_range=deck.deal("range", 0.06, 0.1, 0.15),
        rms_norm_eps=deck.deal("eps", 1e-6, 1e-5, 1e-3), bos_token_id=deck.deal("bos", None, 1),
        eos_token_id=deck.deal("eos", None, 2, [2, 5]), pad_token_id=pad, use_cache=deck.flag("cache"),
        tie_word_embeddings=deck.flag("tied"), attention_dropout=deck.deal("dropout", 0.0, 0.1),
        **{activation: deck.deal("activation", *activations)}, **({"rope_parameters": rotary(deck)} if rope else {}))


def head_dim(deck, options):
    """A width of heads that is not hidden_size / heads."""
    return written(head_dim=deck.deal("head_dim", *options))


def layer_types(deck, layers):
    """All kinds of lists; None is the family's own rule."""
    kind = deck.deal("layer_types", None, "random", "full", "sliding")
    if kind == "random":
        return [deck.rng.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    return None if kind is None else [f"{kind}_attention"] * layers


def window(deck):
    return deck.deal("window", 2, 7, 20, 40)


def optional_windows(deck, layers, types=True):
    """Qwen's keys. Layers that are listed as sliding need a window."""
    used = deck.flag("windows")
    listed = layer_types(deck, layers) if types and used else None
    return written(use_sliding_window=used, sliding_window=window(deck), max_window_layers=deck.deal("window layers", 0, 1, 2, 28),
                   layer_types=listed if types else ABSENT)


def experts(deck, *names, aux=True):
    """Sizes of a mixture under the family's names of the number of experts."""
    count = deck.deal("experts", 2, 4, 7)
    options = {name: count for name in names}
    options.update(num_experts_per_tok=deck.rng.randint(1, min(3, count)), output_router_logits=deck.flag("router logits"))
    if aux:
        options.update(router_aux_loss_coef=deck.deal("aux", 0.001, 0.02))
    return options


def grouped_experts(deck, groups=(1, 2, 4), shared=(1, 2)):
    """DeepSeek's: a group has at least two experts, for the best two make its score."""
    num_groups = deck.deal("groups", *groups)
    size = deck.deal("group", 2, 3)
    top_groups = deck.rng.randint(1, num_groups)
    return dict(n_routed_experts=num_groups * size, n_group=num_groups, topk_group=top_groups,
                num_experts_per_tok=deck.rng.randint(1, min(4, top_groups * size)), n_shared_experts=deck.deal("shared", *shared),
                moe_intermediate_size=deck.deal("expert", 5, 8, 20), routed_scaling_factor=deck.deal("scaling", 1.0, 2.5),
                first_k_dense_replace=deck.deal("dense", 0, 1, 2), output_router_logits=deck.flag("router logits"))


def sparse_layers(deck, num_layers):
    """Qwen's rules of which layers have experts, and their sizes. Without any, transformers has no loss of router logits."""
    none = deck.deal("no experts", False, False, False, True)
    options = dict(experts(deck, "num_experts"), moe_intermediate_size=deck.deal("expert", 5, 8, 20),
                   norm_topk_prob=deck.flag("normalize"), decoder_sparse_step=deck.deal("step", 1, 1, 2),
                   mlp_only_layers=deck.deal("dense layers", None, [], [0], [1, 2]))
    if none:
        options.update(num_experts=0)
    sparse = [i for i in range(num_layers) if i not in (options["mlp_only_layers"] or []) and (i + 1) % options["decoder_sparse_step"] == 0]
    return options | dict(output_router_logits=False) if none or not sparse else options


def gpt2(deck):
    heads = deck.deal("heads", 1, 2, 3, 4)
    return GPT2Config(
        vocab_size=deck.deal("vocabulary", 64, 67, 96), n_positions=deck.deal("positions", 64, 80), n_head=heads,
        n_embd=heads * deck.deal("width", 3, 4, 8), n_layer=deck.deal("layers", 1, 2, 3), n_inner=deck.deal("inner", None, 20, 36),
        activation_function=deck.deal("activation", *ACTIVATIONS), resid_pdrop=deck.deal("resid", 0.0, 0.1),
        embd_pdrop=deck.deal("embd", 0.0, 0.1), attn_pdrop=deck.deal("attn", 0.0, 0.1), layer_norm_epsilon=deck.deal("eps", 1e-5, 1e-6, 1e-3),
        initializer_range=deck.deal("range", 0.06, 0.1, 0.15), scale_attn_weights=deck.flag("scaled"), use_cache=deck.flag("cache"),
        bos_token_id=deck.deal("bos", None, 1), eos_token_id=deck.deal("eos", None, 2, [2, 5]), pad_token_id=deck.deal("pad", None, 3),
        scale_attn_by_inverse_layer_idx=deck.flag("by layer"), reorder_and_upcast_attn=deck.flag("upcast"),
        tie_word_embeddings=deck.flag("tied"))


def llama(deck):
    return LlamaConfig(**common(deck), **head_dim(deck, (None, 4, 6, 10)), attention_bias=deck.flag("bias"),
                       mlp_bias=deck.flag("mlp bias"), pretraining_tp=deck.deal("pretraining", 1, 2))


def mistral(deck):
    return MistralConfig(**with_kv(common(deck)), **head_dim(deck, (None, 4, 6, 10)), sliding_window=deck.deal("window", None, 2, 11, 40))


def with_kv(options):
    """Of a class that does not take None for num_key_value_heads."""
    return options | {"num_key_value_heads": options["num_key_value_heads"] or options["num_attention_heads"]}


def qwen2(deck):
    options = common(deck)
    return Qwen2Config(**options, **optional_windows(deck, options["num_hidden_layers"]))


def qwen3(deck):
    options = common(deck)
    return Qwen3Config(**options, **head_dim(deck, (4, 6, 10)), attention_bias=deck.flag("bias"),
                       **optional_windows(deck, options["num_hidden_layers"]))


def gemma2(deck):
    options = with_kv(common(deck, activation="hidden_activation", activations=SMOOTH))
    return Gemma2Config(**options, **head_dim(deck, (4, 6, 10)), attention_bias=deck.flag("bias"), sliding_window=window(deck),
                        query_pre_attn_scalar=deck.deal("scalar", 17, 24, 256), layer_types=layer_types(deck, options["num_hidden_layers"]),
                        final_logit_softcapping=deck.deal("final cap", None, 2.0, 30.0),
                        attn_logit_softcapping=deck.deal("cap", None, 1.0, 50.0),
                        use_bidirectional_attention=deck.deal("bidirectional", None, False))


def gemma3(deck):
    options = with_kv(common(deck, activation="hidden_activation", activations=SMOOTH, rope=False))
    rope = deck.deal("ropes", None, "both", "both", "both")
    if rope:
        rope = dict(full_attention=rotary(deck, name="global rope"), sliding_attention=rotary(deck, ("default", "linear"), name="local rope"))
    return Gemma3TextConfig(**options, **head_dim(deck, (4, 6, 10)), attention_bias=deck.flag("bias"), sliding_window=window(deck),
                            query_pre_attn_scalar=deck.deal("scalar", 17, 24, 256), layer_types=layer_types(deck, options["num_hidden_layers"]),
                            final_logit_softcapping=deck.deal("final cap", None, 2.0, 30.0),
                            use_bidirectional_attention=deck.deal("bidirectional", None, False), rope_parameters=rope,
                            **written(sliding_window_pattern=deck.deal("pattern", ABSENT, 2, 3)))


def phi3(deck):
    options = common(deck, rope=False)
    width = options["hidden_size"] // options["num_attention_heads"]
    part = deck.deal(f"part of {width}", *((1.0, 0.5) if width % 12 else (1.0, 0.5, 0.34)))  # 0.34 of 12 is cut to 4
    original = deck.deal("original", 16, 24)
    rope = dict(rope_type=deck.deal("rope", "default", "longrope", "longrope"), rope_theta=deck.deal("theta", 50.0, 10000.0),
                partial_rotary_factor=part)
    if rope["rope_type"] == "longrope":
        pairs = int(width * part) // 2
        rope.update(written(
            short_factor=[deck.rng.choice([1, 1.0, 1.5, 1.05]) for _ in range(pairs)],
            long_factor=[deck.rng.choice([1.0, 2.0, 4, 3.7]) for _ in range(pairs)], original_max_position_embeddings=original,
            factor=deck.deal("factor", ABSENT, 4.0, 1.0), attention_factor=deck.deal("attention", ABSENT, ABSENT, 1.2)))
    return Phi3Config(**options, rope_parameters=rope, original_max_position_embeddings=original,
                      sliding_window=deck.deal("window", None, 2, 20), resid_pdrop=deck.deal("resid", 0.0, 0.1),
                      embd_pdrop=deck.deal("embd", 0.0, 0.1))


def olmo2(deck):
    return Olmo2Config(**common(deck, activations=SMOOTH), attention_bias=deck.flag("bias"))


def mixtral(deck):
    options = with_kv(common(deck))
    # transformers' YaRN reads head_dim, also where it is None.
    widths = (4, 6, 10) if options["rope_parameters"]["rope_type"] == "yarn" else (None, 4, 6, 10)
    return MixtralConfig(**options, **head_dim(deck, widths), **experts(deck, "num_local_experts"),
                         sliding_window=deck.deal("window", None, 2, 11, 40))


def qwen2_moe(deck):
    options = with_kv(common(deck))
    return Qwen2MoeConfig(**options, **sparse_layers(deck, options["num_hidden_layers"]), **optional_windows(deck, options["num_hidden_layers"]),
                          qkv_bias=deck.flag("bias"), shared_expert_intermediate_size=deck.deal("shared", 5, 8, 20))


def qwen3_moe(deck):
    options = with_kv(common(deck))
    return Qwen3MoeConfig(**options, **head_dim(deck, (ABSENT, 4, 6, 10)), **sparse_layers(deck, options["num_hidden_layers"]), attention_bias=deck.flag("bias"),
                          **optional_windows(deck, options["num_hidden_layers"], types=False))


def olmoe(deck):
    return OlmoeConfig(**common(deck), **experts(deck, "num_experts"), attention_bias=deck.flag("bias"),
                       norm_topk_prob=deck.flag("normalize"))


def gpt_oss(deck):
    options = with_kv(common(deck, activations=("silu",), rope=False))
    return GptOssConfig(**options, **head_dim(deck, (4, 6, 10)), **experts(deck, "num_local_experts"), sliding_window=window(deck),
                        layer_types=layer_types(deck, options["num_hidden_layers"]), attention_bias=deck.flag("bias"),
                        swiglu_limit=deck.deal("limit", 0.3, 0.9, 7.0), rope_parameters=deck.deal("own rope", None, 1, 1, 1) and rotary(deck))


def glm4_moe(deck):
    part = deck.deal("part", ABSENT, 0.5, 1.0)
    beside = deck.flag("part beside")  # the key's place until transformers 5
    rope = rotary(deck, **written(partial_rotary_factor=ABSENT if beside else part))
    options = with_kv(common(deck, rope=False))
    return Glm4MoeConfig(**options, **head_dim(deck, (4, 8, 12)), **grouped_experts(deck), attention_bias=deck.flag("bias"),
                         use_qk_norm=deck.flag("norm"), norm_topk_prob=deck.flag("normalize"), rope_parameters=rope,
                         num_mtp_layers=0, **written(partial_rotary_factor=part if beside else ABSENT))


def latent(deck, nope=(4, 6, 8)):
    return dict(q_lora_rank=deck.deal("query rank", None, 6, 11), kv_lora_rank=deck.deal("rank", 4, 8, 12),
                qk_rope_head_dim=deck.deal("rope dim", 2, 4, 8), qk_nope_head_dim=deck.deal("nope dim", *nope),
                v_head_dim=deck.deal("value dim", 4, 5, 8), attention_bias=deck.flag("bias"), pretraining_tp=deck.deal("pretraining", 1, 2))


def deepseek_v2(deck):
    method = deck.deal("method", "greedy", "group_limited_greedy")
    options = grouped_experts(deck)
    if method == "greedy":
        options.update(deck.deal("unused groups", dict(n_group=None, topk_group=None), {}))
        options.update(num_experts_per_tok=deck.rng.randint(1, options["n_routed_experts"]))
    # Its complex numbers want an even head in transformers.
    return DeepseekV2Config(**common(deck, heads=False), **latent(deck), **options, topk_method=method)


def deepseek_v3(deck):
    return DeepseekV3Config(**common(deck, heads=False), **latent(deck, (4, 5, 8)), **grouped_experts(deck), norm_topk_prob=deck.flag("normalize"),
                            rope_interleave=deck.flag("interleaved"), num_mtp_layers=0)


FAMILIES = {"gpt2": gpt2, "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "gemma2": gemma2, "gemma3": gemma3,
            "phi3": phi3, "olmo2": olmo2, "mixtral": mixtral, "qwen2_moe": qwen2_moe, "qwen3_moe": qwen3_moe, "olmoe": olmoe,
            "gpt_oss": gpt_oss, "glm4_moe": glm4_moe, "deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3}

# Fields that no draw changes, and why.
NOT_DRAWN = {
    "gpt2": {"add_cross_attention": "refused", **dict.fromkeys(
        ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        "of a classification head")},
    "gpt_oss": {"hidden_act": "refused: transformers has the clamped SwiGLU whatever it says", "swiglu_alpha": "refused"},
    "mixtral": {"router_jitter_noise": "refused: noise"},
    "olmoe": {"clip_qkv": "refused"},
    "gemma3": {"attn_logit_softcapping": "refused: transformers ignores it"},
    "deepseek_v2": {"mlp_bias": "refused", "norm_topk_prob": "refused: transformers ignores it", "head_dim": "transformers computes it"},
    "deepseek_v3": {"num_mtp_layers": "transformers computes no logits of theirs"},
    "glm4_moe": {"num_mtp_layers": "transformers computes no logits of theirs"},
}


def draws(family, seed, count):
    """So many configs of a family; the first ones do not depend on how many."""
    deck = Deck(f"{family} {seed}")
    return [FAMILIES[family](deck) for _ in range(count)]


def undrawn(family, configs):
    """Fields of the family's class that have the same value in all configs, though nobody says why."""
    own = {field.name for field in dataclasses.fields(type(configs[0]))} - {field.name for field in dataclasses.fields(PreTrainedConfig)}
    same = {name for name in own if len({repr(getattr(config, name)) for config in configs}) == 1}
    return sorted(same - set(NOT_DRAWN.get(family, ())))
