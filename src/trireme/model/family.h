// What the model families share: the registry, and the composition of the common block.
//
// A family is one file, families/<name>.cpp: it reads its keys, composes a ModelSpec from the
// functions here (mixtures of experts: family_moe.h), and is listed in family.cpp. Nothing else knows its name.
#pragma once

#include <string>
#include <vector>

#include "trireme/model/config_reader.h"
#include "trireme/model/model_spec.h"

namespace trireme::model {

struct Family {
  std::string model_type;
  std::string architecture;       ///< the Hugging Face class that is covered
  std::string base_architecture;  ///< the same without its head, read as well
  void (*read)(ConfigReader& config, ModelSpec& spec);
  std::string alias = {};  ///< another model_type that is this family under another name
};

const std::vector<Family>& families();

// One per file of families/. Each fills everything of ModelSpec but what spec_from_config itself
// knows (family, architecture, special tokens, config_json).
void read_deepseek_v2(ConfigReader& config, ModelSpec& spec);
void read_deepseek_v3(ConfigReader& config, ModelSpec& spec);
void read_gemma2(ConfigReader& config, ModelSpec& spec);
void read_gemma3(ConfigReader& config, ModelSpec& spec);
void read_glm4_moe(ConfigReader& config, ModelSpec& spec);
void read_gpt2(ConfigReader& config, ModelSpec& spec);
void read_gpt_oss(ConfigReader& config, ModelSpec& spec);
void read_llama(ConfigReader& config, ModelSpec& spec);
void read_mistral(ConfigReader& config, ModelSpec& spec);
void read_mixtral(ConfigReader& config, ModelSpec& spec);
void read_olmo2(ConfigReader& config, ModelSpec& spec);
void read_olmoe(ConfigReader& config, ModelSpec& spec);
void read_phi3(ConfigReader& config, ModelSpec& spec);
void read_qwen2(ConfigReader& config, ModelSpec& spec);
void read_qwen2_moe(ConfigReader& config, ModelSpec& spec);
void read_qwen3(ConfigReader& config, ModelSpec& spec);
void read_qwen3_moe(ConfigReader& config, ModelSpec& spec);

/// Which layers of a family have a sliding window, where the config has no layer_types.
enum class WindowRule {
  kRefused,     ///< the family has none
  kEvery,       ///< all, if sliding_window is set
  kIfUsed,      ///< all, if use_sliding_window
  kFromLayer,   ///< if use_sliding_window: those from max_window_layers on
  kEvenBefore,  ///< if use_sliding_window: every second from the first, below max_window_layers
  kPeriodic     ///< all but every `window_period`-th
};

/// What a family with rotary positions and RMSNorm puts where, and its defaults.
struct RotaryFamilyOptions {
  bool qkv_bias = false;
  bool out_bias = false;
  bool mlp_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  int64_t head_dim = 0;  ///< 0: hidden / heads, unless the config says
  bool head_dim_key = true;
  bool pre_norms = true;
  bool post_norms = false;
  bool unit_offset = false;  ///< of every norm
  double eps = 1e-6;
  bool tied = false;
  bool partial_rotary = false;  ///< partial_rotary_factor is a key of this family
  double partial_factor = 1.0;  ///< where it is not written
  double theta = 10000.0;       ///< where rope_theta is not written
  const char* rope = "";        ///< rotary parameters (JSON) where none are written
  bool long_rope = false;       ///< its rotary scaling is longrope, also under older names
  bool own_rotary = false;      ///< the family reads its rotary embeddings itself
  bool packed = false;  ///< query, key and value are one tensor on disk, gate and up another
  int64_t max_positions = 2048;
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
  WindowRule windows = WindowRule::kRefused;
  int64_t window = 0;  ///< of sliding_window where the key is not written; 0: none
  int64_t window_period = 0;
};

/// Reads the keys that llama and its descendants share (sizes, rotary, activation, tying,
/// positions) and composes the layers.
void read_rotary_layers(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec);
/// The same and their parameters, for a family without more to say.
void read_rotary_family(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec);

/// What reading a rotary embedding depends on.
struct RotaryDefaults {
  int64_t head_dim = 0;
  int64_t max_positions = 0;
  bool partial = false;
  double partial_factor = 1.0;
  bool long_rope = false;
  double theta = 10000.0;
  std::string absent;  ///< parameters (JSON) where the config has none
};

/// rope_theta with rope_scaling (transformers 4) or rope_parameters (transformers 5).
RotarySpec read_rotary(ConfigReader& config, const RotaryDefaults& defaults);
/// One object of rotary parameters; finishes it. `outer_original`: original_max_position_embeddings beside it, or 0.
RotarySpec read_rotary_parameters(ConfigReader& rope, const RotaryDefaults& defaults,
                                  int64_t outer_original);

/// The window of every layer, 0 where there is none (sliding_window, layer_types and their kin).
std::vector<int64_t> read_windows(ConfigReader& config, const RotaryFamilyOptions& options,
                                  int64_t num_layers);

/// hidden_act and activation_function by their names in transformers.
Activation read_activation(ConfigReader& config, const std::string& key,
                           const std::string& default_value);

/// How a family's tensors are named and stored where that differs from llama's.
struct TensorNames {
  bool packed = false;  ///< query, key and value are one tensor on disk, gate and up another
  const char* router = "gate";
  const char* shared = "shared_experts";
  /// Files hold one tensor an expert: <mlp>.experts.N.<gate>.weight. Their name of the module and of its three products.
  const char* mlp_in_files = "mlp";
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";
  /// gpt_oss: files hold stacks as the modules do, [experts, in, out], gate and up interleaved.
  bool interleaved_stacks = false;
};

/// Hugging Face names of llama and its descendants: model.layers.N.self_attn.q_proj.weight ... Layers with latent attention
/// or experts and those for multi-token prediction have DeepSeek's names.
void add_rotary_family_parameters(ModelSpec& spec, const TensorNames& names);

/// Collects the parts and parameters of a spec in order.
class ParameterTable {
 public:
  explicit ParameterTable(ModelSpec& spec) : spec_(spec) {}
  void begin_part(PartKind kind, int layer);
  /// A product's weight [out, in]; `residual` scales its init by 1/sqrt(2 * layers).
  ParameterSpec& matrix(const std::string& name, Role role, int64_t out, int64_t in,
                        bool residual = false);
  /// The experts' products [experts, out, in], and their biases [experts, size].
  ParameterSpec& stack(const std::string& name, Role role, int64_t experts, int64_t out, int64_t in,
                       bool residual = false);
  ParameterSpec& stacked_bias(const std::string& name, Role role, int64_t experts, int64_t size);
  ParameterSpec& vector(const std::string& name, Role role, int64_t size);
  /// name.weight, and name.bias where the norm has one.
  void norm(const std::string& name, const NormSpec& norm, int64_t size);

 private:
  ModelSpec& spec_;
};

}  // namespace trireme::model
