// glm4_moe (GLM-4.5): DeepSeek-V3's router, shared expert and multi-token prediction on grouped-query attention with half
// of each head rotated.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_glm4_moe(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.qk_norm = config.flag("use_qk_norm", false) ? QkNorm::kHead : QkNorm::kNone;
  options.eps = 1e-5;
  options.partial_rotary = true;
  options.partial_factor = 0.5;
  options.max_positions = 131072;
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.num_experts = {"n_routed_experts", "num_local_experts"};
  experts.default_experts = 128;
  experts.default_hidden = 1408;
  experts.default_top_k = 8;
  experts.normalize = true;
  MoeSpec moe = read_moe(config, experts, spec);
  moe.score = ScoreFunction::kSigmoid;
  moe.selection_bias = true;
  moe.group_score_top2 = true;
  moe.scaling = config.number("routed_scaling_factor", 1.0);
  read_groups(config, 1, 1, moe);
  read_shared_experts(config, 1, moe);
  place_experts_after(config, 1, moe, spec);
  read_mtp_layers(config, moe, spec);
  add_rotary_family_parameters(spec, {});
}

}  // namespace trireme::model
