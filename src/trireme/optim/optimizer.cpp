#include "trireme/optim/optimizer.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/device/device.h"
#include "trireme/kernels/ops.h"
#include "trireme/optim/muon.h"

namespace trireme::optim {
namespace {

using model::Role;

/// A piece of a parameter and where it lies in its part's flat buffers.
struct Place {
  const model::ParameterSpec* parameter;
  int64_t first;  ///< element of the parameter that the piece begins with
  int64_t count;
  int64_t offset;         ///< in weights, gradients and the first state
  int64_t second_offset;  ///< in the second state; -1 when Muon updates it
};

/// Neighbouring AdamW parameters with the same weight decay: one pass.
struct Run {
  int64_t offset;
  int64_t second_offset;
  int64_t count;
  bool decays;
};

/// What a slice of a part is made of.
struct PartLayout {
  std::vector<Place> places;
  std::vector<Run> runs;
  int64_t numel = 0;
  int64_t second_numel = 0;  ///< elements that AdamW updates
};

std::vector<PartLayout> layouts_of(const OptimizerConfig& config, const model::ModelSpec& spec,
                                   const Slices& slices) {
  std::vector<PartLayout> layouts(spec.parts.size());
  std::vector<int64_t> ends(spec.parts.size());
  for (const model::ParameterSpec& parameter : spec.parameters) {
    const auto at = static_cast<size_t>(parameter.part);
    const int64_t begin = ends[at];
    ends[at] += parameter.numel();
    const model::ElementRange slice =
        slices.empty() ? model::ElementRange{begin, ends[at]} : slices.at(at);
    const int64_t first = std::max(begin, slice.first);
    const int64_t count = std::min(ends[at], slice.last) - first;
    if (count <= 0) continue;
    const bool muon = config.kind == OptimizerKind::kMuon && uses_muon(parameter);
    const int64_t matrix = parameter.numel() / num_matrices(parameter);
    TRIREME_CHECK(!muon || ((first - begin) % matrix == 0 && count % matrix == 0),
                  "a slice cuts a matrix of {}", parameter.name);
    PartLayout& part = layouts[at];
    part.places.push_back(
        {&parameter, first - begin, count, part.numel, muon ? -1 : part.second_numel});
    if (!muon) {
      const bool joins = !part.runs.empty() && part.runs.back().decays == parameter.decays() &&
                         part.runs.back().offset + part.runs.back().count == part.numel;
      if (joins) {
        part.runs.back().count += count;
      } else {
        part.runs.push_back({part.numel, part.second_numel, count, parameter.decays()});
      }
      part.second_numel += count;
    }
    part.numel += count;
  }
  return layouts;
}

void add_views(const Place& place, const at::Tensor& first, const at::Tensor& second,
               std::vector<StateTensor>& all) {
  const auto view = [&](const at::Tensor& flat, int64_t offset) {
    const at::Tensor piece = flat.narrow(0, offset, place.count);
    return place.count == place.parameter->numel() ? piece.view(place.parameter->shape) : piece;
  };
  const std::string& name = place.parameter->name;
  if (place.second_offset < 0) {
    all.push_back({name, "momentum_buffer", view(first, place.offset), place.first});
  } else {
    all.push_back({name, "exp_avg", view(first, place.offset), place.first});
    all.push_back({name, "exp_avg_sq", view(second, place.second_offset), place.first});
  }
}

struct PartState : PartLayout {
  at::Tensor first;   ///< exp_avg, or Muon's momentum; laid out as the weights
  at::Tensor second;  ///< exp_avg_sq of the AdamW parameters, without gaps
};

/// Both optimizers: Muon for the matrices it is made for, AdamW for everything else.
class FlatOptimizer : public Optimizer {
 public:
  FlatOptimizer(const OptimizerConfig& config, const model::ModelSpec& spec, at::Device device,
                StatePlace place, const Slices& slices)
      : config_(config), spec_(spec), on_host_(place == StatePlace::kHost) {
    const auto zeros = [&](int64_t numel) {
      if (!on_host_)
        return at::zeros({numel}, at::TensorOptions().dtype(at::kFloat).device(device));
      at::Tensor states = device::get_device(device.str()).empty_pinned({numel}, at::kFloat);
      return states.zero_();
    };
    for (PartLayout& layout : layouts_of(config_, spec_, slices)) {
      PartState part{std::move(layout), {}, {}};
      part.first = zeros(part.numel);
      part.second = zeros(part.second_numel);
      parts_.push_back(std::move(part));
    }
  }

