// An attention whose sequences ranks share: what lies before the exchange of keys and values, and what behind it.
#include "trireme/plan/micro_batch_writer.h"

namespace trireme::plan {

void MicroBatchWriter::make_context(MicroBatch& micro, int part, int& buffer, BufferKind kind,
                                    int64_t bytes) {
  if (bytes == 0) return;
  buffer = writer_.new_buffer(kind, part, micro.index, kNone, bytes);
  writer_.make(buffer);
}

Instruction& MicroBatchWriter::begin_phase(OpKind kind, const MicroBatch& micro, int part,
                                           int phase) {
  Instruction& instruction = writer_.begin(kind, part, micro.index, micro.lane);
  instruction.phase = phase;
  instruction.recompute = recompute(part);
  return instruction;
}

void MicroBatchWriter::make_projection(MicroBatch& micro, int part) {
  const ContextBytes& bytes = context_bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  make_context(micro, part, buffers.scored, BufferKind::kSaved, bytes.scored);
  make_context(micro, part, buffers.projected, BufferKind::kSaved, bytes.projected);
  make_context(micro, part, buffers.normed, BufferKind::kSaved, bytes.normed);
}

void MicroBatchWriter::make_attention(MicroBatch& micro, int part) {
  const ContextBytes& bytes = context_bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  make_context(micro, part, buffers.softmax, BufferKind::kSaved, bytes.softmax);
  make_context(micro, part, buffers.attended, BufferKind::kSaved, bytes.attended);
}

// Reads what holds this rank's keys and values, and makes room for those of all.
void MicroBatchWriter::exchange_keys(MicroBatch& micro, int part) {
  ContextBuffers& buffers = micro.context[part];
  Instruction& instruction = begin_phase(OpKind::kExchangeContext, micro, part, 1);
  instruction.resource = Resource::kCommunication;
  instruction.group = sums_.context_group();
  for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
    writer_.read_if_made(buffer);
  make_context(micro, part, buffers.keys, BufferKind::kContextKeys, context_bytes_.at(part).keys);
}

void MicroBatchWriter::context_forward(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const ContextFlops flops(flops_[at]);
  const ContextBytes& bytes = context_bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  const bool kept = recompute(part) != Recompute::kFull;

  Instruction& projection = begin_phase(OpKind::kForward, micro, part, 1);
  writer_.depend(sums_.take_gather(part));
  projection.flops = flops.projection * tokens_;
  projection.workspace_bytes = bytes.forward_1;
  read_inputs(micro, part);
  make_context(micro, part, buffers.between, BufferKind::kSaved, bytes.between);
  if (kept) make_projection(micro, part);
  if (is_ring()) {
    ring_attention(micro, part, OpKind::kForward);
    buffers.between = kNone;
    return;
  }

  exchange_keys(micro, part);

  Instruction& attention = begin_phase(OpKind::kForward, micro, part, 2);
  attention.flops = (flops.attention + flops.out) * tokens_;
  attention.workspace_bytes = bytes.forward_2;
  read_inputs(micro, part);  // the residual
  for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
    writer_.read_if_made(buffer);
  writer_.read(buffers.keys);
  make_for(micro, micro.hidden, part, BufferKind::kHidden, hidden_bytes(spec_, strategy_, part));
  if (kept) make_attention(micro, part);
  buffers.keys = buffers.between = kNone;  // what the backward brings and makes is another one's
}

void MicroBatchWriter::bring_keys_ahead(MicroBatch& micro, int part) {
  if (part < 1 || !shares_sequences(part) || !writer_.program().has(part)) return;
  if (recompute(part) == Recompute::kFull) return;
  is_ring() ? ring_exchange(micro, part, 1) : exchange_keys(micro, part);
}

void MicroBatchWriter::context_backward_input(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const ContextFlops flops(flops_[at]);
  const ContextBytes& bytes = context_bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  const bool again = recompute(part) == Recompute::kFull;
  if (again) {
    Instruction& projection = begin_phase(OpKind::kRecompute, micro, part, 1);
    projection.flops = flops.projection * tokens_;
    projection.workspace_bytes = bytes.recompute_1;
    read_inputs(micro, part);
    // Issued when the gradient is there: no earlier, or its memory would be held for nothing.
    writer_.depend(writer_.last_write(micro.hidden_gradient[at]));
    make_projection(micro, part);
  }
  if (is_ring()) {
    if (again) {
      ring_attention(micro, part, OpKind::kRecompute);
      buffers.ring_keys.clear();
    }
    ring_backward_input(micro, part);
    return;
  }
  if (buffers.keys == kNone) exchange_keys(micro, part);
  if (again) {
    Instruction& attention = begin_phase(OpKind::kRecompute, micro, part, 2);
    attention.flops = flops.attention * tokens_;
    attention.workspace_bytes = bytes.recompute_2;
    writer_.read(micro.batch);
    writer_.read_if_made(buffers.scored);
    writer_.read_if_made(buffers.projected);
    writer_.read(buffers.keys);
    make_attention(micro, part);
  }

  Instruction& attention = begin_phase(OpKind::kBackwardInput, micro, part, 1);
  attention.flops = (2.0 * flops.attention + flops.out) * tokens_;
  attention.workspace_bytes = bytes.backward_1;
  writer_.read(micro.hidden_gradient[at]);
  writer_.read(micro.batch);
  for (const int buffer : {buffers.scored, buffers.projected, buffers.softmax, buffers.attended})
    writer_.read_if_made(buffer);
  writer_.read(buffers.keys);
  make_context(micro, part, buffers.delayed_1, BufferKind::kDelayed, bytes.delayed_1);
  make_context(micro, part, buffers.sent, BufferKind::kContextGradients, bytes.sent);

  Instruction& exchange = begin_phase(OpKind::kExchangeContext, micro, part, 2);
  exchange.resource = Resource::kCommunication;
  exchange.group = sums_.context_group();
  exchange.of_gradient = true;
  writer_.read(buffers.sent);
  make_context(micro, part, buffers.received, BufferKind::kContextGradients, bytes.received);

  Instruction& projection = begin_phase(OpKind::kBackwardInput, micro, part, 2);
  projection.flops = (flops_[at].backward_input - 2.0 * flops.attention - flops.out) * tokens_;
  projection.workspace_bytes = bytes.backward_2;
  writer_.read(micro.hidden_gradient[at]);  // the residual branch
  read_inputs(micro, part);
  for (const int buffer : {buffers.projected, buffers.normed, buffers.sent, buffers.received})
    writer_.read_if_made(buffer);
  writer_.write(buffers.delayed_1);
  make_input_gradients(micro, part);
  make_context(micro, part, buffers.delayed_2, BufferKind::kDelayed, bytes.delayed_2);
}

void MicroBatchWriter::read_context_for_weights(MicroBatch& micro, int part) {
  const ContextBuffers& buffers = micro.context[part];
  for (const int buffer : {buffers.normed, buffers.attended, buffers.delayed_1, buffers.delayed_2})
    writer_.read_if_made(buffer);
}

}  // namespace trireme::plan
