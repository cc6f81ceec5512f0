#include "trireme/nn/split_embedding.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logical_or.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"
#include "trireme/nn/embedding_part.h"
#include "trireme/nn/rank_sums.h"

namespace trireme::nn {

SplitEmbedding::SplitEmbedding(const ParameterStore& store, int part)
    : share_(store.spec().tensor), scale_(embedding_scale(store)) {
  for (const int index : store.part_parameters(part)) {
    const model::ParameterSpec& parameter = store.spec().parameters[static_cast<size_t>(index)];
    if (parameter.role == model::Role::kTokenEmbedding) {
      tokens_ = store.compute(index);
      first_ = parameter.shard.value().first;
    } else {
      positions_ = store.compute(index);
    }
  }
  TRIREME_CHECK(tokens_.defined(), "an embedding without a token table");
}

SplitEmbedding::Rows SplitEmbedding::rows_of(const BatchTensors& batch) const {
  Rows rows;
  rows.ids = batch.tokens.flatten().sub(first_);
  rows.others = rows.ids.lt(0);
  rows.others.logical_or_(rows.ids.ge(tokens_.size(0)));
  rows.ids.masked_fill_(rows.others, 0);
  return rows;
}

at::Tensor SplitEmbedding::look_up(const BatchTensors& batch) const {
  const Rows rows = rows_of(batch);
  at::Tensor out = at::empty({rows.ids.size(0), tokens_.size(1)}, tokens_.options());
  kernels::embedding(rows.ids, tokens_, {}, {}, out);
  return out.masked_fill_(rows.others.unsqueeze(1), 0.0);
}

at::Tensor SplitEmbedding::finish(const BatchTensors& batch, const at::Tensor& pieces) const {
  at::Tensor out = sum_in_order(pieces);
  if (positions_.defined()) {
    const at::Tensor mine = batch.positions.flatten();
    const int64_t tokens = mine.size(0);
    out.add_(
        positions_.index_select(0, mine.narrow(0, share_.first(tokens), share_.count(tokens))));
  }
  if (scale_ != 1.0) out.mul_(scale_);
  return out.unsqueeze(0);
}

void SplitEmbedding::backward_weight(at::Tensor gathered, const BatchTensors& batch,
                                     GradientSink& sink) const {
  if (scale_ != 1.0) gathered.mul_(scale_);
  if (positions_.defined())
    kernels::embedding_backward(batch.positions.flatten(), gathered, sink.gradients[1],
                                sink.accumulate[1] != 0);
  const Rows rows = rows_of(batch);
  gathered.masked_fill_(rows.others.unsqueeze(1), 0.0);
  kernels::embedding_backward(rows.ids, gathered, sink.gradients[0], sink.accumulate[0] != 0);
}

}  // namespace trireme::nn
