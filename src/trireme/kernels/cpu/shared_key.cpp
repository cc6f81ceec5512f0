// Latent attention's keys: a part of every head's own, and a part that all heads share.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/kernels/cpu/cpu_kernels.h"
#include "trireme/kernels/cpu/flat.h"
#include "trireme/kernels/cpu/rows.h"
#include "trireme/kernels/ops.h"

namespace trireme::kernels {
namespace {

constexpr int64_t kGrainElements = 16384;

void check_shapes(const at::Tensor& own, const at::Tensor& shared, const at::Tensor& k) {
  TRIREME_CHECK(own.dim() == 3 && shared.dim() == 3 && k.dim() == 3 && own.size(0) == k.size(0) &&
                    own.size(1) == k.size(1) && shared.size(0) == k.size(0) &&
                    shared.size(1) == 1 && own.size(2) + shared.size(2) == k.size(2),
                "own must be [N, heads, a], shared [N, 1, b] and k [N, heads, a + b]");
}

/// Calls body(first token, end) over ranges of tokens.
template <class Body>
void for_tokens(const at::Tensor& k, Body&& body) {
  const int64_t grain =
      std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, k.size(1) * k.size(2)));
  at::parallel_for(0, k.size(0), grain, body);
}

template <class T>
void join(const at::Tensor& own, const at::Tensor& shared, at::Tensor& k) {
  check_shapes(own, shared, k);
  const auto from = cpu::rows_of<T>(own, "own");
  const auto common = cpu::rows_of<T>(shared, "shared");
  const auto to = cpu::rows_of<T>(k, "k");
  const int64_t heads = k.size(1);
  const auto a = static_cast<size_t>(own.size(2));
  const auto b = static_cast<size_t>(shared.size(2));
  for_tokens(k, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * heads; row < end * heads; ++row) {
      T* key = to.row(row);
      std::memcpy(key, from.row(row), sizeof(T) * a);
      std::memcpy(key + a, common.row(row / heads), sizeof(T) * b);
    }
  });
}

template <class T>
void join_backward(const at::Tensor& dk, at::Tensor& d_own, at::Tensor& d_shared) {
  check_shapes(d_own, d_shared, dk);
  const auto from = cpu::rows_of<T>(dk, "dk");
  const auto to = cpu::rows_of<T>(d_own, "d_own");
  const auto common = cpu::rows_of<T>(d_shared, "d_shared");
  const int64_t heads = dk.size(1);
  const int64_t a = d_own.size(2);
  const int64_t b = d_shared.size(2);
  const auto add_columns = cpu::flat_kernels(T{}).add_columns;
  for_tokens(dk, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(static_cast<size_t>(b));
    for (int64_t n = begin; n < end; ++n) {
      std::ranges::fill(sums, 0.0F);
      for (int64_t row = n * heads; row < (n + 1) * heads; ++row) {
        const T* gradient = from.row(row);
        std::memcpy(to.row(row), gradient, sizeof(T) * static_cast<size_t>(a));
        add_columns(gradient + a, static_cast<size_t>(b), sums.data());
      }
      if constexpr (std::is_same_v<T, float>) {
        std::ranges::copy(sums, common.row(n));
      } else {
        cpu::rows_to_bf16(sums.data(), b, common.row(n), b, 1, b);
      }
    }
  });
}

}  // namespace

namespace cpu {

void join_shared_key(const at::Tensor& own, const at::Tensor& shared, at::Tensor& k) {
  if (k.scalar_type() == at::kBFloat16) return join<at::BFloat16>(own, shared, k);
  join<float>(own, shared, k);
}

void join_shared_key_backward(const at::Tensor& dk, at::Tensor& d_own, at::Tensor& d_shared) {
  if (dk.scalar_type() == at::kBFloat16) return join_backward<at::BFloat16>(dk, d_own, d_shared);
  join_backward<float>(dk, d_own, d_shared);
}

}  // namespace cpu

}  // namespace trireme::kernels
