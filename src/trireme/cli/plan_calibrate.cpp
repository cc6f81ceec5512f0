// trireme plan calibrate
#include <fmt/core.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <memory>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/base/suggest.h"
#include "trireme/calibrate/calibration.h"
#include "trireme/cli/links.h"
#include "trireme/cli/plan_predict.h"
#include "trireme/cli/stage_line.h"
#include "trireme/device/device.h"
#include "trireme/kernels/library.h"
#include "trireme/plan/profile_text.h"
#include "trireme/plan/trace.h"
#include "trireme/plan/trace_analysis.h"
#include "trireme/train/run_setup.h"

namespace trireme::cli {

namespace {

struct CalibrateArguments {
  DeviceArguments device;
  LinkArguments links;
  std::string out;
  std::string name;
  int ranks = 2;
  int threads = 0;
  int rounds = 5;
  std::vector<std::string> precisions = {"fp32", "bf16"};
  std::vector<std::string> traces;
  std::vector<std::string> runs;
  std::vector<std::string> sets;
  std::string base = "cpu";
  std::vector<std::string> profiles;
};

constexpr double kBusy = 1.15;  ///< DeviceProfile::step_slowdown of a machine that others use

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm date{};
  gmtime_r(&now, &date);
  return fmt::format("{:04}-{:02}-{:02}", date.tm_year + 1900, date.tm_mon + 1, date.tm_mday);
}

/// "local-cpu" of "cpu" and "cpu:1".
std::string name_of(const CalibrateArguments& arguments) {
  if (!arguments.name.empty()) return arguments.name;
  return "local-" + arguments.device.name.substr(0, arguments.device.name.find(':'));
}

int64_t spans_of(const plan::InstructionRate& rate) {
  double spans = 0.0;
  for (const plan::MeasuredInstruction& one : rate.measured) spans += one.spans;
  return static_cast<int64_t>(spans);
}

OrderedJson rates_json(const plan::DeviceProfile& device) {
  OrderedJson rates = OrderedJson::array();
  for (const plan::InstructionRate& rate : device.instructions) {
    rates.push_back({{"part", rate.of.part},
                     {"kind", rate.of.kind},
                     {"type", plan::to_string(rate.of.type)},
                     {"sizes", rate.measured.size()},
                     {"spans", spans_of(rate)},
                     {"residual", rate.residual}});
  }
  return rates;
}

void print_rates(const plan::DeviceProfile& device) {
  fmt::print("{:<12} {:<26} {:<5} {:>6} {:>8} {:>9}\n", "part", "instruction", "type", "sizes",
             "spans", "residual");
  for (const plan::InstructionRate& rate : device.instructions) {
    fmt::print("{:<12} {:<26} {:<5} {:>6} {:>8} {:>8.1f}%\n", rate.of.part, rate.of.kind,
               plan::to_string(rate.of.type), rate.measured.size(), spans_of(rate),
               100.0 * rate.residual);
  }
}

/// Writes the profile, after reading it back: what is on disk is always one that the planner takes.
void write_profile(const CalibrateArguments& arguments, const plan::ClusterSpec& machine,
                   const std::string& source, const std::string& note) {
  const std::string text = plan::profile_toml(machine, source, note);
  plan::ProfileLibrary().add(text, arguments.out);
  write_file_atomically(arguments.out, text);
}

std::string use_of(const std::string& out, const std::string& name) {
  return fmt::format("trireme plan simulate run.toml --profiles {} --cluster {}", out, name);
}

void calibrate_machine(const CalibrateArguments& arguments, const GlobalOptions& options) {
  device::get_device("cpu");  // before the first tensor: memory is held and counted
  open_device(arguments.device);
  kernels::load_and_choose({}, {});
  calibrate::CalibrationOptions what;
  what.machine.device = arguments.device.name;
  what.machine.links = local_options(arguments.links, arguments.device.name);
  what.machine.threads = arguments.threads;
  what.name = name_of(arguments);
  what.ranks = arguments.ranks;
  what.rounds = arguments.rounds;
  what.precisions.clear();
  for (const std::string& precision : arguments.precisions)
    what.precisions.push_back(precision == "bf16" ? plan::Precision::kBf16
                                                  : plan::Precision::kFp32);
  for (const std::string& path : arguments.runs) {
    const train::RunFile run = train::load_run_file(path, arguments.sets);
    calibrate::StepCase& one = what.more.emplace_back();
    one.name = path;
    one.spec = train::spec_of(run);
    one.strategy = train::strategy_of(run.config, one.spec);
    // What one rank does, twice: instructions are the same however many there are.
    one.strategy.parallel = {};
    one.strategy.lanes = 2;
    one.strategy.sequences = 2 * one.strategy.micro;
  }
  StageLine line(options.quiet);
  what.progress = [&](const std::string& text) { line.show(text); };
  const calibrate::Calibration done = calibrate::calibrate(what);
  const std::string note = fmt::format(
      "What this machine takes, measured by `trireme plan calibrate` in {:.0f} s:\n"
      "{} instructions of {} steps, and kernels and links by shape.\n{}",
      done.seconds, done.spans, done.steps, use_of(arguments.out, what.name));
  write_profile(arguments, done.machine,
                calibrate::source_line(what.machine, TRIREME_VERSION, today()), note);
  const plan::DeviceProfile& device = done.machine.device;
  if (options.json) {
    OrderedJson peaks;
    for (const auto& [type, peak] : device.peak_flops) peaks[plan::to_string(type)] = peak;
    print_json({{"path", arguments.out},
                {"cluster", done.machine.name},
                {"seconds", done.seconds},
                {"spans", done.spans},
                {"steps", done.steps},
                {"peak_flops", peaks},
                {"memory_bytes_per_s", device.memory_bytes_per_s},
                {"kernel_gap_s", device.kernel_gap_s},
                {"instruction_gap_s", device.instruction_gap_s},
                {"step_overhead_s", device.step_overhead_s},
                {"step_slowdown", device.step_slowdown},
                {"link_bytes_per_s", done.machine.network.link.bytes_per_s},
                {"link_fixed_s", done.machine.network.link.fixed_s},
                {"busy_slowdown", done.machine.node.busy_slowdown},
                {"instructions", rates_json(device)}});
    return;
  }
  print_rates(device);
  for (const auto& [type, peak] : device.peak_flops)
    fmt::print("products in {}: up to {:.0f} GFLOP/s\n", plan::to_string(type), peak / 1e9);
  if (device.step_slowdown > kBusy)
    log::warning(
        "whole steps took {:.2f} times what their instructions usually do: others used this "
        "machine. The profile says what steps take on a machine as busy; calibrate again "
        "when it is idle",
        device.step_slowdown);
  if (!device.asynchronous)
    fmt::print("whole steps take {:.3f} times what their instructions usually do\n",
               device.step_slowdown);
  fmt::print("memory: {:.1f} GB/s; a kernel's launch {:.1f} us; between instructions {:.1f} us\n",
             device.memory_bytes_per_s / 1e9, device.kernel_gap_s * 1e6,
             device.instruction_gap_s * 1e6);
  if (arguments.ranks > 1)
    fmt::print("{} ranks: {:.1f} GB/s after {:.0f} us; each {:.2f} times slower than one alone\n",
               arguments.ranks, done.machine.network.link.bytes_per_s / 1e9,
               done.machine.network.link.fixed_s * 1e6, done.machine.node.busy_slowdown);
  fmt::print("{} in {:.0f} s\n{}\n", arguments.out, done.seconds, use_of(arguments.out, what.name));
}

/// The run file that stands beside a trace, or the one that was named for it.
std::string run_of(const CalibrateArguments& arguments, size_t index) {
  if (arguments.runs.size() == 1) return arguments.runs.front();
  if (!arguments.runs.empty()) return arguments.runs.at(index);
  const std::filesystem::path beside =
      std::filesystem::path(arguments.traces[index]).parent_path() / "run.toml";
  TRIREME_USER_CHECK(std::filesystem::exists(beside), kConfig, "name the run's file with --run",
                     "--from-trace {}: there is no {}", arguments.traces[index], beside.string());
  return beside.string();
}

const plan::DeviceProfile& base_device(const plan::ProfileLibrary& library,
                                       const std::string& name) {
  const auto found = library.devices.find(name);
  if (found != library.devices.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& entry : library.devices) names.push_back(entry.first);
  throw Error(ErrorCode::kConfig, fmt::format("--base {}: no such device", name),
              suggestion(name, names));
}

void calibrate_from_traces(const CalibrateArguments& arguments, const GlobalOptions& options) {
  TRIREME_USER_CHECK(arguments.runs.size() <= 1 || arguments.runs.size() == arguments.traces.size(),
                     kConfig, "give one --run for all traces, or one for each, in their order",
                     "{} run files for {} traces", arguments.runs.size(), arguments.traces.size());
  const plan::ProfileLibrary library = load_profiles(arguments.profiles);
  plan::ClusterSpec machine;
  machine.device = base_device(library, arguments.base);
  // Of another device's instructions nothing is known here.
  machine.device.instructions.clear();
  machine.device.instruction_gap_s = machine.device.step_overhead_s = 0.0;
  machine.device.step_slowdown = 1.0;
  plan::MeasuredSpans spans;
  bool in_order = true;
  std::string models;
  std::string device_name;
  for (size_t i = 0; i < arguments.traces.size(); ++i) {
    const plan::Trace trace =
        plan::parse_chrome_json(read_file(arguments.traces[i]), arguments.traces[i]);
    TRIREME_USER_CHECK(trace.source == "measured", kData,
                       "give a trace.json that a run left in its folder",
                       "{}: this step was {}, not measured", arguments.traces[i], trace.source);
    const train::RunFile file = train::load_run_file(run_of(arguments, i), arguments.sets);
    const std::string& name = file.config.device.name;
    TRIREME_USER_CHECK(device_name.empty() || name == device_name, kConfig,
                       "one profile is of one device", "{} ran on {}, the trace before it on {}",
                       arguments.traces[i], name, device_name);
    device_name = name;
    calibrate::StepCase one;
    one.name = arguments.traces[i];
    one.spec = train::spec_of(file);
    one.strategy = train::strategy_of(file.config, one.spec);
    one.strategy.sequences =
        optim::batch_sequences(train::ramp_of(file.config), std::max<int64_t>(trace.step - 1, 0));
    machine.device.asynchronous = name != "cpu";
    in_order = in_order && !machine.device.asynchronous;
    const plan::PlannedRun run = calibrate::planned_run(one, machine);
    const plan::Program program = plan::build_program(one.spec, one.strategy, trace.rank);
    const bool alone = one.strategy.parallel.world() == 1;
    spans.add(run, program, {plan::durations_of(trace, program)},
              in_order && alone ? std::vector<double>{plan::summarize(trace).step_s}
                                : std::vector<double>());
    models += (models.empty() ? "" : ", ") + trace.model;
  }
  machine.device.asynchronous = !in_order;
  machine.device.instructions = spans.rates();
  const plan::HostTimes host = spans.host_times();
  machine.device.instruction_gap_s = host.gap_s;
  machine.device.step_overhead_s = host.step_s;
  machine.name = arguments.name.empty() ? "traced-" + device_name : arguments.name;
  machine.device.name = machine.node.name = machine.network.name = machine.name;
  machine.node.accelerators = std::max(arguments.ranks, 1);
  // A trace of one rank knows no link: those of its base device's memory.
  plan::LinkProfile link;
  link.bytes_per_s = machine.device.memory_bytes_per_s / 2.0;
  machine.node.links = {link};
  machine.network.link = link;
  const std::string source = fmt::format("fitted {} by trireme {} to {} trace(s) of {}", today(),
                                         TRIREME_VERSION, arguments.traces.size(), models);
  write_profile(
      arguments, machine, source,
      fmt::format("What instructions took in {} spans of real steps; what kernels and "
                  "links do is that of \"{}\".\n{}",
                  spans.num_spans(), arguments.base, use_of(arguments.out, machine.name)));
  if (options.json) {
    print_json({{"path", arguments.out},
                {"cluster", machine.name},
                {"spans", spans.num_spans()},
                {"instruction_gap_s", host.gap_s},
                {"step_overhead_s", host.step_s},
                {"instructions", rates_json(machine.device)}});
    return;
  }
  print_rates(machine.device);
  fmt::print("{} spans of {} trace(s); between instructions {:.1f} us\n{}\n{}\n", spans.num_spans(),
             arguments.traces.size(), host.gap_s * 1e6, arguments.out,
             use_of(arguments.out, machine.name));
}

}  // namespace

