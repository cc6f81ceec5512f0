// qwen2_moe (and Qwen1.5-MoE): qwen2 with experts and one shared expert behind a gate of its own.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_qwen2_moe(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("qkv_bias", true);
  options.max_positions = 32768;
  options.windows = WindowRule::kEvenBefore;
  options.window = 4096;
  config.require("use_mrope", false, "multi-modal rotary positions");
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.default_experts = 60;
  experts.default_hidden = 1408;
  experts.default_top_k = 4;
  experts.may_be_dense = true;
  experts.aux_loss = 0.001;
  MoeSpec moe = read_moe(config, experts, spec);
  moe.shared_hidden = config.positive("shared_expert_intermediate_size", 5632);
  moe.shared_gate = true;
  place_experts_by_step(config, moe, spec);
  add_rotary_family_parameters(spec, {.shared = "shared_expert"});
}

}  // namespace trireme::model
