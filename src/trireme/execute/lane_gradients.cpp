#include "trireme/execute/lane_gradients.h"

#include <ATen/ops/empty.h>

#include "trireme/base/error.h"
#include "trireme/execute/rounded_sum.h"
#include "trireme/kernels/ops.h"

namespace trireme::execute {

LaneGradients::LaneGradients(const nn::ParameterStore& store, const plan::Program& program,
                             RecordedStep* recorded)
    : store_(store),
      program_(program),
      recorded_(recorded),
      lanes_(static_cast<size_t>(program.strategy.leaves())) {
  for (Lane& lane : lanes_) {
    lane.gradients.resize(static_cast<size_t>(store.num_parts()));
    lane.written.assign(static_cast<size_t>(store.num_parameters()), 0);
  }
}

void LaneGradients::make(const plan::Buffer& buffer) {
  const int64_t elements = store_.part_numel(buffer.part);
  of(buffer.lane, buffer.part) =
      recorded_ != nullptr
          ? recorded_->accumulator(buffer, elements)
          : at::empty({elements}, at::TensorOptions().dtype(at::kFloat).device(store_.device()));
}

nn::GradientSink LaneGradients::sink_of(const nn::Part& part, int64_t lane) {
  return sink_of(part.gradient_parameters(), lane, [](size_t) { return true; });
}

nn::GradientSink LaneGradients::sink_of(const std::vector<int>& parameters, int64_t lane,
                                        const std::function<bool(size_t place)>& writes) {
  nn::GradientSink sink;
  for (size_t place = 0; place < parameters.size(); ++place) {
    const int parameter = parameters[place];
    const model::ParameterSpec& spec = store_.spec().parameters[parameter];
    Lane& into = lane_of(lane, spec.part);
    const at::Tensor& flat = into.gradients.at(static_cast<size_t>(spec.part));
    if (!writes(place)) {
      sink.gradients.emplace_back();
      sink.accumulate.push_back(0);
      continue;
    }
    TRIREME_CHECK(flat.defined(), "no accumulator for {}", spec.name);
    sink.gradients.push_back(store_.view(flat, parameter));
    char& written = into.written[static_cast<size_t>(parameter)];
    sink.accumulate.push_back(written);
    written = 1;
  }
  return sink;
}

void LaneGradients::combine(const plan::Instruction& instruction) {
  at::Tensor& left = of(instruction.lane, instruction.part);
  const at::Tensor& right = of(instruction.right_lane, instruction.part);
  if (program_.strategy.rounds_sums()) {
    add_rounded(left, right);
  } else {
    kernels::add_(left, right);
  }
}

}  // namespace trireme::execute
