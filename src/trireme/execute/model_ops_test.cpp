// What is said of a model's ops beside those that its steps call.
#include "trireme/execute/model_ops.h"

#include <gtest/gtest.h>

#include "trireme/execute/testing/trained_runs.h"
#include "trireme/kernels/registry.h"

namespace trireme::execute {
namespace {

/// Forgets what was called: a kernel that nobody takes is added to every op.
void forget_calls() {
  static int times = 0;
  const kernels::KernelInfo info{
      .name = fmt::format("unused {}", times++), .device = at::kCPU, .priority = -1000};
#define X(op, dtypes)                                                                           \
  kernels::registry().add<&kernels::op>(info, kernels::registry().find_named<&kernels::op>("cp" \
                                                                                           "u"));
  TRIREME_KERNEL_OPS(X)
#undef X
}

TEST(ModelOps, AreThoseThatStepsCall) {
  std::vector<TrainingCase> cases;
  for (size_t i = 0; i < nn::testing::tiny_configs(4).size(); ++i)
    cases.push_back({fmt::format("tiny {}", i), tiny(i), strategy_for(2, 2, 2, 12), {}});
  for (const auto& variant : nn::testing::moe_variants())
    cases.push_back({variant.name, tiny_moe(variant.name), strategy_for(2, 2, 2, 12), {}});
  cases.push_back({"deepseek", tiny_deepseek(1), strategy_for(2, 2, 2, 12), {}});
  const size_t with_adamw = cases.size();
  for (size_t i = 0; i < with_adamw; i += 5) {
    TrainingCase one = cases[i];
    one.name += " with muon";
    one.optimizer.kind = optim::OptimizerKind::kMuon;
    cases.push_back(one);
  }
  for (TrainingCase& one : cases) {
    const bool muon = one.optimizer.kind == optim::OptimizerKind::kMuon;
    std::set<std::string> called;
    for (const auto precision : {plan::Precision::kFp32, plan::Precision::kBf16}) {
      forget_calls();
      one.strategy.precision = precision;
      train(one, at::kCPU);
      called.merge(kernels::registry().called(at::kCPU));
    }
    EXPECT_EQ(training_ops(one.spec, muon), called) << one.name;
    for (const std::string& op : recorded_ops(one.spec)) EXPECT_TRUE(called.contains(op)) << op;
  }
}

TEST(ModelOps, OfRecordedWorkAreThoseOfItsParts) {
  // Of a dense model all but what the embedding, the head and the optimizer call.
  const model::ModelSpec spec = tiny(3);
  std::set<std::string> others = training_ops(spec, false);
  for (const std::string& op : recorded_ops(spec)) others.erase(op);
  EXPECT_EQ(others,
            (std::set<std::string>{"embedding", "embedding_backward", "linear_cross_entropy",
                                   "adamw_", "squares_by_block", "convert"}));
  EXPECT_FALSE(recorded_ops(tiny_moe("balanced")).contains("grouped_linear"));
}

}  // namespace
}  // namespace trireme::execute
