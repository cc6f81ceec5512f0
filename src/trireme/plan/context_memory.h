// Bytes of an attention part whose sequences ranks share (context parallelism): what part_bytes() (memory.h) says of others.
// Internal to this room.
#pragma once

#include <cstdint>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// Of one micro-batch on the rank at place `index` of those that share its sequences. Phases are those of Instruction::phase: 1
/// before the exchange, 2 after it. In the order in which they are made.
struct ContextBytes {
  int64_t between = 0;  ///< of phase 1 of the forward, until phase 2
  // Made by the forward; after full recomputation by kRecompute. Until:
  int64_t scored = 0;  ///< backward phase 1: queries, keys, values
  int64_t projected =
      0;  ///< backward phase 2: statistics, and what a norm of queries and keys has read
  int64_t normed = 0;    ///< backward-weight: what the product of queries, keys and values has read
  int64_t softmax = 0;   ///< backward phase 1: sums of exponentials, statistics of a norm after
  int64_t attended = 0;  ///< backward-weight: what the output's product has read
  int64_t keys = 0;      ///< kContextKeys
  int64_t sent = 0;      ///< kContextGradients that leave
  int64_t received = 0;  ///< kContextGradients that come
  int64_t delayed_1 = 0;  ///< kDelayed of backward phase 1
  int64_t delayed_2 = 0;
  // Workspace of the phases, beyond what they make.
  int64_t forward_1 = 0;
  int64_t forward_2 = 0;
  int64_t recompute_1 = 0;
  int64_t recompute_2 = 0;
  int64_t backward_1 = 0;
  int64_t backward_2 = 0;
};

/// Of a part of grouped attention.
ContextBytes context_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                           Recompute mode, int64_t index);

}  // namespace trireme::plan
