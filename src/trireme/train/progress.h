// The line that a person watches: one that renews itself on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "trireme/train/metrics.h"

namespace trireme::train {

/// What the line says beside the step's metrics.
struct ProgressFigures {
  int64_t steps = 0;          ///< of the run
  double gemm_tflops = 0.0;   ///< measured rate of matrix products; 0: unknown
  double seconds_left = 0.0;  ///< estimate
};

/// "step 120/2000 · loss 3.214 · 18.2k tokens/s · 71 % of GEMM · lr 3.0e-04 · 5m 12s left".
std::string progress_text(const StepMetrics& metrics, const ProgressFigures& figures);

/// "5m 12s", "2h 03m", "41s".
std::string duration_text(double seconds);
/// "18.2k", "1.25M", "312".
std::string count_text(double count);
/// "1 module, 11.5B parameters": of multi-token prediction.
std::string mtp_text(int modules, int64_t parameters);
/// "1.2 GB", "870 MB": powers of 1000.
std::string bytes_text(double bytes);

/// Writes to stderr. Thread-safety: one thread.
class Progress {
 public:
  /// `every`: steps between lines when stderr is no terminal. `quiet`: nothing at all.
  Progress(int64_t every, bool quiet);
  ~Progress();
  void show(const StepMetrics& metrics, const ProgressFigures& figures);
  /// Takes the renewing line away, so that another line can be written. Call before logging.
  void clear();

 private:
  int64_t every_;
  bool quiet_;
  bool terminal_;
  bool colour_;
  bool shown_ = false;
};

}  // namespace trireme::train
