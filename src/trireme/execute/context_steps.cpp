#include "trireme/execute/context_steps.h"

#include <vector>

#include "trireme/base/error.h"
#include "trireme/execute/save_mode.h"

namespace trireme::execute {

namespace {

std::vector<cluster::PlaceRange> own_pieces(const plan::Program& program) {
  return cluster::zigzag_pieces(program.strategy.seq_len, program.strategy.parallel.cp,
                                program.context);
}

std::vector<int32_t> cut(const std::vector<int32_t>& values, int64_t rows, int64_t length,
                         const std::vector<cluster::PlaceRange>& pieces) {
  std::vector<int32_t> result;
  for (int64_t row = 0; row < rows; ++row) {
    for (const cluster::PlaceRange& piece : pieces)
      result.insert(result.end(), values.begin() + row * length + piece.first,
                    values.begin() + row * length + piece.last);
  }
  return result;
}

nn::ContextGraph& context_of(nn::PartGraph& graph) {
  nn::ContextGraph* const context = graph.context();
  TRIREME_CHECK(context != nullptr, "a part without keys to exchange");
  return *context;
}

}  // namespace

data::Batch pieces_of(const data::Batch& batch, const plan::Program& program) {
  const std::vector<cluster::PlaceRange> pieces = own_pieces(program);
  data::Batch mine;
  mine.rows = batch.rows;
  mine.seq_len = batch.seq_len / program.strategy.parallel.cp;
  mine.tokens = cut(batch.tokens, batch.rows, batch.seq_len, pieces);
  mine.targets = cut(batch.targets, batch.rows, batch.seq_len, pieces);
  mine.positions = cut(batch.positions, batch.rows, batch.seq_len, pieces);
  mine.segments = batch.segments;
  mine.num_targets = batch.num_targets;
  mine.num_bytes = batch.num_bytes;
  return mine;
}

void place_pieces(nn::BatchTensors& tensors, const plan::Program& program) {
  tensors.pieces = own_pieces(program);
  tensors.whole_len = program.strategy.seq_len;
  tensors.context_ranks = program.strategy.parallel.cp;
  tensors.context_rank = program.context;
}

void ContextSteps::execute(const plan::Instruction& instruction) {
  MicroBatch& micro = micro_batches_.at(instruction.micro_batch);
  const auto part = static_cast<size_t>(instruction.part);
  auto& graph = micro.graphs.at(part);
  const bool begins = instruction.kind == plan::OpKind::kForward && instruction.phase == 1;
  TRIREME_CHECK(begins || graph != nullptr, "{} before its forward",
                plan::describe(model_.spec(), instruction));
  switch (instruction.kind) {
    case plan::OpKind::kForward:
      if (begins) {
        const int layer = model_.spec().parts[part].layer;
        graph = model_.attention(layer).begin(micro.hidden[part - 1], micro.batch,
                                              to_save_mode(instruction.recompute));
      } else {
        micro.hidden[part] = attention_.forward(instruction, instruction.phase, context_of(*graph));
      }
      break;
    case plan::OpKind::kRecompute:
      if (instruction.phase == 1) {
        graph->recompute();
      } else {
        attention_.recompute(instruction, instruction.phase, context_of(*graph));
      }
      break;
    case plan::OpKind::kBackwardInput:
      if (attention_.backward(instruction, instruction.phase, context_of(*graph),
                              micro.gradient[part]))
        micro.gradient[part - 1] = graph->backward_input(micro.gradient[part]);
      break;
    case plan::OpKind::kExchangeContext:
      attention_.exchange(instruction, context_of(*graph));
      break;
    default:
      TRIREME_CHECK(false, "{} has no phases", plan::describe(model_.spec(), instruction));
  }
}

}  // namespace trireme::execute
