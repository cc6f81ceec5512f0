// report.html: what a run did, as one self-contained page. Format: docs/formats/report.md.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trireme/train/metrics.h"

namespace trireme::train {

/// One coloured block of the timeline.
struct ReportEvent {
  std::string name;
  std::string kind;  ///< plan::to_string(OpKind): decides the colour
  double start_s = 0.0;
  double duration_s = 0.0;
};

/// One row of the timeline: a resource, measured or simulated.
struct ReportLane {
  std::string name;
  std::vector<ReportEvent> events;  ///< in order of their start
};

/// Memory after each instruction of the step, on the measured clock.
struct ReportMemoryPoint {
  double time_s = 0.0;
  int64_t measured_bytes = 0;
  int64_t predicted_bytes = 0;
};

struct ReportSample {
  std::string prompt;
  std::string text;  ///< the continuation
};

/// A compressor's bits per byte on the validation files.
struct ReportBaseline {
  std::string name;
  double bits_per_byte = 0.0;
};

/// Another run, to be drawn beside this one.
struct ReportRun {
  std::string name;
  std::vector<StepMetrics> metrics;
};

/// Everything the page shows. Empty parts are left out of the page.
struct Report {
  std::string title;     ///< the run's folder
  std::string subtitle;  ///< the model in one line
  int64_t steps = 0;     ///< that the run wants; more than metrics.size() while it is unfinished
  double gemm_tflops = 0.0;
  std::vector<StepMetrics> metrics;
  std::vector<ReportBaseline> baselines;
  std::vector<ReportRun> compared;
  int64_t traced_step = 0;
  std::vector<ReportLane> lanes;
  std::vector<ReportMemoryPoint> memory;
  std::vector<ReportSample> samples;
  std::vector<std::pair<std::string, std::string>> environment;
  std::string run_toml;
};

/// The page. Pure: no request leaves it, the same input gives the same text.
std::string report_html(const Report& report);

/// Losses of this run and of those beside it over training time: {"seconds", "runs": [{"name", "loss", "valid_loss"}]}, or
/// null without any. Private to train/.
OrderedJson comparison_json(const Report& report);

/// "a<b" as text of an HTML element or attribute.
std::string html_escape(std::string_view text);

/// Parts of the page that do not depend on the run. Private to train/.
extern const char* const kReportStyle;
extern const char* const kReportChartScript;
extern const char* const kReportTimelineScript;

}  // namespace trireme::train
