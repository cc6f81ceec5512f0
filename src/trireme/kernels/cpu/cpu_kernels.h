// The kernels of processors, named "cpu": the functions of ops.h and moe_ops.h for CPU tensors. They pick the widest
// instruction set of the processor themselves. Those that need another call it here, not through the registry.
#pragma once

#include "trireme/kernels/plugin.h"

namespace trireme::kernels::cpu {

#define X(op, dtypes) decltype(kernels::op) op;
TRIREME_KERNEL_OPS(X)
#undef X

}  // namespace trireme::kernels::cpu
