// A few optimizer steps of small models on a device: which operators they call there, and whether they reach the figures of the
// CPU. For `trireme doctor --device` and `trireme bench conformance`.
#pragma once

#include <string>
#include <vector>

#include "trireme/device/device.h"
#include "trireme/device/operators/operator_survey.h"
#include "trireme/model/model_spec.h"
#include "trireme/optim/optimizer.h"
#include "trireme/plan/program.h"
#include "trireme/train/run_config.h"

namespace trireme::train {

struct TrialRun {
  std::string name;  ///< "dense, fp32, adamw"
  model::ModelSpec spec;
  plan::Strategy strategy;
  optim::OptimizerConfig optimizer;
};

/// A dense model and one with experts, of some ten thousand parameters.
std::vector<TrialRun> trial_runs();

/// A run's own model, optimizer and recomputation, one short micro-batch a step.
TrialRun trial_of(const RunConfig& run, const model::ModelSpec& spec, plan::Precision precision);
/// The same of a run file, whose kernels are chosen. Error as for the run itself.
TrialRun trial_of(const RunFile& run);

struct TrialStep {
  double loss = 0.0;
  double grad_norm = 0.0;
};

/// Trains from fixed weights on fixed random tokens; the learning rate is 0.01. `weight_error` moves every weight first, up
/// or down as `draw` says, by that share of itself. Blocks. Throws what the device throws.
std::vector<TrialStep> run_trial(const TrialRun& run, at::Device device, int64_t steps = 4,
                                 double weight_error = 0.0, uint64_t draw = 0);

/// A run on a device beside the same on the CPU.
struct TrialComparison {
  std::string name;
  std::vector<TrialStep> got;
  std::vector<TrialStep> want;
  bool same_bits = false;
  /// Largest difference as a share of its bound; 0 if the bits are the same.
  double worst = 0.0;
  std::string problem;  ///< "" if every loss and gradient norm is inside its bound
};

/// Runs every float32 trial on both. Kernels that are the CPU's own give the CPU's bits. For others the bound is that of
/// backward stable kernels: each result is the exact one of inputs that are off by a share of up to
/// gamma(n) = exp(6 sqrt(n) u + n u^2 / (1 - u)) - 1, n the longest chain of operations from a weight to the loss, u = 2^-24
/// (Higham and Mary 2019, theorem 2.4, with lambda = 6). So two runs differ by no more than twice what such a change of all
/// weights makes of loss and gradient norm, once for each step so far. What it makes is measured, on the CPU, as the largest
/// of eight draws; another factor of 2 is for the draws that were not taken. Blocks for some seconds.
std::vector<TrialComparison> compare_training(device::Device& device);

/// The operators of a run's step, and its seconds.
struct TrialSurvey {
  std::string name;
  std::vector<device::OperatorUse> uses;
  double step_s = 0.0;  ///< of the host, for one step after the first
  double cpu_s = 0.0;   ///< of it, in operators that ran on the CPU
  std::vector<std::string> missing() const;
};

/// Runs two steps and surveys the second (the first for what it calls alone).
TrialSurvey survey_trial(const TrialRun& run, device::Device& device);

}  // namespace trireme::train