  void step(int part_index, const PartBuffers& buffers, const StepParams& params) override {
    const PartState& part = parts_.at(static_cast<size_t>(part_index));
    TRIREME_CHECK(on_host_ == !buffers.states.empty(), "part {}: the states are on the {}",
                  part_index, on_host_ ? "host" : "device");
    TRIREME_CHECK(buffers.weights.numel() == part.numel && buffers.gradients.numel() == part.numel,
                  "part {} has {} parameters, the buffers {} and {}", part_index, part.numel,
                  buffers.weights.numel(), buffers.gradients.numel());
    const at::Tensor& first = on_host_ ? buffers.states.at(0) : part.first;
    const at::Tensor& second = on_host_ ? buffers.states.at(1) : part.second;
    for (const Run& run : part.runs) step_adamw(first, second, run, buffers, params);
    for (const Place& place : part.places) {
      if (place.second_offset < 0) step_muon(first, place, buffers, params);
    }
  }

  std::vector<StateTensor> state() const override {
    std::vector<StateTensor> all;
    for (const PartState& part : parts_) {
      for (const Place& place : part.places) add_views(place, part.first, part.second, all);
    }
    return all;
  }

  std::vector<at::Tensor> part_states(int part) const override {
    const PartState& state = parts_.at(static_cast<size_t>(part));
    return {state.first, state.second};
  }

  int64_t state_bytes() const override {
    int64_t floats = 0;
    for (const PartState& part : parts_) floats += part.numel + part.second_numel;
    return 4 * floats;
  }

  int64_t workspace_bytes() const override {
    int64_t most = 0;
    for (const PartState& part : parts_) {
      for (const Place& place : part.places) {
        if (place.second_offset >= 0) continue;
        most = std::max(most, muon_workspace_bytes(*place.parameter));
      }
    }
    return most;
  }

 private:
  void step_adamw(const at::Tensor& first, const at::Tensor& second, const Run& run,
                  const PartBuffers& buffers, const StepParams& params) const {
    kernels::AdamWParams p;
    p.lr = params.lr;
    p.beta1 = config_.beta1;
    p.beta2 = config_.beta2;
    p.eps = config_.eps;
    p.weight_decay = run.decays ? config_.weight_decay : 0.0;
    p.step = params.step;
    p.gradient_scale = params.gradient_scale;
    at::Tensor weights = buffers.weights.narrow(0, run.offset, run.count);
    at::Tensor exp_avg = first.narrow(0, run.offset, run.count);
    at::Tensor exp_avg_sq = second.narrow(0, run.second_offset, run.count);
    const at::Tensor compute =
        buffers.compute.defined() ? buffers.compute.narrow(0, run.offset, run.count) : at::Tensor();
    kernels::adamw_(weights, buffers.gradients.narrow(0, run.offset, run.count), exp_avg,
                    exp_avg_sq, compute, p);
  }

  void step_muon(const at::Tensor& first, const Place& place, const PartBuffers& buffers,
                 const StepParams& params) const {
    const int64_t numel = place.parameter->numel() / num_matrices(*place.parameter);
    const int64_t matrices = place.count / numel;
    const int64_t cols = place.parameter->shape.back();
    const auto step_one = [&](int64_t i) {
      const auto view = [&](const at::Tensor& flat) {
        return flat.narrow(0, place.offset + i * numel, numel).view({numel / cols, cols});
      };
      at::Tensor weights = view(buffers.weights);
      at::Tensor momentum = view(first);
      muon_step(config_, params, place.parameter->decays(), view(buffers.gradients), weights,
                momentum);
      if (buffers.compute.defined()) {
        at::Tensor compute = view(buffers.compute);
        kernels::convert(weights, compute);
      }
    };
    // Another device has threads of its own.
    if (!buffers.weights.is_cpu() || matrices_at_once(*place.parameter) == 1) {
      for (int64_t i = 0; i < matrices; ++i) step_one(i);
      return;
    }
    // Products inside stay on the thread of their matrix.
    at::parallel_for(0, matrices, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) step_one(i);
    });
  }

