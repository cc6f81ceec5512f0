// Keys of a sequence whose pieces ranks have packed (ContextGraph), between the order of the ranks and that of the sequence.
#pragma once

#include <ATen/core/Tensor.h>

#include "trireme/nn/part.h"

namespace trireme::nn {

/// Of what all ranks have packed, one after the other, the places up to the last that the batch has: [rows, places, 2, heads, d] in the
/// order of the sequence.
at::Tensor keys_in_order(const BatchTensors& batch, const at::Tensor& all, int64_t heads,
                         int64_t head_dim);

/// The other way round, of gradients: packed by the rank that has the places, of each those of its pieces that the batch's queries
/// may see (cluster::sees_second_piece()), one rank after the other.
at::Tensor gradients_by_owner(const BatchTensors& batch, const at::Tensor& d_keys);

}  // namespace trireme::nn
