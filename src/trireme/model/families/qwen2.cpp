// qwen2 (and qwen2.5): llama with biases on query, key and value.
#include "trireme/model/family.h"

namespace trireme::model {

void read_qwen2(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.qkv_bias = true;
  options.windows = WindowRule::kFromLayer;
  options.window = 4096;
  config.require("use_mrope", false, "multi-modal rotary positions");
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
