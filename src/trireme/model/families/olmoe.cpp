// olmoe: a norm of all query and key heads together; probabilities of the softmax over all experts are taken as they are.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_olmoe(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.qk_norm = QkNorm::kAllHeads;
  options.head_dim_key = false;
  options.eps = 1e-5;
  options.max_positions = 4096;
  config.require("clip_qkv", nullptr, "clipping queries, keys and values");
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.hidden = "intermediate_size";
  experts.default_experts = 64;
  experts.default_top_k = 8;
  experts.aux_loss = 0.01;
  const MoeSpec moe = read_moe(config, experts, spec);
  for (LayerSpec& layer : spec.layers) layer.moe = moe;
  add_rotary_family_parameters(spec, {});
}

}  // namespace trireme::model
