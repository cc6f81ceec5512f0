#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <cmath>
#include <random>

#include "trireme/kernels/cpu/test_products.h"
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

AttentionOptions plain(double scale, const Segments* segments = nullptr) {
  AttentionOptions options;
  options.scale = scale;
  options.segments = segments;
  return options;
}

Outcome run(const Fused& in, const at::Tensor& dout, const AttentionOptions& options) {
  const auto dtype = in.qkv.scalar_type();
  const int64_t d = in.q.size(3);
  Outcome result;
  result.out = garbage(in.q.sizes(), dtype);
  result.logsumexp = garbage({in.q.size(0), in.q.size(2), in.q.size(1)}, at::kFloat);
  attention(in.q, in.k, in.v, options, result.out, result.logsumexp);
  Fused grad = split(garbage(in.qkv.sizes(), dtype), in.q.size(2), in.k.size(2), d);
  attention_backward(dout, in.q, in.k, in.v, result.out, result.logsumexp, options, grad.q, grad.k,
                     grad.v);
  result.gradient = grad.qkv;
  return result;
}

/// Forward and backward against the reference. `with_sinks` and the shape's window, softcap and value_d as they are.
void expect_matches(at::ScalarType dtype, const ref::AttentionShape& s, const Segments* segments,
                    bool with_sinks = false) {
  const int64_t value_d = s.value_dim();
  const at::Tensor q = random_tensor({s.batch, s.queries, s.heads, s.d}, dtype, 1);
  const at::Tensor k = random_tensor({s.batch, s.keys, s.kv_heads, s.d}, dtype, 5);
  const at::Tensor v = random_tensor({s.batch, s.keys, s.kv_heads, value_d}, dtype, 6);
  const at::Tensor dout = random_tensor({s.batch, s.queries, s.heads, value_d}, dtype, 2);
  AttentionOptions options = plain(0.8 / std::sqrt(static_cast<double>(s.d)), segments);
  options.window = s.window;
  options.softcap = s.softcap;
  options.past = s.past;
  if (with_sinks) options.sinks = random_tensor({s.heads}, at::kFloat, 7);
  const auto sinks = with_sinks ? values_of(options.sinks) : std::vector<double>{};

  at::Tensor out = garbage(dout.sizes(), dtype);
  at::Tensor logsumexp = garbage({s.batch, s.heads, s.queries}, at::kFloat);
  attention(q, k, v, options, out, logsumexp);
  const auto forward =
      ref::attention(values_of(q), values_of(k), values_of(v), options.scale, s, segments, sinks);
  // Where bfloat16 is multiplied as it is, the probabilities are rounded like the result.
  const double rounded = dtype == at::kBFloat16 ? 2 * tolerance_of(dtype) : tolerance_of(dtype);
  expect_close(out, forward.out, rounded, "out");
  expect_close(logsumexp, forward.logsumexp, 1e-5, "logsumexp");

  at::Tensor dq = garbage(q.sizes(), dtype);
  at::Tensor dk = garbage(k.sizes(), dtype);
  at::Tensor dv = garbage(v.sizes(), dtype);
  at::Tensor d_sinks = with_sinks ? garbage({s.heads}, at::kFloat) : at::Tensor();
  attention_backward(dout, q, k, v, out, logsumexp, options, dq, dk, dv, d_sinks);
  const auto backward = ref::attention_backward(values_of(dout), values_of(q), values_of(k),
                                                values_of(v), options.scale, s, segments, sinks);
  const double tolerance =
      dtype == at::kBFloat16 ? 0.04 : 3e-5;  // delta comes from the rounded output
  expect_close(dq, backward.dq, tolerance, "dq");
  expect_close(dk, backward.dk, tolerance, "dk");
  expect_close(dv, backward.dv, tolerance, "dv");
  if (with_sinks) expect_close(d_sinks, backward.d_sinks, tolerance, "d_sinks");
}

TEST(AttentionTest, MatchesReference) {
  cpu::for_every_choice([] {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      expect_matches(dtype, {2, 5, 5, 4, 2, 8}, nullptr);
      expect_matches(dtype, {1, 1, 1, 1, 1, 1}, nullptr);
      expect_matches(dtype, {1, 67, 67, 3, 1, 17}, nullptr);
      expect_matches(dtype, {2, 130, 130, 2, 2, 16}, nullptr);
      expect_matches(dtype, {0, 4, 4, 2, 1, 8}, nullptr);
    }
  });
}

TEST(AttentionTest, MatchesReferenceInsideDocuments) {
  const Segments segments = {{0}, {0, 1, 64, 65}, {0, 99}};
  cpu::for_every_choice([&] {
    for (const auto dtype : {at::kFloat, at::kBFloat16})
      expect_matches(dtype, {3, 100, 100, 4, 2, 12}, &segments);
  });
}

TEST(AttentionTest, MatchesReferenceWithEveryOption) {
  const Segments segments = {{0, 70}, {0, 1, 64, 65}};
  cpu::for_every_choice([&] {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      ref::AttentionShape s{2, 150, 150, 4, 2, 12};
      s.window = 2;
      expect_matches(dtype, s, nullptr);
      s.window = 40;
      expect_matches(dtype, s, &segments);
      s.window = 65;
      s.softcap = 0.9;
      s.value_d = 70;  // more than a tile
      expect_matches(dtype, s, nullptr, true);
      s.window = 0;
      s.d = 66;
      s.value_d = 6;
      expect_matches(dtype, s, &segments, true);
    }
  });
}

