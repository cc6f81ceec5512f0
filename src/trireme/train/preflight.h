// Everything that can be known before step 0: what a run needs, and what would fail later.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/data/open_dataset.h"
#include "trireme/plan/program.h"
#include "trireme/plan/simulate.h"
#include "trireme/train/run_config.h"
#include "trireme/train/run_setup.h"

namespace trireme::train {

/// What a run is about to do.
struct Preflight {
  RunFile run;
  RunModel model;  ///< spec is empty if a problem kept it from being read
  PrecisionChoice precision;
  data::DataPair data;
  model::ModelSpec
      local;  ///< the model as this rank has it (plan/local_spec.h); empty if the program cannot be built
  plan::Program program;  ///< of a step with the full batch; no instructions if it cannot be built
  std::vector<Baseline> baselines;

  int64_t parameters = 0;         ///< without those of multi-token prediction, as published totals
  int64_t active_parameters = 0;  ///< of them, that one token's forward pass uses
  int64_t mtp_parameters = 0;     ///< of the modules of multi-token prediction that are trained
  double flops_per_token = 0.0;   ///< forward and backward
  int64_t peak_bytes = 0;         ///< predicted
  int64_t resident_bytes = 0;     ///< of them held between steps
  int64_t host_peak_bytes = 0;    ///< most that is offloaded to the host
  std::string peak_text;          ///< where the peak is, and what is held there by kind
  /// Chosen kernels whose workspace is not known ("aten of attention"): peak_bytes is an estimate then.
  std::vector<std::string> unmodelled_kernels;
  int64_t disk_bytes = 0;  ///< largest that the run's folder will hold
  int64_t free_disk_bytes = 0;
  int64_t device_memory_bytes = 0;
  int64_t total_tokens = 0;  ///< that the run will see
  double epochs = 0.0;

  int64_t continues_after =
      -1;  ///< the step of the checkpoint that training goes on from; -1: a new run

  std::vector<Error> problems;  ///< in the order in which they would strike
};

/// Looks at everything; throws nothing for what is wrong with the run, but lists it. Tokenizes text data into the
/// cache, as the run itself would. `precision` of a resumed run is given ("fp32", "bf16"); "" measures. `rank`: whose program it
/// is.
Preflight inspect_run(const RunFile& run, const std::string& precision = "", int rank = 0);

/// Adds what `resume` (as in TrainOptions) would find wrong with the run that out holds, and fills in continues_after.
void inspect_continuation(const std::string& resume, Preflight& preflight);

/// For a person.
std::string describe(const Preflight& preflight);
/// Keys as the interface page lists them for train --dry-run, and more.
OrderedJson to_json(const Preflight& preflight);

}  // namespace trireme::train
