#include "trireme/train/preflight.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "trireme/checkpoint/storage.h"
#include "trireme/comm/plugin/collectives_library.h"
#include "trireme/device/device.h"
#include "trireme/device/plugin/plugin.h"
#include "trireme/execute/model_ops.h"
#include "trireme/kernels/registry.h"
#include "trireme/model/flops.h"
#include "trireme/plan/explain_layout.h"
#include "trireme/plan/held_memory.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/program_limits.h"
#include "trireme/train/device_trial.h"
#include "trireme/train/memory_advice.h"
#include "trireme/train/progress.h"
#include "trireme/train/run_folder.h"
#include "trireme/train/train_state.h"

namespace trireme::train {

namespace {

namespace fs = std::filesystem;

/// Runs `body`; an Error becomes a problem. False if it failed.
template <typename Body>
bool attempt(std::vector<Error>& problems, Body body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kInternal) throw;
    problems.push_back(error);
    return false;
  }
}

void add(std::vector<Error>& problems, ErrorCode code, const std::string& message,
         const std::string& hint) {
  problems.push_back(Error(code, message, hint));
}

/// The folder itself, or the nearest one above it that is there.
fs::path existing_folder(fs::path path) {
  path = fs::absolute(path);
  while (!path.empty() && path.has_relative_path() && !fs::exists(path)) path = path.parent_path();
  return path;
}

int64_t folder_bytes(const fs::path& folder) {
  std::error_code ignored;
  int64_t sum = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder, ignored)) {
    if (entry.is_regular_file(ignored)) sum += static_cast<int64_t>(entry.file_size(ignored));
  }
  return sum;
}

/// The texts that are continued after the last step.
void inspect_samples(Preflight& p) {
  for (const std::string& prompt : p.run.config.sample.prompts) {
    const size_t length = p.model.tokenizer->encode(prompt).size();
    if (length == 0 && !p.model.tokenizer->eos_id()) {
      add(p.problems, ErrorCode::kConfig, "sample.prompts holds an empty text",
          "write at least one character");
    }
    if (static_cast<int64_t>(length) >= p.model.spec.max_positions) {
      add(p.problems, ErrorCode::kConfig,
          fmt::format("sample.prompts holds a text of {} tokens; the model's context is {}", length,
                      p.model.spec.max_positions),
          "shorten it");
    }
  }
}

void inspect_out(Preflight& p) {
  const fs::path out = p.run.config.out;
  const fs::path folder = existing_folder(out);
  if (!fs::is_directory(folder)) {
    add(p.problems, ErrorCode::kData,
        fmt::format("out = \"{}\": {} is not a folder", out.string(), folder.string()),
        "choose another out");
  } else if (::access(folder.c_str(), W_OK) != 0) {
    add(p.problems, ErrorCode::kData,
        fmt::format("out = \"{}\": {} cannot be written to", out.string(), folder.string()),
        "choose another out, or check who may write there");
  } else {
    std::error_code error;
    p.free_disk_bytes = static_cast<int64_t>(fs::space(folder, error).available);
  }
  if (p.run.config.hf_export.enabled && fs::exists(out / "export") &&
      !checkpoint::is_model_folder(out / "export")) {
    add(p.problems, ErrorCode::kConfig,
        fmt::format("out = \"{}\": its folder export holds more than a model", out.string()),
        "choose another out, move those files away, or set export.enabled = false");
  }
}

/// Ops whose chosen kernel is not one whose workspace the planner knows, or is told.
std::vector<std::string> unmodelled_kernels(const RunConfig& c, const model::ModelSpec& spec) {
  const std::set<std::string> used = execute::training_ops(spec, c.optim.name == "muon");
  std::set<std::string> names;
  const at::DeviceType device = device::get_device(c.device.name).torch_device().type();
  for (const kernels::KernelRow& row : kernels::registry().rows(device)) {
    if (row.chosen.empty() || row.chosen == "cpu" || row.chosen == "sim" || !used.contains(row.op))
      continue;
    if (kernels::registry().info_of_kernel(row.op, row.chosen).workspace == nullptr)
      names.insert(fmt::format("{} of {}", row.chosen, row.op));
  }
  return {names.begin(), names.end()};
}

