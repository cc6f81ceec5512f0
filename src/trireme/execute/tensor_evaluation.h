// Parts of a model that tensor parallel ranks share, forward, without a program. Internal to this room.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/execute/evaluation.h"
#include "trireme/nn/split_model.h"

namespace trireme::execute {

/// One rank's side of it. Every call is collective over the tensor parallel ranks, which give the same batch, and blocks. Ownership:
/// borrows the model. Thread-safety: one thread.
class TensorEvaluation {
 public:
  /// `group`: of the ranks that share the model.
  TensorEvaluation(nn::Model& model, std::unique_ptr<comm::Group> group);

  /// Any part but the head; `hidden` and the result are of this rank's tokens (nn::hidden_shape()).
  at::Tensor forward(int part, const at::Tensor& hidden, const nn::BatchTensors& tensors);
  /// As evaluate_head(): the same on all ranks.
  EvaluationResult head(const data::Batch& batch, const nn::BatchTensors& tensors,
                        const at::Tensor& hidden, int64_t loss_chunk_rows);

 private:
  at::Tensor gather(const at::Tensor& rows, int64_t tokens);
  at::Tensor scatter(const at::Tensor& partial);

  nn::Model& model_;
  const nn::SplitModel split_;
  std::unique_ptr<comm::Group> group_;
  device::Device& device_;
};

}  // namespace trireme::execute
