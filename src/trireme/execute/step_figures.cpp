#include "trireme/execute/step_figures.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/cluster/mesh.h"
#include "trireme/kernels/ops.h"
#include "trireme/plan/figures.h"
#include "trireme/plan/shards.h"

namespace trireme::execute {

static_assert(plan::kSquaresBlock == kernels::kSquaresBlock);

StepFigures::StepFigures(const model::ModelSpec& spec, const plan::Program& program)
    : spec_(spec),
      program_(program),
      lanes_(static_cast<size_t>(program.strategy.leaves())),
      squares_(static_cast<size_t>(program.strategy.parallel.tp),
               std::vector<std::vector<NodeSum>>(spec.parts.size())) {
  for (LaneFigures& lane : lanes_)
    lane.losses.assign(1 + static_cast<size_t>(spec.num_mtp_layers), 0.0);
}

void StepFigures::add_router(int64_t lane, int layer, const nn::RouterStatistics& one,
                             double share) {
  nn::RouterStatistics& all = lane_at(lane).routers[layer];
  all.load.resize(one.load.size());
  for (size_t e = 0; e < one.load.size(); ++e) all.load[e] += one.load[e];
  all.dropped += one.dropped;
  all.balance_loss += share * one.balance_loss;
  all.z_loss += share * one.z_loss;
  all.entropy += share * one.entropy;
}

void StepFigures::sum_squares(const std::function<at::Tensor(int part)>& slice_of) {
  const cluster::Mesh mesh(plan::mesh_shape(program_.strategy.parallel));
  const plan::SlicePlace place_here = plan::slice_place(program_, mesh, program_.rank);
  const int place = mesh.coordinates(program_.rank).tp;
  std::vector<std::vector<NodeSum>>& squares = squares_[static_cast<size_t>(place)];
  std::vector<at::Tensor> sums(spec_.parts.size());
  const auto pieces_of = [&](int part, auto&& visit) {
    const std::vector<int64_t>& bounds = program_.slices[static_cast<size_t>(part)];
    const auto slice = static_cast<size_t>(program_.slice_of(part));
    for (const plan::SquaresRange& range : program_.squares[static_cast<size_t>(part)]) {
      const int64_t first = std::max(range.first, bounds[slice]);
      const int64_t last = std::min(range.first + range.elements, bounds[slice + 1]);
      if (first < last) visit(first - bounds[slice], last - first, range.holders);
    }
  };
  for (int part = 0; part < static_cast<int>(spec_.parts.size()); ++part) {
    if (!program_.has(part) || program_.replica > 0) continue;
    int64_t blocks = 0;
    const auto blocks_in = [](int64_t elements) {
      return (elements + plan::kSquaresBlock - 1) / plan::kSquaresBlock;
    };
    pieces_of(part, [&](int64_t, int64_t count, int64_t) { blocks += blocks_in(count); });
    if (blocks == 0) continue;
    const at::Tensor gradient = slice_of(part);
    at::Tensor& of_part = sums[static_cast<size_t>(part)];
    of_part = at::empty({blocks}, gradient.options().dtype(at::kDouble));
    int64_t at = 0;
    pieces_of(part, [&](int64_t first, int64_t count, int64_t holders) {
      at::Tensor out = of_part.narrow(0, at, blocks_in(count));
      // What several ranks hold alike counts once.
      if (place % holders == 0) {
        kernels::squares_by_block(gradient.narrow(0, first, count), out);
      } else {
        out.zero_();
      }
      at += blocks_in(count);
    });
  }
  // All are issued before the first one is waited for.
  for (int part = 0; part < static_cast<int>(spec_.parts.size()); ++part) {
    const auto at = static_cast<size_t>(part);
    squares[at].clear();
    if (!sums[at].defined()) continue;
    const at::Tensor on_host = sums[at].cpu();
    const auto* values = on_host.data_ptr<double>();
    // Blocks here are in the order of the whole part's.
    int64_t done = 0;
    for (const plan::BlockRange& blocks : plan::blocks_on_rank(spec_, program_, part, place_here)) {
      const int64_t count = blocks.last - blocks.first;
      const auto nodes = plan::squares_nodes(blocks, plan::num_blocks_of_part(program_, part));
      const std::vector<double> of_nodes = plan::sums_of_nodes(
          nodes, blocks, std::vector<double>(values + done, values + done + count));
      for (size_t i = 0; i < nodes.size(); ++i) squares[at].emplace_back(nodes[i], of_nodes[i]);
      done += count;
    }
    TRIREME_CHECK(done == on_host.numel(), "part {}: {} blocks of {}", part, on_host.numel(), done);
  }
}

std::vector<double> StepFigures::mine() const {
  std::vector<double> values;
  for (const int64_t lane : program_.lanes) {
    if (!program_.has(spec_.head_part())) break;
    const auto& losses = lanes_[static_cast<size_t>(lane)].losses;
    values.insert(values.end(), losses.begin(), losses.end());
  }
  // Of its own place alone, before all ranks' are taken in.
  for (const auto& of_place : squares_) {
    for (const std::vector<NodeSum>& squares : of_place) {
      for (const NodeSum& sum : squares) values.push_back(sum.second);
    }
  }
  for (const int64_t lane : program_.lanes) {
    for (const auto& [layer, router] : lanes_[static_cast<size_t>(lane)].routers) {
      for (const int64_t load : router.load) values.push_back(static_cast<double>(load));
      values.insert(values.end(), {static_cast<double>(router.dropped), router.balance_loss,
                                   router.z_loss, router.entropy});
    }
  }
  values.push_back(stop_requested_ ? 1.0 : 0.0);
  return values;
}

void StepFigures::take(const std::vector<double>& all) {
  const plan::Parallel& parallel = program_.strategy.parallel;
  for (auto& of_place : squares_) {
    for (std::vector<NodeSum>& squares : of_place) squares.clear();
  }
  auto next = all.begin();
  const cluster::Mesh mesh(plan::mesh_shape(program_.strategy.parallel));
  // Ranks of a stage come in the order of their slices.
  for (int rank = 0; rank < mesh.size(); ++rank) {
    const plan::SlicePlace mine = plan::slice_place(program_, mesh, rank);
    const auto [data, tensor, place, context] = mesh.coordinates(rank);
    auto& squares = squares_[static_cast<size_t>(tensor)];
    const auto has = [&](int part) { return program_.pipeline_rank_of(part) == place; };
    const std::vector<int64_t> lanes =
        plan::leaves_of(program_.strategy, data, parallel.dp, context);
    for (const int64_t lane : lanes) {
      if (!has(spec_.head_part())) break;
      for (double& loss : lane_at(lane).losses) loss = *next++;
    }
    // Replicas of a slice have the same ones.
    for (int part = 0; mine.has_squares && part < static_cast<int>(spec_.parts.size()); ++part) {
      if (!has(part)) continue;
      for (const plan::BlockRange& blocks : plan::blocks_on_rank(spec_, program_, part, mine)) {
        for (const cluster::LaneNode& node :
             plan::squares_nodes(blocks, plan::num_blocks_of_part(program_, part)))
          squares[static_cast<size_t>(part)].emplace_back(node, *next++);
      }
    }
    for (const int64_t lane : lanes) {
      for (int at = 0; at < static_cast<int>(spec_.parts.size()); ++at) {
        const model::PartSpec& part = spec_.parts[static_cast<size_t>(at)];
        if (part.kind != model::PartKind::kRouter || !has(at)) continue;
        nn::RouterStatistics& router = lane_at(lane).routers[part.layer];
        router.load.resize(static_cast<size_t>(
            spec_.layers[static_cast<size_t>(part.layer)].moe.value().num_experts));
        for (int64_t& load : router.load) load = static_cast<int64_t>(*next++);
        router.dropped = static_cast<int64_t>(*next++);
        router.balance_loss = *next++;
        router.z_loss = *next++;
        router.entropy = *next++;
      }
    }
    stop_requested_ = *next++ != 0.0 || stop_requested_;
  }
  TRIREME_CHECK(next == all.end(), "{} figures are left over", all.end() - next);
}

// Lanes meet as their gradients do: pairs of neighbours, then pairs of pairs.
double StepFigures::by_tree(const std::function<double(const LaneFigures&)>& value) const {
  std::vector<double> values;
  for (const LaneFigures& lane : lanes_) values.push_back(value(lane));
  for (size_t stride = 1; stride < values.size(); stride *= 2) {
    for (size_t i = 0; i + stride < values.size(); i += 2 * stride) values[i] += values[i + stride];
  }
  return values.front();
}

double StepFigures::loss_sum(size_t depth) const {
  return by_tree([&](const LaneFigures& lane) { return lane.losses[depth]; });
}

double StepFigures::gradient_norm() const {
  double sum = 0.0;
  for (int part = 0; part < static_cast<int>(spec_.parts.size()); ++part) {
    for (const auto& of_place : squares_) {
      std::vector<NodeSum> all = of_place[static_cast<size_t>(part)];
      // Ranks come in the order of their slices; those of experts take turns.
      std::ranges::sort(all, {}, [](const NodeSum& one) { return one.first.first; });
      std::vector<cluster::LaneNode> nodes;
      std::vector<double> sums;
      for (const auto& [node, value] : all) {
        nodes.push_back(node);
        sums.push_back(value);
      }
      sum += plan::sum_of_tree(nodes, std::move(sums));
    }
  }
  return std::sqrt(sum);
}

std::map<int, nn::RouterStatistics> StepFigures::routers() const {
  std::map<int, nn::RouterStatistics> all;
  for (const auto& [layer, first] : lanes_.front().routers) {
    nn::RouterStatistics& sum = all[layer];
    sum.load.resize(first.load.size());
    for (const LaneFigures& lane : lanes_) {
      const nn::RouterStatistics& one = lane.routers.at(layer);
      for (size_t e = 0; e < sum.load.size(); ++e) sum.load[e] += one.load[e];
      sum.dropped += one.dropped;
    }
    const int number = layer;
    sum.balance_loss =
        by_tree([&](const LaneFigures& lane) { return lane.routers.at(number).balance_loss; });
    sum.z_loss = by_tree([&](const LaneFigures& lane) { return lane.routers.at(number).z_loss; });
    sum.entropy = by_tree([&](const LaneFigures& lane) { return lane.routers.at(number).entropy; });
  }
  return all;
}

}  // namespace trireme::execute
