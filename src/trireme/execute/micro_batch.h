// What a step has of each micro-batch of its rank. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/nn/head_part.h"
#include "trireme/nn/part.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

struct MicroBatch {
  const data::Batch* input = nullptr;
  nn::BatchTensors batch;
  std::vector<at::Tensor> hidden;    ///< by part: its output
  std::vector<at::Tensor> gradient;  ///< by part: the gradient of its output
  std::vector<std::unique_ptr<nn::PartGraph>> graphs;
  std::vector<nn::NormedState> states;  ///< of heads that multi-token prediction goes on from
};

/// By number in the global batch. Lives for one step. Thread-safety: the step thread only. Ownership: borrows the program and
/// `inputs`, which are the rank's in the order of Program::micro_batches(); throws Error{kInternal} where they are not of its shape.
class MicroBatches {
 public:
  MicroBatches(const plan::Program& program, const std::vector<data::Batch>& inputs);

  MicroBatch& at(int64_t index) { return all_.at(index); }
  /// What a buffer stands for, if it is a batch's, or the output of a part or its gradient: false of others.
  bool free(const plan::Buffer& buffer);
  /// What stages send each other: a part's hidden state, or its gradient.
  at::Tensor& message(const plan::Instruction& instruction);
  /// What offload moves.
  std::vector<at::Tensor> activations(const plan::Buffer& buffer);

 private:
  std::map<int64_t, MicroBatch> all_;
};

/// Instructions of parts that ranks have between them, in place of what the executor does for a part of one rank. Lives for one step.
/// Thread-safety: the step thread only.
class SharedParts {
 public:
  virtual ~SharedParts() = default;
  virtual bool executes(const plan::Instruction& instruction) const = 0;
  /// One that it executes(). A transfer is issued: it may return before that is done.
  virtual void execute(const plan::Instruction& instruction) = 0;
  /// Gives back what a buffer stands for; false if that is not here.
  virtual bool free(const plan::Buffer& buffer) = 0;
};

}  // namespace trireme::execute
