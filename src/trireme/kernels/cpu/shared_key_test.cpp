#include <ATen/Parallel.h>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
namespace {

// Views as latent attention has them: keys beside values, the shared key behind the compressed vector.
TEST(SharedKeyTest, JoinsHeadsOwnAndSharedParts) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [n, heads, a, b] : {std::tuple<int64_t, int64_t, int64_t, int64_t>{7, 3, 5, 4},
                                         {300, 16, 32, 16},
                                         {2, 1, 1, 2}}) {
      const at::Tensor own = random_tensor({n, heads, a + 9}, dtype, 1).narrow(2, 0, a);
      const at::Tensor shared = random_tensor({n, 1, 6 + b}, dtype, 2).narrow(2, 6, b);
      at::Tensor k = garbage({n, heads, a + b}, dtype);
      join_shared_key(own, shared, k);
      EXPECT_TRUE(same_bits(k, at::cat({own, shared.expand({n, heads, b})}, 2)));
    }
  }
}

TEST(SharedKeyTest, BackwardAddsTheHeadsInOrderWhateverTheThreads) {
  const int threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const int64_t n = 500;
    const int64_t heads = 9;
    const at::Tensor dk = random_tensor({n, heads, 33}, dtype, 1);
    // The contract is the order of additions, so a float32 loop over the heads gives the very bits.
    at::Tensor sum = at::zeros({n, 13});
    for (int64_t h = 0; h < heads; ++h) sum.add_(dk.select(1, h).narrow(1, 20, 13).to(at::kFloat));
    for (const int count : {1, 2}) {
      at::set_num_threads(count);
      at::Tensor values = garbage({n, heads, 25}, dtype);
      at::Tensor latent = garbage({n, 1, 20}, dtype);
      at::Tensor d_own = values.narrow(2, 0, 20);
      at::Tensor d_shared = latent.narrow(2, 7, 13);
      join_shared_key_backward(dk, d_own, d_shared);
      EXPECT_TRUE(same_bits(d_own, dk.narrow(2, 0, 20)));
      EXPECT_TRUE(same_bits(d_shared.squeeze(1), sum.to(dtype)));
      EXPECT_TRUE(values.narrow(2, 20, 5).isnan().all().item<bool>());
      EXPECT_TRUE(latent.narrow(2, 0, 7).isnan().all().item<bool>());
    }
  }
  at::set_num_threads(threads);
}

TEST(SharedKeyTest, RefusesShapesThatDoNotAddUp) {
  at::Tensor k = garbage({4, 2, 6}, at::kFloat);
  EXPECT_THROW(join_shared_key(at::zeros({4, 2, 3}), at::zeros({4, 1, 2}), k), Error);
  EXPECT_THROW(join_shared_key(at::zeros({4, 2, 4}), at::zeros({4, 2, 2}), k), Error);
}

}  // namespace
}  // namespace trireme::kernels
