#include "trireme/execute/rank_exchange.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/cluster/lane_tree.h"
#include "trireme/cluster/mesh.h"
#include "trireme/execute/rounded_sum.h"
#include "trireme/execute/weight_gather.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/part.h"
#include "trireme/plan/figures.h"
#include "trireme/plan/shards.h"

namespace trireme::execute {

namespace {

std::vector<int64_t> slice_sizes(const std::vector<int64_t>& bounds) {
  std::vector<int64_t> sizes;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) sizes.push_back(bounds[i + 1] - bounds[i]);
  return sizes;
}

template <typename T>
at::Tensor to_device(const std::vector<T>& values, at::ScalarType dtype, at::Device device) {
  at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, dtype);
  std::ranges::copy(values, host.data_ptr<T>());
  return host.to(device);
}

template <typename T>
std::vector<T> to_host(const at::Tensor& tensor) {
  const at::Tensor host = tensor.cpu();
  return {host.data_ptr<T>(), host.data_ptr<T>() + host.numel()};
}

}  // namespace

RankExchange::RankExchange(comm::World& world, nn::ParameterStore& store)
    : world_(world),
      store_(store),
      device_(device::get_device(store.device().str())),
      on_device_(device_.capabilities().asynchronous) {}

void RankExchange::begin_step(const plan::Program& program) {
  if (members_ != program.groups) gather_now();
  program_ = &program;
  refreshes_.clear();
  under_way_.clear();
  times_.clear();
  pieces_.clear();
  sums_.assign(program.slices.size(), {});
  replica_sums_.assign(program.slices.size(), {});
  if (members_ == program.groups) return;
  groups_.clear();
  for (const std::vector<int>& members : program.groups)
    groups_.push_back(world_.make_group(members, device_));
  members_ = program.groups;
}

comm::Group& RankExchange::group(const plan::Instruction& instruction) {
  const auto& found = groups_.at(static_cast<size_t>(instruction.group));
  TRIREME_CHECK(found != nullptr, "rank {} is not in group {}", program_->rank, instruction.group);
  return *found;
}

void RankExchange::issued(const plan::Instruction& instruction, comm::Group::Pending work) {
  under_way_[instruction.id].push_back(std::move(work));
}

void RankExchange::wait(int instruction, device::Queue& queue) {
  const auto found = under_way_.find(instruction);
  if (found == under_way_.end()) return;
  double begin = 0.0;
  double end = 0.0;
  for (const comm::Group::Pending& work : found->second) {
    work->wait(queue);
    if (on_device_) continue;  // whose own clock would have to be waited for
    begin = work == found->second.front() ? work->start_s() : std::min(begin, work->start_s());
    end = std::max(end, work->end_s());
  }
  times_[instruction] = {begin, end};
  under_way_.erase(found);
  const plan::Instruction& done = program_->instructions[static_cast<size_t>(instruction)];
  // What everybody needs in float32 came as such.
  const auto refreshes = refreshes_.find(instruction);
  if (refreshes != refreshes_.end() && refreshes->second) store_.refresh_compute(done.part);
}

void RankExchange::place_times(double begin_s, std::vector<plan::Measurement>& measurements) const {
  if (on_device_) return;
  for (const auto& [instruction, times] : times_) {
    plan::Measurement& measured = measurements[static_cast<size_t>(instruction)];
    measured.start_s = std::max(times.first - begin_s, 0.0);
    measured.duration_s = std::max(times.second - begin_s - measured.start_s, 0.0);
  }
}

void RankExchange::all_gather(const plan::Instruction& instruction, const at::Tensor& out,
                              const std::vector<int64_t>& counts, const at::Tensor& in) {
  issued(instruction, group(instruction).all_gather(out, counts, in, device_.compute_queue()));
}

