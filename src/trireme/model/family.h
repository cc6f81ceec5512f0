// What the model families share: the registry, and the composition of the common block.
//
// A family is one file, families/<name>.cpp: it reads its keys, composes a ModelSpec from the
// functions here, and is listed in family.cpp. Nothing else knows its name.
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
};

const std::vector<Family>& families();

// One per file of families/. Each fills everything of ModelSpec but what spec_from_config itself
// knows (family, architecture, special tokens, config_json).
void read_gpt2(ConfigReader& config, ModelSpec& spec);
void read_llama(ConfigReader& config, ModelSpec& spec);
void read_qwen2(ConfigReader& config, ModelSpec& spec);
void read_qwen3(ConfigReader& config, ModelSpec& spec);

/// Which biases and norms a family with rotary positions and RMSNorm puts where.
struct RotaryFamilyOptions {
  bool qkv_bias = false;
  bool out_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  int64_t head_dim = 0;  ///< 0: hidden / heads, unless the config says
};

/// Reads the keys that llama and its descendants share (sizes, rotary, activation, tying,
/// positions) and composes the layers.
void read_rotary_family(ConfigReader& config, const RotaryFamilyOptions& options, ModelSpec& spec);

/// rope_theta with rope_scaling (transformers 4) or rope_parameters (transformers 5).
RotarySpec read_rotary(ConfigReader& config, int64_t head_dim, int64_t max_positions);

/// Refuses sliding windows where they are switched on (use_sliding_window, layer_types).
void refuse_sliding_window(ConfigReader& config, int64_t num_layers);

/// hidden_act and activation_function by their names in transformers.
Activation read_activation(ConfigReader& config, const std::string& key,
                           const std::string& default_value);

/// Hugging Face names of llama and its descendants: model.layers.N.self_attn.q_proj.weight ...
void add_rotary_family_parameters(ModelSpec& spec);

/// Collects the parts and parameters of a spec in order.
class ParameterTable {
 public:
  explicit ParameterTable(ModelSpec& spec) : spec_(spec) {}
  void begin_part(PartKind kind, int layer);
  /// A product's weight [out, in]; `residual` scales its init by 1/sqrt(2 * layers).
  ParameterSpec& matrix(const std::string& name, Role role, int64_t out, int64_t in,
                        bool residual = false);
  ParameterSpec& vector(const std::string& name, Role role, int64_t size);
  /// name.weight, and name.bias where the norm has one.
  void norm(const std::string& name, const NormSpec& norm, int64_t size);

 private:
  ModelSpec& spec_;
};

}  // namespace trireme::model
