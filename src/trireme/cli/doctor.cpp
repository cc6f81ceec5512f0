#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/cli/command.h"
#include "trireme/comm/plugin/collectives_library.h"
#include "trireme/device/device.h"
#include "trireme/device/machine.h"
#include "trireme/device/plugin/plugin.h"
#include "trireme/kernels/library.h"
#include "trireme/kernels/ops.h"
#include "trireme/train/device_trial.h"
#include "trireme/train/model_inspection.h"
#include "trireme/train/run_config.h"

namespace trireme::cli {

namespace {

using device::Finding;

const char* level_name(Finding::Level level) {
  switch (level) {
    case Finding::Level::kProblem:
      return "problem";
    case Finding::Level::kWarning:
      return "warning";
    case Finding::Level::kNote:
      break;
  }
  return "note";
}

OrderedJson rate_json(const std::string& name, const device::Rate& rate, const char* unit) {
  return {{"name", name},
          {"median", rate.median},
          {"min", rate.min},
          {"max", rate.max},
          {"unit", unit}};
}

OrderedJson rows_json(const std::vector<device::RowDependence>& rows) {
  OrderedJson result = OrderedJson::array();
  for (const device::RowDependence& row : rows) {
    result.push_back({{"k", row.inner}, {"differs_at_rows", row.row_counts}});
  }
  return result;
}

OrderedJson findings_json(const std::vector<Finding>& findings) {
  OrderedJson list = OrderedJson::array();
  for (const Finding& finding : findings) {
    list.push_back(
        {{"level", level_name(finding.level)}, {"what", finding.what}, {"advice", finding.advice}});
  }
  return list;
}

void print_findings(const std::vector<Finding>& findings, const char* subject) {
  bool healthy = true;
  for (const Finding& finding : findings) {
    healthy = healthy && finding.level == Finding::Level::kNote;
    fmt::print("{}: {}\n", level_name(finding.level), finding.what);
    if (!finding.advice.empty()) fmt::print("  what to do: {}\n", finding.advice);
  }
  if (healthy) fmt::print("nothing is wrong with this {}\n", subject);
}

void print_document(const device::Machine& machine, const device::MachineRates& rates,
                    const std::vector<Finding>& findings) {
  OrderedJson results = {rate_json("gemm.fp32", rates.gemm_fp32, "GFLOP/s"),
                         rate_json("gemm.bf16", rates.gemm_bf16, "GFLOP/s"),
                         rate_json("memory", rates.memory_bandwidth, "GB/s")};
  if (rates.disk_write) results.push_back(rate_json("disk_write", *rates.disk_write, "MB/s"));
  const bool ok = std::none_of(findings.begin(), findings.end(), [](const Finding& finding) {
    return finding.level == Finding::Level::kProblem;
  });
  print_json({{"ok", ok},
              {"machine", device::to_json(machine)},
              {"results", results},
              {"row_independence",
               {{"fp32",
                 {{"independent_from", device::independent_from(rates.rows_fp32)},
                  {"tested", rows_json(rates.rows_fp32)}}},
                {"bf16",
                 {{"independent_from", device::independent_from(rates.rows_bf16)},
                  {"tested", rows_json(rates.rows_bf16)}}}}},
              {"findings", findings_json(findings)}});
}

void print_rate(const char* label, const device::Rate& rate, const char* unit) {
  fmt::print("{:<14} {:.1f} {} [{:.1f} .. {:.1f}]\n", label, rate.median, unit, rate.min, rate.max);
}

void print_text(const device::Machine& machine, const device::MachineRates& rates,
                const std::vector<Finding>& findings, bool verbose) {
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / 0x1p30; };
  fmt::print("{:<14} {}, {}\n", "machine", machine.host, machine.system);
  fmt::print("{:<14} {} ({})\n", "processor", machine.processor, fmt::join(machine.features, " "));
  fmt::print("{:<14} {} usable, {} threads of torch\n", "CPUs", machine.cpus,
             machine.torch_threads);
  fmt::print("{:<14} {:.1f} GiB, {:.1f} free\n", "memory", gib(machine.memory_bytes),
             gib(machine.available_memory_bytes));
  fmt::print("{:<14} {}, BLAS {}, kernels for {}\n", "libtorch", machine.torch_version,
             machine.blas, machine.cpu_capability);
  for (const device::Machine::Device& device : machine.devices) {
    fmt::print("{:<14} {} {}{}\n", "device", device.name, device.model,
               device.usable ? "" : " (not used by this build)");
  }
  print_rate("fp32 products", rates.gemm_fp32, "GFLOP/s");
  print_rate("bf16 products", rates.gemm_bf16, "GFLOP/s");
  print_rate("memory copy", rates.memory_bandwidth, "GB/s");
  if (rates.disk_write) print_rate("disk write", *rates.disk_write, "MB/s");
  if (verbose) fmt::print("\n{}\n", machine.torch_configuration);
  fmt::print("\n");
  print_findings(findings, "machine");
}

void examine_model(const std::string& path, const GlobalOptions& options) {
  const train::ModelInspection inspection = train::inspect_model(path);
  if (options.json) {
    OrderedJson document = {{"ok", inspection.ok()}};
    document.update(train::to_json(inspection));
    document["findings"] = findings_json(inspection.findings);
    print_json(document);
  } else {
    fmt::print("{}\n", train::describe(inspection));
    print_findings(inspection.findings, "model");
  }
  TRIREME_USER_CHECK(inspection.ok(), kData, "mend what is named a problem",
                     "{} cannot be used as it is", path);
}

const char* dtype_name(c10::ScalarType dtype) {
  return dtype == c10::kFloat ? "float32" : "bfloat16";
}

/// Which kernel runs which op on a device, with those of `libraries` among them.
void list_kernels(const DeviceArguments& arguments, const std::vector<std::string>& libraries,
                  const GlobalOptions& options) {
  device::Device& device = open_device(arguments);
  kernels::load_and_choose(libraries, {});
  const std::vector<kernels::KernelRow> rows =
      kernels::registry().rows(device.torch_device().type());
  if (options.json) {
    OrderedJson list = OrderedJson::array();
    for (const kernels::KernelRow& row : rows) {
      OrderedJson candidates = OrderedJson::array();
      for (const kernels::KernelCandidate& candidate : row.candidates) {
        candidates.push_back({{"name", candidate.name},
                              {"priority", candidate.priority},
                              {"missing", candidate.missing}});
      }
      list.push_back({{"op", row.op},
                      {"device", device.type()},
                      {"dtype", dtype_name(row.dtype)},
                      {"chosen", row.chosen},
                      {"candidates", candidates}});
    }
    print_json({{"kernels", list}});
    return;
  }
  fmt::print("{:<35} {:<7} {:<9} {:<16} {}\n", "op", "device", "dtype", "kernel", "candidates");
  for (const kernels::KernelRow& row : rows) {
    std::vector<std::string> candidates;
    for (const kernels::KernelCandidate& candidate : row.candidates) {
      candidates.push_back(fmt::format(
          "{} {}{}", candidate.name, candidate.priority,
          candidate.missing.empty() ? "" : fmt::format(" (needs {})", candidate.missing)));
    }
    fmt::print("{:<35} {:<7} {:<9} {:<16} {}\n", row.op, device.type(), dtype_name(row.dtype),
               row.chosen.empty() ? "none" : row.chosen, fmt::join(candidates, ", "));
  }
}

OrderedJson contract_json(const device::Plugin& plugin) {
  OrderedJson lines = OrderedJson::array();
  for (const device::ContractLine& line : plugin.contract.lines) {
    const bool kept = line.state == device::ContractLine::State::kKept;
    lines.push_back(
        {{"what", line.what}, {"state", kept ? "kept" : "replaced"}, {"text", line.text}});
  }
  return {{"path", plugin.path.string()},
          {"name", plugin.name},
          {"named_by_library", plugin.named_by_library},
          {"devices", plugin.contract.num_devices},
          {"contract", lines}};
}

OrderedJson survey_json(const train::TrialSurvey& survey) {
  OrderedJson operators = OrderedJson::array();
  for (const device::OperatorUse& use : survey.uses) {
    operators.push_back({{"name", use.name},
                         {"where", device::to_string(use.where)},
                         {"calls", use.calls},
                         {"seconds", use.seconds},
                         {"bytes", use.bytes}});
  }
  return {{"run", survey.name},
          {"step_s", survey.step_s},
          {"cpu_s", survey.cpu_s},
          {"missing", survey.missing()},
          {"operators", operators}};
}

void print_contract(const device::Plugin& plugin) {
  fmt::print("{:<14} {}, which {} \"{}\"\n", "plug-in", plugin.path.string(),
             plugin.named_by_library ? "calls its device" : "has no name for its device, here",
             plugin.name);
  for (const device::ContractLine& line : plugin.contract.lines) {
    const bool kept = line.state == device::ContractLine::State::kKept;
    fmt::print("  {:<42} {}{}\n", line.what,
               kept ? "yes" : "no: ", kept && !line.text.empty() ? ", " + line.text : line.text);
  }
}

void print_survey(const train::TrialSurvey& survey) {
  using Where = device::OperatorUse::Where;
  std::map<Where, int64_t> count;
  for (const device::OperatorUse& use : survey.uses) ++count[use.where];
  fmt::print(
      "\na step of {}: {} operators, {} the device's own, {} made of others, {} on the CPU, {} "
      "missing\n",
      survey.name, survey.uses.size(), count[Where::kDevice], count[Where::kComposite],
      count[Where::kFallback], count[Where::kMissing]);
  if (count[Where::kFallback] + count[Where::kMissing] == 0) return;
  fmt::print("  {:<44} {:<8} {:>6} {:>9} {:>9} {:>7}\n", "operator", "runs", "calls", "ms", "MB",
             "step");
  for (const device::OperatorUse& use : survey.uses) {
    if (use.where != Where::kFallback && use.where != Where::kMissing) continue;
    fmt::print("  {:<44} {:<8} {:>6} {:>9.3f} {:>9.3f} {:>6.1f}%\n", use.name,
               use.where == Where::kMissing ? "missing" : "on CPU", use.calls, 1e3 * use.seconds,
               1e-6 * static_cast<double>(use.bytes), 100.0 * use.seconds / survey.step_s);
  }
  fmt::print("  {:.1f} ms of a step's {:.1f} ms are spent on the CPU ({:.0f} %)\n",
             1e3 * survey.cpu_s, 1e3 * survey.step_s, 100.0 * survey.cpu_s / survey.step_s);
}

/// What a device is, which operators a run needs of it, which it has, and what the others cost.
void examine_device(const DeviceArguments& arguments, const std::string& run_file,
                    const GlobalOptions& options) {
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  device::Device& device = open_device(arguments);
  const device::Plugin* plugin = device::loaded_plugin();
  const bool graphs = device.capabilities().graph_capture;
  const std::string collectives = comm::collectives_of(device.type());
  std::vector<train::TrialRun> runs;
  if (run_file.empty()) {
    kernels::load_and_choose({}, {});
    runs = train::trial_runs();
  } else {
    runs = {train::trial_of(train::load_run_file(run_file, {}))};
  }
  if (!options.json) {
    const int64_t bytes = device.total_memory_bytes();
    fmt::print("{:<14} {}: {}, {}\n", "device", device.torch_device().str(), device.name(),
               bytes > 0 ? fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 0x1p30)
                         : "memory of unknown size");
    fmt::print("{:<14} {}\n", "graphs",
               graphs ? "device.graphs records a step's work" : "it records no work");
    fmt::print("{:<14} {}\n", "collectives",
               collectives.empty() ? "through the host's memory" : collectives);
    if (plugin != nullptr) print_contract(*plugin);
  }
  OrderedJson surveys = OrderedJson::array();
  std::set<std::string> missing;
  for (const train::TrialRun& run : runs) {
    const train::TrialSurvey survey = train::survey_trial(run, device);
    for (const std::string& name : survey.missing()) missing.insert(name);
    surveys.push_back(survey_json(survey));
    if (!options.json) print_survey(survey);
  }
  if (options.json) {
    OrderedJson document = {
        {"ok", missing.empty()}, {"device", device.torch_device().str()},
        {"name", device.name()}, {"memory_bytes", device.total_memory_bytes()},
        {"graphs", graphs},      {"collectives", collectives.empty() ? "host" : collectives}};
    if (plugin != nullptr) document["plugin"] = contract_json(*plugin);
    document["runs"] = surveys;
    print_json(document);
  }
  TRIREME_USER_CHECK(missing.empty(), kDevice,
                     "a run that calls them ends with an error; the device's library adds kernels, "
                     "or a fallback to the CPU",
                     "{} has no kernel of {}", device.torch_device().str(),
                     fmt::join(missing, ", "));
}

}  // namespace

