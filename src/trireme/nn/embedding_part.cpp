#include "trireme/nn/embedding_part.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

class EmbeddingPart::Graph final : public PartGraph {
 public:
  Graph(const BatchTensors& batch, bool learned_positions, double scale)
      : tokens_(batch.tokens),
        positions_(learned_positions ? batch.positions : at::Tensor()),
        scale_(scale) {}

  void recompute() override {}

  std::vector<at::Tensor> kept() const override { return {}; }

  at::Tensor backward_input(at::Tensor grad_output) override {
    grad_output_ = std::move(grad_output);
    return {};
  }

  void backward_weight(GradientSink& sink) override {
    at::Tensor dy = grad_output_.flatten(0, 1);
    if (scale_ != 1.0) dy.mul_(scale_);
    kernels::embedding_backward(tokens_.flatten(), dy, sink.gradients[0], sink.accumulate[0] != 0);
    if (positions_.defined()) {
      kernels::embedding_backward(positions_.flatten(), dy, sink.gradients[1],
                                  sink.accumulate[1] != 0);
    }
    grad_output_.reset();
  }

 private:
  at::Tensor tokens_;
  at::Tensor positions_;
  double scale_;
  at::Tensor grad_output_;
};

EmbeddingPart::EmbeddingPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]), parameters_(store.part_parameters(part)) {
  for (const int index : parameters_) {
    const model::Role role = store.spec().parameters[index].role;
    if (role == model::Role::kTokenEmbedding) {
      tokens_ = store.compute(index);
    } else {
      TRIREME_CHECK(role == model::Role::kPositionEmbedding, "{} is not an embedding",
                    store.spec().parameters[index].name);
      positions_ = store.compute(index);
    }
  }
  scale_ = embedding_scale(store);
  TRIREME_CHECK(tokens_.defined() &&
                    store.spec().parameters[parameters_[0]].role == model::Role::kTokenEmbedding,
                "the embedding part starts with the token table");
}

double embedding_scale(const ParameterStore& store) {
  const double scale = store.spec().embedding_scale;
  // The factor has the precision of what it multiplies.
  if (store.compute_dtype() != at::kBFloat16) return scale;
  return static_cast<double>(static_cast<float>(at::BFloat16(static_cast<float>(scale))));
}

ForwardResult EmbeddingPart::forward(const at::Tensor&, const BatchTensors& batch, bool with_graph,
                                     SaveMode) {
  ForwardResult result;
  const int64_t rows = batch.tokens.size(0);
  const int64_t length = batch.tokens.size(1);
  at::Tensor out = at::empty({rows * length, tokens_.size(1)}, tokens_.options());
  kernels::embedding(batch.tokens.flatten(), tokens_, batch.positions.flatten(), positions_, out);
  if (scale_ != 1.0) out.mul_(scale_);
  result.output = out.view({rows, length, tokens_.size(1)});
  if (with_graph) result.graph = std::make_unique<Graph>(batch, positions_.defined(), scale_);
  return result;
}

}  // namespace trireme::nn
