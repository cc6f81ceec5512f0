// Activations: alone, gating another half of the row (Shazeer 2020), and that with a weight a row.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

namespace {

/// An activation and its derivative at x.
struct Curve {
  float value;
  float slope;
};

__device__ __forceinline__ Curve curve_of(Act act, float x) {
  switch (act) {
    case Act::kSilu: {
      const float s = 1.0F / (1.0F + expf(-x));
      return {x * s, s * (1.0F + x * (1.0F - s))};
    }
    case Act::kGeluTanh: {
      constexpr float kRoot = 0.7978845608028654F;  // sqrt(2 / pi)
      constexpr float kCubic = 0.044715F;
      const float t = tanhf(kRoot * (x + kCubic * x * x * x));
      return {0.5F * x * (1.0F + t), 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * kRoot *
                                                             (1.0F + 3.0F * kCubic * x * x)};
    }
    case Act::kGelu: {
      constexpr float kHalfRoot = 0.7071067811865476F;  // 1 / sqrt(2)
      constexpr float kDensity = 0.3989422804014327F;   // 1 / sqrt(2 pi)
      const float c = 0.5F * (1.0F + erff(x * kHalfRoot));
      return {x * c, c + x * kDensity * expf(-0.5F * x * x)};
    }
    case Act::kRelu:
      return {x > 0.0F ? x : 0.0F, x > 0.0F ? 1.0F : 0.0F};
  }
  return {x, 1.0F};
}

/// A gated value and its derivatives.
struct Gate {
  float value;
  float by_gate;
  float by_up;
};

__device__ __forceinline__ Gate gate_of(Act act, float limit, float gate, float up) {
  if (limit <= 0.0F) {
    const Curve curve = curve_of(act, gate);
    return {curve.value * up, curve.slope * up, curve.value};
  }
  constexpr float kSlope = 1.702F;  // gpt_oss
  const float g = gate < limit ? gate : limit;
  const float s = 1.0F / (1.0F + expf(-kSlope * g));
  const float swish = g * s;
  const float factor = (up < -limit ? -limit : up > limit ? limit : up) + 1.0F;
  const float slope = s + kSlope * swish * (1.0F - s);
  return {factor * swish, gate > limit ? 0.0F : factor * slope,
          up > limit || up < -limit ? 0.0F : swish};
}

template <class T, int kN>
__global__ void forward_kernel(Act act, const T* x, T* y, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kN;
  if (i + kN <= count) {
    const auto in = load<kN>(x + i);
    Pack<T, kN> out;
    for (int j = 0; j < kN; ++j) out.at[j] = rounded<T>(curve_of(act, wide(in.at[j])).value);
    store(y + i, out);
    return;
  }
  for (int64_t k = i; k < count; ++k) y[k] = rounded<T>(curve_of(act, wide(x[k])).value);
}

template <class T, int kN>
__global__ void backward_kernel(Act act, const T* dy, const T* x, T* dx, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * kN;
  if (i + kN <= count) {
    const auto in = load<kN>(x + i);
    const auto grad = load<kN>(dy + i);
    Pack<T, kN> out;
    for (int j = 0; j < kN; ++j)
      out.at[j] = rounded<T>(wide(grad.at[j]) * curve_of(act, wide(in.at[j])).slope);
    store(dx + i, out);
    return;
  }
  for (int64_t k = i; k < count; ++k)
    dx[k] = rounded<T>(wide(dy[k]) * curve_of(act, wide(x[k])).slope);
}

/// Blocks of a row follow one another.
template <class T, int kN>
__global__ void gated_kernel(Gated g, const T* gate_up, T* y, int64_t row_blocks) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) / row_blocks;
  const int64_t i =
      (static_cast<int64_t>(blockIdx.x) % row_blocks * kBlock + static_cast<int64_t>(threadIdx.x)) *
      kN;
  if (i >= g.width) return;
  const auto gate = load<kN>(gate_up + row * 2 * g.width + i);
  const auto up = load<kN>(gate_up + (row * 2 + 1) * g.width + i);
  const float weight = g.weights == nullptr ? 1.0F : g.weights[row];
  Pack<T, kN> out;
  for (int j = 0; j < kN; ++j)
    out.at[j] =
        rounded<T>(gate_of(g.act, g.limit, wide(gate.at[j]), wide(up.at[j])).value * weight);
  store(y + row * g.width + i, out);
}

