#include "trireme/execute/rounded_sum.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

void add_rounded(at::Tensor& left, const at::Tensor& right) {
  TRIREME_CHECK(left.scalar_type() == right.scalar_type() && left.numel() == right.numel(),
                "{} elements of {} and {} of {}", left.numel(), c10::toString(left.scalar_type()),
                right.numel(), c10::toString(right.scalar_type()));
  // ATen adds bfloat16 in float32 and rounds once.
  if (left.scalar_type() == at::kBFloat16) {
    left.add_(right);
    return;
  }
  for (int64_t first = 0; first < left.numel(); first += plan::kRoundedPiece) {
    const int64_t count = std::min(plan::kRoundedPiece, left.numel() - first);
    left.narrow(0, first, count)
        .copy_(left.narrow(0, first, count)
                   .to(at::kBFloat16)
                   .add_(right.narrow(0, first, count).to(at::kBFloat16)));
  }
}

}  // namespace trireme::execute
