// What a run leaves behind beside metrics and checkpoints: the trace of a step, the report, the exported model.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "trireme/execute/executor.h"
#include "trireme/train/preflight.h"
#include "trireme/train/report.h"

namespace trireme::train {

/// config.json, tokenizer.json and tokenizer_config.json of the run's model, by file name; with the chat template and
/// what else the model that it begins with has beside its weights.
std::map<std::string, std::string> model_texts(const RunModel& model);

/// The measured step as Chrome trace JSON.
std::string trace_of_step(const model::ModelSpec& spec, const plan::Program& program,
                          const execute::StepResult& result, int64_t step);

/// Machine, system, libraries and choices of a run, for the report.
std::vector<std::pair<std::string, std::string>> environment(const Preflight& preflight,
                                                             const std::string& version);

/// The report of what `out` holds: metrics.jsonl, trace.json if it is there. Samples are given.
Report make_report(const Preflight& preflight, const std::filesystem::path& out,
                   std::vector<ReportSample> samples, const std::string& version);

}  // namespace trireme::train
