// metrics.jsonl: one JSON object a step. Format: docs/formats/metrics.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::train {

/// The figures of one optimizer step. `step` counts from 1: the number of steps done.
struct StepMetrics {
  int64_t step = 0;
  int64_t tokens = 0;  ///< since the start of the run, this step's included
  double loss = 0.0;   ///< nats per predicted token; null in the file if it is not finite
  std::optional<double> mtp_loss;  ///< the same of multi-token prediction, mean over its modules
  double grad_norm = 0.0;
  double lr = 0.0;
  double step_s = 0.0;
  double tokens_per_s = 0.0;
  double model_tflops = 0.0;  ///< 10^12 floating-point operations a second that the model needs
  int64_t peak_bytes = 0;
  double loader_exposed_s = 0.0;
  double checkpoint_stall_s = 0.0;
  int64_t page_faults = 0;
  int64_t sequences = 0;
  // Models with experts only; by MoE layer, in order.
  std::vector<std::vector<int64_t>> load;  ///< tokens that chose the expert
  int64_t dropped = 0;                     ///< choices beyond an expert's capacity, all layers
  double balance_loss = 0.0;    ///< mean over layers, without its coefficient; 1 when even
  double z_loss = 0.0;          ///< the same of the z loss
  double router_entropy = 0.0;  ///< nats, mean over tokens and layers
  bool skipped = false;         ///< left out by loss.non_finite = "skip"
  std::optional<double> valid_loss;
  std::optional<double> valid_perplexity;
  std::optional<double> valid_bits_per_byte;
};

/// The fullest expert's tokens over the mean, 1 when even.
double largest_load(const std::vector<int64_t>& load);

OrderedJson to_json(const StepMetrics& metrics);
/// nullopt if it is not an object with the keys of to_json().
std::optional<StepMetrics> metrics_from_json(const Json& json);

/// Appends to metrics.jsonl, one write a line, so that a killed run leaves at most one torn line.
/// Thread-safety: one thread. Ownership: owns the file descriptor.
class MetricsFile {
 public:
  /// Opens `path` for a run that continues after step `last_step` (0: from the start): what is
  /// there of later steps, and a torn line, is taken away. Error{kData} if it cannot be written.
  MetricsFile(const std::filesystem::path& path, int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  /// Blocks until the system has the line. Error{kData} on a full disk; the torn line is taken
  /// back.
  void append(const StepMetrics& metrics);
  /// Blocks until the disk has everything; before a checkpoint is made, so that no checkpoint is
  /// ahead of it.
  void sync();
  /// Steps that were kept from before.
  int64_t kept() const { return kept_; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  int64_t kept_ = 0;
};

/// All whole lines of the file, in order; empty if it is absent.
std::vector<StepMetrics> read_metrics(const std::filesystem::path& path);

/// The same figures for event files: "train/loss" ...
std::vector<std::pair<std::string, float>> scalars_of(const StepMetrics& metrics);

}  // namespace trireme::train
