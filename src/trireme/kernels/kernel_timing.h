// Times every kernel at the shapes of one layer, for `trireme bench kernels`.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace trireme::kernels {

/// The layer whose kernels are timed: `rows` tokens in sequences of `seq_len`.
struct TimedLayer {
  int64_t rows = 2048;
  int64_t seq_len = 1024;
  int64_t hidden = 768;
  int64_t heads = 12;
  int64_t kv_heads = 4;
  int64_t feed_forward = 2048;
  int64_t vocab_size = 32000;
  c10::ScalarType dtype = c10::kFloat;
};

struct KernelTiming {
  std::string name;  ///< "rms_norm", "rms_norm_backward" ...
  std::string
      unit;  ///< "GFLOP/s" where arithmetic bounds it, "GB/s" (read and written once) where memory does
  std::vector<double> rates;  ///< one a repeat, at least three
};

/// Times each kernel for about `budget_s` seconds after a warm-up. Blocks; call from one thread.
std::vector<KernelTiming> time_kernels(const TimedLayer& layer, double budget_s = 0.3);

}  // namespace trireme::kernels
