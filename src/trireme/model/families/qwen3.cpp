// qwen3: llama with an RMSNorm on every query and key head and heads of 128 dimensions by default.
#include "trireme/model/family.h"

namespace trireme::model {

void read_qwen3(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = config.flag("attention_bias", false);
  options.out_bias = options.qkv_bias;
  options.qk_norm = QkNorm::kHead;
  options.windows = WindowRule::kFromLayer;
  options.window = 4096;
  options.head_dim = 128;
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