/// A kernel that cannot be recorded would end the second step.
void inspect_recording(Preflight& p) {
  const RunConfig& c = p.run.config;
  if (!c.device.graphs) return;
  device::Device& device = device::get_device(c.device.name);
  const device::Capabilities can = device.capabilities();
  if (!can.graph_capture) return;
  const at::ScalarType dtype =
      p.precision.precision == plan::Precision::kBf16 ? at::kBFloat16 : at::kFloat;
  for (const std::string& op : execute::recorded_ops(p.model.spec)) {
    const kernels::KernelInfo* kernel =
        kernels::registry().info(op, dtype, device.torch_device().type());
    if (kernel == nullptr || kernel->recordable == kernels::Recordable::kYes ||
        (kernel->recordable == kernels::Recordable::kAsAten && can.records_aten))
      continue;
    add(p.problems, ErrorCode::kConfig,
        fmt::format("device.graphs = true, and the kernel '{}' of {} cannot be recorded on "
                    "device.name = \"{}\"",
                    kernel->name, op, c.device.name),
        fmt::format("choose another with kernels.use.{}, or leave device.graphs out", op));
  }
}

void inspect_strategy(Preflight& p, int rank) {
  const RunConfig& c = p.run.config;
  // Nothing would be relieved where the host's memory is the device's.
  for (const auto& [key, asked] :
       {std::pair{"memory.offload_activations",
                  c.memory.offload_activations != std::vector<std::string>{"none"}},
        std::pair{"memory.offload_optimizer", c.memory.offload_optimizer}}) {
    if (asked && c.device.name == "cpu") {
      add(p.problems, ErrorCode::kConfig,
          fmt::format("{} moves what the device holds to the host's memory, and device.name = "
                      "\"cpu\" has no other",
                      key),
          "leave it out, or set memory.recompute to hold less");
    }
  }
  if (c.device.graphs && !device::get_device(c.device.name).capabilities().graph_capture) {
    add(p.problems, ErrorCode::kConfig,
        fmt::format("device.graphs = true, and device.name = \"{}\" records no work",
                    c.device.name),
        "leave it out");
  }
  inspect_recording(p);
  // A micro-batch with several documents in a row would be run as ever, beside what recorded work holds.
  if (c.device.graphs && c.data.packing != "stream") {
    add(p.problems, ErrorCode::kConfig,
        fmt::format("device.graphs = true, and data.packing = \"{}\" has documents that begin "
                    "elsewhere in every batch, which cannot be recorded",
                    c.data.packing),
        "set data.packing = \"stream\", or leave device.graphs out");
  }
  const plan::Strategy strategy = strategy_of(c, p.model.spec, p.precision.precision);
  std::vector<std::string> reasons = plan::validate(p.model.spec, strategy);
  if (reasons.empty()) reasons = plan::program_limits(p.model.spec, strategy);
  for (const std::string& reason : reasons) {
    add(p.problems, ErrorCode::kConfig, reason,
        "see [batch], [data], [memory] and [parallel] in docs/run_file.md");
  }
  for (const std::string& reason : optim::validate(optimizer_of(c)))
    add(p.problems, ErrorCode::kConfig, "[optim] " + reason, "");
  for (const std::string& reason : optim::validate(schedule_of(c)))
    add(p.problems, ErrorCode::kConfig, "[schedule] " + reason, "");
  const optim::BatchRampSpec ramp = ramp_of(c);
  for (const std::string& reason : optim::validate(ramp)) {
    add(p.problems, ErrorCode::kConfig, "batch ramp-up: " + reason,
        "see batch.ramp_start in docs/run_file.md");
  }
  if (strategy.parallel.pp > 1 && strategy.parallel.schedule == plan::ScheduleKind::kText &&
      ramp.start != ramp.full && ramp.steps > 0) {
    add(p.problems, ErrorCode::kConfig,
        fmt::format("parallel.schedule = \"{}\" is for one number of micro-batches, and with "
                    "batch.ramp_start = {} it grows",
                    strategy.parallel.schedule_file, c.batch.ramp_start),
        "use a schedule that has a name, or leave batch.ramp_start out");
  }
  if (!p.problems.empty()) return;
  p.program = plan::build_program(p.model.spec, strategy, rank);
  p.local = plan::local_spec(p.model.spec, strategy.parallel, rank);
  // As the executor gives out memory.
  const plan::Simulation simulation = plan::simulate_in_issue_order(p.program);
  p.peak_bytes = simulation.peak_bytes;
  p.host_peak_bytes = simulation.host_peak_bytes;
  if (simulation.peak_instruction >= 0) {
    const plan::Instruction& peak =
        p.program.instructions[static_cast<size_t>(simulation.peak_instruction)];
    const plan::HeldMemory held = plan::held_before(p.model.spec, p.program, peak.id);
    p.peak_text = fmt::format("at {}: {}", plan::describe(p.model.spec, peak),
                              plan::describe(p.model.spec, held, p.peak_bytes - held.total()));
  }
  p.unmodelled_kernels = unmodelled_kernels(c, p.model.spec);
  p.resident_bytes = p.program.resident_bytes;
  p.total_tokens = optim::sequences_before(ramp, c.schedule.steps) * c.data.seq_len;
  // Master weights and optimizer states in a checkpoint; one more of them while the next is written, and the export.
  const int64_t weights = 4 * (p.parameters + p.mtp_parameters);
  int64_t states = 0;
  for (const int64_t bytes : strategy.optimizer_state_bytes) states += bytes;
  const int64_t saves =
      c.checkpoint.every > 0 ? (c.schedule.steps + c.checkpoint.every - 1) / c.checkpoint.every : 1;
  p.disk_bytes = (std::min(c.checkpoint.keep, saves) + 1) * (weights + states) +
                 (c.hf_export.enabled ? weights : 0);
  // A checkpoint is written from a copy in the host's memory while training goes on.
  const int64_t copy = c.device.name == "cpu" ? weights + states : 0;
  const int64_t needed = p.peak_bytes + copy;
  if (p.device_memory_bytes > 0 && needed > p.device_memory_bytes) {
    const auto bytes = [](int64_t n) { return bytes_text(static_cast<double>(n)); };
    const std::string while_saving =
        copy == 0 ? "" : fmt::format(", and {} while a checkpoint is written", bytes(needed));
    add(p.problems, ErrorCode::kConfig,
        fmt::format("a step needs {} of memory{}; the device has {}", bytes(p.peak_bytes),
                    while_saving, bytes(p.device_memory_bytes)),
        memory_advice(memory_options(c, p.model.spec, p.precision.precision, p.peak_bytes),
                      p.device_memory_bytes - copy));
  }
  // What the run wrote before makes room for what comes.
  const int64_t written =
      folder_bytes(fs::path(c.out) / "checkpoints") + folder_bytes(fs::path(c.out) / "export");
  if (p.free_disk_bytes > 0 && p.disk_bytes - written > p.free_disk_bytes) {
    add(p.problems, ErrorCode::kData,
        fmt::format("out = \"{}\": checkpoints and export need {}; {} are free", c.out,
                    bytes_text(static_cast<double>(p.disk_bytes)),
                    bytes_text(static_cast<double>(p.free_disk_bytes))),
        "lower checkpoint.keep, or choose an out on a larger disk");
  }
}

