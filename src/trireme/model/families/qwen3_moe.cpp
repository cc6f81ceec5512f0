// qwen3_moe: qwen3 with experts in place of the MLP in most layers.
#include "trireme/model/family_moe.h"

namespace trireme::model {

void read_qwen3_moe(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.qk_norm = QkNorm::kHead;
  options.max_positions = 32768;
  options.windows = WindowRule::kIfUsed;
  options.window = 4096;
  // What Qwen3-Coder's published config writes beside.
  config.require("qkv_bias", false, "biases of attention's projections");
  config.require("use_qk_norm", true, "heads without norms");
  config.require("shared_expert_intermediate_size", 0, "a shared expert");
  config.ignore({"max_window_layers"});  // windows are in all layers or in none
  read_rotary_layers(config, options, spec);
  MoeOptions experts;
  experts.default_experts = 128;
  experts.default_hidden = 768;
  experts.default_top_k = 8;
  experts.may_be_dense = true;
  experts.aux_loss = 0.001;
  place_experts_by_step(config, read_moe(config, experts, spec), spec);
  add_rotary_family_parameters(spec, {});
}

}  // namespace trireme::model
