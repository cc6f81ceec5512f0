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

namespace trireme::model {

enum class NormKind { kRmsNorm, kLayerNorm };
enum class MlpKind { kGated, kPlain };                     ///< gated: down(act(gate(x)) * up(x))
enum class Activation { kSilu, kGeluTanh, kGelu, kRelu };  ///< kGeluTanh is Hugging Face's gelu_new
enum class RotaryScaling { kNone, kLinear, kLlama3 };

struct NormSpec {
  NormKind kind = NormKind::kRmsNorm;
  double eps = 1e-5;
  bool bias = false;
};

/// Rotary position embedding, rotate-half layout (Hugging Face).
struct RotarySpec {
  double theta = 10000.0;
  int64_t dim = 0;  ///< rotated dimensions of a head; even
  RotaryScaling scaling = RotaryScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;   ///< llama3
  double high_freq_factor = 4.0;  ///< llama3
  int64_t original_max_positions = 0;
};

struct AttentionSpec {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  ///< divides num_heads
  int64_t head_dim = 0;
  bool qkv_bias = false;
  bool out_bias = false;
  bool qk_norm = false;  ///< RMSNorm over head_dim of every q and k head, before rotary (qwen3)
  double scale = 0.0;    ///< softmax scale, 1/sqrt(head_dim) as a rule
  std::optional<RotarySpec> rotary;
};

struct MlpSpec {
  MlpKind kind = MlpKind::kGated;
  Activation activation = Activation::kSilu;
  int64_t hidden = 0;
  bool bias = false;
};

/// One block: x += attention(norm(x)); x += mlp(norm(x)).
struct LayerSpec {
  NormSpec attention_norm;
  AttentionSpec attention;
  NormSpec mlp_norm;
  MlpSpec mlp;
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
  kHead
};

enum class InitKind { kNormal, kOnes, kZeros };
struct InitSpec {
  InitKind kind = InitKind::kNormal;
  double std = 0.02;  ///< kNormal only; residual projections are scaled by 1/sqrt(2 * layers)
};

/// One part of the model: what a forward, backward-input or backward-weight instruction works on.
enum class PartKind { kEmbedding, kAttention, kMlp, kHead };  ///< kHead: final norm, head and loss
struct PartSpec {
  PartKind kind;
  int layer = -1;    ///< block number; -1 for embedding and head
  std::string name;  ///< "embedding", "layer.3.attention", "layer.3.mlp", "head"
};

/// One trainable tensor. The order in ModelSpec::parameters is part order, then the order in which
/// fused products want them (query, key, value adjacent; gate, up adjacent).
struct ParameterSpec {
  std::string name;            ///< Hugging Face tensor name, e.g. model.layers.0.mlp.up_proj.weight
  std::vector<int64_t> shape;  ///< our layout; a linear weight is [out, in]
  Role role;
  InitSpec init;
  int part = 0;                     ///< index into ModelSpec::parts
  bool transposed_on_disk = false;  ///< Hugging Face stores it [in, out] (gpt2's Conv1D)
  /// Hugging Face stores this and its neighbours with the same `packed_on_disk` name as one tensor
  /// (gpt2's c_attn); empty if it stands alone. `name` is then ours and unique. The neighbours are
  /// concatenated along our dimension 0 in the order of ModelSpec::parameters (query, key, value:
  /// rows 0..d-1 of the packed [3d, d] are the query's) and the result transposed if
  /// `transposed_on_disk`.
  std::string packed_on_disk;
  int64_t numel() const;
  bool is_matrix() const { return shape.size() == 2; }
  /// Weight decay applies to matrices that multiply activations and to the token embedding (which
  /// is such a matrix where it is tied); never to norms, biases, positions.
  bool decays() const;
  /// A matrix that multiplies activations in its own part (not an embedding table).
  bool is_product() const;
};

struct ModelSpec {
  std::string family;        ///< Hugging Face model_type
  std::string architecture;  ///< Hugging Face architectures[0], e.g. LlamaForCausalLM
  int64_t vocab_size = 0;
  int64_t hidden = 0;
  int64_t max_positions = 0;
  bool tied_embeddings = false;    ///< the head multiplies with the token embedding
  bool learned_positions = false;  ///< gpt2's wpe
  double initializer_range = 0.02;
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  std::vector<PartSpec> parts;            ///< in forward order
  std::vector<ParameterSpec> parameters;  ///< tied tensors once
  std::string config_json;  ///< the config as given, for export: keys sorted, two spaces (as
                            ///< transformers writes)
  int bos_token_id = -1;
  int eos_token_id = -1;

  int64_t num_parameters() const;
  int parameter_index(const std::string& name) const;  ///< -1 if absent
};

const char* to_string(PartKind kind);
const char* to_string(Role role);
const char* to_string(Activation activation);

/// Reads a Hugging Face config.json text. `origin` names it in errors (a path or a preset's name).
/// Every key is used or on the list of keys known to carry no meaning for training; else
/// Error{kConfig}, as for an unknown model_type or an option that is not covered.
ModelSpec spec_from_config(const std::string& config_json, const std::string& origin);

/// A named preset ("gpt2-124m", "llama-11m", "llama-110m", "llama3-8b" ...); Error{kConfig} with
/// the nearest known name otherwise. `vocab_size` > 0 replaces the preset's.
ModelSpec spec_from_preset(const std::string& name, int64_t vocab_size = 0);
std::vector<std::string> preset_names();
/// Hugging Face model types that spec_from_config reads.
std::vector<std::string> family_names();

}  // namespace trireme::model
