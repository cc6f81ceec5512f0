// Sums of pieces that several ranks hold, as the collectives of reduction = "fast" make them. Internal to comm/.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace trireme::comm {

/// `out` = inputs[0] + inputs[1] + ... in this order and in float32, rounded once; float32 or bfloat16, contiguous. `out` may be
/// one of the inputs.
void sum_pieces(c10::ScalarType dtype, const std::vector<const char*>& inputs, char* out,
                int64_t bytes);

}  // namespace trireme::comm
