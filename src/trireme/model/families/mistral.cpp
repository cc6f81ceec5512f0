// mistral: llama with a sliding window over all layers.
#include "trireme/model/family.h"

namespace trireme::model {

void read_mistral(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.max_positions = 4096 * 32;
  options.windows = WindowRule::kEvery;
  options.window = 4096;
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
