// What a tensor parallel rank does in a step: phases of parts and what ranks exchange between them (plan/tensor_writer.h).
// Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/execute/lane_gradients.h"
#include "trireme/execute/rank_exchange.h"
#include "trireme/execute/step_figures.h"
#include "trireme/nn/split_model.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Lives during one step. Thread-safety: the step thread only. Ownership: borrows all that it is made from.
class TensorStep {
 public:
  TensorStep(const nn::SplitModel& split, const nn::ParameterStore& store,
             const plan::Program& program, RankExchange& exchange, LaneGradients& gradients,
             StepFigures& figures);

  /// What an instruction's micro-batch has; nulls where it is of none.
  struct MicroBatch {
    const data::Batch* input = nullptr;
    const nn::BatchTensors* batch = nullptr;
    std::vector<at::Tensor>* hidden = nullptr;    ///< by part
    std::vector<at::Tensor>* gradient = nullptr;  ///< by part: of the output
  };
  /// False of instructions that are the same whether parts are shared or not.
  static bool runs(const plan::Instruction& instruction);
  /// `gradient_scale`: of the loss.
  void execute(const plan::Instruction& instruction, const MicroBatch& micro,
               double gradient_scale);
  /// Of BufferKind::kTokens and kSharedGradients.
  void free(const plan::Buffer& buffer) { tensors_.erase(buffer.id); }

 private:
  /// A micro-batch's loss under way.
  struct Loss {
    nn::NormStatistics statistics;
    std::vector<at::Tensor> losses;  ///< by chunk
  };

  at::Tensor& used(const plan::Instruction& instruction, size_t place, const MicroBatch& micro);
  void keep(const plan::Instruction& instruction, size_t place, at::Tensor tensor);
  nn::SplitGraph& graph(const plan::Instruction& instruction);
  nn::GradientSink sink(const plan::Instruction& instruction,
                        const std::function<bool(size_t place)>& writes);

  void forward(const plan::Instruction& instruction, const MicroBatch& micro);
  void embedding(const plan::Instruction& instruction, const MicroBatch& micro);
  void recompute(const plan::Instruction& instruction, const MicroBatch& micro);
  void backward_input(const plan::Instruction& instruction, const MicroBatch& micro);
  void backward_weight(const plan::Instruction& instruction, const MicroBatch& micro);
  void loss(const plan::Instruction& instruction, const MicroBatch& micro, double gradient_scale);
  void gather(const plan::Instruction& instruction, const MicroBatch& micro);
  void scatter(const plan::Instruction& instruction, const MicroBatch& micro);
  void share_gradients(const plan::Instruction& instruction);
  void add_shares(const plan::Instruction& instruction);

  const nn::SplitModel& split_;
  const nn::ParameterStore& store_;
  const plan::Program& program_;
  RankExchange& exchange_;
  LaneGradients& gradients_;
  StepFigures& figures_;
  const int64_t tokens_;               ///< of a micro-batch
  std::map<int, at::Tensor> tensors_;  ///< by buffer
  std::map<std::pair<int64_t, int>, std::unique_ptr<nn::SplitGraph>>
      graphs_;                      ///< by micro-batch and part
  std::map<int64_t, Loss> losses_;  ///< by micro-batch
};

/// Error{kData} for ids that the vocabulary does not have: a rank alone cannot tell them from another's.
void check_ids(const data::Batch& batch, int64_t vocab_size);

}  // namespace trireme::execute
