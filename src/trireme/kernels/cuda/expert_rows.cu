// Rows and weights between the order of tokens and the order of experts, and the experts' biases.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

template <class T, int kN, int kTeam>
__global__ void sum_rows_kernel(const T* y, const int64_t* rows, int64_t tokens, int64_t choices,
                                const T* start, T* out, int64_t width) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (kBlock / kTeam) +
                        static_cast<int64_t>(threadIdx.x) / kTeam;
  if (token >= tokens) return;
  for (int64_t i = static_cast<int64_t>(threadIdx.x % kTeam) * kN; i < width; i += kTeam * kN) {
    float sums[kN] = {};
    if (start != nullptr) {
      const auto value = load<kN>(start + token * width + i);
      for (int j = 0; j < kN; ++j) sums[j] = wide(value.at[j]);
    }
    for (int64_t c = 0; c < choices; ++c) {
      const int64_t row = rows[token * choices + c];
      if (row < 0) continue;
      const auto value = load<kN>(y + row * width + i);
      for (int j = 0; j < kN; ++j) sums[j] += wide(value.at[j]);
    }
    Pack<T, kN> sum;
    for (int j = 0; j < kN; ++j) sum.at[j] = rounded<T>(sums[j]);
    store(out + token * width + i, sum);
  }
}

__global__ void scatter_values_kernel(const float* from, const int64_t* rows, float* to,
                                      int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < count && rows[i] >= 0) to[rows[i]] = from[i];
}

__global__ void gather_values_kernel(const float* from, const int64_t* rows, float* to,
                                     int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < count) to[i] = rows[i] < 0 ? 0.0F : from[rows[i]];
}

/// The group that a row belongs to: the last whose rows begin at or before it (groups may be empty).
__device__ __forceinline__ int64_t group_of(const GroupedBias& g, int64_t row) {
  int64_t low = 0;
  int64_t high = g.groups;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (g.offsets[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class T>
__global__ void grouped_bias_kernel(GroupedBias g, const T* bias, Rows y) {
  const int64_t row = blockIdx.x;
  const T* of_group = bias + group_of(g, row) * g.width;
  const float weight = g.weights == nullptr ? 1.0F : g.weights[row];
  T* out = row_of<T>(y, row);
  for (int64_t i = threadIdx.x; i < g.width; i += kBlock)
    out[i] = rounded<T>(weight * wide(of_group[i]));
}

template <class T>
__global__ void bias_gradient_kernel(GroupedBias g, Rows dy, float* dbias, bool accumulate,
                                     int64_t column_blocks) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) / column_blocks;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) % column_blocks * kBlock + static_cast<int64_t>(threadIdx.x);
  if (column >= g.width) return;
  float sum = accumulate ? dbias[group * g.width + column] : 0.0F;
  for (int64_t row = g.offsets[group]; row < g.offsets[group + 1]; ++row) {
    const float weight = g.weights == nullptr ? 1.0F : g.weights[row];
    sum += weight * wide(row_of<T>(dy, row)[column]);
  }
  dbias[group * g.width + column] = sum;
}

template <class T>
__global__ void weight_gradient_kernel(GroupedBias g, Rows dy, const T* bias, float* d_weights) {
  __shared__ float scratch[kBlock / kWarp];
  const int64_t row = blockIdx.x;
  const T* of_group = bias + group_of(g, row) * g.width;
  const T* grad = row_of<T>(dy, row);
  float sum = 0.0F;
  for (int64_t i = threadIdx.x; i < g.width; i += kBlock) sum += wide(grad[i]) * wide(of_group[i]);
  sum = team_reduce<kBlock>(sum, scratch, Sum{});
  if (threadIdx.x == 0) d_weights[row] += sum;
}

}  // namespace

void sum_rows(Type type, const void* y, const int64_t* rows, int64_t tokens, int64_t choices,
              const void* start, void* out, int64_t width, Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    const bool packs = aligned(y) && aligned(start) && aligned(out) && width % kPack<T> == 0;
    for_pack<kPack<T>>(packs, [&](auto pack) {
      for_team(width, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("sum_rows", &sum_rows_kernel<T, decltype(pack)::value, kTeam>,
               divide_up(tokens, kBlock / kTeam), kBlock, 0, stream, static_cast<const T*>(y), rows,
               tokens, choices, static_cast<const T*>(start), static_cast<T*>(out), width);
      });
    });
  });
}

void scatter_values(const float* from, const int64_t* rows, float* to, int64_t count,
                    Stream stream) {
  launch("scatter_values", &scatter_values_kernel, divide_up(count, kBlock), kBlock, 0, stream,
         from, rows, to, count);
}

void gather_values(const float* from, const int64_t* rows, float* to, int64_t count,
                   Stream stream) {
  launch("gather_values", &gather_values_kernel, divide_up(count, kBlock), kBlock, 0, stream, from,
         rows, to, count);
}

void grouped_bias(const GroupedBias& g, const void* bias, const Rows& y, Stream stream) {
  for_type(g.type, [&](auto t) {
    using T = decltype(t);
    launch("grouped_bias", &grouped_bias_kernel<T>, g.rows, kBlock, 0, stream, g,
           static_cast<const T*>(bias), y);
  });
}

void grouped_bias_backward(const GroupedBias& g, const Rows& dy, const void* bias, float* dbias,
                           bool accumulate, float* d_weights, Stream stream) {
  const int64_t column_blocks = divide_up(g.width, kBlock);
  for_type(g.type, [&](auto t) {
    using T = decltype(t);
    launch("grouped_bias_backward", &bias_gradient_kernel<T>, g.groups * column_blocks, kBlock, 0,
           stream, g, dy, dbias, accumulate, column_blocks);
    if (d_weights != nullptr)
      launch("grouped_bias_weights", &weight_gradient_kernel<T>, g.rows, kBlock, 0, stream, g, dy,
             static_cast<const T*>(bias), d_weights);
  });
}

}  // namespace trireme::kernels::gpu
