#include "trireme/plan/context_writer.h"

#include "trireme/plan/micro_batch_writer.h"

namespace trireme::plan {

ContextWriter::ContextWriter(const model::ModelSpec& spec, ProgramWriter& writer,
                             GradientSums& sums)
    : writer_(writer),
      sums_(sums),
      strategy_(writer.program().strategy),
      tokens_(static_cast<double>(strategy_.tokens())) {
  for (int part = 0; part < static_cast<int>(spec.parts.size()); ++part) {
    if (spec.parts[static_cast<size_t>(part)].kind != model::PartKind::kAttention ||
        !writer.program().has(part))
      continue;
    bytes_[part] = context_bytes(spec, strategy_, part, recompute(part), writer.program().context);
    flops_[part] = model::part_flops(spec, part, strategy_.seq_len);
  }
}

void ContextWriter::make(const MicroBatch& micro, int part, int& buffer, BufferKind kind,
                         int64_t bytes) {
  if (bytes == 0) return;
  buffer = writer_.new_buffer(kind, part, micro.index, kNone, bytes);
  writer_.make(buffer);
}

Instruction& ContextWriter::begin_phase(OpKind kind, const MicroBatch& micro, int part,
                                        int64_t phase) {
  Instruction& instruction = writer_.begin(kind, part, micro.index, micro.lane);
  instruction.phase = static_cast<int>(phase);
  instruction.recompute = recompute(part);
  return instruction;
}

Instruction& ContextWriter::begin_exchange(const MicroBatch& micro, int part, int64_t phase) {
  Instruction& instruction = begin_phase(OpKind::kExchangeContext, micro, part, phase);
  instruction.resource = Resource::kCommunication;
  instruction.group = sums_.context_group();
  return instruction;
}

void ContextWriter::make_projection(MicroBatch& micro, int part) {
  const ContextBytes& bytes = bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  make(micro, part, buffers.scored, BufferKind::kSaved, bytes.scored);
  make(micro, part, buffers.projected, BufferKind::kSaved, bytes.projected);
  make(micro, part, buffers.normed, BufferKind::kSaved, bytes.normed);
}

void ContextWriter::make_attention(MicroBatch& micro, int part) {
  const ContextBytes& bytes = bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  make(micro, part, buffers.softmax, BufferKind::kSaved, bytes.softmax);
  make(micro, part, buffers.attended, BufferKind::kSaved, bytes.attended);
}

// Reads what holds this rank's keys and values, and makes room for those of all.
void ContextWriter::exchange_keys(MicroBatch& micro, int part) {
  ContextBuffers& buffers = micro.context[part];
  begin_exchange(micro, part, 1);
  for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
    writer_.read_if_made(buffer);
  make(micro, part, buffers.keys, BufferKind::kContextKeys, bytes_.at(part).keys);
}

void ContextWriter::forward(MicroBatch& micro, int part, const ContextEdges& edges) {
  const ContextFlops flops(flops_.at(part));
  const ContextBytes& bytes = bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  const bool kept = recompute(part) != Recompute::kFull;

  Instruction& projection = begin_phase(OpKind::kForward, micro, part, edges.phases_before + 1);
  writer_.depend(sums_.take_gather(part));
  projection.flops = flops.projection * tokens_;
  projection.workspace_bytes = bytes.forward_1;
  edges.begin_forward();
  make(micro, part, buffers.between, BufferKind::kSaved, bytes.between);
  if (kept) make_projection(micro, part);
  if (is_ring()) {
    ring_attention(micro, part, OpKind::kForward, edges);
    buffers.between = kNone;
    return;
  }

  exchange_keys(micro, part);

  Instruction& attention = begin_phase(OpKind::kForward, micro, part, edges.phases_before + 2);
  attention.flops = (flops.attention + flops.out) * tokens_;
  attention.workspace_bytes = bytes.forward_2;
  edges.end_forward();
  writer_.read(micro.batch);
  for (const int buffer : {buffers.between, buffers.scored, buffers.projected})
    writer_.read_if_made(buffer);
  writer_.read(buffers.keys);
  if (kept) make_attention(micro, part);
  buffers.keys = buffers.between = kNone;  // what the backward brings and makes is another one's
}

void ContextWriter::bring_keys_ahead(MicroBatch& micro, int part) {
  if (!shares_sequences(part) || recompute(part) == Recompute::kFull) return;
  is_ring() ? ring_exchange(micro, part, 1) : exchange_keys(micro, part);
}

void ContextWriter::backward_input(MicroBatch& micro, int part, const ContextEdges& edges) {
  const ContextFlops flops(flops_.at(part));
  const ContextBytes& bytes = bytes_.at(part);
  ContextBuffers& buffers = micro.context[part];
  const bool again = recompute(part) == Recompute::kFull;
  if (again) {
    Instruction& projection = begin_phase(OpKind::kRecompute, micro, part, edges.phases_before + 1);
    projection.flops = flops.projection * tokens_;
    projection.workspace_bytes = bytes.recompute_1;
    edges.begin_recompute();
    make_projection(micro, part);
  }
  if (is_ring()) {
    if (again) {
      ring_attention(micro, part, OpKind::kRecompute, edges);
      buffers.ring_keys.clear();
    }
    ring_backward_input(micro, part, edges);
    return;
  }
  if (buffers.keys == kNone) exchange_keys(micro, part);
  if (again) {
    Instruction& attention = begin_phase(OpKind::kRecompute, micro, part, edges.phases_before + 2);
    attention.flops = flops.attention * tokens_;
    attention.workspace_bytes = bytes.recompute_2;
    writer_.read(micro.batch);
    writer_.read_if_made(buffers.scored);
    writer_.read_if_made(buffers.projected);
    writer_.read(buffers.keys);
    make_attention(micro, part);
  }

  Instruction& attention =
      begin_phase(OpKind::kBackwardInput, micro, part, edges.phases_before + 1);
  attention.flops = (2.0 * flops.attention + flops.out) * tokens_;
  attention.workspace_bytes = bytes.backward_1;
  edges.begin_backward();
  writer_.read(micro.batch);
  for (const int buffer : {buffers.scored, buffers.projected, buffers.softmax, buffers.attended})
    writer_.read_if_made(buffer);
  writer_.read(buffers.keys);
  make(micro, part, buffers.delayed_1, BufferKind::kDelayed, bytes.delayed_1);
  make(micro, part, buffers.sent, BufferKind::kContextGradients, bytes.sent);

  begin_exchange(micro, part, 2).of_gradient = true;
  writer_.read(buffers.sent);
  make(micro, part, buffers.received, BufferKind::kContextGradients, bytes.received);

  Instruction& projection =
      begin_phase(OpKind::kBackwardInput, micro, part, edges.phases_before + 2);
  projection.flops = (flops_.at(part).backward_input - 2.0 * flops.attention - flops.out) * tokens_;
  projection.workspace_bytes = bytes.backward_2;
  edges.end_backward();
  for (const int buffer : {buffers.projected, buffers.normed, buffers.sent, buffers.received})
    writer_.read_if_made(buffer);
  writer_.write(buffers.delayed_1);
  make(micro, part, buffers.delayed_2, BufferKind::kDelayed, bytes.delayed_2);
}

void ContextWriter::read_for_weights(const MicroBatch& micro, int part) {
  const ContextBuffers& buffers = micro.context.at(part);
  for (const int buffer : {buffers.normed, buffers.attended, buffers.delayed_1, buffers.delayed_2})
    writer_.read_if_made(buffer);
}

}  // namespace trireme::plan
