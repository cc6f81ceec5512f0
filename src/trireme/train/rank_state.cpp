#include "trireme/train/rank_state.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/train/train_state.h"

namespace trireme::train {

namespace {

constexpr size_t kShares = 3;  // of a part: its masters, its optimizer's first and second states

size_t share_of(int part) {
  return kShares * static_cast<size_t>(part);
}

std::vector<int64_t> firsts_of(const nn::ParameterStore& store, int part) {
  std::vector<int64_t> firsts;
  for (const int parameter : store.part_parameters(part)) {
    const auto& shard = store.spec().parameters[static_cast<size_t>(parameter)].shard;
    firsts.push_back(shard ? shard->first : 0);
  }
  // Tensor parallel ranks that have the same of a part share its states with others each.
  firsts.push_back(store.spec().tensor.place);
  return firsts;
}

/// By parameter: its view in a part's flat tensor that is laid out as the spec says.
template <typename Visit>
void each_parameter(const model::ModelSpec& spec, int part, const Visit& visit) {
  int64_t at = 0;
  for (const model::ParameterSpec& parameter : spec.parameters) {
    if (parameter.part != part) continue;
    visit(parameter, at);
    at += parameter.numel();
  }
}

}  // namespace

StateGather::StateGather(const model::ModelSpec& whole, const nn::ParameterStore& store,
                         optim::OptimizerConfig config, const optim::Optimizer& optimizer,
                         comm::World& world)
    : whole_(whole),
      store_(store),
      config_(std::move(config)),
      optimizer_(optimizer),
      world_(world),
      device_(device::get_device(store.device().str())),
      counts_(kShares * static_cast<size_t>(store.num_parts())),
      holders_(static_cast<size_t>(store.num_parts())) {
  std::string mine;
  for (int part = 0; part < store.num_parts(); ++part) {
    mine += fmt::format("{} ", store.part_master(part).numel());
    for (const at::Tensor& state : optimizer.part_states(part))
      mine += fmt::format("{} ", state.numel());
    mine += fmt::format("{} ", fmt::join(firsts_of(store, part), " "));
  }
  int rank = 0;
  for (const std::string& of_rank : world.exchange(mine)) {
    std::istringstream numbers(of_rank);
    for (int part = 0; part < store.num_parts(); ++part) {
      for (size_t i = 0; i < kShares; ++i) numbers >> counts_[share_of(part) + i].emplace_back();
      std::vector<int64_t> firsts(store.part_parameters(part).size() + 1);
      for (int64_t& first : firsts) numbers >> first;
      if (counts_[share_of(part)].back() == 0) continue;
      std::vector<Holders>& all = holders_[static_cast<size_t>(part)];
      const auto found = std::ranges::find(all, firsts, &Holders::firsts);
      if (found == all.end()) {
        all.push_back({{rank}, firsts});
      } else {
        found->ranks.push_back(rank);
      }
    }
    ++rank;
  }
  writers_ = choose_writers();
}

std::vector<int> StateGather::choose_writers() const {
  std::vector<int64_t> elements(whole_.parts.size(), 0);
  for (const model::ParameterSpec& parameter : whole_.parameters)
    elements[static_cast<size_t>(parameter.part)] += parameter.numel();
  std::vector<size_t> by_size(elements.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::ranges::stable_sort(by_size, std::ranges::greater(),
                           [&](size_t part) { return elements[part]; });
  std::vector<int> writers(elements.size(), 0);
  std::vector<int64_t> written(static_cast<size_t>(world_.size()), 0);
  for (const size_t part : by_size) {
    std::vector<int> ranks;
    for (const Holders& holders : holders_[part])
      ranks.insert(ranks.end(), holders.ranks.begin(), holders.ranks.end());
    if (ranks.empty()) continue;
    std::ranges::sort(ranks);
    writers[part] = *std::ranges::min_element(
        ranks, {}, [&](int rank) { return written[static_cast<size_t>(rank)]; });
    written[static_cast<size_t>(writers[part])] += elements[part];
  }
  return writers;
}

// Shares of ranks one after the other, on one of them. Of what several ranks have, or several blocks of ranks, the first one's
// moves, and nothing where who wants it has it. Second states are of some of the elements that the first are of.
at::Tensor StateGather::gather(const at::Tensor& share, size_t which, const Holders& holders,
                               int to) {
  const int64_t whole = store_.part_numel(static_cast<int>(which / kShares));
  const bool is_second = which % kShares == 2;
  const std::vector<int64_t>& elements = counts_[is_second ? which - 1 : which];
  const bool mine = world_.rank() == to;
  const auto at = static_cast<size_t>(to);
  if (std::ranges::binary_search(holders.ranks, to) && elements[at] == whole)
    return mine ? share : at::Tensor();
  std::vector<int64_t> counts(elements.size(), 0);
  int64_t found = 0;
  for (const int holder : holders.ranks) {
    const auto rank = static_cast<size_t>(holder);
    if (found == whole) break;
    counts[rank] = counts_[which][rank];
    found += elements[rank];
  }
  TRIREME_CHECK(found == whole, "share {}: {} of {} elements are there", which, found, whole);
  if (ranks_ == nullptr) {
    std::vector<int> members(static_cast<size_t>(world_.size()));
    std::iota(members.begin(), members.end(), 0);
    ranks_ = world_.make_group(members, device_);
  }
  std::vector<int64_t> in_counts(counts.size(), 0);
  in_counts[at] = counts[static_cast<size_t>(world_.rank())];
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const std::vector<int64_t> out_counts = mine ? counts : std::vector<int64_t>(counts.size(), 0);
  // States may be kept on the host.
  const at::Tensor sent = share.to(store_.device()).narrow(0, 0, in_counts[at]);
  const at::Tensor joined = at::empty({mine ? total : 0}, sent.options());
  ranks_->all_to_all(joined, out_counts, sent, in_counts, device_.compute_queue())
      ->wait(device_.compute_queue());
  return mine ? joined.cpu() : at::Tensor();
}

model::ModelSpec StateGather::spec_of(int part, const Holders& holders) const {
  model::ModelSpec spec = store_.spec();
  size_t i = 0;
  for (const int parameter : store_.part_parameters(part)) {
    auto& shard = spec.parameters[static_cast<size_t>(parameter)].shard;
    if (shard) shard->first = holders.firsts[i];
    ++i;
  }
  return spec;
}

at::Tensor StateGather::masters_of(int part, int to) {
  const std::vector<Holders>& all = holders_[static_cast<size_t>(part)];
  const at::Tensor& mine = store_.part_master(part);
  if (all.empty()) return mine;  // a part without parameters
  if (all.size() == 1) return gather(mine, share_of(part), all.front(), to);
  at::Tensor whole;
  for (const Holders& holders : all) {
    const at::Tensor stretches = gather(mine, share_of(part), holders, to);
    if (!stretches.defined()) continue;
    if (!whole.defined()) {
      int64_t elements = 0;
      each_parameter(whole_, part, [&](const model::ParameterSpec& parameter, int64_t at) {
        elements = at + parameter.numel();
      });
      whole = at::empty({elements}, at::kFloat);
    }
    std::vector<at::Tensor> targets;
    each_parameter(whole_, part, [&](const model::ParameterSpec& parameter, int64_t at) {
      targets.push_back(whole.narrow(0, at, parameter.numel()).view(parameter.shape));
    });
    size_t i = 0;
    each_parameter(spec_of(part, holders), part,
                   [&](const model::ParameterSpec& parameter, int64_t at) {
                     nn::stretch(targets[i++], parameter)
                         .copy_(stretches.narrow(0, at, parameter.numel()).view(parameter.shape));
                   });
  }
  return whole;
}

std::vector<at::Tensor> StateGather::states_of(int part, int to) {
  const std::vector<at::Tensor> mine = optimizer_.part_states(part);
  const std::vector<Holders>& all = holders_[static_cast<size_t>(part)];
  const auto gather_both = [&](const Holders& holders) {
    std::vector<at::Tensor> states;
    for (size_t i = 0; i < mine.size(); ++i)
      states.push_back(gather(mine[i], share_of(part) + 1 + i, holders, to));
    return states;
  };
  if (all.empty()) return mine;
  if (all.size() == 1) return gather_both(all.front());
  std::vector<at::Tensor> whole(mine.size());
  for (const Holders& holders : all) {
    const std::vector<at::Tensor> stretches = gather_both(holders);
    if (!stretches.front().defined()) continue;
    if (!whole.front().defined()) {
      const auto sizes = optim::part_state_sizes(config_, whole_, part);
      for (size_t i = 0; i < whole.size(); ++i) whole[i] = at::empty({sizes.at(i)}, at::kFloat);
    }
    const model::ModelSpec spec = spec_of(part, holders);
    const std::vector<optim::StateTensor> from =
        optim::part_state_views(config_, spec, part, stretches);
    const std::vector<optim::StateTensor> to =
        optim::part_state_views(config_, whole_, part, whole);
    for (size_t i = 0; i < from.size(); ++i) {
      const auto index = static_cast<size_t>(spec.parameter_index(from[i].parameter));
      nn::stretch(to[i].tensor, spec.parameters[index]).copy_(from[i].tensor);
    }
  }
  return whole;
}

WholeState StateGather::masters() {
  WholeState whole;
  for (int part = 0; part < store_.num_parts(); ++part)
    whole.masters.push_back(masters_of(part, 0));
  return whole;
}

WholeState StateGather::masters_and_states() {
  WholeState whole;
  for (int part = 0; part < store_.num_parts(); ++part) {
    const int to = writers_[static_cast<size_t>(part)];
    whole.masters.push_back(masters_of(part, to));
    whole.part_states.push_back(states_of(part, to));
  }
  return whole;
}

std::vector<checkpoint::NamedTensor> parameter_tensors(const model::ModelSpec& spec,
                                                       const WholeState& whole) {
  std::vector<checkpoint::NamedTensor> tensors(spec.parameters.size());
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    const at::Tensor& flat = whole.masters[static_cast<size_t>(part)];
    if (!flat.defined()) continue;
    each_parameter(spec, part, [&](const model::ParameterSpec& parameter, int64_t at) {
      tensors[static_cast<size_t>(&parameter - spec.parameters.data())] = {
          parameter.name, flat.narrow(0, at, parameter.numel()).view(parameter.shape)};
    });
  }
  std::erase_if(tensors, [](const auto& named) { return !named.tensor.defined(); });
  return tensors;
}

std::vector<checkpoint::NamedTensor> state_tensors(const model::ModelSpec& spec,
                                                   const optim::OptimizerConfig& config,
                                                   const WholeState& whole) {
  std::vector<checkpoint::NamedTensor> tensors = parameter_tensors(spec, whole);
  for (const optim::StateTensor& state : optim::state_views(config, spec, whole.part_states))
    tensors.push_back({state_name(state), state.tensor});
  return tensors;
}

}  // namespace trireme::train
