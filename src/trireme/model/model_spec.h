// ModelSpec: what a model is, without a tensor.
//
// Read from a Hugging Face config.json by the family's rules (families/<name>.cpp) or from a named
// preset. It knows every parameter's name, shape, role, initialisation and place; flops.h and
// memory.h build on it. Pure: no I/O (the caller passes the JSON text), no torch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trireme/model/quantization.h"

namespace trireme::model {

enum class NormKind { kRmsNorm, kLayerNorm };
enum class MlpKind { kGated, kPlain };                     ///< gated: down(act(gate(x)) * up(x))
enum class Activation { kSilu, kGeluTanh, kGelu, kRelu };  ///< kGeluTanh is Hugging Face's gelu_new
enum class RotaryScaling { kNone, kLinear, kLlama3, kYarn, kLongRope };

struct NormSpec {
  NormKind kind = NormKind::kRmsNorm;
  double eps = 1e-5;
  bool bias = false;
  bool unit_offset = false;  ///< multiplies with 1 + weight; the weight starts at zero (gemma)
};

/// Rotary position embedding. cos and sin are multiplied with `attention_factor`.
struct RotarySpec {
  double theta = 10000.0;
  int64_t dim = 0;  ///< rotated dimensions of a head, its first ones; even
  /// Pairs are (2i, 2i + 1) instead of (i, i + dim/2), Hugging Face's rotate-half layout.
  bool interleaved = false;
  RotaryScaling scaling = RotaryScaling::kNone;
  double factor = 1.0;
  double attention_factor = 1.0;  ///< yarn, longrope
  double low_freq_factor = 1.0;   ///< llama3
  double high_freq_factor = 4.0;  ///< llama3
  double beta_fast = 32.0;        ///< yarn
  double beta_slow = 1.0;         ///< yarn
  bool truncate = true;           ///< yarn: the ramp's ends are rounded to whole dimensions
  int64_t original_max_positions = 0;
  std::vector<double> short_factor;  ///< longrope, [dim/2]: sequences up to the original length
  std::vector<double> long_factor;   ///< longrope, [dim/2]: longer ones
  /// yarn with mscale_all_dim: latent attention's softmax scale has this factor (AttentionSpec::scale holds it already).
  double score_factor = 1.0;
  bool operator==(const RotarySpec&) const = default;
};

/// RMSNorm of q and k before rotary: of every head (qwen3, gemma3), or of all heads together (olmo2, olmoe).
enum class QkNorm { kNone, kHead, kAllHeads };

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values come from one compressed vector a
/// token, and one rotary key is shared by all heads. num_kv_heads is num_heads, head_dim is nope_dim + rope_dim.
struct LatentSpec {
  int64_t query_rank = 0;  ///< of the compressed query; 0: not compressed
  int64_t kv_rank = 0;
  int64_t nope_dim = 0;  ///< of a query or key head, without position
  int64_t rope_dim = 0;  ///< with it; the last ones of a head
  double norm_eps = 1e-6;
};

struct AttentionSpec {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  ///< divides num_heads
  int64_t head_dim = 0;
  int64_t value_dim = 0;  ///< of a value head; head_dim but for latent attention
  bool qkv_bias = false;
  bool out_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  NormSpec qk_norm_spec;  ///< eps and unit_offset
  double scale = 0.0;     ///< softmax scale, 1/sqrt(head_dim) as a rule
  int64_t window = 0;     ///< keys that a query sees, its own included; 0: all before it
  double softcap = 0.0;   ///< scores become softcap * tanh(score / softcap); 0: no
  bool sinks =
      false;  ///< a learned logit a head takes part in the softmax without a value (gpt_oss)
  std::optional<RotarySpec> rotary;
  std::optional<LatentSpec> latent;
};

struct MlpSpec {
  MlpKind kind = MlpKind::kGated;
  Activation activation = Activation::kSilu;
  int64_t hidden = 0;
  bool bias = false;
};

enum class ScoreFunction { kSoftmax, kSigmoid };

/// Mixture of experts in place of an MLP: y = scaling * sum over the chosen of p_e expert_e(x), plus the shared expert.
struct MoeSpec {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  MlpSpec expert;  ///< of one routed expert
  /// gpt_oss: gate is clamped from above and up from both sides at the limit, and the product is
  /// (up + 1) * gate * sigmoid(1.702 * gate). 0: the usual gated activation.
  double clamp_limit = 0.0;
  ScoreFunction score = ScoreFunction::kSoftmax;
  bool softmax_after_top_k =
      false;  ///< over the chosen logits only (mixtral's renormalised probabilities, gpt_oss)
  bool normalize = false;  ///< the chosen probabilities are divided by their sum
  double scaling = 1.0;
  int64_t num_groups =
      1;  ///< experts lie in groups; only the best `top_groups` groups are chosen from
  int64_t top_groups = 1;
  /// A group's score is the sum of its two best (v3, with the selection bias) or its best (v2).
  bool group_score_top2 = false;
  bool selection_bias =
      false;  ///< a bias an expert that takes part in the choice only, moved by the load
  bool router_bias = false;   ///< of the router's product
  int64_t shared_hidden = 0;  ///< width of the shared expert's MLP; 0: none
  bool shared_gate = false;   ///< its output is multiplied with sigmoid(w x) (qwen2_moe)
  // Balancing (training only).
  double aux_loss = 0.0;  ///< coefficient of the load-balancing loss, as the config gives it
  /// The config wants that loss in the model's own (output_router_logits): transformers adds it then, and only then.
  bool aux_in_loss = false;
  bool sequence_aux = false;  ///< it is computed over each sequence, not over the batch (seq_aux)
  double z_loss = 0.0;
  /// The balancing loss counts the experts' tokens over the global batch (of the step before) and not over the
  /// micro-batch.
  bool global_aux = false;
  double bias_update_rate = 0.001;  ///< of the selection bias, a step
  double capacity_factor = 0.0;  ///< rows of an expert at most, in shares of an even load; 0: any
  bool pad_to_capacity = false;  ///< an expert has that many rows always
};

/// One block: x += post(attention(pre(x))); x += post(mlp(pre(x))). Norms that are absent are left out.
struct LayerSpec {
  std::optional<NormSpec> attention_norm;
  AttentionSpec attention;
  std::optional<NormSpec> attention_post_norm;
  std::optional<NormSpec> mlp_norm;
  MlpSpec mlp;
  std::optional<MoeSpec> moe;  ///< instead of mlp
  std::optional<NormSpec> mlp_post_norm;
};

/// What a parameter is for. Decides initialisation, weight decay and the choice of optimizer.
enum class Role {
  kTokenEmbedding,
  kPositionEmbedding,
  kNormWeight,
  kNormBias,
  kQuery,
  kKey,
  kValue,
  kQkNorm,
  kAttentionOut,
  kGate,
  kUp,  ///< of a plain MLP the first matrix
  kDown,
  kBias,
  kHead,
  kSink,  ///< of attention, [heads]
  // Latent attention has, in this order: kQueryDown (with its bias: see kKeyValueDown) if the query is compressed, else
  // kQuery from d; kKeyValueDown; with attention_bias a kBias of kQueryDown and one of kKeyValueDown (kQuery has none);
  // kLatentNorm of the query if compressed, and of keys and values; kQuery [heads head_dim, query_rank] if compressed;
  // kKeyValueUp; kAttentionOut [d, heads value_dim] and its kBias.
  kQueryDown,  ///< [query_rank, d]
  kKeyValueDown,  ///< [kv_rank + rope_dim, d]: the compressed keys and values, then the shared rotary key
  kKeyValueUp,  ///< [heads (nope_dim + value_dim), kv_rank]: of every head its key, then its value
  kLatentNorm,  ///< RMSNorm of a compressed vector, [query_rank] or [kv_rank], eps LatentSpec::norm_eps
  kRouter,      ///< [experts, d]; its bias is a kBias [experts]
  kSelectionBias,  ///< [experts]; no gradient: moved once a step by the experts' load
  kExpertGate,     ///< [experts, hidden, d], as its neighbours below
  kExpertUp,
  kExpertDown,
  kExpertGateBias,    ///< [experts, hidden], between kExpertUp and kExpertDown
  kExpertUpBias,      ///< [experts, hidden], follows it
  kExpertDownBias,    ///< [experts, d]
  kSharedExpertGate,  ///< [1, d]: the scalar gate of the shared expert
  kMtpProjection      ///< [d, 2 d] of a multi-token-prediction block
};

enum class InitKind { kNormal, kOnes, kZeros };
struct InitSpec {
  InitKind kind = InitKind::kNormal;
  double std = 0.02;  ///< kNormal only; residual projections are scaled by 1/sqrt(2 * layers)
};

/// One part of the model: what a forward, backward-input or backward-weight instruction works on.
enum class PartKind {
  kEmbedding,
  kAttention,
  kMlp,
  kRouter,    ///< norm, scores, choice of experts
  kDispatch,  ///< rows of the tokens, sorted by expert
  kExperts,   ///< the routed experts' products
  kCombine,   ///< back to the tokens, plus the shared expert and the residual
  /// Multi-token prediction: norms of a later token's embedding (first) and of the hidden state, both kNormWeight, and
  /// the projection of [embedding | hidden state]. Its layer's parts follow, then kMtpHead; all of it after kHead. See
  /// mtp.h.
  kMtpInput,
  kMtpHead,  ///< its norm, the shared head and its loss
  kHead      ///< final norm, head and loss
};
struct PartSpec {
  PartKind kind;
  int layer = -1;    ///< block number; -1 for embedding and head
  std::string name;  ///< "embedding", "layer.3.attention", "layer.3.mlp", "layer.3.router", "head"
};

/// The place of a stretch in a whole tensor: elements [first, first + its own size) along dimension `dim`.
struct ParameterShard {
  std::vector<int64_t> whole;  ///< the whole tensor's shape
  size_t dim = 0;
  int64_t first = 0;
  bool operator==(const ParameterShard&) const = default;
};

/// One tensor of a model, trainable as a rule. The order in ModelSpec::parameters is part order, then the order in which
/// fused products want them (query, key, value adjacent; gate, up adjacent). What a file of Hugging Face's holds of it is
/// disk_layout.h's business; the fields for it are below.
struct ParameterSpec {
  std::string name;            ///< Hugging Face tensor name, e.g. model.layers.0.mlp.up_proj.weight
  std::vector<int64_t> shape;  ///< our layout; a linear weight is [out, in]
  Role role;
  InitSpec init;
  int part = 0;           ///< index into ModelSpec::parts
  bool trainable = true;  ///< false: no gradient, no optimizer state (kSelectionBias)
  /// Hugging Face stores it [in, out] (gpt2's Conv1D, gpt_oss's experts): the last two dimensions exchanged.
  bool transposed_on_disk = false;
  bool fp32_on_disk = false;  ///< stored as fp32 beside weights of another type
  /// Hugging Face stores this and its neighbours with the same `packed_on_disk` name as one tensor
  /// (gpt2's c_attn); empty if it stands alone. `name` is then ours and unique. The neighbours are
  /// concatenated along our dimension 0 in the order of ModelSpec::parameters (query, key, value:
  /// rows 0..d-1 of the packed [3d, d] are the query's) and the result transposed if
  /// `transposed_on_disk`.
  std::string packed_on_disk;
  /// Experts' stacks are joined along dimension 1 instead of 0; row by row in turn if interleaved (gpt_oss).
  int packed_dim = 0;
  bool packed_interleaved = false;
  /// Files name it so, not as transformers' modules do (`name` or `packed_on_disk`); with "{}", the number of an expert,
  /// they hold one tensor an expert. Empty: as the modules.
  std::string name_in_files;
  /// One rank's stretch of a parameter that ranks share; `shape` is the stretch's.
  std::optional<ParameterShard> shard = {};
  int64_t numel() const;
  const std::vector<int64_t>& whole_shape() const { return shard ? shard->whole : shape; }
  /// Stretches of the whole tensor's elements that lie one after the other here: so many elements each, and where stretch i begins.
  int64_t elements_in_a_row() const;
  int64_t whole_element(int64_t element) const;
  /// Makes it the stretch `index` of `pieces` equal ones along a dimension that they divide.
  void cut(size_t dim, int64_t pieces, int64_t index);
  bool is_matrix() const { return shape.size() == 2; }
  /// Weight decay applies to matrices that multiply activations and to the token embedding (which
  /// is such a matrix where it is tied); never to norms, biases, positions.
  bool decays() const;
  /// A matrix that multiplies activations in its own part (not an embedding table).
  bool is_product() const;
  /// Of the routed experts: dimension 0 counts them, and a token uses top_k of its slices.
  bool is_expert() const;
};

/// Whose share of a model a spec describes: of so many tensor parallel ranks, the one at `place`.
struct TensorShare {
  int64_t ranks = 1;
  int64_t place = 0;
  bool is_cut() const { return ranks > 1; }
  /// Of `tokens` of a micro-batch in a row, those that the rank has between parts: [first(tokens), first(tokens) + count(tokens)).
  int64_t first(int64_t tokens) const { return tokens * place / ranks; }
  int64_t count(int64_t tokens) const { return tokens * (place + 1) / ranks - first(tokens); }
};

struct ModelSpec {
  /// Hugging Face model_type; of a type that declares itself a variant of a family (kimi_k2), that family's.
  std::string family;
  std::string architecture;  ///< Hugging Face architectures[0], e.g. LlamaForCausalLM
  int64_t vocab_size = 0;
  int64_t hidden = 0;
  int64_t max_positions = 0;
  bool tied_embeddings = false;    ///< the head multiplies with the token embedding
  bool learned_positions = false;  ///< gpt2's wpe
  double initializer_range = 0.02;
  double embedding_scale =
      1.0;  ///< multiplies the embeddings (gemma: sqrt(hidden), rounded to bfloat16)
  double logit_softcap = 0.0;  ///< logits become softcap * tanh(logit / softcap); 0: no (gemma2)
  /// The blocks; the last `num_mtp_layers` of them predict further tokens and lie after the head (deepseek_v3).
  std::vector<LayerSpec> layers;
  int num_mtp_layers = 0;
  /// The loss is the head's + this / num_mtp_layers * the sum of the multi-token-prediction modules' (DeepSeek-V3's 0.3).
  double mtp_loss_weight = 0.3;
  NormSpec final_norm;
  /// Cut over tensor parallel ranks: heads, widths of MLPs and shapes of parameters are this share's; hidden and vocab_size stay
  /// the model's.
  TensorShare tensor;
  std::vector<PartSpec> parts;            ///< in forward order
  std::vector<ParameterSpec> parameters;  ///< tied tensors once
  /// How a Hugging Face directory with this config stores its weights; not of the model itself, and not in config_json.
  std::optional<QuantizationSpec> quantization;
  std::string config_json;  ///< the config as given, for export: keys sorted, two spaces (as
                            ///< transformers writes)
  int bos_token_id = -1;
  int eos_token_id = -1;
  std::vector<int> eos_token_ids;  ///< all that end a text; the first is eos_token_id

