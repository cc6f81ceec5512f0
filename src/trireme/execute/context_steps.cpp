#include "trireme/execute/context_steps.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>
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

at::Tensor& ContextSteps::made(const plan::Instruction& instruction, plan::BufferKind kind) {
  for (size_t i = instruction.makes.size(); i-- > 0;) {
    const int id = instruction.makes[i];
    if (program_.buffers[static_cast<size_t>(id)].kind == kind) return tensors_[id];
  }
  TRIREME_CHECK(false, "{} makes no {}", plan::describe(model_.spec(), instruction),
                to_string(kind));
}

at::Tensor ContextSteps::used(const plan::Instruction& instruction, plan::BufferKind kind) const {
  for (size_t i = instruction.uses.size(); i-- > 0;) {
    const int id = instruction.uses[i];
    if (program_.buffers[static_cast<size_t>(id)].kind == kind) return tensors_.at(id);
  }
  return {};
}

void ContextSteps::execute(const plan::Instruction& instruction) {
  MicroBatch& micro = micro_batches_.at(instruction.micro_batch);
  if (instruction.kind == plan::OpKind::kForward) {
    forward(instruction, micro);
    return;
  }
  const auto& graph = micro.graphs.at(static_cast<size_t>(instruction.part));
  TRIREME_CHECK(graph != nullptr, "{} before its forward",
                plan::describe(model_.spec(), instruction));
  nn::ContextGraph& context = context_of(*graph);
  switch (instruction.kind) {
    case plan::OpKind::kRecompute:
      if (instruction.phase == 1) {
        graph->recompute();
        break;
      }
      if (!is_ring()) {
        context.attend_again(used(instruction, plan::BufferKind::kContextKeys));
        break;
      }
      attend(instruction, context);
      if (is_last(instruction)) context.finish_ring_again();
      break;
    case plan::OpKind::kBackwardInput:
      backward(instruction, micro);
      break;
    case plan::OpKind::kExchangeContext:
      is_ring() ? ring_exchange(instruction, context) : exchange(instruction, context);
      break;
    default:
      TRIREME_CHECK(false, "{} has no phases", plan::describe(model_.spec(), instruction));
  }
}

void ContextSteps::forward(const plan::Instruction& instruction, MicroBatch& micro) {
  const auto part = static_cast<size_t>(instruction.part);
  if (instruction.phase == 1) {
    const int layer = model_.spec().parts[part].layer;
    micro.graphs[part] = model_.attention(layer).begin(micro.hidden[part - 1], micro.batch,
                                                       to_save_mode(instruction.recompute));
    return;
  }
  nn::ContextGraph& context = context_of(*micro.graphs[part]);
  if (!is_ring()) {
    micro.hidden[part] = context.attend(used(instruction, plan::BufferKind::kContextKeys));
    return;
  }
  attend(instruction, context);
  if (is_last(instruction)) micro.hidden[part] = context.finish_ring();
}

void ContextSteps::attend(const plan::Instruction& instruction, nn::ContextGraph& context) {
  const int64_t round = instruction.phase - 2;
  if (round == 0) context.begin_ring();
  context.attend_to(used(instruction, plan::BufferKind::kContextKeys), before(round));
}

void ContextSteps::backward(const plan::Instruction& instruction, MicroBatch& micro) {
  const auto part = static_cast<size_t>(instruction.part);
  constexpr auto kGradients = plan::BufferKind::kContextGradients;
  nn::ContextGraph& context = context_of(*micro.graphs[part]);
  if (is_ring()) {
    ring_backward(instruction, context, micro.gradient[part]);
  } else if (instruction.phase == 1) {
    made(instruction, kGradients) = context.backward_attention(
        micro.gradient[part], used(instruction, plan::BufferKind::kContextKeys));
    return;
  } else {
    context.take_key_gradients(used(instruction, kGradients));
  }
  if (is_last(instruction))
    micro.gradient[part - 1] = micro.graphs[part]->backward_input(micro.gradient[part]);
}

// Round by round the own keys, then those of the ranks before; gradients that have come meanwhile are of the round before.
void ContextSteps::ring_backward(const plan::Instruction& instruction, nn::ContextGraph& context,
                                 const at::Tensor& gradient) {
  constexpr auto kGradients = plan::BufferKind::kContextGradients;
  const int64_t round = instruction.phase - 1;
  if (round == 0) context.begin_ring_backward(gradient);
  if (round > 1) context.add_key_gradients(used(instruction, kGradients), before(1 - round));
  if (is_last(instruction)) {
    context.finish_ring_backward();
    return;
  }
  at::Tensor sent =
      context.backward_to(used(instruction, plan::BufferKind::kContextKeys), before(round));
  if (round > 0) made(instruction, kGradients) = std::move(sent);
}

void ContextSteps::exchange(const plan::Instruction& instruction, nn::ContextGraph& context) {
  const int64_t ranks = program_.strategy.parallel.cp;
  const int64_t mine = program_.context;
  const int64_t elements = context.packed_numel();
  if (!instruction.of_gradient) {
    at::Tensor& keys = made(instruction, plan::BufferKind::kContextKeys);
    keys = exchange_.empty_compute(ranks * elements);
    const at::Tensor own = keys.narrow(0, mine * elements, elements);
    context.pack_keys(own);
    exchange_.all_gather(instruction, keys,
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
  at::Tensor& received = made(instruction, plan::BufferKind::kContextGradients);
  received = exchange_.empty_compute(all);
  exchange_.all_to_all(instruction, received, from,
                       used(instruction, plan::BufferKind::kContextGradients), to);
}

// Keys go to the rank behind; their gradients to the rank that has them, over as many places as the keys have come.
void ContextSteps::ring_exchange(const plan::Instruction& instruction, nn::ContextGraph& context) {
  const int64_t elements = context.packed_numel();
  const int64_t mine = program_.context;
  std::vector<int64_t> to(static_cast<size_t>(program_.strategy.parallel.cp), 0);
  std::vector<int64_t> from = to;
  at::Tensor in;
  const auto kind = instruction.of_gradient ? plan::BufferKind::kContextGradients
                                            : plan::BufferKind::kContextKeys;
  if (instruction.of_gradient) {
    const int64_t owner = before(instruction.phase);
    const int64_t reader = before(-instruction.phase);
    to[static_cast<size_t>(owner)] =
        cluster::sees_second_piece(mine, owner) ? elements : elements / 2;
    from[static_cast<size_t>(reader)] =
        cluster::sees_second_piece(reader, mine) ? elements : elements / 2;
    in = used(instruction, kind);
  } else {
    to[static_cast<size_t>(before(-1))] = from[static_cast<size_t>(before(1))] = elements;
    if (instruction.phase == 1) {
      in = tensors_[instruction.makes.front()] = exchange_.empty_compute(elements);
      context.pack_keys(in);
    } else {
      in = used(instruction, kind);
    }
  }
  at::Tensor& out = made(instruction, kind);
  out = exchange_.empty_compute(*std::ranges::max_element(from));
  exchange_.all_to_all(instruction, out, from, in, to);
}

}  // namespace trireme::execute
