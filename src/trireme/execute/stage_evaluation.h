// Losses without a program over ranks that have a model together: stages of a pipeline, weights that come for their use, tensor
// parallel ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/execute/evaluation.h"
#include "trireme/execute/tensor_evaluation.h"
#include "trireme/execute/weight_gather.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// One rank's side of it; of a run without a pipeline, every rank is one, or the tensor parallel ranks that share its parts. Thread-safety: one thread. Ownership: borrows the model,
/// its store and the world.
class StageEvaluation {
 public:
  /// `program`: any of the run's. Collective over the world.
  StageEvaluation(nn::Model& model, nn::ParameterStore& store, const plan::Program& program,
                  comm::World& world);

  int num_pipelines() const { return static_cast<int>(last_ranks_.size()); }
  int pipeline() const { return pipeline_; }  ///< this rank's
  /// By pipeline: the rank of the world that has the head, or the first of those that share it.
  const std::vector<int>& last_ranks() const { return last_ranks_; }
  bool has_head() const { return has_head_; }
  /// So many batches at once keep all ranks busy, or share a gather of the weights.
  int64_t batches_at_once() const;

  /// What evaluate() says of each batch, on the rank that has the head; empty results elsewhere. Collective over the pipeline,
  /// whose ranks give the same batches, and under ZeRO 3 over the world: whoever has no batches gives none. Blocks.
  std::vector<EvaluationResult> evaluate(const std::vector<data::Batch>& batches,
                                         int64_t loss_chunk_rows);

 private:
  /// Experts that are spread over ranks; without a batch, those of others' rows alone.
  void run_experts(int part, const nn::BatchTensors* batch, at::Tensor& hidden);
  void with_weights(const std::vector<int>& parts, const std::function<void(int)>& work);

  nn::Model& model_;
  comm::World& world_;
  device::Device& device_;
  std::vector<plan::PipelineStage> stages_;
  WeightGather weights_;
  bool gathers_ = false;
  std::unique_ptr<comm::Group> group_;  ///< of a pipeline
  std::unique_ptr<comm::Group>
      expert_group_;  ///< of the ranks that experts are spread over; null: they are not
  std::unique_ptr<TensorEvaluation> tensor_;  ///< of parts that ranks share
  int pipeline_ = 0;
  std::vector<int> last_ranks_;
  bool has_head_ = false;
};

}  // namespace trireme::execute
