// A library that was built for a torch and a Trireme of long ago.
#include "trireme/kernels/plugin.h"

#if defined(STALE_TORCH)
static const trireme::kernels::KernelsAbi kAbi = {
    1, {1, 13, 1}, trireme::kernels::kKernelsAbi.layout};
#else
static const trireme::kernels::KernelsAbi kAbi = {
    0,
    {TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH},
    trireme::kernels::kKernelsAbi.layout};
#endif

extern "C" const void* trireme_kernels_abi() {
  return &kAbi;
}
extern "C" void trireme_register_kernels(trireme::kernels::Registrar&) {
  __builtin_trap();  // must not be reached
}
