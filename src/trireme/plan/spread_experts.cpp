// The instructions of experts that are spread over ranks: what a rank's experts do for the micro-batches of all ranks that it
// exchanges rows with, each into the lane of its own, so that every sum is one rank's.
#include "trireme/plan/memory.h"
#include "trireme/plan/micro_batch_writer.h"

namespace trireme::plan {

void MicroBatchWriter::exchange_counts(MicroBatch& micro, int router) {
  Instruction& instruction =
      writer_.begin(OpKind::kExchangeCounts, router, micro.index, micro.lane);
  instruction.resource = Resource::kCommunication;
  instruction.group = sums_.expert_group();
  writer_.read(micro.saved_input[static_cast<size_t>(router)]);  // the order of rows
  counts_[{router + 2, micro.index}] = writer_.current();
}

// What arrives takes the place of what was sent: in the hidden state of the part that sends, or in its gradient.
void MicroBatchWriter::exchange_rows(MicroBatch& micro, int experts, int phase, bool of_gradient) {
  const auto dispatch = static_cast<size_t>(experts) - 1;
  const bool back = phase == 2;
  // A dispatch's rows and their gradients travel with the weights of rows and theirs.
  const bool from_dispatch = back == of_gradient;
  const size_t owner = from_dispatch ? dispatch : static_cast<size_t>(experts);
  int& slot = (of_gradient ? micro.hidden_gradient : micro.hidden)[owner];
  const int64_t rows = hidden_bytes(spec_, strategy_, static_cast<int>(dispatch));
  const int64_t weights = from_dispatch ? row_weights_bytes(spec_, strategy_, experts) : int64_t{0};
  const int arrives =
      writer_.new_buffer(of_gradient ? BufferKind::kExchangedGradient : BufferKind::kExchangedRows,
                         static_cast<int>(owner), micro.index, kNone, rows + weights);
  const int before = writer_.current();
  Instruction& instruction = writer_.begin(OpKind::kExchangeRows, experts, micro.index, micro.lane);
  instruction.resource = Resource::kCommunication;
  instruction.group = sums_.expert_group();
  instruction.phase = phase;
  instruction.of_gradient = of_gradient;
  writer_.depend(before);
  if (phase == 1 && !of_gradient) writer_.depend(counts_.at({experts, micro.index}));
  writer_.read(slot);
  writer_.make(arrives);
  // What is sent lives until the transfer was waited for.
  sent_rows_[arrives] = slot;
  slot = arrives;
}

void MicroBatchWriter::read_exchanged(int buffer) {
  writer_.read(buffer);
  const auto sent = sent_rows_.extract(buffer);
  if (!sent.empty()) writer_.read(sent.mapped());
}

void MicroBatchWriter::forward_experts(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const PartBytes& bytes = bytes_[at];
  for (MicroBatch& source : micro.sources) {
    Instruction& instruction = writer_.begin(OpKind::kForward, part, source.index, source.lane);
    writer_.depend(sums_.take_gather(part));
    instruction.recompute = recompute(part);
    instruction.flops = flops_[at].forward * tokens_;
    instruction.workspace_bytes = bytes.forward_workspace;
    read_exchanged(micro.hidden[at - 1]);
    if (micro.hidden[at] == kNone) {
      make_for(micro, micro.hidden, part, BufferKind::kHidden,
               hidden_bytes(spec_, strategy_, part));
    } else {
      writer_.write(micro.hidden[at]);
    }
    if (recompute(part) != Recompute::kFull) make_saved(source, part);
  }
  exchange_rows(micro, part, 2, false);
}

void MicroBatchWriter::backward_input_experts(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  const PartBytes& bytes = bytes_[at];
  for (MicroBatch& source : micro.sources) {
    if (recompute(part) == Recompute::kFull) {
      Instruction& again = writer_.begin(OpKind::kRecompute, part, source.index, source.lane);
      again.recompute = Recompute::kFull;
      again.flops = flops_[at].recompute * tokens_;
      again.workspace_bytes = bytes.recompute_workspace;
      writer_.read(micro.hidden[at - 1]);
      read_exchanged(micro.hidden_gradient[at]);
      make_saved(source, part);
    }
    Instruction& instruction =
        writer_.begin(OpKind::kBackwardInput, part, source.index, source.lane);
    instruction.recompute = recompute(part);
    instruction.flops = flops_[at].backward_input * tokens_;
    instruction.workspace_bytes = bytes.backward_input_workspace;
    read_exchanged(micro.hidden_gradient[at]);
    writer_.read(micro.hidden[at - 1]);
    writer_.read_if_made(source.saved_input[at]);
    writer_.read_if_made(source.saved_weight[at]);
    if (micro.hidden_gradient[at - 1] == kNone) {
      make_for(
          micro, micro.hidden_gradient, part - 1, BufferKind::kHiddenGradient,
          hidden_bytes(spec_, strategy_, part - 1) + row_weights_bytes(spec_, strategy_, part));
    } else {
      writer_.write(micro.hidden_gradient[at - 1]);
    }
    if (bytes.delayed > 0)
      make_for(source, source.delayed, part, BufferKind::kDelayed, bytes.delayed);
  }
  exchange_rows(micro, part, 2, true);
}

void MicroBatchWriter::backward_weight_experts(MicroBatch& micro, int part) {
  const auto at = static_cast<size_t>(part);
  for (const MicroBatch& source : micro.sources) {
    Instruction& instruction =
        writer_.begin(OpKind::kBackwardWeight, part, source.index, source.lane);
    instruction.recompute = recompute(part);
    instruction.flops = flops_[at].backward_weight * tokens_;
    instruction.workspace_bytes = bytes_[at].backward_weight_workspace;
    writer_.read(micro.hidden_gradient[at]);
    writer_.read(micro.hidden[at - 1]);
    writer_.read_if_made(source.saved_weight[at]);
    writer_.read_if_made(source.delayed[at]);
    sums_.accumulate(source.lane, part);
    if (source.last_of_lane) sums_.lane_done(part, source.lane);
  }
}

}  // namespace trireme::plan
