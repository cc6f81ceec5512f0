// A step's instructions for experts that are spread over ranks. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <utility>

#include "trireme/execute/lane_gradients.h"
#include "trireme/execute/micro_batch.h"
#include "trireme/execute/rank_exchange.h"
#include "trireme/execute/spread_experts.h"
#include "trireme/nn/model.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// Lives for one step. Thread-safety: the step thread only. Ownership: borrows all.
class ExpertExchange final : public SharedParts {
 public:
  ExpertExchange(nn::Model& model, const plan::Program& program, RankExchange& exchange,
                 MicroBatches& micro_batches, LaneGradients& gradients);

  bool executes(const plan::Instruction& instruction) const override;
  void execute(const plan::Instruction& instruction) override;
  bool free(const plan::Buffer& buffer) override;

 private:
  /// Of whose micro-batch the rows are, and this rank's micro-batch that they come with.
  struct Place {
    int64_t own = 0;
    size_t source = 0;
  };

  SpreadExperts& experts(int64_t own, int part);
  nn::MoeFlow& flow(int64_t own, int part);
  at::Tensor& hidden(int64_t own, int part);
  at::Tensor& gradient(int64_t own, int part);
  void exchange_rows(const plan::Instruction& instruction);
  void issued(const plan::Instruction& instruction, SpreadExperts::Transfers transfers);

  nn::Model& model_;
  const plan::Program& program_;
  RankExchange& exchange_;
  device::Device& device_;
  MicroBatches& micro_batches_;
  LaneGradients& gradients_;
  std::map<std::pair<int64_t, int64_t>, Place>
      places_;  ///< by leaf, and micro-batch of the global batch
  std::map<std::pair<int64_t, int>, SpreadExperts>
      experts_;  ///< by this rank's micro-batch and part
};

}  // namespace trireme::execute
