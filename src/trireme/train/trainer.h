// The loop: data, steps, evaluation, checkpoints, and what a run leaves behind.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trireme/comm/group.h"
#include "trireme/nn/model.h"
#include "trireme/train/preflight.h"
#include "trireme/train/report.h"
#include "trireme/train/run_config.h"

namespace trireme::train {

/// How a run is started. Everything that shapes its result is in the run file.
struct TrainOptions {
  std::string resume = "auto";  ///< "auto", "no", or a checkpoint's path
  bool quiet = false;
  /// The ranks of the run, as many as its [parallel] table says; null for one. Borrowed.
  comm::World* world = nullptr;
  std::string version;  ///< of the program, for the report
  /// Continues prompts with the trained model; text generation is another room's. Empty: no samples.
  std::function<std::vector<ReportSample>(nn::Model&, const data::Tokenizer&, const RunConfig&)>
      sample;
};

/// How a run ended.
struct TrainResult {
  int64_t step = 0;
  int64_t tokens = 0;
  double loss = 0.0;
  std::optional<double> valid_loss;
  std::optional<double> valid_bits_per_byte;
  std::vector<Baseline> baselines;
  std::vector<ReportSample> samples;
  bool was_done = false;  ///< an earlier process had finished it: nothing was done
};

/// Trains. Blocks until the run is done. Continues the run that `out` holds, bit for bit.
/// Errors: the first of inspect_run()'s problems; Error{kInterrupted} after interrupted() was set and a checkpoint
/// written; Error{kNumerical} under the policy of [loss]; Error{kData} for the disk.
/// Thread-safety: one run at a time in a process.
/// Collective over the world. Rank 0 writes what the run leaves; the others read it.
TrainResult train(const RunFile& run, const TrainOptions& options);

/// "done: valid bits per byte 1.234 (gzip -9 2.012, xz -9e 1.684 on the same files)".
std::string done_line(const TrainResult& result);

}  // namespace trireme::train
