#include "trireme/plan/program_limits.h"

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

void tensor_limits(const model::ModelSpec& spec, const Strategy& strategy,
                   std::vector<std::string>& reasons) {
  const Parallel& parallel = strategy.parallel;
  if (parallel.tp == 1) return;
  const auto refuse = [&](const std::string& what, const std::string& way_out) {
    reasons.push_back(fmt::format("parallel.tp = {}: {}; use {}", parallel.tp, what, way_out));
  };
  const auto any_layer = [&](const auto& has) { return std::ranges::any_of(spec.layers, has); };
  if (any_layer([](const model::LayerSpec& layer) { return layer.moe.has_value(); }))
    refuse("layers of experts are not shared among tensor parallel ranks yet",
           "parallel.tp = 1 with parallel.dp and parallel.zero");
  if (spec.num_mtp_layers > 0)
    refuse("modules of multi-token prediction are not shared among tensor parallel ranks yet",
           "loss.mtp_weight = 0, or parallel.tp = 1");
  if (any_layer([](const model::LayerSpec& layer) {
        return layer.attention.qk_norm == model::QkNorm::kAllHeads;
      }))
    refuse("the model has a norm over all heads together, which tensor parallel ranks have some of",
           "parallel.tp = 1 with parallel.pp");
  if (parallel.cp > 1)
    refuse(fmt::format("together with parallel.cp = {} there is no program yet", parallel.cp),
           "parallel.tp = 1 or parallel.cp = 1");
  if (strategy.whole_matrices)
    refuse("Muon updates whole matrices, of which tensor parallel ranks have some rows or columns",
           "optim.name = \"adamw\", or parallel.tp = 1");
  if (strategy.in_turn != 1 && strategy.in_turn != 2 && strategy.in_turn != 4)
    refuse(fmt::format("parallel.in_turn = {} micro-batches in turn are not planned",
                       strategy.in_turn),
           "parallel.in_turn = 1, 2 or 4");
  if (strategy.in_turn > 1 && parallel.pp == 1) {
    const std::string without = "parallel.in_turn = 1";
    // As in a pipeline whose first and last stage add to one matrix.
    if (spec.tied_embeddings && strategy.micro_batches_per_lane() > 1)
      refuse(
          "the head multiplies with the embedding, whose gradients micro-batches in turn "
          "(parallel.in_turn) add in the order of one rank only with one micro-batch a lane",
          fmt::format("batch.lanes = {}, or {}", strategy.micro_batches(), without));
    if (strategy.delay_weight_gradients)
      refuse("micro-batches in turn (parallel.in_turn) need their weight gradients at once",
             "memory.delay_weight_gradients = false, or " + without);
    // Who shares states sends lane by lane, in one order.
    if (parallel.zero == 2 && strategy.lanes % parallel.dp != 0)
      refuse(fmt::format("with parallel.zero = 2, micro-batches in turn (parallel.in_turn) need as "
                         "many lanes on every rank, and parallel.dp = {} does not divide "
                         "batch.lanes = {}",
                         parallel.dp, strategy.lanes),
             "parallel.zero = 1, or " + without);
  }
  if (strategy.record)
    refuse("the exchanges between its ranks are not recorded", "device.graphs = false");
  if (std::ranges::count(strategy.offload_activations, 0) !=
      static_cast<int64_t>(strategy.offload_activations.size()))
    refuse("activations of tensor parallel ranks are not offloaded yet",
           "memory.recompute instead of memory.offload_activations");
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
  tensor_limits(spec, strategy, reasons);
  only_one("cp", parallel.cp);
  only_one("ep", parallel.ep);
  only_one("etp", parallel.etp);
  return reasons;
}

}  // namespace trireme::plan
