#include "trireme/train/artifacts.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/file.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/template_folder.h"
#include "trireme/device/machine.h"
#include "trireme/plan/trace.h"
#include "trireme/train/progress.h"

namespace trireme::train {

namespace fs = std::filesystem;

std::map<std::string, std::string> model_texts(const RunModel& model) {
  std::map<std::string, std::string> texts = {
      {"config.json", model.spec.config_json},
      {"tokenizer.json", model.tokenizer->to_json()},
      {"tokenizer_config.json",
       data::tokenizer_config_json(*model.tokenizer, model.spec.max_positions)}};
  if (model.initial) {
    const auto keep = [&](const char* name) {
      if (const std::string text = model.initial->text(name); !text.empty()) texts[name] = text;
    };
    keep("generation_config.json");
    // What belongs to the tokenizer goes with it, and not with another one.
    const std::string tokenizer = model.initial->text("tokenizer.json");
    if (!tokenizer.empty() &&
        data::parse_tokenizer(tokenizer, model.initial->path.string())->to_json() ==
            model.tokenizer->to_json()) {
      for (const char* name :
           {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "chat_template.jinja", "chat_template.json", "tokenizer.model", "tiktoken.model",
            "spiece.model", "sentencepiece.bpe.model", "tekken.json"})
        keep(name);
      for (const auto& [name, text] : model.initial->texts) {
        if (name.starts_with(std::string(checkpoint::kTemplateFolder) + "/")) texts[name] = text;
      }
    }
  }
  if (model.chat != nullptr) texts["chat_template.jinja"] = model.chat->source();
  return texts;
}

std::string trace_of_step(const model::ModelSpec& spec, const plan::Program& program,
                          const execute::StepResult& result, int64_t step) {
  const plan::Trace trace = plan::measured_trace(spec, program, result.measurements, step);
  return plan::to_chrome_json(trace);
}

std::vector<std::pair<std::string, std::string>> environment(const Preflight& p,
                                                             const std::string& version) {
  const device::Machine machine = device::read_machine();
  std::vector<std::pair<std::string, std::string>> result;
  const auto say = [&](const char* name, const std::string& value) {
    if (!value.empty()) result.emplace_back(name, value);
  };
  say("processor", machine.processor);
  say("cores", std::to_string(machine.cpus));
  say("memory", bytes_text(static_cast<double>(machine.memory_bytes)));
  say("system", machine.system);
  say("program", version.empty() ? "Trireme" : "Trireme " + version);
  say("libtorch", machine.torch_version);
  say("vector instructions", machine.cpu_capability);
  say("threads", std::to_string(machine.torch_threads));
  say("precision", p.precision.reason);
  if (p.precision.gemm_tflops > 0)
    say("matrix products", fmt::format("{:.3g} TFLOP/s", p.precision.gemm_tflops));
  say("predicted peak memory", bytes_text(static_cast<double>(p.peak_bytes)));
  return result;
}

namespace {

/// Lanes and the memory curve of a traced step; leaves them out if the trace is not of this run's program.
void add_timeline(const Preflight& p, const fs::path& path, Report& report) {
  if (!fs::exists(path) || p.program.instructions.empty()) return;
  try {
    const plan::Trace trace = plan::parse_chrome_json(read_file(path), path.string());
    plan::Strategy strategy = p.program.strategy;
    strategy.sequences = optim::batch_sequences(ramp_of(p.run.config), trace.step - 1);
    const plan::Program program = plan::build_program(p.model.spec, strategy);
    const plan::Simulation simulation = plan::simulate(program, plan::durations_of(trace, program));
    const plan::Trace predicted = plan::predicted_trace(p.model.spec, program, simulation);
    for (const auto& [source, events] :
         {std::pair{"measured", &trace.events}, std::pair{"simulated", &predicted.events}}) {
      for (const char* resource : {"compute", "host", "copy-out", "copy-in"}) {
        ReportLane lane{fmt::format("{} · {}", source, resource), {}};
        double busy_s = 0;
        for (const plan::TraceEvent& event : *events) {
          if (event.resource != resource) continue;
          lane.events.push_back(
              {event.name, event.kind, event.start_us * 1e-6, event.duration_us * 1e-6});
          busy_s += event.duration_us * 1e-6;
        }
        // A resource that does next to nothing would be an empty row.
        if (busy_s > 0.005 * simulation.step_s) report.lanes.push_back(std::move(lane));
      }
    }
    for (const plan::TraceEvent& event : trace.events) {
      const auto id = static_cast<size_t>(event.instruction);
      report.memory.push_back({(event.start_us + event.duration_us) * 1e-6, event.held_bytes_after,
                               simulation.instructions.at(id).held_bytes_after});
    }
    report.traced_step = trace.step;
  } catch (const Error& error) {
    log::warning("the report has no timeline: {}", error.what());
  }
}

}  // namespace

Report make_report(const Preflight& p, const fs::path& out, std::vector<ReportSample> samples,
                   const std::string& version) {
  const RunConfig& c = p.run.config;
  const model::ModelSpec& spec = p.model.spec;
  Report report;
  report.title = c.out;
  report.subtitle = fmt::format(
      "{} · {} parameters · {} layers of {} · vocabulary {} · {} tokens a sequence · {}",
      spec.family, count_text(static_cast<double>(p.parameters)), spec.num_main_layers(),
      spec.hidden, spec.vocab_size, c.data.seq_len, plan::to_string(p.precision.precision));
  report.steps = c.schedule.steps;
  report.gemm_tflops = p.precision.gemm_tflops;
  report.metrics = read_metrics(out / "metrics.jsonl");
  for (const Baseline& baseline : p.baselines)
    report.baselines.push_back({baseline.name, baseline.bits_per_byte});
  for (const std::string& other : c.log.compare) {
    std::vector<StepMetrics> metrics = read_metrics(fs::path(other) / "metrics.jsonl");
    if (!metrics.empty()) report.compared.push_back({other, std::move(metrics)});
  }
  add_timeline(p, out / "trace.json", report);
  report.samples = std::move(samples);
  report.environment = environment(p, version);
  report.run_toml = effective_toml(p.run);
  return report;
}

}  // namespace trireme::train
