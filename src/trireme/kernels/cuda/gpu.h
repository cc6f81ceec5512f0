// Everything that device code of this folder needs beyond C++, and the only file that includes a runtime.
//
// The same .cu files are compiled by nvcc; with the names of names.txt exchanged, by the compiler of another vendor whose
// runtime is a copy of this one; and as C++ by the host's, for the emulation that tests them (emulation.h).
#pragma once

#ifdef TRIREME_EMULATED_GPU
#include "trireme/kernels/cuda/emulation.h"
#else
#include <cuda_runtime.h>
/// The launch's shared memory, as floats.
#define GPU_DYNAMIC_SHARED(name) extern __shared__ float name[]
#endif

#include <cstdint>

#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

constexpr int kWarp = 32;
constexpr int kBlock = 256;  ///< threads of a block
constexpr unsigned kAllLanes = 0xffffffffU;

// --- float32 and bfloat16 ------------------------------------------------------------------------

__device__ __forceinline__ float wide(float x) {
  return x;
}
__device__ __forceinline__ float wide(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

template <class T>
__device__ __forceinline__ T rounded(float x);
template <>
__device__ __forceinline__ float rounded<float>(float x) {
  return x;
}
/// To nearest, ties to even; a NaN stays one.
template <>
__device__ __forceinline__ Bf16 rounded<Bf16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return {static_cast<uint16_t>((bits >> 16) | 0x40U)};
  return {static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

/// kN neighbours, moved by one instruction of up to 16 bytes.
template <class T, int kN>
struct alignas(sizeof(T) * kN) Pack {
  T at[kN];
};
template <int kN, class T>
__device__ __forceinline__ Pack<T, kN> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kN>*>(from);
}
template <int kN, class T>
__device__ __forceinline__ void store(T* to, const Pack<T, kN>& pack) {
  *reinterpret_cast<Pack<T, kN>*>(to) = pack;
}
template <class T>
constexpr int kPack = static_cast<int>(16 / sizeof(T));

template <class T>
__device__ __forceinline__ T* row_of(const Rows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row / rows.heads * rows.stride +
         row % rows.heads * rows.head_stride;
}

// --- Sums over a team: the lanes of a warp or the threads of a block, all of which call and get the result ------

struct Sum {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Max {
  template <class V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

template <class V, class Op>
__device__ __forceinline__ V warp_reduce(V value, Op op) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

/// scratch: kTeam / kWarp values of shared memory, free again on return.
template <int kTeam, class V, class Op>
__device__ __forceinline__ V team_reduce(V value, V* scratch, Op op) {
  value = warp_reduce(value, op);
  if constexpr (kTeam > kWarp) {
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = scratch[0];
    for (int i = 1; i < kTeam / kWarp; ++i) value = op(value, scratch[i]);
    __syncthreads();
  }
  return value;
}

// --- Launching -----------------------------------------------------------------------------------

/// Runs kernel(args...) in `blocks` blocks of `threads` threads, each with `shared_bytes` of GPU_DYNAMIC_SHARED.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads,
            int64_t shared_bytes, Stream stream, Args... args) {
  if (blocks == 0) return;
#ifdef TRIREME_EMULATED_GPU
  static_cast<void>(name);
  static_cast<void>(stream);
  emulation::run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                 static_cast<size_t>(shared_bytes), [&] { kernel(args...); });
#else
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) launch_failed(name, cudaGetErrorString(error));
#endif
}

inline int64_t divide_up(int64_t count, int64_t by) {
  return (count + by - 1) / by;
}
inline bool aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

/// Whether all rows of `width` elements can be moved in packs of `pack`.
inline bool in_packs(const Rows& rows, int64_t width, int pack) {
  return rows.data == nullptr || (aligned(rows.data) && width % pack == 0 &&
                                  rows.stride % pack == 0 && rows.head_stride % pack == 0);
}

/// Calls body(T{}) with the element type.
template <class Body>
void for_type(Type type, Body&& body) {
  if (type == Type::kFloat) {
    body(float{});
  } else {
    body(Bf16{});
  }
}
/// Calls body with std::integral_constant-like values: the pack's size, or 1.
template <int kValue>
struct Number {
  static constexpr int value = kValue;
};
template <int kN, class Body>
void for_pack(bool in_packs, Body&& body) {
  if (in_packs) {
    body(Number<kN>{});
  } else {
    body(Number<1>{});
  }
}
/// Teams of a warp for short rows, of a block for long ones.
template <class Body>
void for_team(int64_t width, Body&& body) {
  if (width <= 512) {
    body(Number<kWarp>{});
  } else {
    body(Number<kBlock>{});
  }
}

}  // namespace trireme::kernels::gpu
