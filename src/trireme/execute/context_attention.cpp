#include "trireme/execute/context_attention.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/cluster/sequence_pieces.h"

namespace trireme::execute {

at::Tensor& ContextAttention::made(const plan::Instruction& instruction, plan::BufferKind kind) {
  for (size_t i = instruction.makes.size(); i-- > 0;) {
    const int id = instruction.makes[i];
    if (program_.buffers[static_cast<size_t>(id)].kind == kind) return tensors_[id];
  }
  TRIREME_CHECK(false, "{} makes no {}", plan::describe(spec_, instruction), to_string(kind));
}

at::Tensor ContextAttention::used(const plan::Instruction& instruction,
                                  plan::BufferKind kind) const {
  for (size_t i = instruction.uses.size(); i-- > 0;) {
    const int id = instruction.uses[i];
    if (program_.buffers[static_cast<size_t>(id)].kind == kind) return tensors_.at(id);
  }
  return {};
}

at::Tensor ContextAttention::forward(const plan::Instruction& instruction, int64_t phase,
                                     nn::ContextGraph& context) {
  if (!is_ring()) return context.attend(used(instruction, plan::BufferKind::kContextKeys));
  attend(instruction, phase, context);
  return is_last(phase) ? context.finish_ring() : at::Tensor();
}

void ContextAttention::recompute(const plan::Instruction& instruction, int64_t phase,
                                 nn::ContextGraph& context) {
  if (!is_ring()) {
    context.attend_again(used(instruction, plan::BufferKind::kContextKeys));
    return;
  }
  attend(instruction, phase, context);
  if (is_last(phase)) context.finish_ring_again();
}

void ContextAttention::attend(const plan::Instruction& instruction, int64_t phase,
                              nn::ContextGraph& context) {
  const int64_t round = phase - 2;
  if (round == 0) context.begin_ring();
  context.attend_to(used(instruction, plan::BufferKind::kContextKeys), before(round));
}

bool ContextAttention::backward(const plan::Instruction& instruction, int64_t phase,
                                nn::ContextGraph& context, const at::Tensor& gradient) {
  constexpr auto kGradients = plan::BufferKind::kContextGradients;
  if (is_ring()) {
    ring_backward(instruction, phase, context, gradient);
  } else if (phase == 1) {
    made(instruction, kGradients) =
        context.backward_attention(gradient, used(instruction, plan::BufferKind::kContextKeys));
  } else {
    context.take_key_gradients(used(instruction, kGradients));
  }
  return is_last(phase);
}

// Round by round the own keys, then those of the ranks before; gradients that have come meanwhile are of the round before.
void ContextAttention::ring_backward(const plan::Instruction& instruction, int64_t phase,
                                     nn::ContextGraph& context, const at::Tensor& gradient) {
  constexpr auto kGradients = plan::BufferKind::kContextGradients;
  const int64_t round = phase - 1;
  if (round == 0) context.begin_ring_backward(gradient);
  if (round > 1) context.add_key_gradients(used(instruction, kGradients), before(1 - round));
  if (is_last(phase)) {
    context.finish_ring_backward();
    return;
  }
  at::Tensor sent =
      context.backward_to(used(instruction, plan::BufferKind::kContextKeys), before(round));
  if (round > 0) made(instruction, kGradients) = std::move(sent);
}

void ContextAttention::exchange(const plan::Instruction& instruction, nn::ContextGraph& context) {
  is_ring() ? ring_exchange(instruction, context) : gather_exchange(instruction, context);
}

void ContextAttention::gather_exchange(const plan::Instruction& instruction,
                                       nn::ContextGraph& context) {
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
void ContextAttention::ring_exchange(const plan::Instruction& instruction,
                                     nn::ContextGraph& context) {
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
