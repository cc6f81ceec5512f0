// Sequences that ranks share, as the executor runs them: what of a batch is here, and attentions in phases. Internal to this room.
#pragma once

#include "trireme/data/batch.h"
#include "trireme/execute/context_attention.h"
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
      : model_(model), micro_batches_(micro_batches), attention_(model.spec(), program, exchange) {}

  /// What is cut in phases, and what its ranks exchange.
  bool executes(const plan::Instruction& instruction) const override {
    return instruction.phase > 0 || instruction.kind == plan::OpKind::kExchangeContext;
  }
  void execute(const plan::Instruction& instruction) override;
  bool free(const plan::Buffer& buffer) override { return attention_.free(buffer); }

 private:
  nn::Model& model_;
  MicroBatches& micro_batches_;
  ContextAttention attention_;
};

}  // namespace trireme::execute
