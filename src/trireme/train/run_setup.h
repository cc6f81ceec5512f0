// From the values of a run file to the things that other rooms work with.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trireme/checkpoint/model_source.h"
#include "trireme/data/chat_template.h"
#include "trireme/data/open_dataset.h"
#include "trireme/data/tokenizer.h"
#include "trireme/model/model_spec.h"
#include "trireme/optim/optimizer.h"
#include "trireme/optim/schedule.h"
#include "trireme/plan/program.h"
#include "trireme/train/run_config.h"

namespace trireme::train {

/// What [model] and [tokenizer] name. Ownership: owns all of it.
struct RunModel {
  std::unique_ptr<data::Tokenizer> tokenizer;
  model::ModelSpec spec;
  std::optional<checkpoint::ModelSource> initial;  ///< where the weights come from; empty: random
  std::shared_ptr<const data::ChatTemplate> chat;  ///< of data.loss_mask = "answers"; may be null
  /// model.init stores no tensors of its modules of multi-token prediction and loss.mtp_weight is not written: `spec` is
  /// without them.
  bool mtp_left_out = false;
};

/// Opens them. Error{kConfig} or {kData} naming the key.
RunModel open_run_model(const RunFile& run);

/// The model alone, for `plan explain`.
model::ModelSpec spec_of(const RunFile& run);

/// The balancing loss that experts are trained with.
struct BalanceChoice {
  double aux_loss = 0.0;  ///< its coefficient
  std::string from;       ///< "config.json (router_aux_loss_coef)", "moe.aux_loss" ...
  std::string over;       ///< "each micro-batch", "each sequence", "the global batch"
};
/// Of `model` as open_run_model() gives it; nothing for a model without experts.
std::optional<BalanceChoice> balance_of(const RunConfig& run, const model::ModelSpec& model);

/// What [kernels] says: loads the libraries and chooses the kernels, for the rest of the process. Error{kConfig} naming
/// the key.
void choose_kernels(const RunConfig& run);

/// The [parallel] table.
plan::Parallel parallel_of(const RunConfig& run);

/// How the run is laid out. A recipe "auto" counts as fp32 here; the trainer measures first.
plan::Strategy strategy_of(const RunConfig& run, const model::ModelSpec& spec);
plan::Strategy strategy_of(const RunConfig& run, const model::ModelSpec& spec,
                           plan::Precision precision);

optim::OptimizerConfig optimizer_of(const RunConfig& run);
optim::ScheduleSpec schedule_of(const RunConfig& run);
optim::BatchRampSpec ramp_of(const RunConfig& run);
data::DataOptions data_options_of(const RunConfig& run, const RunModel& model);

/// Which precision a run takes, and what was measured for it.
struct PrecisionChoice {
  plan::Precision precision = plan::Precision::kFp32;
  double gemm_tflops = 0.0;  ///< of matrix products in the chosen precision
  std::string reason;        ///< "auto: fp32 0.12, bf16 0.05 TFLOP/s"
};

/// Measures matrix products for a fraction of a second. "auto" takes bf16 only where its products are clearly
/// faster: then less memory comes for free.
PrecisionChoice choose_precision(const std::string& recipe);

/// A compressor's bits per byte on the validation files, by name ("gzip -9", "xz -9e").
struct Baseline {
  std::string name;
  double bits_per_byte = 0.0;
};
/// data.baselines; empty if the key is. Error{kData} for a file that is not such a table.
std::vector<Baseline> read_baselines(const RunConfig& run);

}  // namespace trireme::train
