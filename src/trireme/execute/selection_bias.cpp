#include "trireme/execute/selection_bias.h"

#include <ATen/core/Tensor.h>

#include <numeric>

namespace trireme::execute {

void move_selection_bias(nn::ParameterStore& store, int part, const std::vector<int64_t>& load) {
  const model::ModelSpec& spec = store.spec();
  const int layer = spec.parts[static_cast<size_t>(part)].layer;
  const model::MoeSpec& moe = spec.layers[static_cast<size_t>(layer)].moe.value();
  if (!moe.selection_bias) return;
  const int64_t all = std::accumulate(load.begin(), load.end(), int64_t{0});
  const auto experts = static_cast<int64_t>(load.size());
  for (const int parameter : store.part_parameters(part)) {
    if (spec.parameters[static_cast<size_t>(parameter)].role != model::Role::kSelectionBias)
      continue;
    at::Tensor on_device = store.master(parameter);
    const at::Tensor on_host = on_device.cpu();
    auto* bias = on_host.data_ptr<float>();
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t excess = load[static_cast<size_t>(e)] * experts - all;
      if (excess != 0)
        bias[e] += static_cast<float>(excess > 0 ? -moe.bias_update_rate : moe.bias_update_rate);
    }
    if (!on_device.is_cpu()) on_device.copy_(on_host);
  }
}

}  // namespace trireme::execute