void inspect_data(Preflight& p) {
  const RunConfig& c = p.run.config;
  if (!attempt(p.problems, [&] {
        p.data = data::open_data(data_options_of(c, p.model), p.model.tokenizer.get());
      }))
    return;
  for (const auto& [name, dataset] :
       {std::pair{"data.train", p.data.train}, std::pair{"data.valid", p.data.valid}}) {
    if (dataset == nullptr || p.model.spec.vocab_size == 0) continue;
    if (dataset->max_id() >= p.model.spec.vocab_size) {
      add(p.problems, ErrorCode::kData,
          fmt::format("{} holds id {}, but the model has a vocabulary of {}", name,
                      dataset->max_id(), p.model.spec.vocab_size),
          "use the tokenizer that the data was made with, or raise model.vocab_size");
    }
  }
  if (p.data.train != nullptr) {
    // A run may go through its data many times; less than one window is no data at all.
    if (p.data.train->num_tokens() < c.data.seq_len + 1) {
      add(p.problems, ErrorCode::kData,
          fmt::format(
              "data.train holds {} tokens, less than one window of data.seq_len = {} and one more",
              p.data.train->num_tokens(), c.data.seq_len),
          "give more data or lower data.seq_len");
    }
    const double windows = static_cast<double>(std::max<int64_t>(1, p.data.train->num_windows()));
    p.epochs = static_cast<double>(p.total_tokens) / static_cast<double>(c.data.seq_len) / windows;
  }
  attempt(p.problems, [&] { p.baselines = read_baselines(c); });
}

/// A device without a fallback to the CPU must have every operator that a step calls: a short one is tried, which holds less
/// than the run's own. All that are missing are named at once, and not each by the step that it ends.
void inspect_operators(Preflight& p) {
  const device::Plugin* plugin = device::loaded_plugin();
  if (plugin == nullptr || plugin->contract.falls_back) return;
  device::Device& device = device::get_device(p.run.config.device.name);
  const TrialSurvey survey =
      survey_trial(trial_of(p.run.config, p.model.spec, p.precision.precision), device);
  const std::vector<std::string> missing = survey.missing();
  if (missing.empty()) return;
  add(p.problems, ErrorCode::kDevice,
      fmt::format("device.name = \"{}\" has no kernel of {}, which a step of this run calls",
                  p.run.config.device.name, fmt::join(missing, ", ")),
      "its library adds kernels, or a fallback to the CPU; `trireme doctor --device` lists what it "
      "has");
}

}  // namespace

