// A step's losses, gradient norm and router statistics: summed lane by lane and block by block in fixed trees, so that they
// are the same whoever computed which lane. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "trireme/nn/moe_flow.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Thread-safety: the step thread only. Ownership: borrows spec and program.
class StepFigures {
 public:
  StepFigures(const model::ModelSpec& spec, const plan::Program& program);

  /// Adds a micro-batch's loss, of the head (depth 0) or a module of multi-token prediction.
  void add_loss(int64_t lane, size_t depth, double loss_sum) {
    lane_at(lane).losses[depth] += loss_sum;
  }
  /// Adds a router's figures of a micro-batch, `share` of the step.
  void add_router(int64_t lane, int layer, const nn::RouterStatistics& one, double share);

  void request_stop() { stop_requested_ = true; }

  /// Sums of squares of the blocks of a gradient's slice, `slice_of(part)`, of all parts with parameters. Waits for the
  /// device.
  void sum_squares(const std::function<at::Tensor(int part)>& slice_of);

  /// What this rank hands out (plan/figures.h), and taking in what all ranks did, one after the other.
  std::vector<double> mine() const;
  void take(const std::vector<double>& all);

  /// Of the whole step, once all lanes' figures are here.
  double loss_sum(size_t depth) const;
  double gradient_norm() const;
  bool stop_requested() const { return stop_requested_; }  ///< of any rank
  std::map<int, nn::RouterStatistics> routers() const;

 private:
  struct LaneFigures {
    std::vector<double> losses;
    std::map<int, nn::RouterStatistics> routers;
  };
  LaneFigures& lane_at(int64_t lane) { return lanes_.at(static_cast<size_t>(lane)); }
  double by_tree(const std::function<double(const LaneFigures&)>& value) const;

  const model::ModelSpec& spec_;
  const plan::Program& program_;
  std::vector<LaneFigures> lanes_;
  bool stop_requested_ = false;
  /// Of a part: a node of the tree over its blocks, and the sum below it.
  using NodeSum = std::pair<cluster::LaneNode, double>;
  /// By place among tensor parallel ranks and by part: of the nodes that are here.
  std::vector<std::vector<std::vector<NodeSum>>> squares_;
};

}  // namespace trireme::execute
