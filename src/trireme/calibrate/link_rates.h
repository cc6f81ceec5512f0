// What transfers between ranks of this process take.
#pragma once

#include "trireme/calibrate/step_samples.h"
#include "trireme/plan/profile.h"

namespace trireme::calibrate {

/// Latency and bandwidth of a link from times by size: seconds = fixed + bytes / rate, by least squares of relative errors. Pure.
struct LineFit {
  double fixed_s = 0.0;
  double bytes_per_s = 0.0;
};
LineFit fit_line(const std::vector<std::pair<double, double>>& bytes_and_seconds);

/// Times the transfers that programs issue among `ranks` ranks. bytes_per_s is that of the quickest kind; the shares are the others'.
/// Blocks for some seconds.
plan::LinkProfile measure_links(int ranks, const MachineUse& use, int rounds);

}  // namespace trireme::calibrate
