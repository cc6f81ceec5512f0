// Gradients of parameters by lane, as a step of one rank holds them. Internal to this room.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "trireme/execute/recorded_step.h"
#include "trireme/nn/parameter_store.h"
#include "trireme/nn/part.h"
#include "trireme/plan/program.h"

namespace trireme::execute {

/// A lane's accumulators: per part flat float32. Lives for one step. Thread-safety: the step thread only. Ownership: borrows all.
class LaneGradients {
 public:
  /// `recorded`: where accumulators stay from step to step; null: they are made.
  LaneGradients(const nn::ParameterStore& store, const plan::Program& program,
                RecordedStep* recorded);

  /// Of a kParameterGradient buffer. Not filled: the first gradient that is added overwrites it.
  void make(const plan::Buffer& buffer);
  void free(const plan::Buffer& buffer) { of(buffer.lane, buffer.part).reset(); }

  /// Where a part's gradients of a lane go. The next sink adds to what this one has written.
  nn::GradientSink sink_of(const nn::Part& part, int64_t lane);
  /// The same of `parameters`, for the entries that are written now; the others stay as they are, and are undefined in the sink.
  nn::GradientSink sink_of(const std::vector<int>& parameters, int64_t lane,
                           const std::function<bool(size_t place)>& writes);
  /// kCombineLanes: the right group's sum is added to the left's.
  void combine(const plan::Instruction& instruction);

  at::Tensor& of(int64_t lane, int part) {
    return lane_of(lane, part).gradients.at(static_cast<size_t>(part));
  }
  /// Of a part over all of the rank's lanes, once they are combined.
  const at::Tensor& finished(int part) { return of(program_.first_lane(part), part); }

 private:
  struct Lane {
    std::vector<at::Tensor> gradients;  ///< by part
    std::vector<char> written;          ///< by parameter: holds a gradient already
  };

  Lane& lane_of(int64_t lane, int part) {
    return lanes_.at(static_cast<size_t>(program_.accumulator_of(part, lane)));
  }

  const nn::ParameterStore& store_;
  const plan::Program& program_;
  RecordedStep* recorded_;
  std::vector<Lane> lanes_;
};

}  // namespace trireme::execute
