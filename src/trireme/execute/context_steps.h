// Attentions whose sequences ranks share, as the executor runs them: their phases, and what their ranks exchange. Internal to this
// room.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "trireme/data/batch.h"
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
class ContextSteps {
 public:
  ContextSteps(nn::Model& model, const plan::Program& program, RankExchange& exchange)
      : model_(model), program_(program), exchange_(exchange) {}

  /// What the executor has of a micro-batch; by part, but for the part's own graph.
  struct MicroBatch {
    const nn::BatchTensors& batch;
    std::vector<at::Tensor>& hidden;
    std::vector<at::Tensor>& gradient;
    std::unique_ptr<nn::PartGraph>& graph;
  };

  /// Whether an instruction is one of theirs.
  static bool runs(const plan::Instruction& instruction) {
    return instruction.phase > 0 || instruction.kind == plan::OpKind::kExchangeContext;
  }
  /// An exchange is issued: it may return before it is done.
  void run(const plan::Instruction& instruction, const MicroBatch& micro);
  void free(const plan::Buffer& buffer);

 private:
  void forward(const plan::Instruction& instruction, const MicroBatch& micro);
  void backward(const plan::Instruction& instruction, const MicroBatch& micro);
  void exchange(const plan::Instruction& instruction, nn::ContextGraph& context);

  struct Tensors {
    at::Tensor keys;
    at::Tensor sent;
    at::Tensor received;
  };
  Tensors& of(const plan::Instruction& instruction) {
    return tensors_[{instruction.micro_batch, instruction.part}];
  }

  nn::Model& model_;
  const plan::Program& program_;
  RankExchange& exchange_;
  std::map<std::pair<int64_t, int>, Tensors> tensors_;
};

}  // namespace trireme::execute
