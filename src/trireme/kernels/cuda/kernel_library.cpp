// What a library of these kernels exports: their registration, for the device that it was built for.
#include "trireme/kernels/cuda/cuda_kernels.h"
#include "trireme/kernels/cuda/launch.h"

// TRIREME_GPU_NAME: of the kernels; TRIREME_GPU_DEVICE: the at::DeviceType; TRIREME_GPU_NEEDS: as of KernelInfo, may be empty.
#ifndef TRIREME_GPU_PRIORITY
#define TRIREME_GPU_PRIORITY 100
#endif

TRIREME_KERNELS(registrar) {
  // The wheel's grouped product is for Hopper and the first Blackwells.
  const int major = trireme::kernels::gpu::compute_major();
  trireme::kernels::gpu::set_grouped_products(major == 9 || major == 10);
  trireme::kernels::gpu::register_kernels(registrar, {.name = TRIREME_GPU_NAME,
                                                      .device = TRIREME_GPU_DEVICE,
                                                      .dtypes = {},
                                                      .priority = TRIREME_GPU_PRIORITY,
                                                      .needs = {TRIREME_GPU_NEEDS}});
}