void RankExchange::all_to_all(const plan::Instruction& instruction, const at::Tensor& out,
                              const std::vector<int64_t>& out_counts, const at::Tensor& in,
                              const std::vector<int64_t>& in_counts) {
  issued(instruction,
         group(instruction).all_to_all(out, out_counts, in, in_counts, device_.compute_queue()));
}

void RankExchange::count_targets(const plan::Instruction& instruction,
                                 const std::vector<int64_t>& mine) {
  comm::Group& ranks = group(instruction);
  const auto count = static_cast<int64_t>(mine.size());
  counts_ = at::empty({ranks.size(), count},
                      at::TensorOptions().dtype(at::kLong).device(store_.device()));
  issued(instruction,
         ranks.all_gather(counts_.view({-1}),
                          std::vector<int64_t>(static_cast<size_t>(ranks.size()), count),
                          to_device(mine, at::kLong, store_.device()), device_.compute_queue()));
}

std::vector<int64_t> RankExchange::counted() const {
  const std::vector<int64_t> all = to_host<int64_t>(counts_);
  const cluster::Mesh mesh(plan::mesh_shape(program_->strategy.parallel));
  std::vector<int64_t> sums(static_cast<size_t>(counts_.size(1)));
  for (size_t i = 0; i < all.size(); ++i) {
    const auto rank = static_cast<int>(i / sums.size());
    const cluster::Coordinates where = mesh.coordinates(rank);
    // Tensor parallel ranks have the same micro-batches, and ranks that share sequences have read the same ones.
    if (where.pp == program_->pipeline_rank_of(0) && where.tp == 0 && where.cp == 0)
      sums[i % sums.size()] += all[i];
  }
  return sums;
}

RankExchange::Owners RankExchange::owners(const plan::Instruction& instruction) const {
  const auto part = static_cast<size_t>(instruction.part);
  if (instruction.of_replicas)
    return {slice_sizes(program_->replica_slices[part]), static_cast<size_t>(program_->replica)};
  return {slice_sizes(program_->slices[part]),
          static_cast<size_t>(program_->slice_of(instruction.part))};
}

// A rank's j-th piece is sent in the j-th exchange: its slices lie one after the other in the accumulator as they are.
void RankExchange::reduce_gradients(const plan::Instruction& instruction,
                                    const std::function<at::Tensor(int64_t lane)>& accumulator) {
  comm::Group& ranks = group(instruction);
  const auto [sizes, place] = owners(instruction);
  const int64_t mine = sizes[place];
  std::vector<std::vector<cluster::LaneNode>> by_rank(sizes.size());
  for (const plan::Piece& piece : instruction.pieces)
    by_rank[static_cast<size_t>(piece.from)].push_back(piece.node);
  std::vector<Sum>& received = pieces_[{instruction.part, instruction.lane}];
  const auto sent = [&](int64_t first) {
    return instruction.of_replicas ? slice(instruction.part) : accumulator(first);
  };
  const bool rounds = program_->strategy.rounds_sums();
  const auto options =
      at::TensorOptions().dtype(rounds ? at::kBFloat16 : at::kFloat).device(store_.device());
  if (program_->adds_in_transport(instruction.part)) {
    // A rank that has a lane less than others adds nothing.
    const auto& own = by_rank[place];
    const at::Tensor in =
        own.empty() ? at::zeros({std::accumulate(sizes.begin(), sizes.end(), int64_t{0})}, options)
                    : sent(own.front().first).to(options.dtype());
    const at::Tensor out = at::empty({mine}, options);
    issued(instruction, ranks.reduce_scatter(out, in, sizes, device_.compute_queue()));
    received.emplace_back(whole_node(), out);
    return;
  }
  for (size_t round = 0;; ++round) {
    std::vector<int64_t> out_counts(sizes.size(), 0);
    int64_t senders = 0;
    for (size_t rank = 0; rank < sizes.size(); ++rank) {
      if (by_rank[rank].size() <= round) continue;
      out_counts[rank] = mine;
      ++senders;
    }
    if (senders == 0) break;
    const auto& own = by_rank[place];
    const bool sends = own.size() > round;
    const at::Tensor in =
        sends ? sent(own[round].first).to(options.dtype()) : at::empty({0}, options);
    const std::vector<int64_t> in_counts = sends ? sizes : std::vector<int64_t>(sizes.size(), 0);
    const at::Tensor out = at::empty({senders * mine}, options);
    issued(instruction, ranks.all_to_all(out, out_counts, in, in_counts, device_.compute_queue()));
    int64_t at = 0;
    for (size_t rank = 0; rank < sizes.size(); ++rank) {
      if (by_rank[rank].size() > round)
        received.emplace_back(by_rank[rank][round], out.narrow(0, mine * at++, mine));
    }
  }
  std::ranges::sort(received, {}, [](const Sum& sum) { return sum.first.first; });
}

