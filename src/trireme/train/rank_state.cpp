#include "trireme/train/rank_state.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <string>

#include "trireme/base/error.h"
#include "trireme/train/train_state.h"

namespace trireme::train {

namespace {

constexpr size_t kShares = 3;  // of a part: its masters, its optimizer's first and second states

}  // namespace

StateGather::StateGather(const nn::ParameterStore& store, const optim::Optimizer& optimizer,
                         comm::World& world)
    : store_(store),
      optimizer_(optimizer),
      world_(world),
      device_(device::get_device(store.device().str())),
      counts_(kShares * static_cast<size_t>(store.num_parts())) {
  std::string mine;
  for (int part = 0; part < store.num_parts(); ++part) {
    mine += fmt::format("{} ", store.part_master(part).numel());
    for (const at::Tensor& state : optimizer.part_states(part))
      mine += fmt::format("{} ", state.numel());
  }
  for (const std::string& of_rank : world.exchange(mine)) {
    std::istringstream numbers(of_rank);
    for (std::vector<int64_t>& counts : counts_) numbers >> counts.emplace_back();
  }
}

// Shares of all ranks one after the other, on rank 0. Of what several ranks have, or several blocks of ranks, the first one's
// moves, and nothing where that is rank 0. Second states are of some of the elements that the first are of.
at::Tensor StateGather::gather(const at::Tensor& share, size_t which) {
  const int64_t whole = store_.part_numel(static_cast<int>(which / kShares));
  const auto sum_of = [](const std::vector<int64_t>& of) {
    return std::accumulate(of.begin(), of.end(), int64_t{0});
  };
  const bool is_second = which % kShares == 2;
  const std::vector<int64_t>& elements = counts_[is_second ? which - 1 : which];
  const bool first = world_.rank() == 0;
  if (elements.front() == whole) return first ? share : at::Tensor();
  std::vector<int64_t> counts = counts_[which];
  int64_t found = 0;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    if (found == whole) counts[rank] = 0;
    found += found == whole ? 0 : elements[rank];
  }
  TRIREME_CHECK(found == whole, "share {}: {} of {} elements are there", which, found, whole);
  if (ranks_ == nullptr) {
    std::vector<int> members(static_cast<size_t>(world_.size()));
    std::iota(members.begin(), members.end(), 0);
    ranks_ = world_.make_group(members, device_);
  }
  std::vector<int64_t> in_counts(counts.size(), 0);
  in_counts.front() = counts[static_cast<size_t>(world_.rank())];
  const std::vector<int64_t> out_counts = first ? counts : std::vector<int64_t>(counts.size(), 0);
  // States may be kept on the host.
  const at::Tensor sent = share.to(store_.device()).narrow(0, 0, in_counts.front());
  const at::Tensor joined = at::empty({first ? sum_of(counts) : 0}, sent.options());
  ranks_->all_to_all(joined, out_counts, sent, in_counts, device_.compute_queue())
      ->wait(device_.compute_queue());
  return first ? joined.cpu() : at::Tensor();
}

WholeState StateGather::masters() {
  WholeState whole;
  for (int part = 0; part < store_.num_parts(); ++part)
    whole.masters.push_back(gather(store_.part_master(part), kShares * static_cast<size_t>(part)));
  return whole;
}

WholeState StateGather::masters_and_states() {
  WholeState whole = masters();
  for (int part = 0; part < store_.num_parts(); ++part) {
    std::vector<at::Tensor>& states = whole.part_states.emplace_back();
    size_t which = kShares * static_cast<size_t>(part);
    for (const at::Tensor& state : optimizer_.part_states(part))
      states.push_back(gather(state, ++which));
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
