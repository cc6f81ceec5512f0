#include "forward_backward.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "trireme/execute/evaluation.h"

namespace trireme::testing {

ForwardBackward forward_backward(nn::Model& model, const std::vector<std::vector<int32_t>>& ids,
                                 nn::SaveMode mode, double balance_share) {
  data::Batch batch;
  batch.rows = static_cast<int64_t>(ids.size());
  batch.seq_len = static_cast<int64_t>(ids.at(0).size());
  for (const auto& row : ids) {
    for (size_t t = 0; t < row.size(); ++t) {
      batch.tokens.push_back(row[t]);
      batch.targets.push_back(t + 1 < row.size() ? row[t + 1] : data::kIgnoredTarget);
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.num_targets += t + 1 < row.size();
    }
    batch.segments.push_back({0});
  }
  nn::BatchTensors tensors = execute::to_tensors(batch);
  tensors.share_of_step = balance_share;
  const nn::ParameterStore& store = model.store();

  // One flat float32 accumulator per part, as the executor has; a tied head writes into the
  // embedding's.
  std::vector<at::Tensor> flat;
  for (int part = 0; part < store.num_parts(); ++part) {
    flat.push_back(at::empty({store.part_numel(part)}, at::TensorOptions().dtype(at::kFloat)));
  }
  std::vector<char> written(static_cast<size_t>(store.num_parameters()), 0);
  const auto sink_of = [&](const std::vector<int>& parameters) {
    nn::GradientSink sink;
    for (const int parameter : parameters) {
      sink.gradients.push_back(store.view(
          flat[static_cast<size_t>(store.spec().parameters[parameter].part)], parameter));
      sink.accumulate.push_back(written[static_cast<size_t>(parameter)]);
      written[static_cast<size_t>(parameter)] = 1;
    }
    return sink;
  };

  const int head = model.num_parts() - 1;
  std::vector<std::unique_ptr<nn::PartGraph>> graphs;
  at::Tensor hidden;
  for (int part = 0; part < head; ++part) {
    auto result = model.part(part).forward(hidden, tensors, true, mode);
    hidden = result.output;
    graphs.push_back(std::move(result.graph));
  }
  ForwardBackward result;
  result.logits = model.head()
                      .logits(hidden.view({batch.rows * batch.seq_len, -1}))
                      .view({batch.rows, batch.seq_len, -1});
  nn::GradientSink sink = sink_of(model.head().gradient_parameters());
  nn::LossResult loss =
      model.head().loss(hidden, tensors, 1.0 / static_cast<double>(batch.num_targets), 0, &sink);
  result.loss = loss.loss_sum / static_cast<double>(batch.num_targets);
  for (const auto& [layer, flow] : *tensors.moe) {
    const double coefficient = model.spec().layers[static_cast<size_t>(layer)].moe->aux_loss;
    result.loss += balance_share * coefficient * flow.statistics.balance_loss;
  }
  at::Tensor gradient = loss.grad_hidden;
  for (int part = head - 1; part >= 0; --part) {
    if (mode == nn::SaveMode::kInputOnly) graphs[static_cast<size_t>(part)]->recompute();
    gradient = graphs[static_cast<size_t>(part)]->backward_input(gradient);
    nn::GradientSink part_sink = sink_of(model.part(part).gradient_parameters());
    graphs[static_cast<size_t>(part)]->backward_weight(part_sink);
  }
  for (int parameter = 0; parameter < store.num_parameters(); ++parameter) {
    const model::ParameterSpec& spec = store.spec().parameters[parameter];
    result.gradients[spec.name] = store.view(flat[static_cast<size_t>(spec.part)], parameter);
  }
  return result;
}

}  // namespace trireme::testing
