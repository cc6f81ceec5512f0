#include "trireme/train/memory_advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "trireme/plan/held_memory.h"
#include "trireme/plan/simulate.h"
#include "trireme/train/run_setup.h"

namespace trireme::train {

std::vector<MemoryOption> memory_options(const RunConfig& run, const model::ModelSpec& spec,
                                         plan::Precision precision, int64_t peak_bytes) {
  std::vector<MemoryOption> options;
  const auto consider = [&](const std::string& setting, const RunConfig& changed) {
    const plan::Strategy strategy = strategy_of(changed, spec, precision);
    if (!plan::validate(spec, strategy).empty()) return;
    const int64_t peak =
        plan::simulate_in_issue_order(plan::build_program(spec, strategy)).peak_bytes;
    if (peak < peak_bytes) options.push_back({setting, peak});
  };
  using Change = std::function<void(RunConfig&)>;
  const auto recompute = [](const char* mode) -> Change {
    return [mode](RunConfig& c) { c.memory.recompute = {mode}; };
  };
  const auto activations = [](RunConfig& c) { c.memory.offload_activations = {"all"}; };
  const auto optimizer = [](RunConfig& c) { c.memory.offload_optimizer = true; };
  const std::string kSelective = "memory.recompute = \"selective\"";
  const std::string kFull = "memory.recompute = \"full\"";
  const std::string kActivations = "memory.offload_activations = \"all\"";
  const std::string kOptimizer = "memory.offload_optimizer = true";
  std::vector<std::pair<std::string, std::vector<Change>>> changes = {
      {kSelective, {recompute("selective")}}, {kFull, {recompute("full")}}};
  if (run.device.name != "cpu") {
    changes.push_back({kOptimizer, {optimizer}});
    changes.push_back({kActivations, {activations}});
    changes.push_back({kFull + ", " + kActivations, {recompute("full"), activations}});
    changes.push_back({kFull + ", " + kOptimizer, {recompute("full"), optimizer}});
    changes.push_back({kFull + ", " + kActivations + ", " + kOptimizer,
                       {recompute("full"), activations, optimizer}});
  }
  const auto changed = [&](const std::vector<Change>& all) {
    RunConfig config = run;
    for (const Change& change : all) change(config);
    return config;
  };
  for (const auto& [setting, all] : changes) consider(setting, changed(all));
  // Last: what was begun with another batch table does not go on.
  const auto& [most, everything] = changes.back();
  const auto consider_batch = [&, &most = most, &everything = everything](
                                  const std::string& setting, const Change& change) {
    consider(setting, changed({change}));
    std::vector<Change> all = everything;
    all.push_back(change);
    consider(fmt::format("{}, {}", setting, most), changed(all));
  };
  for (int64_t micro = run.batch.micro / 2; micro >= 1; micro /= 2) {
    if (run.batch.sequences % (micro * run.batch.lanes) != 0) continue;
    consider_batch(fmt::format("batch.micro = {}", micro),
                   [micro](RunConfig& c) { c.batch.micro = micro; });
  }
  // Of fewer lanes, fewer sums of gradients wait for one another.
  for (int64_t lanes = run.batch.lanes / 2; lanes >= 1; lanes /= 2) {
    consider_batch(fmt::format("batch.lanes = {}", lanes),
                   [lanes](RunConfig& c) { c.batch.lanes = lanes; });
  }
  return options;
}

std::string memory_advice(const std::vector<MemoryOption>& options, int64_t available_bytes,
                          int64_t extra_bytes) {
  std::string text;
  int shown = 0;
  for (const MemoryOption& option : options) {
    if (option.peak_bytes + extra_bytes > available_bytes || shown == 2) continue;
    text += fmt::format("{}{} needs {}, which fits", shown == 0 ? "" : "; ", option.setting,
                        plan::memory_text(option.peak_bytes + extra_bytes));
    ++shown;
  }
  if (shown > 0) return text;
  const auto least = std::ranges::min_element(options, {}, &MemoryOption::peak_bytes);
  if (least == options.end())
    return "nothing in [memory] or [batch] helps: lower data.seq_len or take a smaller model";
  return fmt::format("even {} needs {}: lower data.seq_len or take a smaller model", least->setting,
                     plan::memory_text(least->peak_bytes + extra_bytes));
}

}  // namespace trireme::train
