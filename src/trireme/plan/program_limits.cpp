#include "trireme/plan/program_limits.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "trireme/base/error.h"

namespace trireme::plan {

namespace {

void limit_experts(const Strategy& strategy, std::vector<std::string>& reasons) {
  const Parallel& parallel = strategy.parallel;
  const auto reject = [&](std::string reason) { reasons.push_back(std::move(reason)); };
  if (parallel.dp * parallel.cp % parallel.ep != 0)
    reject(fmt::format(
        "parallel.ep = {}: experts are spread over data and context parallel ranks, "
        "and it does not divide parallel.dp x parallel.cp = {}; use parallel.ep = {}",
        parallel.ep, parallel.dp * parallel.cp, std::gcd(parallel.ep, parallel.dp * parallel.cp)));
  if (strategy.lanes % parallel.dp != 0)
    reject(
        fmt::format("parallel.ep = {}: ranks that exchange rows have as many micro-batches each, "
                    "and parallel.dp = {} does not divide batch.lanes = {}; use parallel.dp = {}",
                    parallel.ep, parallel.dp, strategy.lanes,
                    std::bit_floor(static_cast<uint64_t>(parallel.dp))));
  if (strategy.in_turn > 2 && parallel.pp == 1)
    reject(
        fmt::format("parallel.in_turn = {} with parallel.ep = {}: one micro-batch goes forward "
                    "with the one before it backward; use parallel.in_turn = 2",
                    strategy.in_turn, parallel.ep));
  if (parallel.shard > 0)
    reject(
        fmt::format("parallel.shard = {} with parallel.ep = {}: experts' states are shared by "
                    "all ranks that have the same ones; use parallel.shard = 0",
                    parallel.shard, parallel.ep));
  if (strategy.record)
    reject(
        "device.graphs with parallel.ep: how many rows come is not known when work is recorded; "
        "leave device.graphs out");
  if (std::ranges::any_of(strategy.offload_activations, [](char one) { return one != 0; }))
    reject(
        "memory.offload_activations with parallel.ep: rows of other ranks stay on the device; "
        "leave memory.offload_activations out");
}

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
  if (strategy.whole_matrices)
    refuse("Muon updates whole matrices, of which tensor parallel ranks have some rows or columns",
           "optim.name = \"adamw\", or parallel.tp = 1");
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
  }
  if (strategy.record)
    refuse("the exchanges between its ranks are not recorded", "device.graphs = false");
  if (std::ranges::count(strategy.offload_activations, 0) !=
      static_cast<int64_t>(strategy.offload_activations.size()))
    refuse("activations of tensor parallel ranks are not offloaded yet",
           "memory.recompute instead of memory.offload_activations");
}

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
  const int64_t turns = strategy.in_turn;
  if (turns < 0 || turns == 3 || turns > 4)
    reasons.push_back(
        fmt::format("parallel.in_turn = {} micro-batches in turn are not planned; use "
                    "parallel.in_turn = 1, 2 or 4",
                    turns));
  if (strategy.record && parallel.reduction == Reduction::kFast && strategy.owners() > 1)
    reasons.push_back(
        "device.graphs with parallel.reduction = \"fast\": recorded work has an accumulator for "
        "each lane; use parallel.reduction = \"exact\", or leave device.graphs out");
  tensor_limits(spec, strategy, reasons);
  add_context_limits(spec, strategy, reasons);
  only_one("etp", parallel.etp);
  if (parallel.ep > 1) limit_experts(strategy, reasons);
  return reasons;
}

}  // namespace trireme::plan
