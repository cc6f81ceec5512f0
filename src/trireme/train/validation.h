// A validation pass: over ranks each evaluates every n-th block, and the sums are in the order of the blocks.
#pragma once

#include <cstdint>
#include <optional>

#include "trireme/comm/group.h"
#include "trireme/data/dataset.h"
#include "trireme/nn/model.h"

namespace trireme::train {

struct Validation {
  double loss = 0.0;  ///< nats per counted target
  std::optional<double> bits_per_byte;
};

struct ValidationOptions {
  int64_t rows = 1;  ///< sequences of a block
  int64_t sequences =
      0;  ///< about so many, evenly over the set and the same ones every time; 0: all
  int64_t loss_chunk_rows = 0;
};

/// Nothing where no target counts. Collective over the world. Blocks.
std::optional<Validation> evaluate_dataset(nn::Model& model, const data::Dataset& dataset,
                                           const ValidationOptions& options, comm::World& world);

}  // namespace trireme::train
