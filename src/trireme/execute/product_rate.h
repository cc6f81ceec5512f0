// The roof that a run's rate is compared with.
#pragma once

#include <c10/core/ScalarType.h>

namespace trireme::execute {

/// 10^12 operations a second of products that do not fit the caches, in `dtype` (kFloat or kBFloat16): the better of
/// ATen's product and of the one that training uses, at its best of several, so that a neighbour's burst lowers nothing.
/// Takes about half a second; blocks.
double product_tflops(c10::ScalarType dtype);

}  // namespace trireme::execute
