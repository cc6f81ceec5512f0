#include "trireme/nn/mtp_input_part.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "trireme/base/error.h"
#include "trireme/kernels/ops.h"

namespace trireme::nn {

namespace {

// Places among gradient_parameters().
constexpr int kEmbeddingNorm = 0;
constexpr int kHiddenNorm = 1;
constexpr int kTable = 3;

}  // namespace

class MtpInputPart::Graph final : public PartGraph {
 public:
  const MtpInputPart& part;
  at::Tensor tokens;
  at::Tensor x;
  at::Tensor joined;
  NormStatistics embedding_statistics;
  NormStatistics hidden_statistics;

  explicit Graph(const MtpInputPart& part) : part(part) {}

  void recompute() override {}

  std::vector<at::Tensor> kept() const override {
    return {joined, embedding_statistics.mean, embedding_statistics.rstd, hidden_statistics.mean,
            hidden_statistics.rstd};
  }

  at::Tensor backward_input(at::Tensor grad_output) override {
    grad_output_ = grad_output.flatten(0, 1);
    const at::Tensor d_joined = part.projection_.backward_input(grad_output_);
    const int64_t d = d_joined.size(1) / 2;
    d_embeddings_ = part.embedding_norm_.backward_over_input(
        d_joined.narrow(1, 0, d), part.look_up(tokens), embedding_statistics, embedding_gradients_);
    at::Tensor dx = at::empty_like(x);
    part.hidden_norm_.backward_into(d_joined.narrow(1, d, d), x.flatten(0, 1), hidden_statistics,
                                    dx.flatten(0, 1), hidden_gradients_);
    embedding_statistics = hidden_statistics = {};
    x.reset();
    return dx;
  }

  void backward_weight(GradientSink& sink) override {
    part.projection_.backward_weight(grad_output_, joined, sink);
    grad_output_.reset();
    joined.reset();
    part.embedding_norm_.add_gradients(embedding_gradients_, sink, kEmbeddingNorm);
    part.hidden_norm_.add_gradients(hidden_gradients_, sink, kHiddenNorm);
    embedding_gradients_ = hidden_gradients_ = {};
    kernels::embedding_backward(tokens, d_embeddings_, sink.gradients[kTable],
                                sink.accumulate[kTable] != 0);
    d_embeddings_.reset();
    tokens.reset();
  }

 private:
  at::Tensor grad_output_;
  at::Tensor d_embeddings_;
  NormGradients embedding_gradients_;
  NormGradients hidden_gradients_;
};

MtpInputPart::MtpInputPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]),
      depth_(store.spec().mtp_depth(part)),
      parameters_(store.part_parameters(part)),
      table_(store.compute(store.part_parameters(0).at(0))),
      embedding_norm_(store.spec().final_norm, store.compute(parameters_.at(kEmbeddingNorm)), {}),
      hidden_norm_(store.spec().final_norm, store.compute(parameters_.at(kHiddenNorm)), {}),
      projection_(store, parameters_, {model::Role::kMtpProjection}) {
  TRIREME_CHECK(parameters_.size() == kTable, "{} has {} parameters", spec_.name,
                parameters_.size());
  TRIREME_CHECK(store.part_parameters(0).size() == 1 && store.spec().embedding_scale == 1.0,
                "{}: the embedding is more than a table", spec_.name);
  parameters_.push_back(store.part_parameters(0)[0]);
}

at::Tensor MtpInputPart::look_up(const at::Tensor& tokens) const {
  at::Tensor embeddings = at::empty({tokens.size(0), table_.size(1)}, table_.options());
  kernels::embedding(tokens, table_, {}, {}, embeddings);
  return embeddings;
}

ForwardResult MtpInputPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                    bool with_graph, SaveMode /*mode*/) {
  auto graph = std::make_unique<Graph>(*this);
  const at::Tensor x = hidden.flatten(0, 1);
  const int64_t d = x.size(1);
  graph->tokens = batch.ahead.at(static_cast<size_t>(depth_) - 1).tokens.flatten();
  graph->joined = at::empty({x.size(0), 2 * d}, x.options());
  embedding_norm_.forward_into(look_up(graph->tokens), graph->joined.narrow(1, 0, d), with_graph,
                               graph->embedding_statistics);
  hidden_norm_.forward_into(x, graph->joined.narrow(1, d, d), with_graph, graph->hidden_statistics);
  ForwardResult result;
  result.output = projection_.forward(graph->joined).view(hidden.sizes());
  if (!with_graph) return result;
  graph->x = hidden;
  result.graph = std::move(graph);
  return result;
}

}  // namespace trireme::nn
