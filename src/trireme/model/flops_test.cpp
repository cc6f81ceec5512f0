#include "trireme/model/flops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace trireme::model {
namespace {

TEST(Flops, OfGpt2ByHand) {
  const ModelSpec spec = spec_from_preset("gpt2-124m");
  // Twelve blocks of 12 d^2 and the tied head, d = 768: 84,934,656 + 38,597,376.
  const double products = 12.0 * 12 * 768 * 768 + 50257.0 * 768;
  EXPECT_EQ(product_parameters(spec), 123532032);
  const double attention = 12.0 * 1024 * 768;  // L T a
  const TokenFlops flops = flops_per_token(spec, 1024);
  EXPECT_DOUBLE_EQ(flops.forward, 2 * products + 2 * attention);
  EXPECT_DOUBLE_EQ(flops.backward(), 4 * products + 4 * attention);
  EXPECT_DOUBLE_EQ(flops.model(), 741192192.0 + 56623104.0);
  EXPECT_DOUBLE_EQ(flops.hardware(), flops.model());
}

TEST(Flops, OfGroupedQueryAttentionCountEveryQueryHead) {
  const ModelSpec spec = spec_from_preset("llama3-8b");
  // Per block: q and o 2 x 4096^2, k and v 2 x 4096 x 1024, mlp 3 x 4096 x 14336; head 128256 x
  // 4096.
  const double block = 2.0 * 4096 * 4096 + 2.0 * 4096 * 1024 + 3.0 * 4096 * 14336;
  const double products = 32 * block + 128256.0 * 4096;
  const TokenFlops flops = flops_per_token(spec, 8192);
  EXPECT_DOUBLE_EQ(flops.model(), 6 * products + 6 * 32.0 * 8192 * 4096);
}

TEST(Flops, OfRecomputationLeaveTheLastProductOut) {
  const ModelSpec spec = spec_from_preset("llama-110m");
  const double d = 768, f = 2048, t = 1024;
  std::vector<bool> recomputed(spec.parts.size(), false);
  recomputed[1] = true;  // attention of layer 0: q, k, v and the scores
  EXPECT_DOUBLE_EQ(flops_per_token(spec, 1024, recomputed).recompute, 2 * 3 * d * d + 2 * t * d);
  recomputed[2] = true;  // mlp of layer 0: gate and up
  EXPECT_DOUBLE_EQ(flops_per_token(spec, 1024, recomputed).recompute,
                   2 * 3 * d * d + 2 * t * d + 2 * 2 * d * f);
  const TokenFlops flops = flops_per_token(spec, 1024, recomputed);
  EXPECT_DOUBLE_EQ(flops.hardware(), flops.model() + flops.recompute);
}

TEST(Flops, OfPartsAddUp) {
  for (const std::string& preset : preset_names()) {
    const ModelSpec spec = spec_from_preset(preset);
    double sum = 0.0;
    for (size_t i = 0; i < spec.parts.size(); ++i) {
      sum += part_flops(spec, static_cast<int>(i), 128).model();
    }
    EXPECT_NEAR(sum / flops_per_token(spec, 128).model(), 1.0, 1e-12) << preset;
  }
  const ModelSpec spec = spec_from_preset("llama-11m");
  EXPECT_EQ(part_flops(spec, 0, 256).model(), 0.0);  // a look-up
  EXPECT_DOUBLE_EQ(part_flops(spec, static_cast<int>(spec.parts.size()) - 1, 256).forward,
                   2.0 * 8192 * 384);
}

TEST(Flops, FormulaShowsItsNumbers) {
  const ModelSpec spec = spec_from_preset("gpt2-124m");
  const std::string text = flops_formula(spec, 1024);
  EXPECT_THAT(text, testing::HasSubstr("6 N + 6 L T a"));
  EXPECT_THAT(text, testing::HasSubstr("N = 123532032"));
  EXPECT_THAT(text, testing::HasSubstr("L = 12 layers, T = 1024 tokens, a = 768"));
  EXPECT_THAT(text, testing::HasSubstr("7.97815e+08"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("recompute")));
}

}  // namespace
}  // namespace trireme::model