void RankExchange::add(at::Tensor& left, const at::Tensor& right) const {
  if (program_->strategy.rounds_sums()) {
    add_rounded(left, right);
  } else {
    kernels::add_(left, right);
  }
}

cluster::LaneNode RankExchange::whole_node() const {
  const cluster::LaneRange lanes = program_->block_lanes();
  return {lanes.first, lanes.last - lanes.first};
}

void RankExchange::combine_pieces(const plan::Instruction& instruction) {
  std::vector<Sum>& sums =
      (instruction.of_replicas ? replica_sums_ : sums_)[static_cast<size_t>(instruction.part)];
  auto received = pieces_.extract({instruction.part, instruction.lane});
  TRIREME_CHECK(!received.empty(), "no pieces of part {}", instruction.part);
  if (program_->adds_in_transport(instruction.part)) {
    const at::Tensor& piece = received.mapped().front().second;
    if (sums.empty()) {
      sums.emplace_back(whole_node(), piece.clone());
    } else {
      add(sums.front().second, piece);
    }
    return;
  }
  std::vector<char> is_piece(sums.size(), 0);
  for (Sum& piece : received.mapped()) {
    const auto place = std::ranges::upper_bound(sums, piece.first.first, {},
                                                [](const Sum& sum) { return sum.first.first; });
    is_piece.insert(is_piece.begin() + (place - sums.begin()), 1);
    sums.insert(place, std::move(piece));
  }
  std::vector<cluster::LaneNode> nodes;
  for (const Sum& sum : sums) nodes.push_back(sum.first);
  for (const cluster::LaneAddition& addition : cluster::tree_order(nodes)) {
    Sum& left = sums[static_cast<size_t>(addition.left)];
    Sum& right = sums[static_cast<size_t>(addition.right)];
    add(left.second, right.second);
    left.first.size *= 2;
    right.second.reset();
  }
  // What stays of the pieces gets memory of its own: theirs goes as a whole.
  for (size_t i = 0; i < sums.size(); ++i) {
    if (is_piece[i] != 0 && sums[i].second.defined()) sums[i].second = sums[i].second.clone();
  }
  std::erase_if(sums, [](const Sum& sum) { return !sum.second.defined(); });
}

at::Tensor RankExchange::slice(int part) const {
  const std::vector<Sum>& sums = sums_.at(static_cast<size_t>(part));
  TRIREME_CHECK(sums.size() == 1 && sums.front().first.size == whole_node().size,
                "part {}: {} sums instead of one over all lanes", part, sums.size());
  return sums.front().second;
}

void RankExchange::gather_gradients(const plan::Instruction& instruction, const at::Tensor& whole) {
  const at::Tensor mine = instruction.of_replicas
                              ? replica_sums_.at(static_cast<size_t>(instruction.part)).at(0).second
                              : slice(instruction.part);
  issued(instruction, group(instruction)
                          .all_gather(whole, owners(instruction).sizes,
                                      mine.to(whole.scalar_type()), device_.compute_queue()));
}

