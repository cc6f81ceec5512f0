// Keys and values of attentions whose sequences ranks share, and their gradients: what ranks exchange of them, and what an attention
// does with those that have come. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>

#include "trireme/execute/rank_exchange.h"
#include "trireme/model/model_spec.h"
#include "trireme/nn/context_graph.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// A `phase` is one of those in which ContextWriter (plan/context_writer.h) cuts the attention, from 1 each way, whatever of its part
/// lies before them. Lives for one step. Thread-safety: the step thread only. Ownership: borrows all.
class ContextAttention {
 public:
  ContextAttention(const model::ModelSpec& spec, const plan::Program& program,
                   RankExchange& exchange)
      : spec_(spec), program_(program), exchange_(exchange) {}

  /// From phase 2 on; the attention's output with the last one, undefined before.
  at::Tensor forward(const plan::Instruction& instruction, int64_t phase,
                     nn::ContextGraph& context);
  /// The same, of full recomputation.
  void recompute(const plan::Instruction& instruction, int64_t phase, nn::ContextGraph& context);
  /// `gradient`: of the attention's output. True with the last phase: PartGraph::backward_input() is what is left of it.
  bool backward(const plan::Instruction& instruction, int64_t phase, nn::ContextGraph& context,
                const at::Tensor& gradient);
  /// A kExchangeContext.
  void exchange(const plan::Instruction& instruction, nn::ContextGraph& context);
  bool free(const plan::Buffer& buffer) { return tensors_.erase(buffer.id) > 0; }

 private:
  bool is_ring() const { return program_.strategy.parallel.cp_kind == plan::ContextKind::kRing; }
  /// The rank so many places before this one in the ring.
  int64_t before(int64_t places) const {
    const int64_t ranks = program_.strategy.parallel.cp;
    return (program_.context + ranks - places) % ranks;
  }
  bool is_last(int64_t phase) const {
    return phase == (is_ring() ? program_.strategy.parallel.cp + 1 : 2);
  }

  /// Of the keys that the instruction reads.
  void attend(const plan::Instruction& instruction, int64_t phase, nn::ContextGraph& context);
  void ring_backward(const plan::Instruction& instruction, int64_t phase, nn::ContextGraph& context,
                     const at::Tensor& gradient);
  void gather_exchange(const plan::Instruction& instruction, nn::ContextGraph& context);
  void ring_exchange(const plan::Instruction& instruction, nn::ContextGraph& context);
  /// What an instruction makes, or the last that it reads, of a kind.
  at::Tensor& made(const plan::Instruction& instruction, plan::BufferKind kind);
  at::Tensor used(const plan::Instruction& instruction, plan::BufferKind kind) const;

  const model::ModelSpec& spec_;
  const plan::Program& program_;
  RankExchange& exchange_;
  std::map<int, at::Tensor> tensors_;  ///< by buffer: keys and their gradients
};

}  // namespace trireme::execute
