// mixtral: mistral with experts in every layer; the softmax runs over the chosen ones.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_mixtral(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.max_positions = 4096 * 32;
  options.eps = 1e-5;
  options.theta = 1e6;
  options.windows = WindowRule::kEvery;
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.hidden = "intermediate_size";
  experts.default_top_k = 2;
  experts.norm_key = false;
  experts.aux_loss = 0.001;
  MoeSpec moe = read_moe(config, experts, spec);
  // transformers divides the chosen probabilities by their sum, which is the softmax over them.
  moe.softmax_after_top_k = true;
  config.require("router_jitter_noise", 0.0, "noise on the router's input");
  for (LayerSpec& layer : spec.layers) layer.moe = moe;
  add_rotary_family_parameters(
      spec, {.mlp_in_files = "block_sparse_moe", .gate = "w1", .up = "w3", .down = "w2"});
}

}  // namespace trireme::model
