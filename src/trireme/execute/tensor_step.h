// What a tensor parallel rank does in a step: phases of parts and what ranks exchange between them (plan/tensor_writer.h).
// Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/execute/context_attention.h"
#include "trireme/execute/lane_gradients.h"
#include "trireme/execute/micro_batch.h"
#include "trireme/execute/rank_exchange.h"
#include "trireme/execute/step_figures.h"
#include "trireme/nn/split_model.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Lives during one step. Thread-safety: the step thread only. Ownership: borrows all that it is made from.
class TensorStep final : public SharedParts {
 public:
  /// `gradient_scale`: of the loss, from when it is asked for on.
  TensorStep(const nn::SplitModel& split, const nn::ParameterStore& store,
             const plan::Program& program, RankExchange& exchange, MicroBatches& micro_batches,
             LaneGradients& gradients, StepFigures& figures,
             std::function<double()> gradient_scale);

  bool executes(const plan::Instruction& instruction) const override;
  void execute(const plan::Instruction& instruction) override;
  bool free(const plan::Buffer& buffer) override {
    return tensors_.erase(buffer.id) > 0 || (context_ && context_->free(buffer));
  }

 private:
  /// A micro-batch's loss under way.
  struct Loss {
    nn::NormStatistics statistics;
    std::vector<at::Tensor> losses;  ///< by chunk
  };

  at::Tensor& used(const plan::Instruction& instruction, size_t place, MicroBatch& micro);
  void keep(const plan::Instruction& instruction, size_t place, at::Tensor tensor);
  nn::SplitGraph& graph(const plan::Instruction& instruction);
  nn::GradientSink sink(const plan::Instruction& instruction,
                        const std::function<bool(size_t place)>& writes);

  /// Phases of the part's products; the norm's is before them, and one after.
  int product_phases(const plan::Instruction& instruction) const {
    return plan::product_phases(store_.spec(), program_.strategy, instruction.part);
  }
  bool is_last(const plan::Instruction& instruction) const {
    return instruction.phase == 2 + product_phases(instruction);
  }
  bool has_context(const plan::Instruction& instruction) const {
    return product_phases(instruction) > 1;
  }

  void forward(const plan::Instruction& instruction, MicroBatch& micro);
  void multiply(const plan::Instruction& instruction, MicroBatch& micro, nn::SplitGraph& of);
  void embedding(const plan::Instruction& instruction, MicroBatch& micro);
  void recompute(const plan::Instruction& instruction, MicroBatch& micro);
  void backward_input(const plan::Instruction& instruction, MicroBatch& micro);
  void context_backward(const plan::Instruction& instruction, MicroBatch& micro,
                        nn::SplitGraph& of);
  void backward_weight(const plan::Instruction& instruction, MicroBatch& micro);
  void loss(const plan::Instruction& instruction, MicroBatch& micro);
  void gather(const plan::Instruction& instruction, MicroBatch& micro);
  void scatter(const plan::Instruction& instruction, MicroBatch& micro);
  void share_gradients(const plan::Instruction& instruction);
  void add_shares(const plan::Instruction& instruction);

  const nn::SplitModel& split_;
  const nn::ParameterStore& store_;
  const plan::Program& program_;
  RankExchange& exchange_;
  MicroBatches& micro_batches_;
  LaneGradients& gradients_;
  StepFigures& figures_;
  const std::function<double()> gradient_scale_;
  const int64_t tokens_;                     ///< of a micro-batch
  std::optional<ContextAttention> context_;  ///< of ranks that share sequences with others
  std::map<int, at::Tensor> tensors_;        ///< by buffer
  std::map<std::pair<int64_t, int>, std::unique_ptr<nn::SplitGraph>>
      graphs_;                      ///< by micro-batch and part
  std::map<int64_t, Loss> losses_;  ///< by micro-batch
};

/// Error{kData} for ids that the vocabulary does not have: a rank alone cannot tell them from another's.
void check_ids(const data::Batch& batch, int64_t vocab_size);

}  // namespace trireme::execute
