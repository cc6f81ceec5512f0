#include "trireme/execute/recorded_ops.h"

namespace trireme::execute {

const std::vector<std::string>& recorded_ops() {
  static const std::vector<std::string> ops = {"linear",
                                               "linear_backward_input",
                                               "linear_backward_weight",
                                               "bias_gradient",
                                               "rms_norm",
                                               "rms_norm_backward",
                                               "layer_norm",
                                               "layer_norm_backward",
                                               "activation",
                                               "activation_backward",
                                               "gated_activation",
                                               "gated_activation_backward",
                                               "rotary_",
                                               "join_shared_key",
                                               "join_shared_key_backward",
                                               "attention",
                                               "attention_backward",
                                               "add_"};
  return ops;
}

}  // namespace trireme::execute
