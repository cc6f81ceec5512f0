// Batches as tensors, and their loss without a program.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/nn/model.h"

namespace trireme::execute {

struct EvaluationResult {
  double loss_sum = 0.0;  ///< nats, over counted targets
  int64_t num_targets = 0;
  int64_t num_bytes = 0;
  std::vector<float> token_losses;  ///< row-major [rows, seq_len], zero where ignored
};

/// Forward and loss without gradients and without multi-token prediction; needs no program. Same arithmetic as the
/// training forward.
/// `loss_chunk_rows` as in plan::Strategy (0: chosen here).
EvaluationResult evaluate(nn::Model& model, const data::Batch& batch, int64_t loss_chunk_rows = 0);

/// The end of it: `hidden` [rows, seq_len, d] is what the last part before the head made. Only the head is asked.
EvaluationResult evaluate_head(nn::Model& model, const data::Batch& batch,
                               const nn::BatchTensors& tensors, const at::Tensor& hidden,
                               int64_t loss_chunk_rows);

/// The micro-batch's integers as tensors on `device`, for so many modules of multi-token prediction. Copies.
nn::BatchTensors to_tensors(const data::Batch& batch, int num_mtp_layers = 0,
                            at::Device device = at::kCPU);

}  // namespace trireme::execute
