// phi3 (and phi4): llama with packed projections on disk, LongRoPE, rotation of a part of each head, and a window.
#include "trireme/model/family.h"

namespace trireme::model {

void read_phi3(ConfigReader& config, ModelSpec& spec) {
  RotaryFamilyOptions options;
  options.head_dim_key = false;
  options.eps = 1e-5;
  options.partial_rotary = true;
  options.long_rope = true;
  options.packed = true;
  options.max_positions = 4096;
  options.windows = WindowRule::kEvery;
  config.require("attention_bias", false, "biases of attention's projections");
  // What phi4's published configs write beside.
  config.require("full_attn_mod", 1, "full attention in some layers only");
  config.require("interpolate_factor", 1, "another scaling of positions");
  config.require("lm_head_bias", false, "a bias of the head");
  config.require("mlp_bias", false, "biases of the MLP's projections");
  config.ignore({"resid_pdrop", "embd_pdrop"});  // pre-training here has no dropout
  read_rotary_family(config, options, spec);
}

}  // namespace trireme::model
