#include "trireme/execute/tensor_evaluation.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "trireme/execute/tensor_step.h"
#include "trireme/nn/rank_sums.h"

namespace trireme::execute {

TensorEvaluation::TensorEvaluation(nn::Model& model, std::unique_ptr<comm::Group> group)
    : model_(model),
      split_(model),
      group_(std::move(group)),
      device_(device::get_device(model.store().device().str())) {}

at::Tensor TensorEvaluation::gather(const at::Tensor& rows, int64_t tokens) {
  const at::Tensor all = at::empty({tokens, rows.size(-1)}, rows.options());
  device::Queue& queue = device_.compute_queue();
  group_
      ->all_gather(all, nn::token_counts(model_.spec().tensor, tokens, rows.size(-1)), rows, queue)
      ->wait(queue);
  return all;
}

at::Tensor TensorEvaluation::scatter(const at::Tensor& partial) {
  const model::TensorShare& share = model_.spec().tensor;
  const int64_t own = share.count(partial.size(0));
  const at::Tensor pieces = at::empty({share.ranks, own, partial.size(1)}, partial.options());
  device::Queue& queue = device_.compute_queue();
  group_
      ->all_to_all(pieces,
                   std::vector<int64_t>(static_cast<size_t>(share.ranks), own * partial.size(1)),
                   partial, nn::token_counts(share, partial.size(0), partial.size(1)), queue)
      ->wait(queue);
  return pieces;
}

at::Tensor TensorEvaluation::forward(int part, const at::Tensor& hidden,
                                     const nn::BatchTensors& tensors) {
  if (part == 0)
    return split_.embedding().finish(tensors, scatter(split_.embedding().look_up(tensors)));
  const nn::SplitPart& split = split_.part(part);
  nn::SplitGraph graph(split, tensors, /*with_backward=*/false, nn::SaveMode::kInputOnly);
  const at::Tensor all = gather(split.has_norm_before() ? graph.normalize(hidden) : hidden,
                                tensors.rows * tensors.seq_len);
  return graph.finish(hidden, scatter(graph.multiply(all)));
}

EvaluationResult TensorEvaluation::head(const data::Batch& batch, const nn::BatchTensors& tensors,
                                        const at::Tensor& hidden, int64_t loss_chunk_rows) {
  check_ids(batch, model_.spec().vocab_size);
  const nn::SplitHead& head = split_.head();
  const int64_t tokens = tensors.rows * tensors.seq_len;
  int64_t rows = loss_chunk_rows;
  if (rows <= 0) rows = nn::HeadPart::default_chunk_rows(tokens, head.vocabulary());
  nn::NormStatistics unused;
  const at::Tensor all = gather(head.normalize(hidden, false, unused), tokens);
  EvaluationResult result;
  result.num_targets = batch.num_targets;
  result.num_bytes = batch.num_bytes;
  device::Queue& queue = device_.compute_queue();
  for (int64_t first = 0; first < tokens; first += rows) {
    const int64_t count = std::min(rows, tokens - first);
    const at::Tensor targets = tensors.targets.flatten().narrow(0, first, count);
    const at::Tensor mine = head.measure(all.narrow(0, first, count), targets).statistics;
    const at::Tensor statistics = at::empty({group_->size(), 3, count}, mine.options());
    group_
        ->all_gather(statistics,
                     std::vector<int64_t>(static_cast<size_t>(group_->size()), mine.numel()), mine,
                     queue)
        ->wait(queue);
    const at::Tensor losses = head.losses(statistics, targets);
    result.loss_sum = nn::add_losses(result.loss_sum, losses);
    const at::Tensor host = losses.to(at::kFloat).cpu();
    result.token_losses.insert(result.token_losses.end(), host.data_ptr<float>(),
                               host.data_ptr<float>() + host.numel());
  }
  return result;
}

}  // namespace trireme::execute
