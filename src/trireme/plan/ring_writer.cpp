// An attention in a ring of the ranks that share its sequences. Gradients of keys go straight to the rank that has them.
#include "trireme/plan/context_writer.h"
#include "trireme/plan/micro_batch_writer.h"

namespace trireme::plan {

void ContextWriter::ring_exchange(MicroBatch& micro, int part, int64_t round) {
  ContextBuffers& buffers = micro.context[part];
  const ContextBytes& bytes = bytes_.at(part);
  const auto at = static_cast<size_t>(round);
  begin_exchange(micro, part, round);
  if (round == 1) {
    buffers.ring_keys.assign(static_cast<size_t>(strategy_.parallel.cp), kNone);
    for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
      writer_.read_if_made(buffer);
    make(micro, part, buffers.ring_keys[0], BufferKind::kContextKeys, bytes.own_keys);
  } else {
    writer_.read(buffers.ring_keys[at - 1]);
  }
  make(micro, part, buffers.ring_keys[at], BufferKind::kContextKeys, bytes.own_keys);
}

// What is sent on is kept until the transfer that brings the next ones has ended.
void ContextWriter::read_ring_keys(const MicroBatch& micro, int part, int64_t round) {
  if (round == 0) return;  // the own ones
  const ContextBuffers& buffers = micro.context.at(part);
  writer_.read(buffers.ring_keys[static_cast<size_t>(round) - 1]);
  writer_.read(buffers.ring_keys[static_cast<size_t>(round)]);
}

void ContextWriter::ring_attention(MicroBatch& micro, int part, OpKind kind,
                                   const ContextEdges& edges) {
  const ContextBytes& bytes = bytes_.at(part);
  const ContextFlops flops(flops_.at(part));
  const int64_t ranks = strategy_.parallel.cp;
  const bool forward = kind == OpKind::kForward;
  for (int64_t round = 0; round < ranks; ++round) {
    ContextBuffers& buffers = micro.context[part];
    if (round + 1 < ranks && (round > 0 || buffers.ring_keys.empty()))
      ring_exchange(micro, part, round + 1);
    const bool last = round + 1 == ranks;
    Instruction& instruction = begin_phase(kind, micro, part, edges.phases_before + round + 2);
    instruction.flops = flops.attention / static_cast<double>(ranks) * tokens_;
    instruction.workspace_bytes = bytes.ring_step + (round == 0 ? bytes.own_keys : 0);
    writer_.read(micro.batch);
    for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
      writer_.read_if_made(buffer);
    read_ring_keys(micro, part, round);
    if (round == 0) {
      make(micro, part, buffers.ring_sums, BufferKind::kSaved, bytes.ring_sums);
    } else {
      writer_.write(buffers.ring_sums);
    }
    if (!last) continue;
    instruction.workspace_bytes = forward ? bytes.ring_last : bytes.ring_last_again;
    if (forward) {
      instruction.flops += flops.out * tokens_;
      edges.end_forward();
    }
    if (!forward || recompute(part) != Recompute::kFull) make_attention(micro, part);
  }
  if (forward) micro.context[part].ring_keys.clear();
}

void ContextWriter::ring_backward_input(MicroBatch& micro, int part, const ContextEdges& edges) {
  const ContextBytes& bytes = bytes_.at(part);
  const ContextFlops flops(flops_.at(part));
  const int64_t ranks = strategy_.parallel.cp;
  ContextBuffers& buffers = micro.context[part];
  std::vector<int> sent(static_cast<size_t>(ranks), kNone);
  std::vector<int> received(static_cast<size_t>(ranks), kNone);
  // Its gradients of keys have come: added, and what was sent for them is done with.
  const auto read_gradients = [&](int64_t round) {
    writer_.read(sent[static_cast<size_t>(round)]);
    writer_.read(received[static_cast<size_t>(round)]);
  };
  buffers.ring_keys.resize(static_cast<size_t>(ranks), kNone);
  for (int64_t round = 0; round < ranks; ++round) {
    if (round + 1 < ranks && buffers.ring_keys[static_cast<size_t>(round) + 1] == kNone)
      ring_exchange(micro, part, round + 1);
    Instruction& attention =
        begin_phase(OpKind::kBackwardInput, micro, part, edges.phases_before + round + 1);
    attention.flops = 2.0 * flops.attention / static_cast<double>(ranks) * tokens_;
    attention.workspace_bytes = round == 0 ? bytes.ring_backward_first : bytes.ring_backward_step;
    if (round == 0) edges.begin_backward();
    writer_.read(micro.batch);
    for (const int buffer : {buffers.scored, buffers.projected, buffers.softmax, buffers.attended})
      writer_.read_if_made(buffer);
    read_ring_keys(micro, part, round);
    if (round == 0) {
      attention.flops += flops.out * tokens_;
      make(micro, part, buffers.delayed_1, BufferKind::kDelayed, bytes.delayed_1);
      make(micro, part, buffers.ring_gradients, BufferKind::kDelayed, bytes.ring_gradients);
      continue;
    }
    writer_.write(buffers.ring_gradients);
    if (round > 1) read_gradients(round - 1);
    make(micro, part, sent[static_cast<size_t>(round)], BufferKind::kContextGradients,
         bytes.ring_sent[static_cast<size_t>(round)]);
    begin_exchange(micro, part, round).of_gradient = true;
    writer_.read(sent[static_cast<size_t>(round)]);
    make(micro, part, received[static_cast<size_t>(round)], BufferKind::kContextGradients,
         bytes.ring_received[static_cast<size_t>(round)]);
  }
  Instruction& projection =
      begin_phase(OpKind::kBackwardInput, micro, part, edges.phases_before + ranks + 1);
  projection.flops = (flops_.at(part).backward_input - 2.0 * flops.attention - flops.out) * tokens_;
  projection.workspace_bytes = bytes.backward_2;
  edges.end_backward();
  for (const int buffer : {buffers.scored, buffers.softmax, buffers.projected, buffers.normed})
    writer_.read_if_made(buffer);
  read_gradients(ranks - 1);
  writer_.read(buffers.ring_gradients);
  writer_.write(buffers.delayed_1);
  make(micro, part, buffers.delayed_2, BufferKind::kDelayed, bytes.delayed_2);
}

}  // namespace trireme::plan
