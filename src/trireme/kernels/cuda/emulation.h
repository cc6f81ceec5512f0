// The device as a program of the host, for tests: the .cu files of this folder, compiled as C++, run block after block,
// with a stack for each thread of a block, so that barriers, shuffles and shared memory do what they do on a device.
//
// A device may run threads in any order between two barriers. So that a missing barrier shows, a warp runs until it needs the
// others, and the order of warps and of their lanes is given: forward or backward. Shared memory of a block begins as NaN. A barrier that not all threads of the block (or lanes of the warp)
// reach is std::logic_error. One launch at a time; a launch blocks until it is done.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace trireme::kernels::gpu::emulation {

struct Index {
  unsigned x;
};

enum class Order { kForward, kBackward };
/// Of the threads between two barriers, from the next launch on.
void set_order(Order order);

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

/// Of the running thread: waits for the others of its block; for those of its warp, whose values it gets.
void wait_for_block();
uint64_t exchange(uint64_t value, unsigned other_lane);
void* dynamic_shared();

extern thread_local Index thread_index;
extern thread_local Index block_index;
extern thread_local Index block_size;
extern thread_local Index grid_size;

}  // namespace trireme::kernels::gpu::emulation

// What the device's compiler has built in.
// NOLINTBEGIN(bugprone-reserved-identifier)
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define threadIdx (::trireme::kernels::gpu::emulation::thread_index)
#define blockIdx (::trireme::kernels::gpu::emulation::block_index)
#define blockDim (::trireme::kernels::gpu::emulation::block_size)
#define gridDim (::trireme::kernels::gpu::emulation::grid_size)
#define GPU_DYNAMIC_SHARED(name) \
  float* name = static_cast<float*>(::trireme::kernels::gpu::emulation::dynamic_shared())

inline void __syncthreads() {
  trireme::kernels::gpu::emulation::wait_for_block();
}

template <class V>
V __shfl_xor_sync(unsigned /*lanes*/, V value, int mask) {
  static_assert(sizeof(V) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(V));
  bits = trireme::kernels::gpu::emulation::exchange(
      bits, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
  std::memcpy(&value, &bits, sizeof(V));
  return value;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
// NOLINTEND(bugprone-reserved-identifier)