  int64_t num_parameters() const;
  /// Those that one token's forward pass to the head uses: of the routed experts top_k of num_experts; no
  /// multi-token-prediction layers.
  int64_t num_active_parameters() const;
  /// Of the multi-token-prediction layers, which num_parameters() counts too and published totals do not.
  int64_t num_mtp_parameters() const;
  /// Elements of it that one token's forward pass uses.
  int64_t active_numel(const ParameterSpec& parameter) const;
  /// True of a part (index into parts) that belongs to a multi-token-prediction layer.
  bool is_mtp(int part) const;
  /// Which module of multi-token prediction a part belongs to, from 1; 0: none, it is the model's own.
  int mtp_depth(int part) const;
  int num_main_layers() const { return static_cast<int>(layers.size()) - num_mtp_layers; }
  /// Index into parts of kHead: the last of all but those for multi-token prediction.
  int head_part() const;
  /// True of kHead and kMtpHead.
  bool is_head(int part) const;
  int parameter_index(const std::string& name) const;  ///< -1 if absent
};

const char* to_string(PartKind kind);
const char* to_string(Role role);
const char* to_string(Activation activation);

/// Reads a Hugging Face config.json text. `origin` names it in errors (a path or a preset's name).
/// Every key is used or on the list of keys known to carry no meaning for training; else
/// Error{kConfig}, as for an unknown model_type or an option that is not covered. An unknown type whose architectures[0] is a family's
/// class is read as that family.
ModelSpec spec_from_config(const std::string& config_json, const std::string& origin);

/// A named preset ("gpt2-124m", "llama-11m", "llama-110m", "llama3-8b" ...); Error{kConfig} with
/// the nearest known name otherwise. `vocab_size` > 0 replaces the preset's.
ModelSpec spec_from_preset(const std::string& name, int64_t vocab_size = 0);
std::vector<std::string> preset_names();
/// Hugging Face model types that spec_from_config reads.
std::vector<std::string> family_names();

}  // namespace trireme::model
