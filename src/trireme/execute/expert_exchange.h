// A step's instructions for experts that are spread over ranks. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "trireme/execute/rank_exchange.h"
#include "trireme/execute/spread_experts.h"
#include "trireme/nn/model.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Lives for one step. Thread-safety: the step thread only. Ownership: borrows all.
class ExpertExchange {
 public:
  /// What the step has of a micro-batch of this rank.
  struct Access {
    std::function<nn::MoeFlow&(int64_t micro_batch, int layer)> flow;
    std::function<at::Tensor&(int64_t micro_batch, int part)> hidden;
    std::function<at::Tensor&(int64_t micro_batch, int part)> gradient;
    std::function<nn::GradientSink(const nn::Part& part, int64_t lane)> sink;
  };

  ExpertExchange(nn::Model& model, const plan::Program& program, RankExchange& exchange,
                 Access access);

  /// Whether an instruction is one of these: then execute() does it.
  bool executes(const plan::Instruction& instruction) const;
  void execute(const plan::Instruction& instruction);
  /// Gives back what a buffer stands for; false if that is not here.
  bool free(const plan::Buffer& buffer);

 private:
  /// Of whose micro-batch the rows are, and this rank's micro-batch that they come with.
  struct Place {
    int64_t own = 0;
    size_t source = 0;
  };

  SpreadExperts& experts(int64_t own, int part);
  void exchange_rows(const plan::Instruction& instruction);
  void issued(const plan::Instruction& instruction, SpreadExperts::Transfers transfers);

  nn::Model& model_;
  const plan::Program& program_;
  RankExchange& exchange_;
  device::Device& device_;
  const Access access_;
  std::map<int64_t, Place> places_;  ///< by micro-batch of the global batch
  std::map<std::pair<int64_t, int>, SpreadExperts>
      experts_;  ///< by this rank's micro-batch and part
};

}  // namespace trireme::execute