void add_plan_calibrate(CLI::App& plan, GlobalOptions& options) {
  auto arguments = std::make_shared<CalibrateArguments>();
  CLI::App* command = plan.add_subcommand(
      "calibrate", "measure this machine, or fit a run's trace, and write a profile");
  add_device_options(*command, arguments->device);
  add_link_options(*command, arguments->links);
  command->add_option("--out", arguments->out, "the profile to write")->default_val("machine.toml");
  command->add_option("--name", arguments->name,
                      "of the cluster in it; local-<device> if not given");
  command->add_option("--ranks", arguments->ranks, "ranks that share the machine; 1: no links")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "of a rank, as in the run file")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "over everything that is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--precision", arguments->precisions)
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command
      ->add_option("--from-trace", arguments->traces,
                   "measure nothing: fit the trace.json of these runs")
      ->expected(1, -1);
  command->add_option("--run", arguments->runs,
                      "with --from-trace: the run files, where none stands beside the trace; else "
                      "measure their models too");
  command->add_option("--set", arguments->sets, "table.key=value, over those run files")
      ->allow_extra_args(false);
  command
      ->add_option("--base", arguments->base,
                   "with --from-trace: the device whose kernels count where the trace says nothing")
      ->capture_default_str();
  command->add_option("--profiles", arguments->profiles, "more profiles that --base may name");
  add_global_options(*command, options, "trireme plan calibrate --device cpu --out machine.toml");
  command->callback([arguments, &options] {
    if (arguments->traces.empty()) {
      calibrate_machine(*arguments, options);
    } else {
      calibrate_from_traces(*arguments, options);
    }
  });
}

}  // namespace trireme::cli
