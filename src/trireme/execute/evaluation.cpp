#include "trireme/execute/evaluation.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/data/tokens_ahead.h"

namespace trireme::execute {
namespace {

at::Tensor to_int64(const std::vector<int32_t>& values, int64_t rows, int64_t length,
                    at::Device device, const char* what) {
  TRIREME_CHECK(static_cast<int64_t>(values.size()) == rows * length,
                "a batch of {} x {} has {} {}", rows, length, values.size(), what);
  at::Tensor tensor = at::empty({rows, length}, at::kLong);
  std::ranges::copy(values, tensor.data_ptr<int64_t>());
  return tensor.to(device);
}

}  // namespace

nn::BatchTensors to_tensors(const data::Batch& batch, int num_mtp_layers, at::Device device) {
  nn::BatchTensors tensors;
  tensors.rows = batch.rows;
  tensors.seq_len = batch.seq_len;
  const auto moved = [&](const std::vector<int32_t>& values, const char* what) {
    return to_int64(values, batch.rows, batch.seq_len, device, what);
  };
  tensors.tokens = moved(batch.tokens, "tokens");
  tensors.targets = moved(batch.targets, "targets");
  tensors.positions = moved(batch.positions, "positions");
  tensors.segments = batch.segments;
  for (int depth = 1; depth <= num_mtp_layers; ++depth) {
    const data::TokensAhead ahead = data::tokens_ahead(batch, depth);
    tensors.ahead.push_back({moved(ahead.tokens, "tokens"), moved(ahead.targets, "targets")});
  }
  return tensors;
}

EvaluationResult evaluate(nn::Model& model, const data::Batch& batch, int64_t loss_chunk_rows) {
  const nn::BatchTensors tensors = to_tensors(batch, 0, model.store().device());
  at::Tensor hidden;
  for (int part = 0; part < model.spec().head_part(); ++part) {
    hidden = model.part(part).forward(hidden, tensors, false, nn::SaveMode::kInputOnly).output;
  }
  return evaluate_head(model, batch, tensors, hidden, loss_chunk_rows);
}

EvaluationResult evaluate_head(nn::Model& model, const data::Batch& batch,
                               const nn::BatchTensors& tensors, const at::Tensor& hidden,
                               int64_t loss_chunk_rows) {
  const nn::LossResult loss =
      model.head().loss(hidden, tensors, 0.0, loss_chunk_rows, nullptr, true);
  EvaluationResult result;
  result.loss_sum = loss.loss_sum;
  result.num_targets = batch.num_targets;
  result.num_bytes = batch.num_bytes;
  const at::Tensor losses = loss.token_losses.cpu().contiguous();
  result.token_losses.assign(losses.data_ptr<float>(), losses.data_ptr<float>() + losses.numel());
  return result;
}

}  // namespace trireme::execute
