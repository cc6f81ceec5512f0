// The reference of every op, named "aten": the functions of ops.h and moe_ops.h in plain ATen calls, for clarity and not
// for speed. They run on any device that has these operators, and are chosen where nothing better is.
//
// What ATen leaves open stays open: bits may depend on threads and on the number of rows, and workspaces are of the size
// of what is computed (attention: all scores). float64 tensors are taken, too, and everything is float64 then: what the
// others are measured against (kernels/conformance).
#pragma once

#include "trireme/kernels/plugin.h"

namespace trireme::kernels::aten {

#define X(op, dtypes) decltype(kernels::op) op;
TRIREME_KERNEL_OPS(X)
#undef X

/// Of attention or attention_backward, whose scores are held at once, several times over; at most.
int64_t attention_workspace(const CallSizes& sizes, bool backward);

}  // namespace trireme::kernels::aten
