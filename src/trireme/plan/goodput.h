// How long a run takes when accelerators fail: checkpoint interval, goodput, days. Pure.
//
// Failures come at a constant rate, independently (exponential times between them). A run does `interval` seconds of work, writes a
// checkpoint, and goes on; a failure costs the work since the last checkpoint and a restart. J. W. Young, "A first order approximation
// to the optimum checkpoint interval", CACM 17(9), 1974; J. T. Daly, "A higher order estimate of the optimum checkpoint interval for
// restart dumps", FGCS 22(3), 2006.
#pragma once

#include "trireme/plan/profile.h"

namespace trireme::plan {

struct Goodput {
  double failures_per_s = 0.0;
  double checkpoint_s = 0.0;  ///< that the run stands still for one
  double restart_s = 0.0;
  double interval_s = 0.0;  ///< of work between two checkpoints: Daly's optimum
  double share = 1.0;       ///< of wall time that is work which lasts
};

/// Daly's estimate of the best interval; of a run whose checkpoints take longer than twice the time to a failure, that time.
double best_interval_s(double checkpoint_s, double failures_per_s);

/// Work per wall time with this interval: w / ((1/r + R) (e^{r (w + d)} - 1)), with rate r, checkpoint d, restart R (Daly, eq. 20,
/// with failures while restarting).
double goodput_share(double interval_s, double checkpoint_s, double restart_s,
                     double failures_per_s);

/// Of a run on so many accelerators whose checkpoint takes `checkpoint_s`.
Goodput goodput(const ReliabilityProfile& reliability, double accelerators, double checkpoint_s);

struct TimeToTokens {
  double tokens = 0.0;
  double steps = 0.0;
  double work_s = 0.0;  ///< without failures and checkpoints
  double wall_s = 0.0;
  Goodput goodput;
  double accelerator_hours = 0.0;
  double cost = 0.0;  ///< 0: no price given
};

/// `price`: of an accelerator and hour.
TimeToTokens time_to_tokens(double tokens, double tokens_per_step, double step_s,
                            double accelerators, const ReliabilityProfile& reliability,
                            double checkpoint_s, double price);

}  // namespace trireme::plan