void RankExchange::owe_weights() {
  for (const plan::Instruction& instruction : program_->instructions) {
    if (instruction.kind != plan::OpKind::kGatherParameters || !instruction.makes.empty()) continue;
    owed_[instruction.part] = {
        instruction.group, program_->slices[static_cast<size_t>(instruction.part)],
        static_cast<size_t>(program_->slice_of(instruction.part)),
        plan::shares_masters(store_.spec(), program_->strategy, instruction.part)};
  }
}

comm::Group::Pending RankExchange::gather(int part, const Owed& owed) {
  const at::Tensor& whole =
      owed.masters_are_shared ? store_.part_compute(part) : store_.part_master(part);
  const std::vector<int64_t>& bounds = owed.bounds;
  return groups_.at(static_cast<size_t>(owed.group))
      ->all_gather(whole, slice_sizes(bounds),
                   whole.narrow(0, bounds[owed.mine], bounds[owed.mine + 1] - bounds[owed.mine]),
                   device_.compute_queue());
}

void RankExchange::gather_parameters(const plan::Instruction& instruction) {
  if (!instruction.makes.empty()) {
    const std::vector<int64_t>& bounds = program_->slices[static_cast<size_t>(instruction.part)];
    issued(instruction,
           gather_weights(store_, instruction.part, group(instruction), slice_sizes(bounds),
                          bounds[static_cast<size_t>(program_->slice_of(instruction.part))],
                          device_.compute_queue()));
    return;
  }
  const auto owed = owed_.extract(instruction.part);
  if (owed.empty()) return;
  issued(instruction, gather(instruction.part, owed.mapped()));
  refreshes_[instruction.id] = !owed.mapped().masters_are_shared;
}

void RankExchange::gather_now() {
  std::vector<std::pair<int, comm::Group::Pending>> all;
  for (const auto& [part, owed] : owed_) all.emplace_back(part, gather(part, owed));
  for (const auto& [part, work] : all) {
    work->wait(device_.compute_queue());
    if (!owed_.at(part).masters_are_shared) store_.refresh_compute(part);
  }
  owed_.clear();
}

void RankExchange::send(const plan::Instruction& instruction, const at::Tensor& tensor) {
  issued(instruction, group(instruction).send(tensor, instruction.peer, device_.compute_queue()));
}

at::Tensor RankExchange::receive(const plan::Instruction& instruction) {
  const plan::Strategy& strategy = program_->strategy;
  at::Tensor tensor = at::empty(
      nn::hidden_shape(store_.spec(), strategy.micro, strategy.seq_len / strategy.parallel.cp),
      at::TensorOptions().dtype(store_.compute_dtype()).device(store_.device()));
  issued(instruction,
         group(instruction).receive(tensor, instruction.peer, device_.compute_queue()));
  return tensor;
}

at::Tensor RankExchange::empty_compute(int64_t elements) const {
  return at::empty({elements},
                   at::TensorOptions().dtype(store_.compute_dtype()).device(store_.device()));
}

void RankExchange::reduce_figures(const plan::Instruction& instruction,
                                  const std::vector<double>& mine) {
  comm::Group& ranks = group(instruction);
  std::vector<int64_t> counts;
  for (const int rank : ranks.members())
    counts.push_back(plan::figure_layout(store_.spec(), *program_, rank).total());
  TRIREME_CHECK(counts[static_cast<size_t>(ranks.rank())] == static_cast<int64_t>(mine.size()),
                "{} figures, not {}", mine.size(), counts[static_cast<size_t>(ranks.rank())]);
  figures_ = at::empty({std::accumulate(counts.begin(), counts.end(), int64_t{0})},
                       at::TensorOptions().dtype(at::kDouble).device(store_.device()));
  issued(instruction,
         ranks.all_gather(figures_, counts, to_device(mine, at::kDouble, store_.device()),
                          device_.compute_queue()));
}

std::vector<double> RankExchange::figures() const {
  return to_host<double>(figures_);
}

}  // namespace trireme::execute
