#include "trireme/train/rank_state.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <numeric>

#include "trireme/base/error.h"
#include "trireme/train/train_state.h"

namespace trireme::train {

namespace {

/// Shares of all ranks one after the other, on rank 0.
at::Tensor gather_to_first(const at::Tensor& share, bool mine_is_all, comm::Group& ranks,
                           const std::vector<int64_t>& counts, device::Device& device) {
  if (mine_is_all) return ranks.rank() == 0 ? share : at::Tensor();
  const bool first = ranks.rank() == 0;
  const auto size = static_cast<size_t>(ranks.size());
  std::vector<int64_t> in_counts(size, 0);
  in_counts.front() = share.numel();
  const std::vector<int64_t> out_counts = first ? counts : std::vector<int64_t>(size, 0);
  const at::Tensor whole = at::empty(
      {std::accumulate(out_counts.begin(), out_counts.end(), int64_t{0})}, share.options());
  const auto work = ranks.all_to_all(whole, out_counts, share, in_counts, device.compute_queue());
  work->wait(device.compute_queue());
  return first ? whole.cpu() : at::Tensor();
}

}  // namespace

WholeState gather_state(const nn::ParameterStore& store, const optim::Optimizer& optimizer,
                        comm::World& world) {
  WholeState whole;
  const auto parts = static_cast<size_t>(store.num_parts());
  std::string sizes;  // of this rank's shares: a line a part
  for (size_t part = 0; part < parts; ++part) {
    const std::vector<at::Tensor> states = optimizer.part_states(static_cast<int>(part));
    sizes += fmt::format("{} {} {}\n", store.part_master(static_cast<int>(part)).numel(),
                         states.at(0).numel(), states.at(1).numel());
  }
  std::vector<std::vector<int64_t>> by_rank;
  for (const std::string& text : world.exchange(sizes)) {
    std::vector<int64_t>& numbers = by_rank.emplace_back();
    size_t at = 0;
    while (numbers.size() < 3 * parts) {
      size_t used = 0;
      numbers.push_back(std::stoll(text.substr(at, 64), &used));
      at += used;
    }
  }
  device::Device& device = device::get_device(store.device().str());
  std::vector<int> members(static_cast<size_t>(world.size()));
  std::iota(members.begin(), members.end(), 0);
  const std::unique_ptr<comm::Group> ranks = world.make_group(members, device);
  for (size_t part = 0; part < parts; ++part) {
    const int64_t numel = store.part_numel(static_cast<int>(part));
    const auto counts_of = [&](size_t which) {
      std::vector<int64_t> counts;
      for (const auto& numbers : by_rank) counts.push_back(numbers[3 * part + which]);
      return counts;
    };
    const std::vector<int64_t> masters = counts_of(0);
    // Ranks have all of it or shares of it, and then all of them do.
    const auto all_have = [&](const std::vector<int64_t>& counts) {
      return counts.front() == numel && counts.back() == numel;
    };
    whole.masters.push_back(gather_to_first(store.part_master(static_cast<int>(part)),
                                            all_have(masters), *ranks, masters, device));
    const bool states_are_whole = world.size() == 1 || all_have(counts_of(1));
    std::vector<at::Tensor>& states = whole.part_states.emplace_back();
    size_t which = 1;
    for (const at::Tensor& state : optimizer.part_states(static_cast<int>(part)))
      states.push_back(
          gather_to_first(state, states_are_whole, *ranks, counts_of(which++), device));
  }
  return whole;
}

std::vector<checkpoint::NamedTensor> parameter_tensors(const nn::ParameterStore& store,
                                                       const WholeState& whole) {
  std::vector<checkpoint::NamedTensor> tensors;
  for (int i = 0; i < store.num_parameters(); ++i) {
    const model::ParameterSpec& parameter = store.spec().parameters[static_cast<size_t>(i)];
    tensors.push_back(
        {parameter.name, store.view(whole.masters[static_cast<size_t>(parameter.part)], i)});
  }
  return tensors;
}

std::vector<checkpoint::NamedTensor> state_tensors(const nn::ParameterStore& store,
                                                   const optim::OptimizerConfig& config,
                                                   const WholeState& whole) {
  std::vector<checkpoint::NamedTensor> tensors = parameter_tensors(store, whole);
  for (const optim::StateTensor& state :
       optim::state_views(config, store.spec(), whole.part_states))
    tensors.push_back({state_name(state), state.tensor});
  return tensors;
}

}  // namespace trireme::train
