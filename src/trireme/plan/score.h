// Predictions beside published measurements: trireme plan score. Pure.
#pragma once

#include <string>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/plan/published_run.h"

namespace trireme::plan {

struct TruthFile {
  std::string name;  ///< without folder and ending
  std::string text;
};

struct ScoredRow {
  std::string row_id;
  std::string source;
  double predicted_s = 0.0;
  double low_s = 0.0;
  double high_s = 0.0;
  double left_out_s = 0.0;  ///< predicted without what the row's source has calibrated
  double measured_s = 0.0;  ///< 0: not measured
  double constant_s = 0.0;  ///< of a constant rate of operations
  double flops = 0.0;       ///< of one accelerator, the model's
  double predicted_bytes = 0.0;
  double measured_bytes = 0.0;  ///< 0: not measured
  double usable_bytes = 0.0;
  bool out_of_memory = false;
  std::string device;  ///< names of the profiles that were used
  std::string stack;
  std::string sweep;  ///< rows of one sweep: source, model, number of devices, batch, sequence
  double tokens = 0.0;
};

/// Shares, not percent; negative where there is nothing to tell.
struct SourceScore {
  std::string source;
  int rows = 0;
  int refused = 0;
  double time_mape = -1.0;
  double time_worst = -1.0;
  double time_bias = 0.0;  ///< median of predicted / measured - 1
  double left_out_mape = -1.0;
  double mem_mape = -1.0;
  double oom_balanced_accuracy = -1.0;
  double interval_coverage = -1.0;
  double constant_mape = -1.0;
  double rank_correlation = -1.0;      ///< mean over sweeps of five rows and more (Spearman)
  double regret = -1.0;                ///< of taking the row predicted best, mean over the same
  std::map<std::string, int> reasons;  ///< of refusals
};

struct Score {
  std::vector<SourceScore> sources;  ///< by name
  SourceScore overall;
  std::vector<ScoredRow> rows;
  std::vector<std::string> left_out_files;  ///< without the shared schema
};

/// Error{kData} if no file has the shared schema.
Score score(const std::vector<TruthFile>& files, const ProfileLibrary& library);

OrderedJson score_json(const Score& score, bool with_rows);
std::string describe(const Score& score, bool with_rows);

}  // namespace trireme::plan
