// Attentions whose sequences ranks share, as the executor runs them: their phases, and what their ranks exchange. Internal to this
// room.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>

#include "trireme/data/batch.h"
#include "trireme/execute/micro_batch.h"
#include "trireme/execute/rank_exchange.h"
#include "trireme/nn/model.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// What a rank has of a micro-batch: its pieces of every sequence, one after the other. Segments stay those of the whole sequences,
/// counts those of the whole batch.
data::Batch pieces_of(const data::Batch& batch, const plan::Program& program);
/// Tells the tensors of such a batch where they are in the sequences.
void place_pieces(nn::BatchTensors& tensors, const plan::Program& program);

/// Lives for one step. Thread-safety: the step thread only. Ownership: borrows all.
class ContextSteps final : public SharedParts {
 public:
  ContextSteps(nn::Model& model, const plan::Program& program, RankExchange& exchange,
               MicroBatches& micro_batches)
      : model_(model), program_(program), exchange_(exchange), micro_batches_(micro_batches) {}

  /// What is cut in phases, and what its ranks exchange.
  bool executes(const plan::Instruction& instruction) const override {
    return instruction.phase > 0 || instruction.kind == plan::OpKind::kExchangeContext;
  }
  void execute(const plan::Instruction& instruction) override;
  bool free(const plan::Buffer& buffer) override { return tensors_.erase(buffer.id) > 0; }

 private:
  bool is_ring() const { return program_.strategy.parallel.cp_kind == plan::ContextKind::kRing; }
  /// The rank so many places before this one in the ring.
  int64_t before(int64_t places) const {
    const int64_t ranks = program_.strategy.parallel.cp;
    return (program_.context + ranks - places) % ranks;
  }
  bool is_last(const plan::Instruction& instruction) const {
    return !is_ring() || instruction.phase == program_.strategy.parallel.cp + 1;
  }

  void forward(const plan::Instruction& instruction, MicroBatch& micro);
  /// Of the keys that the instruction reads.
  void attend(const plan::Instruction& instruction, nn::ContextGraph& context);
  void backward(const plan::Instruction& instruction, MicroBatch& micro);
  void ring_backward(const plan::Instruction& instruction, nn::ContextGraph& context,
                     const at::Tensor& gradient);
  void exchange(const plan::Instruction& instruction, nn::ContextGraph& context);
  void ring_exchange(const plan::Instruction& instruction, nn::ContextGraph& context);
  /// What an instruction makes, or the last that it reads, of a kind.
  at::Tensor& made(const plan::Instruction& instruction, plan::BufferKind kind);
  at::Tensor used(const plan::Instruction& instruction, plan::BufferKind kind) const;

  nn::Model& model_;
  const plan::Program& program_;
  RankExchange& exchange_;
  MicroBatches& micro_batches_;
  std::map<int, at::Tensor> tensors_;  ///< by buffer: keys and their gradients
};

}  // namespace trireme::execute
