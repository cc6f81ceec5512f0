// Runs a plan::Program: instruction -> nn / optim / device call. Decides no schedule.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "trireme/data/batch.h"
#include "trireme/nn/model.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/plan/program.h"
#include "trireme/plan/trace.h"

namespace trireme::comm {
class World;
}
namespace trireme::device {
class Device;
}
namespace trireme::optim {
class Optimizer;
}

namespace trireme::nn {
class SplitModel;
}

namespace trireme::execute {

class DeviceCopies;
class RankExchange;
class RecordedStep;
class StateVisits;
class StepCopies;

/// Everything one step reads.
struct StepInput {
  /// The rank's micro-batches of the global batch in the order of Program::micro_batches(), all of one shape.
  std::vector<data::Batch> micro_batches;
  /// Counted targets of the whole global batch: the loss is their mean. 0: the sum over
  /// micro_batches of all ranks.
  int64_t total_targets = 0;
  /// The same of every module of multi-token prediction (data::tokens_ahead()); empty: the sums over micro_batches.
  std::vector<int64_t> total_mtp_targets;
  int64_t step = 0;  ///< zero-based number of the optimizer step; decides the bias correction
  double learning_rate = 0.0;
  double clip_norm = 0.0;  ///< global gradient norm is clipped to it; 0: no clipping
  /// Whether this rank was asked to end, asked once in the step: all ranks learn of it. Empty: no.
  std::function<bool()> stop_requested;
  /// By layer: tokens of every expert in the step before, for balancing losses over the global batch; or null.
  const std::map<int, std::vector<int64_t>>* expert_load = nullptr;
};

struct StepResult {
  double loss = 0.0;  ///< nats per counted target, mean over the global batch
  /// The same of every module of multi-token prediction over its own targets, without the loss weight.
  std::vector<double> mtp_losses;
  /// Counted targets that they are means over, of the global batch; a module without any has a loss of 0 that says nothing.
  std::vector<int64_t> mtp_targets;
  double grad_norm = 0.0;  ///< before clipping
  bool applied =
      false;  ///< false: a loss or the gradient norm was not finite; parameters are as before
  bool stop_requested = false;  ///< of any rank
  int64_t tokens = 0;           ///< sequences * seq_len, of all ranks
  int64_t num_targets = 0;
  int64_t num_bytes = 0;
  /// By MoE layer, over the global batch: sums of counts, means of losses.
  std::map<int, nn::RouterStatistics> routers;
  double seconds = 0.0;
  int64_t peak_allocated_bytes = 0;
  int64_t peak_reserved_bytes = 0;
  int64_t runs_recorded = 0;  ///< of Strategy::record: runs of instructions that were new
  int64_t runs_replayed = 0;  ///< and that recorded work did
  /// What each instruction took and held, by instruction id; bytes as the device's allocator counts
  /// them, times on the device's clock where it works while the host goes on. Of copies that run on into the next step
  /// (plan::runs_on()) the times are those of the step before, as of this one's begin; 0 where there was none.
  std::vector<plan::Measurement> measurements;
};

/// Owns the buffers of the running step and, from step to step, the host memory of what is offloaded. Thread-safety: one thread.
/// Every call blocks until the work is done, but for what settle() names. Ownership: borrows
/// model, store and optimizer.
class Executor {
 public:
  /// `world`: of programs of several ranks, and borrowed; null for one.
  Executor(nn::Model& model, nn::ParameterStore& store, optim::Optimizer& optimizer,
           comm::World* world = nullptr);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Runs one step. The program may differ from step to step (batch ramp-up); its micro-batch count
  /// and shape must be the input's. A loss or gradient norm that is not finite leaves parameters
  /// and optimizer untouched (`applied` false); what to do about it is the caller's policy. Throws
  /// Error{kInternal} for a program that does not fit the model, StepOutOfMemory (out_of_memory.h) where memory ends.
  /// Of a program of several ranks, collective over the world: all ranks run their programs of the same step.
  StepResult run_step(const plan::Program& program, const StepInput& input);

  /// With a program that keeps optimizer states on the host, the last of them may be on their way there when a step returns;
  /// with ZeRO, new weights are with their owners until the next step's forward pass. Waits for the former and gives their
  /// device memory up, and makes the weights whole: before states or weights are read, and before other work than a step wants
  /// the device's memory. Of a program of several ranks, collective over the world. Throws Error{kDevice} if the device failed
  /// or a rank is lost.
  void settle();

 private:
  class Step;
  StepCopies copies_for(const plan::Program& program, device::Device& device);
  nn::Model& model_;
  nn::ParameterStore& store_;
  optim::Optimizer& optimizer_;
  std::unique_ptr<nn::SplitModel> split_;  ///< of a tensor parallel rank
  std::unique_ptr<RankExchange> exchange_;
  std::unique_ptr<RecordedStep> recorded_;  ///< from the first program that records on
  std::unique_ptr<DeviceCopies> copies_;    ///< from the first program that offloads on
  std::unique_ptr<StateVisits> visits_;     ///< with them
};

}  // namespace trireme::execute
