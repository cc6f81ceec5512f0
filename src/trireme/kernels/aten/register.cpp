#include "trireme/kernels/aten/aten_kernels.h"

namespace trireme::kernels::aten {

void register_kernels(Registrar& registrar) {
  const KernelInfo info{.name = "aten", .device = std::nullopt, .priority = kPriority};
#define X(op, dtypes) registrar.add<&kernels::op>(info, &aten::op);
  TRIREME_KERNEL_OPS(X)
#undef X
}

}  // namespace trireme::kernels::aten
