#include <ATen/Parallel.h>

#include "trireme/kernels/cpu/test_tensors.h"
#include "trireme/kernels/ops.h"
#include "trireme/kernels/ref/reference.h"

namespace trireme::kernels {
namespace {

struct Fused {
  at::Tensor qkv;
  at::Tensor q;
  at::Tensor k;
  at::Tensor v;
};

Fused split(const at::Tensor& qkv, int64_t heads, int64_t kv_heads, int64_t d) {
  const int64_t b = qkv.size(0);
  const int64_t t = qkv.size(1);
  return {qkv, qkv.narrow(2, 0, heads * d).view({b, t, heads, d}),
          qkv.narrow(2, heads * d, kv_heads * d).view({b, t, kv_heads, d}),
          qkv.narrow(2, (heads + kv_heads) * d, kv_heads * d).view({b, t, kv_heads, d})};
}

struct Outcome {
  at::Tensor out;
  at::Tensor logsumexp;
  at::Tensor gradient;
};

Outcome run(const Fused& in, const at::Tensor& dout, double scale, const Segments* segments) {
  const auto dtype = in.qkv.scalar_type();
  const int64_t d = in.q.size(3);
  Outcome result;
  result.out = garbage(in.q.sizes(), dtype);
  result.logsumexp = garbage({in.q.size(0), in.q.size(2), in.q.size(1)}, at::kFloat);
  attention(in.q, in.k, in.v, scale, segments, result.out, result.logsumexp);
  Fused grad = split(garbage(in.qkv.sizes(), dtype), in.q.size(2), in.k.size(2), d);
  attention_backward(dout, in.q, in.k, in.v, result.out, result.logsumexp, scale, segments, grad.q,
                     grad.k, grad.v);
  result.gradient = grad.qkv;
  return result;
}

void expect_matches(at::ScalarType dtype, const ref::AttentionShape& s, const Segments* segments) {
  const at::Tensor qkv =
      random_tensor({s.batch, s.queries, (s.heads + 2 * s.kv_heads) * s.d}, dtype, 1);
  const Fused in = split(qkv, s.heads, s.kv_heads, s.d);
  const at::Tensor dout = random_tensor({s.batch, s.queries, s.heads, s.d}, dtype, 2);
  const double scale = 0.8 / std::sqrt(static_cast<double>(s.d));
  const Outcome got = run(in, dout, scale, segments);
  const auto forward =
      ref::attention(values_of(in.q), values_of(in.k), values_of(in.v), scale, s, segments);
  expect_close(got.out, forward.out, tolerance_of(dtype), "out");
  expect_close(got.logsumexp, forward.logsumexp, 1e-5, "logsumexp");
  const auto backward = ref::attention_backward(values_of(dout), values_of(in.q), values_of(in.k),
                                                values_of(in.v), scale, s, segments);
  const Fused grad = split(got.gradient, s.heads, s.kv_heads, s.d);
  const double tolerance =
      dtype == at::kBFloat16 ? 0.04 : 3e-5;  // delta comes from the rounded output
  expect_close(grad.q, backward.dq, tolerance, "dq");
  expect_close(grad.k, backward.dk, tolerance, "dk");
  expect_close(grad.v, backward.dv, tolerance, "dv");
}

TEST(AttentionTest, MatchesReference) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    expect_matches(dtype, {2, 5, 5, 4, 2, 8}, nullptr);
    expect_matches(dtype, {1, 1, 1, 1, 1, 1}, nullptr);
    expect_matches(dtype, {1, 67, 67, 3, 1, 17}, nullptr);
    expect_matches(dtype, {2, 130, 130, 2, 2, 16}, nullptr);
    expect_matches(dtype, {0, 4, 4, 2, 1, 8}, nullptr);
  }
}

TEST(AttentionTest, MatchesReferenceInsideDocuments) {
  const Segments segments = {{0}, {0, 1, 64, 65}, {0, 99}};
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    expect_matches(dtype, {3, 100, 100, 4, 2, 12}, &segments);
}

TEST(AttentionTest, JoinsKeyBlocksOfLongRows) {
  expect_matches(at::kFloat, {1, 1100, 1100, 1, 1, 4}, nullptr);
}

TEST(AttentionTest, SeesTheKeysOfACache) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t queries : {1, 3}) {
      const ref::AttentionShape s{2, queries, 21, 4, 2, 8};
      const at::Tensor q = random_tensor({s.batch, s.queries, s.heads, s.d}, dtype, 1);
      const at::Tensor k =
          random_tensor({s.batch, 30, s.kv_heads, s.d}, dtype, 2).narrow(1, 0, s.keys);
      const at::Tensor v =
          random_tensor({s.batch, 30, s.kv_heads, s.d}, dtype, 3).narrow(1, 0, s.keys);
      at::Tensor out = garbage(q.sizes(), dtype);
      attention(q, k, v, 0.4, nullptr, out, {});
      expect_close(out,
                   ref::attention(values_of(q), values_of(k), values_of(v), 0.4, s, nullptr).out,
                   tolerance_of(dtype), "out");
    }
  }
}

TEST(AttentionTest, ADocumentEqualsARowOfItsOwn) {
  const at::Tensor qkv = random_tensor({1, 90, 3 * 16}, at::kFloat, 1);
  const at::Tensor dout = random_tensor({1, 90, 1, 16}, at::kFloat, 2);
  const Segments segments = {{0, 25}};
  const Outcome packed = run(split(qkv, 1, 1, 16), dout, 0.25, &segments);
  const Outcome alone = run(split(qkv.narrow(1, 25, 65).contiguous(), 1, 1, 16),
                            dout.narrow(1, 25, 65), 0.25, nullptr);
  EXPECT_TRUE(same_bits(packed.out.narrow(1, 25, 65), alone.out));
  EXPECT_TRUE(same_bits(packed.gradient.narrow(1, 25, 65), alone.gradient));
}

TEST(AttentionTest, DoesNotDependOnThreadsOrTheBatchAroundARow) {
  const int threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = random_tensor({3, 70, 8 * 16}, dtype, 1);
    const at::Tensor dout = random_tensor({3, 70, 4, 16}, dtype, 2);
    at::set_num_threads(1);
    const Outcome one = run(split(qkv, 4, 2, 16), dout, 0.25, nullptr);
    at::set_num_threads(2);
    const Outcome two = run(split(qkv, 4, 2, 16), dout, 0.25, nullptr);
    const Outcome row =
        run(split(qkv.narrow(0, 1, 1), 4, 2, 16), dout.narrow(0, 1, 1), 0.25, nullptr);
    EXPECT_TRUE(same_bits(one.out, two.out));
    EXPECT_TRUE(same_bits(one.gradient, two.gradient));
    EXPECT_TRUE(same_bits(row.out, two.out.narrow(0, 1, 1)));
    EXPECT_TRUE(same_bits(row.gradient, two.gradient.narrow(0, 1, 1)));
  }
  at::set_num_threads(threads);
}

TEST(AttentionTest, ANanReachesTheResult) {
  at::Tensor qkv = random_tensor({1, 10, 3 * 4}, at::kFloat, 1);
  qkv[0][2][5] = std::nan("");
  const Outcome got =
      run(split(qkv, 1, 1, 4), random_tensor({1, 10, 1, 4}, at::kFloat, 2), 0.5, nullptr);
  EXPECT_TRUE(got.out.narrow(1, 0, 2).isfinite().all().item<bool>());
  EXPECT_TRUE(got.out.narrow(1, 2, 8).isnan().all().item<bool>());
}

}  // namespace
}  // namespace trireme::kernels
