// Bytes of an attention part whose sequences ranks share (context parallelism): what part_bytes() (memory.h) says of others.
// Internal to this room.
#pragma once

#include <cstdint>
#include <vector>

#include "trireme/model/flops.h"
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
  // Of a ring, whose phases from 2 on each have another rank's keys; by round, from 1.
  int64_t own_keys = 0;   ///< kContextKeys of one rank
  int64_t ring_sums = 0;  ///< of the forward, until its last phase: float32 results
  int64_t ring_gradients =
      0;  ///< of the backward, until its last phase: of attention's result, and float32 sums
  std::vector<int64_t> ring_sent;
  std::vector<int64_t> ring_received;
  int64_t ring_step = 0;
  int64_t ring_last = 0;
  int64_t ring_last_again = 0;
  int64_t ring_backward_first = 0;
  int64_t ring_backward_step = 0;
};

/// Operations per token of an attention, of one product and of attention itself: backward costs attention twice its forward.
struct ContextFlops {
  explicit ContextFlops(const model::TokenFlops& part)
      : attention(part.backward_input - part.forward),
        out(part.forward - part.recompute),
        projection(part.forward - attention - out) {}
  double attention;
  double out;         ///< the output's product
  double projection;  ///< of queries, keys and values
};

/// Of a part of grouped attention.
ContextBytes context_bytes(const model::ModelSpec& spec, const Strategy& strategy, int part,
                           Recompute mode, int64_t index);

}  // namespace trireme::plan
