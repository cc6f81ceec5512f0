#include "trireme/execute/micro_batch.h"

#include "trireme/base/error.h"

namespace trireme::execute {

MicroBatches::MicroBatches(const plan::Program& program, const std::vector<data::Batch>& inputs) {
  const plan::Strategy& strategy = program.strategy;
  const std::vector<int64_t> own = program.micro_batches();
  TRIREME_CHECK(inputs.size() == own.size(), "the program wants {} micro-batches and gets {}",
                own.size(), inputs.size());
  const size_t parts = program.slices.size();
  for (size_t i = 0; i < own.size(); ++i) {
    const data::Batch& input = inputs[i];
    TRIREME_CHECK(input.rows == strategy.micro && input.seq_len == strategy.seq_len,
                  "the program wants micro-batches of {} x {} and gets {} x {}", strategy.micro,
                  strategy.seq_len, input.rows, input.seq_len);
    MicroBatch& micro = all_[own[i]];
    micro.input = &input;
    micro.hidden.resize(parts);
    micro.gradient.resize(parts);
    micro.graphs.resize(parts);
    micro.states.resize(parts);
  }
}

bool MicroBatches::free(const plan::Buffer& buffer) {
  switch (buffer.kind) {
    case plan::BufferKind::kBatch: {
      // What layers of experts hand on goes with its readers, who may be weight gradients that come later.
      nn::BatchTensors left;
      left.moe = std::move(at(buffer.micro_batch).batch.moe);
      at(buffer.micro_batch).batch = std::move(left);
      return true;
    }
    case plan::BufferKind::kHidden:
      at(buffer.micro_batch).hidden.at(static_cast<size_t>(buffer.part)).reset();
      return true;
    case plan::BufferKind::kHiddenGradient:
      at(buffer.micro_batch).gradient.at(static_cast<size_t>(buffer.part)).reset();
      return true;
    default:
      return false;
  }
}

at::Tensor& MicroBatches::message(const plan::Instruction& instruction) {
  MicroBatch& micro = at(instruction.micro_batch);
  return (instruction.of_gradient ? micro.gradient : micro.hidden)
      .at(static_cast<size_t>(instruction.part));
}

std::vector<at::Tensor> MicroBatches::activations(const plan::Buffer& buffer) {
  MicroBatch& micro = at(buffer.micro_batch);
  const auto part = static_cast<size_t>(buffer.part);
  if (buffer.kind == plan::BufferKind::kHidden) return {micro.hidden.at(part)};
  return micro.graphs.at(part)->kept();
}

}  // namespace trireme::execute