Preflight inspect_run(const RunFile& run, const std::string& precision, int rank) {
  Preflight p;
  p.run = run;
  inspect_out(p);
  // Kernels are chosen for the devices that there are.
  attempt(p.problems, [&] {
    device::use_plugin(run.config.device.name, run.config.device.plugin);
    p.device_memory_bytes = device::get_device(run.config.device.name).total_memory_bytes();
    comm::use_collectives(run.config.device.name, run.config.device.collectives);
  });
  attempt(p.problems, [&] { choose_kernels(run.config); });
  const std::string recipe = precision.empty() ? run.config.precision.recipe : precision;
  p.precision = choose_precision(recipe);
  if (run.config.precision.recipe == "auto") {
    p.run.config.precision.recipe = plan::to_string(p.precision.precision);
    p.run.origins["precision.recipe"] = {
        Origin::Kind::kDerived, precision.empty() ? p.precision.reason : "auto, as before"};
  }
  if (attempt(p.problems, [&] { p.model = open_run_model(run); })) {
    if (p.model.mtp_left_out) {
      p.run.config.loss.mtp_weight = 0.0;
      p.run.origins["loss.mtp_weight"] = {Origin::Kind::kDerived,
                                          "model.init has no tensors of these layers"};
    }
    if (const auto balance = balance_of(run.config, p.model.spec);
        balance && !is_written(run, "moe.aux_loss")) {
      p.run.origins["moe.aux_loss"] = {
          Origin::Kind::kDerived, fmt::format("{}, from {}", balance->aux_loss, balance->from)};
    }
    p.mtp_parameters = p.model.spec.num_mtp_parameters();
    p.parameters = p.model.spec.num_parameters() - p.mtp_parameters;
    p.active_parameters = p.model.spec.num_active_parameters();
    p.flops_per_token = model::flops_per_token(p.model.spec, run.config.data.seq_len).model();
    if (p.model.tokenizer->vocab_size() > p.model.spec.vocab_size) {
      add(p.problems, ErrorCode::kConfig,
          fmt::format(
              "tokenizer.path = \"{}\" has ids up to {}, but the model has a vocabulary of {}",
              run.config.tokenizer.path, p.model.tokenizer->vocab_size() - 1,
              p.model.spec.vocab_size),
          "use the model's own tokenizer, or raise the model's vocab_size");
    }
    attempt(p.problems, [&] { inspect_strategy(p, rank); });
    inspect_samples(p);
  }
  if (p.model.tokenizer != nullptr) inspect_data(p);
  if (p.problems.empty()) attempt(p.problems, [&] { inspect_operators(p); });
  return p;
}

void inspect_continuation(const std::string& resume, Preflight& p) {
  attempt(p.problems, [&] {
    const auto path = checkpoint_to_resume(p.run.config.out, resume);
    if (!path) return;
    const checkpoint::Checkpoint from(*path);
    check_same_run(from, p.run);
    p.continues_after = train_state_from_json(from.train_state(), path->string()).step;
  });
}

