// Recorded work of a step: what of its program is recorded, and the tensors that it takes and gives. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/nn/part.h"
#include "trireme/plan/recorded_work.h"
#include "trireme/plan/trace.h"

namespace trireme::execute {

/// Lives from step to step. A micro-batch whose like was recorded in an earlier step, or earlier in this one, is run again; the first
/// step is not recorded, so that what is made at first use is made. Thread-safety: the step thread only. Ownership: borrows the
/// device.
class RecordedStep {
 public:
  explicit RecordedStep(device::Device& device) : device_(device) {}

  /// Collects nothing of the step before but its recorded work, which another program drops.
  void begin_step(const model::ModelSpec& spec, const plan::Program& program);

  int64_t num_recorded() const { return num_recorded_; }  ///< since begin_step()

  /// The run that begins at the instruction; null: none, or this step is not recorded.
  const plan::RecordedRun* run_at(int instruction) const;
  /// Of a kParameterGradient buffer; made at first use, float32 [elements].
  const at::Tensor& accumulator(const plan::Buffer& buffer, int64_t elements);

  /// What the step does with a micro-batch's tensors. Everything is issued to the compute queue.
  struct Access {
    std::function<at::Tensor&(const plan::Buffer&)> tensor;  ///< of a kHidden or kHiddenGradient
    nn::BatchTensors* batch = nullptr;
    std::function<void()> work;  ///< the run's instructions
  };
  /// Runs it: again, or for the first time while it is recorded. `batch` outlives the step. Returns false where the run has to be
  /// run as any other: a row of its micro-batch has several documents.
  bool run(const plan::RecordedRun& run, const Access& access);

 private:
  using Recorded = std::vector<std::unique_ptr<device::Graph>>;  ///< by run of a micro-batch

  Recorded* like(const plan::RecordedRun& run, const nn::BatchTensors& batch);
  at::Tensor& kept(const plan::Buffer& buffer, const at::Tensor& like);

  device::Device& device_;
  const plan::Program* program_ = nullptr;
  std::string program_text_;  ///< what recorded work was made for
  bool records_ = false;
  plan::RecordedWork work_;
  std::map<int, const plan::RecordedRun*> runs_;  ///< by first instruction
  std::shared_ptr<device::GraphMemory> memory_;
  std::map<std::string, Recorded> recorded_;  ///< by likeness
  std::map<int64_t, std::pair<Recorded*, size_t>>
      under_way_;  ///< by micro-batch: and how many runs of it are done
  /// What runs take and give, outside of their memory; by kind and part, of one micro-batch after the other.
  std::map<std::pair<plan::BufferKind, int>, at::Tensor> kept_;
  std::map<std::pair<int, int>, at::Tensor> accumulators_;  ///< by part and place
  at::Tensor positions_;
  int64_t num_recorded_ = 0;
};

/// A run took its first instruction's time as one: each instruction gets its share, by arithmetic.
void share_time(const plan::Program& program, const plan::RecordedRun& run,
                std::vector<plan::Measurement>& measurements);

}  // namespace trireme::execute
