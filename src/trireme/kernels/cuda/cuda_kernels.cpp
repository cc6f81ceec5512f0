#include "trireme/kernels/cuda/cuda_kernels.h"

#include <atomic>

#include "trireme/base/error.h"
#include "trireme/kernels/cuda/launch.h"

namespace trireme::kernels::gpu {

namespace {
std::atomic<bool> grouped{false};
}  // namespace

void set_grouped_products(bool available) {
  grouped = available;
}
bool grouped_products() {
  return grouped;
}

void launch_failed(const char* kernel, const char* reason) {
  throw Error(ErrorCode::kDevice,
              fmt::format("the kernel {} cannot be started: {}", kernel, reason),
              "this build's kernels may be for other devices; `trireme doctor` names this one");
}

void register_kernels(Registrar& registrar, const KernelInfo& info) {
#define X(op) registrar.add<&kernels::op>(info, &ops::op);
  TRIREME_GPU_OPS(X)
#undef X
}

}  // namespace trireme::kernels::gpu
