#include <ATen/Parallel.h>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

at::Tensor random_ids(int64_t n, int64_t limit, uint32_t seed) {
  std::mt19937 engine(seed);
  at::Tensor ids = at::empty({n}, at::kLong);
  for (int64_t i = 0; i < n; ++i)
    ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(engine() % static_cast<uint32_t>(limit));
  return ids;
}

std::vector<int64_t> ids_of(const at::Tensor& ids) {
  return {ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel()};
}

TEST(RotaryTest, MatchesReferenceInPlaceOnAFusedView) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t half : {4, 8, 17, 32}) {
      const int64_t n = 11;
      const int64_t heads = 3;
      const int64_t head_dim = 66;
      const at::Tensor fused = random_tensor({n, (heads + 2) * head_dim}, dtype, 1);
      const at::Tensor angles = random_tensor({20, half}, at::kFloat, 2);
      const at::Tensor cos = angles.cos();
      const at::Tensor sin = angles.sin();
      const at::Tensor positions = random_ids(n, 20, 3);
      at::Tensor turned = fused.clone();
      at::Tensor view = turned.narrow(1, head_dim, heads * head_dim).view({n, heads, head_dim});
      auto expected = values_of(fused.narrow(1, head_dim, heads * head_dim));
      ref::rotary(expected, ids_of(positions), values_of(cos), values_of(sin), heads, head_dim,
                  half, false);
      rotary_(view, positions, cos, sin);
      expect_close(view, expected, tolerance_of(dtype), "rotated");
      EXPECT_TRUE(same_bits(turned.narrow(1, 0, head_dim), fused.narrow(1, 0, head_dim)));
      EXPECT_TRUE(same_bits(view.narrow(2, 2 * half, head_dim - 2 * half),
                            fused.narrow(1, head_dim, heads * head_dim)
                                .view({n, heads, head_dim})
                                .narrow(2, 2 * half, head_dim - 2 * half)));
      rotary_(view, positions, cos, sin, true);
      expect_close(view, values_of(fused.narrow(1, head_dim, heads * head_dim)),
                   2 * tolerance_of(dtype), "turned back");
    }
  }
}

// Every place of a vector and of its rest; the last dimensions of a head, as latent attention has them.
TEST(RotaryTest, InterleavedMatchesReferenceAndTurnsBack) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t half : {1, 3, 8, 17, 32}) {
      const int64_t n = 11;
      const int64_t heads = 3;
      const int64_t own = 5;
      const at::Tensor whole = random_tensor({n, heads, own + 2 * half}, dtype, 1);
      const at::Tensor angles = random_tensor({20, half}, at::kFloat, 2);
      const at::Tensor positions = random_ids(n, 20, 3);
      at::Tensor turned = whole.clone();
      at::Tensor view = turned.narrow(2, own, 2 * half);
      const auto before = values_of(whole.narrow(2, own, 2 * half));
      auto expected = before;
      ref::rotary(expected, ids_of(positions), values_of(angles.cos()), values_of(angles.sin()),
                  heads, 2 * half, half, false, true);
      rotary_(view, positions, angles.cos(), angles.sin(), false, true);
      expect_close(view, expected, tolerance_of(dtype), "rotated");
      EXPECT_TRUE(same_bits(turned.narrow(2, 0, own), whole.narrow(2, 0, own)));
      rotary_(view, positions, angles.cos(), angles.sin(), true, true);
      expect_close(view, before, 2 * tolerance_of(dtype), "turned back");
    }
  }
}

TEST(RotaryTest, RefusesAPositionOutsideTheTable) {
  at::Tensor x = random_tensor({1, 1, 4}, at::kFloat, 1);
  const at::Tensor table = at::zeros({8, 2});
  EXPECT_THROW(rotary_(x, at::full({1}, 8, at::kLong), table, table), Error);
}

TEST(EmbeddingTest, LooksUpTokensAndPositions) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const int64_t d = 19;
    const at::Tensor tokens = random_ids(40, 7, 1);
    const at::Tensor positions = random_ids(40, 5, 2);
    const at::Tensor weight = random_tensor({7, d}, dtype, 3);
    const at::Tensor places = random_tensor({5, d}, dtype, 4);
    at::Tensor out = garbage({40, d}, dtype);
    embedding(tokens, weight, {}, {}, out);
    EXPECT_TRUE(same_bits(out, weight.index_select(0, tokens)));
    embedding(tokens, weight, positions, places, out);
    EXPECT_TRUE(same_bits(out, weight.index_select(0, tokens) + places.index_select(0, positions)));
  }
}

TEST(EmbeddingTest, NamesAnIdOutsideTheTable) {
  const at::Tensor weight = random_tensor({7, 4}, at::kFloat, 3);
  at::Tensor out = garbage({2, 4}, at::kFloat);
  for (const int64_t bad : {7, -1}) {
    const at::Tensor tokens = at::tensor({int64_t{3}, bad}, at::kLong);
    try {
      embedding(tokens, weight, {}, {}, out);
      FAIL() << "accepted " << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData);
      EXPECT_NE(std::string(error.what()).find(std::to_string(bad)), std::string::npos);
    }
  }
}

TEST(EmbeddingTest, GradientSumsRowsInOrder) {
  const int threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [n, vocab, d] :
         {std::tuple<int64_t, int64_t, int64_t>{50, 7, 19}, {0, 3, 4}, {1, 1, 1}, {600, 11, 64}}) {
      const at::Tensor tokens = random_ids(n, vocab, 1);
      const at::Tensor dy = random_tensor({n, d}, dtype, 2);
      // The contract is the order of additions, so a float32 loop in row order gives the very bits.
      at::Tensor expected = at::zeros({vocab, d});
      for (int64_t i = 0; i < n; ++i)
        expected[ids_of(tokens)[static_cast<size_t>(i)]].add_(dy[i].to(at::kFloat));
      for (const int count : {1, 2}) {
        at::set_num_threads(count);
        at::Tensor dw = garbage({vocab, d}, at::kFloat);
        embedding_backward(tokens, dy, dw, false);
        EXPECT_TRUE(same_bits(dw, expected));
        if (n > 1) continue;
        embedding_backward(tokens, dy, dw, true);
        EXPECT_TRUE(same_bits(dw, 2 * expected));
      }
    }
  }
  at::set_num_threads(threads);
}

}  // namespace
}  // namespace trireme::kernels
