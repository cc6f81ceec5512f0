#include "trireme/nn/dispatch_part.h"

#include <ATen/ops/empty.h>

#include "trireme/nn/moe_flow.h"

namespace trireme::nn {

class DispatchPart::Graph final : public PartGraph {
 public:
  Graph(MoeFlow& flow, std::vector<int64_t> sizes) : flow_(flow), sizes_(std::move(sizes)) {}
  void recompute() override {}
  std::vector<at::Tensor> kept() const override { return {}; }
  at::Tensor backward_input(at::Tensor grad_output) override {
    // Over what the shared expert left, if there is one.
    const at::Tensor start = flow_.d_normed;
    at::Tensor d_normed =
        start.defined()
            ? start
            : at::empty({flow_.rows.rows.size(0), grad_output.size(1)}, grad_output.options());
    kernels::sum_rows(grad_output, flow_.rows, start, d_normed);
    flow_.d_normed.reset();
    if (flow_.d_row_weights.defined()) {
      flow_.d_weights = at::empty(flow_.weights.sizes(), flow_.weights.options());
      kernels::weights_of_choices(flow_.d_row_weights, flow_.rows, flow_.d_weights);
      flow_.d_row_weights.reset();
    }
    return d_normed.view(sizes_);
  }
  void backward_weight(GradientSink& /*sink*/) override {}

 private:
  MoeFlow& flow_;
  std::vector<int64_t> sizes_;
};

DispatchPart::DispatchPart(const ParameterStore& store, int part)
    : spec_(store.spec().parts[part]), parameters_(store.part_parameters(part)) {}

ForwardResult DispatchPart::forward(const at::Tensor& hidden, const BatchTensors& batch,
                                    bool with_graph, SaveMode /*mode*/) {
  MoeFlow& flow = (*batch.moe)[spec_.layer];
  const at::Tensor x = hidden.flatten(0, 1);
  ForwardResult result;
  result.output = at::empty({flow.rows.count(), x.size(1)}, x.options());
  kernels::gather_rows(x, flow.rows, result.output);
  if (batch.experts_are_spread) {
    flow.row_weights = at::empty({flow.rows.count()}, flow.weights.options());
    kernels::weights_of_rows(flow.weights, flow.rows, flow.row_weights);
  }
  if (with_graph) result.graph = std::make_unique<Graph>(flow, hidden.sizes().vec());
  return result;
}

}  // namespace trireme::nn