void add_doctor(CLI::App& app, GlobalOptions& options) {
  CLI::App* command = app.add_subcommand(
      "doctor", "what this machine, a device or a model is, and what is wrong with it");
  auto model = std::make_shared<std::string>();
  command->add_option(
      "MODEL_DIR", *model,
      "a Hugging Face directory, a checkpoint or a run's folder; without it the machine");
  auto folder = std::make_shared<std::string>(".");
  command->add_option("--folder", *folder, "where the disk is measured")->capture_default_str();
  auto list = std::make_shared<bool>(false);
  command->add_flag("--kernels", *list, "which kernel runs which op, and which could");
  auto device = std::make_shared<DeviceArguments>();
  add_device_options(*command, *device);
  auto libraries = std::make_shared<std::vector<std::string>>();
  command->add_option("--load", *libraries, "a library of kernels, for --kernels");
  add_global_options(*command, options, "trireme doctor");
  auto run_file = std::make_shared<std::string>();
  command->add_option("--config", *run_file,
                      "a run file, whose model and step are surveyed with --device");
  command->callback([folder, model, list, device, libraries, run_file, &options] {
    if (*list || !libraries->empty()) return list_kernels(*device, *libraries, options);
    if (!model->empty()) return examine_model(*model, options);
    if (device->name != "cpu" || !device->plugin.empty() || !run_file->empty())
      return examine_device(*device, *run_file, options);
    const device::Machine machine = device::read_machine();
    log::info("measuring for about 5 seconds ...");
    const auto product = [](const at::Tensor& x, const at::Tensor& w, at::Tensor& y) {
      kernels::linear(x, w, std::nullopt, std::nullopt, y);
    };
    const device::MachineRates rates = device::measure_machine(*folder, 5.0, product);
    const std::vector<Finding> findings = device::diagnose(machine, rates);
    if (options.json) {
      print_document(machine, rates, findings);
    } else {
      print_text(machine, rates, findings, options.verbose);
    }
  });
}

}  // namespace trireme::cli
