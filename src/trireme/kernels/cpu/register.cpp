#include "trireme/kernels/cpu/cpu_kernels.h"

namespace trireme::kernels::cpu {

void register_kernels(Registrar& registrar) {
  const KernelInfo info{.name = "cpu", .device = at::kCPU, .priority = kPriority};
#define X(op, dtypes) registrar.add<&kernels::op>(info, &cpu::op);
  TRIREME_KERNEL_OPS(X)
#undef X
}

}  // namespace trireme::kernels::cpu
