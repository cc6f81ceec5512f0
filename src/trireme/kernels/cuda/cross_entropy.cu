// The loss of a chunk of rows of logits, and its gradient by them: a block a row, which reads them twice.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

constexpr int kThreads = 512;

__device__ __forceinline__ float capped(float logit, float softcap) {
  return softcap > 0.0F ? softcap * tanhf(logit / softcap) : logit;
}

template <class T, int kN>
__global__ void cross_entropy_kernel(CrossEntropy c) {
  __shared__ float scratch[kThreads / kWarp];
  const int64_t row = blockIdx.x;
  const float* logits = c.logits + row * c.vocab;
  T* gradient = static_cast<T*>(c.d_logits) + (c.d_logits == nullptr ? 0 : row * c.vocab);
  const int64_t target = c.targets[row];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kN;
  if (target == c.ignored) {
    if (threadIdx.x == 0) c.losses[row] = 0.0F;
    if (c.d_logits == nullptr) return;
    for (int64_t i = first; i < c.vocab; i += int64_t{kThreads} * kN)
      store(gradient + i, Pack<T, kN>{});
    return;
  }

  // The sum of exponentials, less the largest logit so far (Milakov & Gimelshein 2018).
  float largest = -INFINITY;
  float sum = 0.0F;
  for (int64_t i = first; i < c.vocab; i += int64_t{kThreads} * kN) {
    const auto in = load<kN>(logits + i);
    float of_pack = largest;
    float values[kN];
    for (int j = 0; j < kN; ++j) {
      values[j] = capped(in.at[j], c.softcap);
      of_pack = values[j] > of_pack ? values[j] : of_pack;
    }
    if (of_pack > largest) {
      sum *= expf(largest - of_pack);
      largest = of_pack;
    }
    for (int j = 0; j < kN; ++j) sum += expf(values[j] - largest);
  }
  const float of_row = team_reduce<kThreads>(largest, scratch, Max{});
  // A thread without a logit has none to the sum: exp(-inf) is 0.
  sum = team_reduce<kThreads>(sum * expf(largest - of_row), scratch, Sum{});
  const float log_sum = of_row + logf(sum);
  // Read before it is overwritten by its gradient: all threads meet in the sums above, and below.
  const float of_target = capped(logits[target], c.softcap);
  if (threadIdx.x == 0) c.losses[row] = log_sum - of_target;
  if (c.d_logits == nullptr) return;
  __syncthreads();
  for (int64_t i = first; i < c.vocab; i += int64_t{kThreads} * kN) {
    const auto in = load<kN>(logits + i);
    Pack<T, kN> out;
    for (int j = 0; j < kN; ++j) {
      const float value = capped(in.at[j], c.softcap);
      float slope = (expf(value - log_sum) - (i + j == target ? 1.0F : 0.0F)) * c.scale;
      if (c.softcap > 0.0F) {
        const float share = value / c.softcap;
        slope *= 1.0F - share * share;
      }
      out.at[j] = rounded<T>(slope);
    }
    store(gradient + i, out);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& c, Stream stream) {
  for_type(c.type, [&](auto t) {
    using T = decltype(t);
    constexpr int kMost = 4;  // logits are float32
    const bool packs = aligned(c.logits) && aligned(c.d_logits) && c.vocab % kMost == 0;
    for_pack<kMost>(packs, [&](auto pack) {
      launch("cross_entropy", &cross_entropy_kernel<T, decltype(pack)::value>, c.rows, kThreads, 0,
             stream, c);
    });
  });
}

}  // namespace trireme::kernels::gpu