/// A team a row, for d_weights is a sum along it.
template <class T, int kN, int kTeam>
__global__ void gated_backward_kernel(Gated g, const T* dy, const T* gate_up, T* d_gate_up,
                                      float* d_weights, T* y) {
  __shared__ float scratch[kBlock / kWarp];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kBlock / kTeam) +
                      static_cast<int64_t>(threadIdx.x) / kTeam;
  if (row >= g.rows) return;
  const float weight = g.weights == nullptr ? 1.0F : g.weights[row];
  float along = 0.0F;
  for (int64_t i = static_cast<int64_t>(threadIdx.x % kTeam) * kN; i < g.width; i += kTeam * kN) {
    const auto grad = load<kN>(dy + row * g.width + i);
    const auto gate = load<kN>(gate_up + row * 2 * g.width + i);
    const auto up = load<kN>(gate_up + (row * 2 + 1) * g.width + i);
    Pack<T, kN> d_gate;
    Pack<T, kN> d_up;
    Pack<T, kN> again;
    for (int j = 0; j < kN; ++j) {
      const Gate at = gate_of(g.act, g.limit, wide(gate.at[j]), wide(up.at[j]));
      const float of_value = wide(grad.at[j]);
      along += of_value * at.value;
      d_gate.at[j] = rounded<T>(of_value * weight * at.by_gate);
      d_up.at[j] = rounded<T>(of_value * weight * at.by_up);
      again.at[j] = rounded<T>(at.value * weight);
    }
    store(d_gate_up + row * 2 * g.width + i, d_gate);
    store(d_gate_up + (row * 2 + 1) * g.width + i, d_up);
    if (y != nullptr) store(y + row * g.width + i, again);
  }
  if (d_weights == nullptr) return;
  along = team_reduce<kTeam>(along, scratch, Sum{});
  if (threadIdx.x % kTeam == 0) d_weights[row] = along;
}

template <class T>
__global__ void add_bias_residual_kernel(const float* sum, const T* bias, Rows residual, Rows y,
                                         int64_t width, int64_t row_blocks) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) / row_blocks;
  const int64_t i =
      static_cast<int64_t>(blockIdx.x) % row_blocks * kBlock + static_cast<int64_t>(threadIdx.x);
  if (i >= width) return;
  const float value = sum[row * width + i] + wide(bias[i]) + wide(row_of<T>(residual, row)[i]);
  row_of<T>(y, row)[i] = rounded<T>(value);
}

}  // namespace

void activation(Type type, Act act, const void* x, void* y, int64_t count, Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    for_pack<kPack<T>>(aligned(x) && aligned(y), [&](auto pack) {
      constexpr int kN = decltype(pack)::value;
      launch("activation", &forward_kernel<T, kN>, divide_up(count, int64_t{kBlock} * kN), kBlock,
             0, stream, act, static_cast<const T*>(x), static_cast<T*>(y), count);
    });
  });
}

void activation_backward(Type type, Act act, const void* dy, const void* x, void* dx, int64_t count,
                         Stream stream) {
  for_type(type, [&](auto t) {
    using T = decltype(t);
    for_pack<kPack<T>>(aligned(x) && aligned(dy) && aligned(dx), [&](auto pack) {
      constexpr int kN = decltype(pack)::value;
      launch("activation_backward", &backward_kernel<T, kN>, divide_up(count, int64_t{kBlock} * kN),
             kBlock, 0, stream, act, static_cast<const T*>(dy), static_cast<const T*>(x),
             static_cast<T*>(dx), count);
    });
  });
}

void gated(const Gated& g, const void* gate_up, void* y, Stream stream) {
  for_type(g.type, [&](auto t) {
    using T = decltype(t);
    const bool packs = aligned(gate_up) && aligned(y) && g.width % kPack<T> == 0;
    for_pack<kPack<T>>(packs, [&](auto pack) {
      constexpr int kN = decltype(pack)::value;
      const int64_t row_blocks = divide_up(g.width, int64_t{kBlock} * kN);
      launch("gated_activation", &gated_kernel<T, kN>, g.rows * row_blocks, kBlock, 0, stream, g,
             static_cast<const T*>(gate_up), static_cast<T*>(y), row_blocks);
    });
  });
}

void gated_backward(const Gated& g, const void* dy, const void* gate_up, void* d_gate_up,
                    float* d_weights, void* y, Stream stream) {
  for_type(g.type, [&](auto t) {
    using T = decltype(t);
    const bool packs = aligned(dy) && aligned(gate_up) && aligned(d_gate_up) && aligned(y) &&
                       g.width % kPack<T> == 0;
    for_pack<kPack<T>>(packs, [&](auto pack) {
      for_team(g.width, [&](auto team) {
        constexpr int kTeam = decltype(team)::value;
        launch("gated_activation_backward", &gated_backward_kernel<T, decltype(pack)::value, kTeam>,
               divide_up(g.rows, kBlock / kTeam), kBlock, 0, stream, g, static_cast<const T*>(dy),
               static_cast<const T*>(gate_up), static_cast<T*>(d_gate_up), d_weights,
               static_cast<T*>(y));
      });
    });
  });
}

void add_bias_residual(Type type, const float* sum, const void* bias, const Rows& residual,
                       const Rows& y, int64_t rows, int64_t width, Stream stream) {
  const int64_t row_blocks = divide_up(width, kBlock);
  for_type(type, [&](auto t) {
    using T = decltype(t);
    launch("add_bias_residual", &add_bias_residual_kernel<T>, rows * row_blocks, kBlock, 0, stream,
           sum, static_cast<const T*>(bias), residual, y, width, row_blocks);
  });
}

}  // namespace trireme::kernels::gpu