TEST(AttentionTest, MatchesReferenceOnRandomShapes) {
  std::mt19937 random(23);
  const auto pick = [&](int64_t most) {
    return 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(most));
  };
  for (int round = 0; round < 16; ++round) {
    const int64_t length = pick(200);
    const int64_t kv_heads = pick(2);
    ref::AttentionShape s{pick(2), length, length, kv_heads * pick(3), kv_heads, pick(80)};
    s.value_d = pick(80);
    if (pick(2) == 1) s.window = 1 + pick(length);
    if (pick(3) == 1) s.softcap = 1.5;
    SCOPED_TRACE(fmt::format("round {}: T {} d {} dv {} window {}", round, length, s.d, s.value_d,
                             s.window));
    expect_matches(round % 2 == 0 ? at::kFloat : at::kBFloat16, s, nullptr, pick(2) == 1);
  }
}

TEST(AttentionTest, MatchesReferenceOverStretchesOfASequence) {
  std::mt19937 random(29);
  const auto pick = [&](int64_t most) {
    return 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(most));
  };
  for (int round = 0; round < 40; ++round) {
    // The last places of a sequence, or keys of a stretch that lies before that of the queries, or reaches into it.
    const int64_t length = 1 + pick(199);
    const bool before = round % 2 == 0;
    const int64_t queries = before ? pick(200) : 1 + pick(length - 1);
    const int64_t kv_heads = pick(2);
    ref::AttentionShape s{pick(2), queries, length, kv_heads * pick(3), kv_heads, pick(80)};
    s.value_d = pick(80);
    if (pick(2) == 1) s.window = 1 + pick(length);
    if (pick(3) == 1) s.softcap = 1.5;
    if (before) {
      s.past = pick(2 * length);
      if (s.window > 0) s.window = std::max(s.window, s.past + queries - length + 2);
    }
    SCOPED_TRACE(fmt::format("round {}: {} of {} places, past {} d {} dv {} window {}", round,
                             queries, length, s.past, s.d, s.value_d, s.window));
    expect_matches(at::kFloat, s, nullptr, pick(2) == 1);
  }
}

TEST(AttentionTest, JoinsKeyBlocksOfLongRows) {
  ref::AttentionShape s{1, 1100, 1100, 1, 1, 4};
  expect_matches(at::kFloat, s, nullptr);
  s.window = 1050;  // begins inside a block and ends in the next
  expect_matches(at::kFloat, s, nullptr, true);
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
      attention(q, k, v, plain(0.4), out, {});
      expect_close(out,
                   ref::attention(values_of(q), values_of(k), values_of(v), 0.4, s, nullptr).out,
                   tolerance_of(dtype), "out");
    }
  }
}

/// What generation leans on: a query over a cache gets the bits of the same query among all of them.
TEST(AttentionTest, AQueryDoesNotDependOnTheOthers) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Fused in = split(random_tensor({1, 1200, 4 * 16}, dtype, 1), 2, 1, 16);
    AttentionOptions options = plain(0.25);
    for (const int64_t window : {0, 100}) {
      options.window = window;
      at::Tensor all = garbage(in.q.sizes(), dtype);
      attention(in.q, in.k, in.v, options, all, {});
      for (const int64_t count : {1, 3, 64, 130}) {
        for (const int64_t end : {130, 777, 1200}) {
          at::Tensor out = garbage({1, count, 2, 16}, dtype);
          attention(in.q.narrow(1, end - count, count), in.k.narrow(1, 0, end),
                    in.v.narrow(1, 0, end), options, out, {});
          EXPECT_TRUE(same_bits(out, all.narrow(1, end - count, count)))
              << count << " queries up to " << end << ", window " << window;
        }
      }
    }
  }
}

TEST(AttentionTest, ADocumentEqualsARowOfItsOwn) {
  const at::Tensor qkv = random_tensor({1, 90, 3 * 16}, at::kFloat, 1);
  const at::Tensor dout = random_tensor({1, 90, 1, 16}, at::kFloat, 2);
  const Segments segments = {{0, 25}};
  const Outcome packed = run(split(qkv, 1, 1, 16), dout, plain(0.25, &segments));
  const Outcome alone =
      run(split(qkv.narrow(1, 25, 65).contiguous(), 1, 1, 16), dout.narrow(1, 25, 65), plain(0.25));
  EXPECT_TRUE(same_bits(packed.out.narrow(1, 25, 65), alone.out));
  EXPECT_TRUE(same_bits(packed.gradient.narrow(1, 25, 65), alone.gradient));
}

TEST(AttentionTest, DoesNotDependOnThreadsOrTheBatchAroundARow) {
  const int threads = at::get_num_threads();
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor qkv = random_tensor({3, 70, 8 * 16}, dtype, 1);
    const at::Tensor dout = random_tensor({3, 70, 4, 16}, dtype, 2);
    at::set_num_threads(1);
    const Outcome one = run(split(qkv, 4, 2, 16), dout, plain(0.25));
    at::set_num_threads(2);
    const Outcome two = run(split(qkv, 4, 2, 16), dout, plain(0.25));
    const Outcome row =
        run(split(qkv.narrow(0, 1, 1), 4, 2, 16), dout.narrow(0, 1, 1), plain(0.25));
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
      run(split(qkv, 1, 1, 4), random_tensor({1, 10, 1, 4}, at::kFloat, 2), plain(0.5));
  EXPECT_TRUE(got.out.narrow(1, 0, 2).isfinite().all().item<bool>());
  EXPECT_TRUE(got.out.narrow(1, 2, 8).isnan().all().item<bool>());
}

}  // namespace
}  // namespace trireme::kernels
