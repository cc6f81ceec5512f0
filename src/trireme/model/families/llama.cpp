// llama: RMSNorm, rotary positions, grouped-query attention, gated SiLU.
#include "trireme/model/family.h"

namespace trireme::model {

void read_llama(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;  // attention_bias puts one on all four projections
  options.mlp_bias = config.flag("mlp_bias", false);
  // Slices the same products for another summation order: not a different model.
  config.ignore({"pretraining_tp"});
  config.require("rope_interleaved", false, "the interleaved rotary layout");
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
