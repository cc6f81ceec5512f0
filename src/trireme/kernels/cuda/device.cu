// The current device itself.
#include "trireme/kernels/cuda/gpu.h"

namespace trireme::kernels::gpu {

int compute_major() {
#ifdef TRIREME_EMULATED_GPU
  return 0;
#else
  int device = 0;
  int major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) launch_failed("compute_major", cudaGetErrorString(error));
  return major;
#endif
}

int multiprocessors() {
#ifdef TRIREME_EMULATED_GPU
  return 2;
#else
  int device = 0;
  int count = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) launch_failed("multiprocessors", cudaGetErrorString(error));
  return count;
#endif
}

}  // namespace trireme::kernels::gpu
