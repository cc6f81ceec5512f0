// The optimizer's passes over flat buffers.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

constexpr int64_t kSquares = 16384;  ///< elements of a block of sum_of_squares

/// AdamW (Loshchilov & Hutter 2019), in torch.optim.AdamW's order of operations.
struct Moments {
  float weight;
  float first;
  float second;
};
__device__ __forceinline__ Moments adamw_step(const AdamW& a, Moments was, float gradient) {
  const float g = gradient * a.gradient_scale;
  Moments now;
  now.first = was.first + (g - was.first) * a.one_minus_beta1;
  now.second = was.second * a.beta2 + g * g * a.one_minus_beta2;
  const float denominator = sqrtf(now.second) / a.root_correction2 + a.eps;
  now.weight = was.weight * a.decay - a.step_size * now.first / denominator;
  return now;
}

template <int kN>
__global__ void adamw_kernel(AdamW a) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kN;
  if (begin + kN <= a.count) {
    auto weights = load<kN>(a.weights + begin);
    auto first = load<kN>(a.exp_avg + begin);
    auto second = load<kN>(a.exp_avg_sq + begin);
    const auto gradients = load<kN>(a.gradients + begin);
    Pack<Bf16, kN> low;
    for (int j = 0; j < kN; ++j) {
      const Moments now =
          adamw_step(a, {weights.at[j], first.at[j], second.at[j]}, gradients.at[j]);
      weights.at[j] = now.weight;
      first.at[j] = now.first;
      second.at[j] = now.second;
      low.at[j] = rounded<Bf16>(now.weight);
    }
    store(a.weights + begin, weights);
    store(a.exp_avg + begin, first);
    store(a.exp_avg_sq + begin, second);
    if (a.compute != nullptr) store(a.compute + begin, low);
    return;
  }
  for (int64_t i = begin; i < a.count; ++i) {
    const Moments now =
        adamw_step(a, {a.weights[i], a.exp_avg[i], a.exp_avg_sq[i]}, a.gradients[i]);
    a.weights[i] = now.weight;
    a.exp_avg[i] = now.first;
    a.exp_avg_sq[i] = now.second;
    if (a.compute != nullptr) a.compute[i] = rounded<Bf16>(now.weight);
  }
}

/// Squares and sums in double: blocks of kSquares, then the blocks.
__global__ void squares_kernel(const float* x, int64_t count, int64_t block, double* partial) {
  __shared__ double scratch[kBlock / kWarp];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * block;
  const int64_t end = begin + block < count ? begin + block : count;
  double sum = 0.0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kBlock)
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  sum = team_reduce<kBlock>(sum, scratch, Sum{});
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
__global__ void sum_doubles_kernel(const double* partial, int64_t count, double* out) {
  __shared__ double scratch[kBlock / kWarp];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kBlock) sum += partial[i];
  sum = team_reduce<kBlock>(sum, scratch, Sum{});
  if (threadIdx.x == 0) out[0] = sum;
}

template <class T, int kN>
__global__ void scaled_sum_kernel(const float* x, float a, const Bf16* y, float b, T* out,
                                  int64_t count) {
  const int64_t begin = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kN;
  if (begin + kN <= count) {
    const auto one = load<kN>(x + begin);
    const auto two = load<kN>(y + begin);
    Pack<T, kN> sum;
    for (int j = 0; j < kN; ++j) sum.at[j] = rounded<T>(fmaf(b, wide(two.at[j]), a * one.at[j]));
    store(out + begin, sum);
    return;
  }
  for (int64_t i = begin; i < count; ++i) out[i] = rounded<T>(fmaf(b, wide(y[i]), a * x[i]));
}

}  // namespace

void adamw(const AdamW& a, Stream stream) {
  const bool packs = aligned(a.weights) && aligned(a.gradients) && aligned(a.exp_avg) &&
                     aligned(a.exp_avg_sq) && aligned(a.compute);
  for_pack<4>(packs, [&](auto pack) {
    constexpr int kN = decltype(pack)::value;
    launch("adamw", &adamw_kernel<kN>, divide_up(a.count, int64_t{kBlock} * kN), kBlock, 0, stream,
           a);
  });
}

int64_t squares_partial_doubles(int64_t count) {
  return divide_up(count, kSquares);
}

void sum_of_squares(const float* x, int64_t count, double* partial, double* out, Stream stream) {
  const int64_t blocks = squares_partial_doubles(count);
  launch("sum_of_squares", &squares_kernel, blocks, kBlock, 0, stream, x, count, kSquares, partial);
  launch("sum_doubles", &sum_doubles_kernel, 1, kBlock, 0, stream, partial, blocks, out);
}

void squares_by_block(const float* x, int64_t count, int64_t block, double* out, Stream stream) {
  launch("squares_by_block", &squares_kernel, divide_up(count, block), kBlock, 0, stream, x, count,
         block, out);
}

void scaled_sum(Type type, const float* x, float a, const Bf16* y, float b, void* out,
                int64_t count, Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    for_pack<4>(aligned(x) && aligned(y) && aligned(out), [&](auto pack) {
      constexpr int kN = decltype(pack)::value;
      launch("scaled_sum", &scaled_sum_kernel<T, kN>, divide_up(count, int64_t{kBlock} * kN),
             kBlock, 0, stream, x, a, y, b, static_cast<T*>(out), count);
    });
  });
}

}  // namespace trireme::kernels::gpu
