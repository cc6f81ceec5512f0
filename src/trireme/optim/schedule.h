// Learning-rate schedules and batch ramp-up: pure functions of the step. No torch, no state, so a
// resumed run needs nothing but its step number.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace trireme::optim {

enum class ScheduleKind { kCosine, kLinear, kConstant, kWsd, kInverseSqrt };
enum class DecayShape {
  kLinear,
  kSqrt,
  kCosine
};  ///< of WSD's last phase; kSqrt is 1 - sqrt(x) (Haegele et al. 2024)

/// How the learning rate runs over `steps` optimizer steps.
struct ScheduleSpec {
  ScheduleKind kind = ScheduleKind::kCosine;
  double peak = 3e-4;      ///< learning rate after warm-up
  double min_ratio = 0.1;  ///< the last step's rate is min_ratio * peak (cosine, linear, wsd)
  int64_t steps = 1;       ///< optimizer steps of the run
  int64_t warmup = 0;      ///< steps of linear warm-up: step s < warmup has peak * (s + 1) / warmup
  int64_t decay_steps = 0;  ///< wsd: length of the last phase; 0: a fifth of the steps
  DecayShape decay_shape = DecayShape::kSqrt;
};

/// The learning rate of step 0 <= step < steps (0-based). Past the end it stays at the last value.
double learning_rate(const ScheduleSpec& spec, int64_t step);

/// Reasons why the schedule cannot be used; empty if it can.
std::vector<std::string> validate(const ScheduleSpec& spec);

/// Error{kConfig} naming the nearest known name otherwise. Names: cosine linear constant wsd
/// inverse-sqrt.
ScheduleKind schedule_from_name(const std::string& name);
DecayShape decay_shape_from_name(const std::string& name);
const char* to_string(ScheduleKind kind);
const char* to_string(DecayShape shape);
std::vector<std::string> schedule_names();

/// Batch ramp-up: the global batch grows from `start` to `full` sequences over the first `steps`
/// steps, in multiples of `increment` (linear in the step, rounded down). steps = 0: always `full`.
struct BatchRampSpec {
  int64_t start = 0;
  int64_t full = 0;
  int64_t increment = 1;
  int64_t steps = 0;
};
std::vector<std::string> validate(const BatchRampSpec& spec);

/// Sequences of the global batch of step `step` (0-based).
int64_t batch_sequences(const BatchRampSpec& spec, int64_t step);

/// Sequences consumed before step `step`: the sum of batch_sequences over earlier steps; O(number
/// of increments).
int64_t sequences_before(const BatchRampSpec& spec, int64_t step);

}  // namespace trireme::optim
