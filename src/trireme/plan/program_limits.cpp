#include "trireme/plan/program_limits.h"

#include <algorithm>
#include <bit>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

/// What context parallelism cannot do yet.
void add_context_limits(const model::ModelSpec& spec, const Strategy& strategy,
                        std::vector<std::string>& reasons) {
  const Parallel& parallel = strategy.parallel;
  if (parallel.cp == 1) return;
  const auto reject = [&](const std::string& why) {
    reasons.push_back(fmt::format("parallel.cp = {}: {}", parallel.cp, why));
  };
  if (!std::has_single_bit(static_cast<uint64_t>(parallel.cp))) {
    const auto below = std::bit_floor(static_cast<uint64_t>(parallel.cp));
    reject(
        fmt::format("ranks that share a sequence are leaves of the tree that adds up gradients, "
                    "so they must be a power of two; use parallel.cp = {} or {}",
                    below, 2 * below));
  }
  if (parallel.cp_kind == ContextKind::kUlysses)
    reject(
        "parallel.cp_kind = \"ulysses\" is not there yet; use parallel.cp_kind = \"ring\" or "
        "\"gather\"");
  const auto any_layer = [&](const auto& is) { return std::ranges::any_of(spec.layers, is); };
  if (any_layer([](const model::LayerSpec& layer) { return layer.attention.latent.has_value(); }))
    reject(
        "the model has latent attention, whose compressed keys ranks do not exchange yet; use "
        "parallel.cp = 1");
  if (spec.num_mtp_layers > 0)
    reject(
        "multi-token prediction reads tokens further ahead, which another rank may have; leave "
        "it out (num_nextn_predict_layers = 0), or use parallel.cp = 1");
  if (any_layer(
          [](const model::LayerSpec& layer) { return layer.moe && layer.moe->aux_loss > 0.0; }))
    reject(
        "the model's balancing loss counts the experts' tokens in a sequence or a micro-batch "
        "(that over the global batch does in the first step), of which a rank sees a part; "
        "leave it out (moe.balance = \"none\"), or use parallel.cp = 1");
  if (any_layer([](const model::LayerSpec& layer) {
        return layer.moe && layer.moe->capacity_factor > 0.0;
      }))
    reject(
        "the model's experts take so many tokens of a micro-batch, of which a rank sees a part; "
        "set moe.capacity_factor = 0, or use parallel.cp = 1");
  const std::vector<char>& offloaded = strategy.offload_activations;
  for (size_t part = 0; part < offloaded.size(); ++part) {
    if (offloaded[part] == 0 || spec.parts[part].kind != model::PartKind::kAttention) continue;
    reject(
        "memory.offload_activations cannot move what an attention keeps whose keys other ranks "
        "read; name other parts (\"mlp\")");
    break;
  }
  if (strategy.record)
    reject(
        "device.graphs records the work of one rank alone; leave it out, or use parallel.cp = 1");
}

}  // namespace

std::vector<std::string> program_limits(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<std::string> reasons;
  const Parallel& parallel = strategy.parallel;
  const auto only_one = [&](const char* key, int64_t value) {
    if (value > 1)
      reasons.push_back(
          fmt::format("parallel.{} = {}: training does not go over ranks in this way "
                      "yet; use parallel.{} = 1",
                      key, value, key));
  };
  only_one("tp", parallel.tp);
  only_one("ep", parallel.ep);
  only_one("etp", parallel.etp);
  add_context_limits(spec, strategy, reasons);
  return reasons;
}

}  // namespace trireme::plan
