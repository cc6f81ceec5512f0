// Losses without a program over the stages of a pipeline.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/execute/evaluation.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// One rank's side of it. Thread-safety: one thread. Ownership: borrows the model and the world.
class StageEvaluation {
 public:
  /// `program`: any of the run's, with stages. Collective over the world.
  StageEvaluation(nn::Model& model, const plan::Program& program, comm::World& world);

  int num_pipelines() const { return static_cast<int>(last_ranks_.size()); }
  int pipeline() const { return pipeline_; }  ///< this rank's
  /// By pipeline: the rank of the world that has the head.
  const std::vector<int>& last_ranks() const { return last_ranks_; }
  bool has_head() const { return has_head_; }
  /// So many batches at once keep all ranks busy.
  int64_t batches_at_once() const { return group_->size(); }

  /// What evaluate() says of each batch, on the rank that has the head; empty results elsewhere. Collective over the pipeline,
  /// whose ranks give the same batches. Blocks.
  std::vector<EvaluationResult> evaluate(const std::vector<data::Batch>& batches,
                                         int64_t loss_chunk_rows);

 private:
  nn::Model& model_;
  comm::World& world_;
  device::Device& device_;
  std::vector<plan::PipelineStage> stages_;
  std::unique_ptr<comm::Group> group_;
  int pipeline_ = 0;
  std::vector<int> last_ranks_;
  bool has_head_ = false;
};

}  // namespace trireme::execute
