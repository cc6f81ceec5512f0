#include <ATen/Parallel.h>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/test_products.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

struct Inputs {
  at::Tensor hidden;
  at::Tensor weight;
  at::Tensor targets;
};

Inputs make_inputs(at::ScalarType dtype, int64_t n, int64_t d, int64_t vocab) {
  std::mt19937 engine(9);
  Inputs in{random_tensor({n, d}, dtype, 1), random_tensor({vocab, d}, dtype, 2),
            at::empty({n}, at::kLong)};
  for (int64_t i = 0; i < n; ++i) {
    in.targets.data_ptr<int64_t>()[i] =
        engine() % 5 == 0 ? kIgnoredTarget
                          : static_cast<int64_t>(engine() % static_cast<uint32_t>(vocab));
  }
  return in;
}

struct Result {
  double loss = 0.0;
  CrossEntropyOutputs outputs;
};

Result run(const Inputs& in, double scale, int64_t chunk, double softcap = 0.0) {
  Result result;
  result.outputs.d_hidden = garbage(in.hidden.sizes(), in.hidden.scalar_type());
  result.outputs.d_weight = garbage(in.weight.sizes(), at::kFloat);
  result.outputs.losses = garbage({in.hidden.size(0)}, at::kFloat);
  result.loss =
      linear_cross_entropy(in.hidden, in.weight, in.targets, scale, chunk, result.outputs, softcap);
  return result;
}

void expect_matches(at::ScalarType dtype, int64_t n, int64_t d, int64_t vocab, int64_t chunk,
                    double softcap = 0.0) {
  SCOPED_TRACE(::testing::Message()
               << n << " rows in chunks of " << chunk << ", vocabulary " << vocab);
  const Inputs in = make_inputs(dtype, n, d, vocab);
  const double scale = 0.125;
  const auto targets = std::vector<int64_t>(in.targets.const_data_ptr<int64_t>(),
                                            in.targets.const_data_ptr<int64_t>() + n);
  const auto expected = ref::linear_cross_entropy(values_of(in.hidden), values_of(in.weight),
                                                  targets, scale, d, vocab, softcap);
  const Result got = run(in, scale, chunk, softcap);
  EXPECT_NEAR(got.loss, expected.loss, 2e-6 * std::max(1.0, expected.loss));
  expect_close(got.outputs.losses, expected.losses, 1e-5, "losses");
  expect_close(got.outputs.d_hidden, expected.d_hidden, tolerance_of(dtype), "d_hidden");
  expect_close(got.outputs.d_weight, expected.d_weight, dtype == at::kBFloat16 ? 0.012 : 2e-5,
               "d_weight");

  // Evaluation computes no gradient and the same loss; accumulation adds to what is there.
  EXPECT_EQ(linear_cross_entropy(in.hidden, in.weight, in.targets, scale, chunk, {}, softcap),
            got.loss);
  CrossEntropyOutputs again;
  again.d_weight = got.outputs.d_weight.clone();
  again.accumulate = true;
  linear_cross_entropy(in.hidden, in.weight, in.targets, scale, chunk, again, softcap);
  auto twice = expected.d_weight;
  for (double& value : twice) value *= 2;
  expect_close(again.d_weight, twice, dtype == at::kBFloat16 ? 0.012 : 2e-5,
               "d_weight accumulated");
}

TEST(CrossEntropyTest, MatchesReferenceInEveryWay) {
  cpu::for_every_choice([] {
    expect_matches(at::kFloat, 23, 17, 61, 8);
    expect_matches(at::kFloat, 23, 17, 61, 100);
    expect_matches(at::kFloat, 1, 3, 1, 1);
    expect_matches(at::kFloat, 3, 8, 40, 2);
    expect_matches(at::kFloat, 40, 16, 5000, 16);
    expect_matches(at::kFloat, 23, 17, 61, 8, 1.5);
    expect_matches(at::kBFloat16, 23, 17, 61, 8, 1.5);
    expect_matches(at::kBFloat16, 23, 17, 61, 8);
    expect_matches(at::kBFloat16, 3, 8, 40, 2);
    expect_matches(at::kBFloat16, 20, 16, 2100, 16);  // more than one panel of the vocabulary
  });
}

TEST(CrossEntropyTest, LossDependsNeitherOnChunksNorThreads) {
  const int threads = at::get_num_threads();
  const Inputs in = make_inputs(at::kFloat, 50, 32, 300);
  const Result whole = run(in, 1.0, 64);
  for (const int64_t chunk : {8, 11, 16, 49}) {
    const Result cut = run(in, 1.0, chunk);
    EXPECT_EQ(cut.loss, whole.loss) << "chunks of " << chunk;
    EXPECT_TRUE(same_bits(cut.outputs.losses, whole.outputs.losses));
    EXPECT_TRUE(same_bits(cut.outputs.d_hidden, whole.outputs.d_hidden));
  }
  at::set_num_threads(1);
  const Result serial = run(in, 1.0, 64);
  at::set_num_threads(threads);
  EXPECT_EQ(serial.loss, whole.loss);
  EXPECT_TRUE(same_bits(serial.outputs.d_weight, whole.outputs.d_weight));
}

TEST(CrossEntropyTest, IgnoredRowsContributeNothing) {
  Inputs in = make_inputs(at::kFloat, 12, 8, 20);
  in.targets.fill_(kIgnoredTarget);
  const Result got = run(in, 1.0, 8);
  EXPECT_EQ(got.loss, 0.0);
  EXPECT_TRUE(got.outputs.d_hidden.eq(0).all().item<bool>());
  EXPECT_TRUE(got.outputs.d_weight.eq(0).all().item<bool>());
}

TEST(CrossEntropyTest, NoRowsGiveZeroLossAndGradient) {
  const Result got = run(make_inputs(at::kFloat, 0, 8, 20), 1.0, 8);
  EXPECT_EQ(got.loss, 0.0);
  EXPECT_TRUE(got.outputs.d_weight.eq(0).all().item<bool>());
}

TEST(CrossEntropyTest, HugeLogitsDoNotOverflowAndNanIsSeen) {
  Inputs in = make_inputs(at::kFloat, 8, 8, 20);
  in.targets.fill_(3);
  in.hidden.mul_(1e4);
  EXPECT_TRUE(std::isfinite(run(in, 1.0, 8).loss));
  in.weight[7][0] = std::nan("");
  EXPECT_TRUE(std::isnan(run(in, 1.0, 8).loss));
}

TEST(CrossEntropyTest, NamesATargetOutsideTheVocabulary) {
  Inputs in = make_inputs(at::kFloat, 8, 8, 20);
  in.targets[5] = 20;
  EXPECT_THROW(run(in, 1.0, 8), Error);
  in.targets[5] = -1;
  EXPECT_THROW(run(in, 1.0, 8), Error);
}

}  // namespace
}  // namespace trireme::kernels
