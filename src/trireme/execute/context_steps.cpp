#include "trireme/execute/context_steps.h"

#include <ATen/ops/empty.h>

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

void ContextSteps::run(const plan::Instruction& instruction, const MicroBatch& micro) {
  if (instruction.kind == plan::OpKind::kForward) {
    forward(instruction, micro);
    return;
  }
  TRIREME_CHECK(micro.graph != nullptr, "{} before its forward",
                plan::describe(model_.spec(), instruction));
  switch (instruction.kind) {
    case plan::OpKind::kRecompute:
      if (instruction.phase == 1) {
        micro.graph->recompute();
      } else {
        context_of(*micro.graph).attend_again(of(instruction).keys);
      }
      break;
    case plan::OpKind::kBackwardInput:
      backward(instruction, micro);
      break;
    case plan::OpKind::kExchangeContext:
      exchange(instruction, context_of(*micro.graph));
      break;
    default:
      TRIREME_CHECK(false, "{} has no phases", plan::describe(model_.spec(), instruction));
  }
}

void ContextSteps::forward(const plan::Instruction& instruction, const MicroBatch& micro) {
  const auto part = static_cast<size_t>(instruction.part);
  if (instruction.phase == 2) {
    micro.hidden[part] = context_of(*micro.graph).attend(of(instruction).keys);
    return;
  }
  const int layer = model_.spec().parts[part].layer;
  micro.graph = model_.attention(layer).begin(micro.hidden[part - 1], micro.batch,
                                              to_save_mode(instruction.recompute));
}

void ContextSteps::backward(const plan::Instruction& instruction, const MicroBatch& micro) {
  const auto part = static_cast<size_t>(instruction.part);
  Tensors& tensors = of(instruction);
  nn::ContextGraph& context = context_of(*micro.graph);
  if (instruction.phase == 1) {
    tensors.sent = context.backward_attention(micro.gradient[part], tensors.keys);
    return;
  }
  context.take_key_gradients(tensors.received);
  micro.gradient[part - 1] = micro.graph->backward_input(micro.gradient[part]);
}

void ContextSteps::exchange(const plan::Instruction& instruction, nn::ContextGraph& context) {
  Tensors& tensors = of(instruction);
  const int64_t ranks = program_.strategy.parallel.cp;
  const int64_t mine = program_.context;
  const int64_t elements = context.packed_numel();
  if (!instruction.of_gradient) {
    tensors.keys = exchange_.empty_compute(ranks * elements);
    const at::Tensor own = tensors.keys.narrow(0, mine * elements, elements);
    context.pack_keys(own);
    exchange_.all_gather(instruction, tensors.keys,
                         std::vector<int64_t>(static_cast<size_t>(ranks), elements), own);
    return;
  }
  std::vector<int64_t> to;
  std::vector<int64_t> from;
  int64_t all = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    to.push_back(cluster::sees_second_piece(mine, rank) ? elements : elements / 2);
    from.push_back(cluster::sees_second_piece(rank, mine) ? elements : elements / 2);
    all += from.back();
  }
  tensors.received = exchange_.empty_compute(all);
  exchange_.all_to_all(instruction, tensors.received, from, tensors.sent, to);
}

void ContextSteps::free(const plan::Buffer& buffer) {
  Tensors& tensors = tensors_.at({buffer.micro_batch, buffer.part});
  if (buffer.kind == plan::BufferKind::kContextKeys) {
    tensors.keys.reset();
  } else {
    (program_.instructions[static_cast<size_t>(buffer.made_by)].resource ==
             plan::Resource::kCommunication
         ? tensors.received
         : tensors.sent)
        .reset();
  }
}

}  // namespace trireme::execute
