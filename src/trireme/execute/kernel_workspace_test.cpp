// The planner's torch-free figures against the kernels' own.
#include "trireme/execute/kernel_workspace.h"

#include <gtest/gtest.h>

#include <random>

#include "trireme/kernels/cpu/test_products.h"
#include "trireme/kernels/ops.h"

namespace trireme::execute {
namespace {

using kernels::cpu::Bf16Product;
using plan::Precision;

TEST(KernelWorkspace, AgreesWithTheKernels) {
  std::mt19937 random(3);
  const auto pick = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % most); };
  kernels::cpu::for_every_choice([&] {
    const plan::KernelWorkspace workspace = kernel_workspace();
    for (int round = 0; round < 50; ++round) {
      for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
        const at::ScalarType dtype = precision == Precision::kBf16 ? at::kBFloat16 : at::kFloat;
        const int64_t rows = 15 + pick(3000);  // fewer are padded
        const int64_t vocab = pick(5000);
        const int64_t width = pick(512);
        const int64_t value_width = pick(512);
        // Every tensor is rounded up to 64 bytes.
        EXPECT_NEAR(static_cast<double>(workspace.cross_entropy(rows, vocab, width, precision)),
                    static_cast<double>(
                        kernels::cross_entropy_workspace_bytes(rows, vocab, width, dtype, true)),
                    4 * 64);
        const int64_t group = pick(3);
        const int64_t kv_heads = pick(4);
        const int64_t batch = pick(4);
        for (const bool backward : {false, true}) {
          model::AttentionSpec spec;
          spec.num_heads = kv_heads * group;
          spec.num_kv_heads = kv_heads;
          spec.head_dim = width;
          spec.value_dim = value_width;
          EXPECT_NEAR(
              static_cast<double>(workspace.attention(batch, rows, spec, precision, backward)),
              static_cast<double>(kernels::attention_workspace_bytes(
                  {batch, rows, kv_heads * group, kv_heads, width, value_width}, dtype, backward,
                  workspace.threads)),
              64);
        }
        // The kernels state a bound for every way; widening to float32 is the way that reaches it.
        const int64_t bound = kernels::product_workspace_bytes(rows, vocab, width, dtype);
        const int64_t planned = workspace.product(rows, vocab, width, precision);
        EXPECT_LE(planned, bound + 3 * 64);
        EXPECT_TRUE(kernels::cpu::product_choice().bfloat16 != Bf16Product::kConvert ||
                    planned + 64 >= bound);
      }
    }
  });
}

}  // namespace
}  // namespace trireme::execute
