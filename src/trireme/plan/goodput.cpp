#include "trireme/plan/goodput.h"

#include <algorithm>
#include <cmath>

namespace trireme::plan {

double best_interval_s(double checkpoint_s, double failures_per_s) {
  if (failures_per_s <= 0.0 || checkpoint_s <= 0.0) return 0.0;
  const double between = 1.0 / failures_per_s;
  if (checkpoint_s >= 2.0 * between) return between;
  const double ratio = std::sqrt(checkpoint_s / (2.0 * between));
  return std::sqrt(2.0 * checkpoint_s * between) * (1.0 + ratio / 3.0 + ratio * ratio / 9.0) -
         checkpoint_s;
}

double goodput_share(double interval_s, double checkpoint_s, double restart_s,
                     double failures_per_s) {
  const double segment = interval_s + checkpoint_s;
  if (failures_per_s <= 0.0) return segment > 0.0 ? interval_s / segment : 1.0;
  if (interval_s <= 0.0) return 0.0;
  // Expected time of a segment that is begun anew after every failure, and after every failed restart.
  const double expected =
      std::exp(failures_per_s * restart_s) / failures_per_s * std::expm1(failures_per_s * segment);
  return interval_s / expected;
}

Goodput goodput(const ReliabilityProfile& reliability, double accelerators, double checkpoint_s) {
  Goodput result;
  result.failures_per_s = reliability.failures_per_accelerator_hour / 3600.0 * accelerators;
  result.checkpoint_s = checkpoint_s;
  result.restart_s = reliability.restart_s;
  result.interval_s = best_interval_s(checkpoint_s, result.failures_per_s);
  // Checkpoints for nothing, or failures never: no need for an interval.
  if (result.failures_per_s <= 0.0) return result;
  const double shortest = 1.0;
  result.interval_s = std::max(result.interval_s, shortest);
  result.share =
      goodput_share(result.interval_s, checkpoint_s, result.restart_s, result.failures_per_s);
  return result;
}

TimeToTokens time_to_tokens(double tokens, double tokens_per_step, double step_s,
                            double accelerators, const ReliabilityProfile& reliability,
                            double checkpoint_s, double price) {
  TimeToTokens result;
  result.tokens = tokens;
  result.steps = std::ceil(tokens / tokens_per_step);
  result.work_s = result.steps * step_s;
  result.goodput = goodput(reliability, accelerators, checkpoint_s);
  result.wall_s = result.goodput.share > 0.0 ? result.work_s / result.goodput.share : HUGE_VAL;
  result.accelerator_hours = result.wall_s / 3600.0 * accelerators;
  result.cost = result.accelerator_hours * price;
  return result;
}

}  // namespace trireme::plan
