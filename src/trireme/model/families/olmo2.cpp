// olmo2: norms after attention and MLP instead of before them, and of all query and key heads together.
#include "trireme/model/family.h"

namespace trireme::model {

void read_olmo2(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.qk_norm = QkNorm::kAllHeads;
  options.head_dim_key = false;
  options.pre_norms = false;
  options.post_norms = true;
  options.eps = 1e-5;
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