std::string describe(const Preflight& p) {
  const RunConfig& c = p.run.config;
  std::string text = effective_toml(p.run);
  const auto bytes = [](int64_t n) { return bytes_text(static_cast<double>(n)); };
  text += "\n";
  if (p.parameters > 0) {
    text += fmt::format("model      {} of {} parameters in {} layers, {} operations a token ({})\n",
                        p.model.spec.family, count_text(static_cast<double>(p.parameters)),
                        p.model.spec.num_main_layers(), count_text(p.flops_per_token),
                        p.precision.reason);
    if (p.mtp_parameters > 0) {
      const char* from = !p.model.initial            ? ""
                         : p.model.initial->form.mtp ? ", stored"
                                                     : ", not stored";
      text += fmt::format("           multi-token prediction: {}{}\n",
                          mtp_text(p.model.spec.num_mtp_layers, p.mtp_parameters), from);
    }
  }
  if (const auto balance = balance_of(c, p.model.spec)) {
    text +=
        balance->aux_loss > 0.0
            ? fmt::format("experts    balancing loss over {}, coefficient {} from {}\n",
                          balance->over, balance->aux_loss, balance->from)
            : fmt::format("experts    no balancing loss: coefficient 0 from {}\n", balance->from);
  }
  if (!p.program.instructions.empty()) {
    text += fmt::format(
        "plan       {} steps of {} sequences: {} micro-batches in {} lanes, {} instructions a "
        "step\n",
        c.schedule.steps, c.batch.sequences, p.program.strategy.micro_batches(), c.batch.lanes,
        p.program.instructions.size());
    text += plan::explain_layout(p.model.spec, p.program.strategy);
    text +=
        fmt::format("memory     {} at the peak of a step, {} between steps; the {} has {}\n",
                    bytes(p.peak_bytes), bytes(p.resident_bytes),
                    c.device.name == "cpu" ? "machine" : "device", bytes(p.device_memory_bytes));
    if (!p.peak_text.empty()) text += fmt::format("           {}\n", p.peak_text);
    if (p.host_peak_bytes > 0)
      text += fmt::format("           {} in the host's memory\n", bytes(p.host_peak_bytes));
    if (!p.unmodelled_kernels.empty()) {
      text += fmt::format(
          "           an estimate: what kernels hold while they run is not known of {}\n",
          fmt::join(p.unmodelled_kernels, ", "));
    }
    if (p.continues_after >= 0)
      text += fmt::format("continues  after step {} of {}\n", p.continues_after, c.schedule.steps);
    text += fmt::format("disk       {} in {}; {} are free\n", bytes(p.disk_bytes), c.out,
                        bytes(p.free_disk_bytes));
  }
  if (p.data.train != nullptr) {
    text += fmt::format("data       {} tokens in {} documents; the run sees {} ({:.2f} epochs)\n",
                        count_text(static_cast<double>(p.data.train->num_tokens())),
                        p.data.train->num_documents(),
                        count_text(static_cast<double>(p.total_tokens)), p.epochs);
    text += p.data.valid != nullptr
                ? fmt::format("validation {} tokens in {} documents\n",
                              count_text(static_cast<double>(p.data.valid->num_tokens())),
                              p.data.valid->num_documents())
                : "validation none\n";
  }
  if (p.parameters > 0 && p.precision.gemm_tflops > 0) {
    // Half of the products' rate is a fair guess before the first step.
    const double seconds = static_cast<double>(p.total_tokens) * p.flops_per_token /
                           (0.5 * p.precision.gemm_tflops * 1e12);
    text += fmt::format("time       about {} at half the rate of matrix products\n",
                        duration_text(seconds));
  }
  if (p.problems.empty()) return text + "problems   none\n";
  for (const Error& problem : p.problems) {
    text += fmt::format("problem    {}\n", problem.what());
    if (!problem.hint().empty()) text += fmt::format("             hint: {}\n", problem.hint());
  }
  return text;
}

OrderedJson to_json(const Preflight& p) {
  OrderedJson problems = OrderedJson::array();
  for (const Error& problem : p.problems) problems.push_back(problem.what());
  OrderedJson json = {
      {"parameters", p.parameters},
      {"active_parameters", p.active_parameters},
      {"multi_token_prediction", nullptr},
      {"flops_per_token", p.flops_per_token},
      {"peak_bytes", p.peak_bytes},
      {"steps", p.run.config.schedule.steps},
      {"continues_after", p.continues_after},
      {"problems", problems},
      {"resident_bytes", p.resident_bytes},
      {"host_peak_bytes", p.host_peak_bytes},
      {"peak_is_estimate", !p.unmodelled_kernels.empty()},
      {"disk_bytes", p.disk_bytes},
      {"free_disk_bytes", p.free_disk_bytes},
      {"device_memory_bytes", p.device_memory_bytes},
      {"instructions", p.program.instructions.size()},
      {"tokens", p.total_tokens},
      {"epochs", p.epochs},
      {"precision",
       {{"taken", plan::to_string(p.precision.precision)}, {"reason", p.precision.reason}}},
      {"run", effective_json(p.run)}};
  if (p.mtp_parameters > 0) {
    json["multi_token_prediction"] = {{"modules", p.model.spec.num_mtp_layers},
                                      {"parameters", p.mtp_parameters},
                                      {"stored", p.model.initial && p.model.initial->form.mtp}};
  }
  json["balancing_loss"] = nullptr;
  if (const auto balance = balance_of(p.run.config, p.model.spec)) {
    json["balancing_loss"] = {
        {"coefficient", balance->aux_loss}, {"from", balance->from}, {"over", balance->over}};
  }
  for (const auto& [name, dataset] :
       {std::pair{"train", p.data.train}, std::pair{"valid", p.data.valid}}) {
    if (dataset != nullptr)
      json["data"][name] = {{"tokens", dataset->num_tokens()},
                            {"documents", dataset->num_documents()}};
  }
  if (p.program.strategy.parallel.world() > 1)
    json["layout"] = plan::layout_json(p.model.spec, p.program.strategy);
  return json;
}

}  // namespace trireme::train