  OptimizerConfig config_;
  model::ModelSpec spec_;  // owned: places point into it
  bool on_host_;
  std::vector<PartState> parts_;
};

}  // namespace

std::vector<std::string> validate(const OptimizerConfig& config) {
  std::vector<std::string> problems;
  const auto check = [&](bool good, std::string text) {
    if (!good) problems.push_back(std::move(text));
  };
  const auto ratio = [](double value) { return value >= 0.0 && value < 1.0; };
  check(ratio(config.beta1), fmt::format("betas[0] must be in [0, 1), not {}", config.beta1));
  check(ratio(config.beta2), fmt::format("betas[1] must be in [0, 1), not {}", config.beta2));
  check(config.eps >= 0.0 && std::isfinite(config.eps),
        fmt::format("eps must not be negative: {}", config.eps));
  check(config.weight_decay >= 0.0 && std::isfinite(config.weight_decay),
        fmt::format("weight_decay must not be negative: {}", config.weight_decay));
  check(ratio(config.momentum), fmt::format("momentum must be in [0, 1), not {}", config.momentum));
  check(config.ns_steps >= 1 && config.ns_steps < 100,
        fmt::format("ns_steps must be 1 .. 99, not {}", config.ns_steps));
  return problems;
}

OptimizerKind optimizer_from_name(const std::string& name) {
  if (name == "adamw") return OptimizerKind::kAdamW;
  if (name == "muon") return OptimizerKind::kMuon;
  throw Error(ErrorCode::kConfig, fmt::format("unknown optimizer \"{}\"", name),
              suggestion(name, {"adamw", "muon"}));
}

const char* to_string(OptimizerKind kind) {
  return kind == OptimizerKind::kMuon ? "muon" : "adamw";
}

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          const model::ModelSpec& spec, at::Device device,
                                          StatePlace place, const Slices& slices) {
  const auto problems = validate(config);
  TRIREME_USER_CHECK(problems.empty(), kConfig, "correct the [optim] table", "{}",
                     problems.front());
  return std::make_unique<FlatOptimizer>(config, spec, device, place, slices);
}

std::vector<StateTensor> state_views(const OptimizerConfig& config, const model::ModelSpec& spec,
                                     const std::vector<std::vector<at::Tensor>>& part_states) {
  const std::vector<PartLayout> layouts = layouts_of(config, spec, {});
  std::vector<StateTensor> all;
  for (size_t part = 0; part < layouts.size(); ++part) {
    if (!part_states.at(part).at(0).defined()) continue;
    for (const Place& place : layouts[part].places)
      add_views(place, part_states.at(part).at(0), part_states.at(part).at(1), all);
  }
  return all;
}

std::vector<StateTensor> part_state_views(const OptimizerConfig& config,
                                          const model::ModelSpec& spec, int part,
                                          const std::vector<at::Tensor>& states) {
  const PartLayout layout = layouts_of(config, spec, {})[static_cast<size_t>(part)];
  std::vector<StateTensor> all;
  for (const Place& place : layout.places) add_views(place, states.at(0), states.at(1), all);
  return all;
}

std::array<int64_t, 2> part_state_sizes(const OptimizerConfig& config, const model::ModelSpec& spec,
                                        int part) {
  const PartLayout layout = layouts_of(config, spec, {})[static_cast<size_t>(part)];
  return {layout.numel, layout.second_numel};
}

int64_t state_bytes(const OptimizerConfig& config, const model::ModelSpec& spec, int part,
                    model::ElementRange elements) {
  Slices slices(spec.parts.size());
  slices.at(static_cast<size_t>(part)) = elements;
  const PartLayout layout = layouts_of(config, spec, slices)[static_cast<size_t>(part)];
  return 4 * (layout.numel + layout.second_numel);
}

bool uses_muon(const model::ParameterSpec& parameter) {
  return parameter.is_product() && parameter.role != Role::kHead &&
         parameter.role != Role::kRouter && parameter.role != Role::kSharedExpertGate;
}

int64_t state_floats(const OptimizerConfig& config, const model::ParameterSpec& parameter) {
  return config.kind == OptimizerKind::kMuon && uses_muon(parameter) ? 1 : 2;
}

double clip_scale(double norm, double max_norm) {
  if (max_norm <= 0.0) return 1.0;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

}  // namespace trireme::optim
