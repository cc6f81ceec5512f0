#include "trireme/plan/explain.h"

#include <algorithm>
#include <map>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"
#include "trireme/plan/explain_layout.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/memory.h"

namespace trireme::plan {

namespace {

std::string mebibytes(int64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
}

std::string list_of(const std::vector<int>& ids) {
  return fmt::format("{}", fmt::join(ids, " "));
}

// "none", or per mode the parts: a kind's name where all its parts are meant.
std::string recompute_text(const model::ModelSpec& spec, const Strategy& strategy) {
  std::map<Recompute, std::map<model::PartKind, std::vector<std::string>>> parts;
  std::map<model::PartKind, size_t> total;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const model::PartKind kind = spec.parts[i].kind;
    if (kind != model::PartKind::kAttention && kind != model::PartKind::kMlp) continue;
    parts[strategy.recompute[i]][kind].push_back(spec.parts[i].name);
    ++total[kind];
  }
  if (parts.size() == 1) return to_string(parts.begin()->first);
  std::string text;
  for (const auto& [mode, kinds] : parts) {
    if (mode == Recompute::kNone) continue;
    std::vector<std::string> shown;
    for (const auto& [kind, names] : kinds) {
      const bool whole = names.size() == total[kind];
      shown.push_back(whole ? model::to_string(kind) : fmt::format("{}", fmt::join(names, ", ")));
    }
    text +=
        fmt::format("{}{}: {}", text.empty() ? "" : "; ", to_string(mode), fmt::join(shown, ", "));
  }
  return text;
}

std::string strategy_text(const model::ModelSpec& spec, const Program& program) {
  const Strategy& s = program.strategy;
  std::string text = fmt::format(
      "{} with {} parameters, {}\n"
      "{} sequences of {} tokens a step: {} lanes of {} micro-batches of {} sequences\n"
      "recompute {}; weight gradients {}; {} rows of logits at once\n",
      spec.family, spec.num_parameters(), to_string(s.precision), s.sequences, s.seq_len, s.lanes,
      s.micro_batches_per_lane(), s.micro, recompute_text(spec, s),
      s.delay_weight_gradients ? "after all input gradients" : "right after the input gradient",
      s.loss_chunk_rows);
  const auto asked = std::ranges::count(s.offload_activations, 1);
  if (asked > 0) {
    const auto moved = std::ranges::count_if(program.instructions, [](const Instruction& i) {
      return i.kind == OpKind::kOffload && i.micro_batch == 0;
    });
    text += fmt::format("activations of {} of {} parts offloaded to the host{}\n", moved, asked,
                        moved < asked ? "; the last ones are needed again at once" : "");
  }
  if (s.offload_optimizer)
    text += fmt::format(
        "optimizer states on the host; {} of {} parts' are on their way there when a step ends\n",
        parts_carried_in(program).size(),
        std::ranges::count_if(program.instructions, [](const Instruction& i) {
          return i.kind == OpKind::kOptimizerStep;
        }));
  return text;
}

std::string memory_text(const model::ModelSpec& spec, const Program& program,
                        const Simulation& simulation) {
  const ResidentBytes resident = resident_bytes(spec, program.strategy, program);
  std::string text = "memory held between steps\n";
  const auto line = [&](const char* name, int64_t bytes) {
    if (bytes > 0) text += fmt::format("  {:<28}{:>12}\n", name, mebibytes(bytes));
  };
  line("float32 weights", resident.master_weights);
  line("bfloat16 weights", resident.compute_weights);
  line("optimizer states", resident.optimizer_states);
  line("tables", resident.tables);
  line("libraries", resident.libraries);
  line("recorded work", program.recorded_bytes);
  line("together", resident.total() + program.recorded_bytes);
  line("optimizer states on the host", resident.host_optimizer_states);
  text += fmt::format("  {:<28}{:>12}", "peak of the step", mebibytes(simulation.peak_bytes));
  if (simulation.peak_instruction >= 0) {
    const auto at = static_cast<size_t>(simulation.peak_instruction);
    text += fmt::format(" at {} ({})", simulation.peak_instruction,
                        describe(spec, program.instructions[at]));
  }
  text += "\n";
  line("offloaded to the host", simulation.host_peak_bytes);
  return text;
}

std::string instruction_line(const model::ModelSpec& spec, const Instruction& instruction,
                             const SimulatedInstruction& simulated) {
  return fmt::format("{:>6}  {:<8}{:<54}{:>9.3f}{:>14}{:>14}  {}\n", instruction.id,
                     to_string(instruction.resource), describe(spec, instruction),
                     instruction.flops * 1e-9, mebibytes(simulated.peak_bytes),
                     mebibytes(simulated.held_bytes_after), list_of(instruction.depends_on));
}

}  // namespace

std::string explain(const model::ModelSpec& spec, const Program& program, bool all) {
  const Simulation simulation = simulate_in_issue_order(program);
  std::string text = strategy_text(spec, program) + "\n";
  const std::string layout = explain_layout(whole_spec(spec), program.strategy);
  if (!layout.empty()) text += layout + "\n";
  text += model::flops_formula(spec, program.strategy.seq_len,
                               recomputed_parts(spec, program.strategy)) +
          "\n";
  text += memory_text(spec, program, simulation) + "\n";
  text += fmt::format("{:>6}  {:<8}{:<54}{:>9}{:>14}{:>14}  {}\n", "id", "queue", "instruction",
                      "GFLOP", "peak", "held after", "waits for");
  // Micro-batch 0 shows a step's shape, the last one how lanes meet; what lies between is alike.
  const int64_t last = program.strategy.micro_batches() - 1;
  const auto shown = [&](int64_t micro_batch) {
    return all || micro_batch <= 0 || micro_batch == last;
  };
  int64_t context = 0;
  int hidden = 0;
  const auto flush = [&] {
    if (hidden > 0)
      text += fmt::format("        ... {} instructions alike (--all shows them)\n", hidden);
    hidden = 0;
  };
  for (const Instruction& instruction : program.instructions) {
    if (instruction.micro_batch >= 0 && instruction.kind != OpKind::kLoadBatch) {
      context = instruction.micro_batch;
    }
    const bool lane_work = instruction.kind == OpKind::kCombineLanes;
    const bool own = instruction.micro_batch >= 0 || lane_work;
    if (own && !shown(instruction.kind == OpKind::kLoadBatch ? instruction.micro_batch : context)) {
      ++hidden;
      continue;
    }
    flush();
    text += instruction_line(spec, instruction,
                             simulation.instructions[static_cast<size_t>(instruction.id)]);
  }
  flush();
  return text;
}

namespace {

OrderedJson strategy_json(const Strategy& s) {
  OrderedJson recompute = OrderedJson::array();
  for (const Recompute mode : s.recompute) recompute.push_back(to_string(mode));
  return {{"sequences", s.sequences},
          {"micro", s.micro},
          {"lanes", s.lanes},
          {"seq_len", s.seq_len},
          {"precision", to_string(s.precision)},
          {"recompute", recompute},
          {"delay_weight_gradients", s.delay_weight_gradients},
          {"offload_activations", s.offload_activations},
          {"offload_optimizer", s.offload_optimizer},
          {"loss_chunk_rows", s.loss_chunk_rows}};
}

OrderedJson instruction_json(const model::ModelSpec& spec, const Instruction& instruction) {
  OrderedJson json = {{"id", instruction.id},
                      {"kind", to_string(instruction.kind)},
                      {"name", describe(spec, instruction)},
                      {"resource", to_string(instruction.resource)}};
  if (instruction.part >= 0) json["part"] = spec.parts[static_cast<size_t>(instruction.part)].name;
  if (instruction.micro_batch >= 0) json["micro_batch"] = instruction.micro_batch;
  if (instruction.lane >= 0) json["lane"] = instruction.lane;
  if (instruction.right_lane >= 0) json["right_lane"] = instruction.right_lane;
  if (instruction.group >= 0) json["group"] = instruction.group;
  if (instruction.peer >= 0) {
    json["peer"] = instruction.peer;
    json["of_gradient"] = instruction.of_gradient;
  }
  json["depends_on"] = instruction.depends_on;
  json["makes"] = instruction.makes;
  json["uses"] = instruction.uses;
  json["frees"] = instruction.frees;
  if (!instruction.moves.empty()) json["moves"] = instruction.moves;
  if (!instruction.releases.empty()) json["releases"] = instruction.releases;
  json["workspace_bytes"] = instruction.workspace_bytes;
  json["flops"] = instruction.flops;
  return json;
}

OrderedJson buffer_json(const model::ModelSpec& spec, const Buffer& buffer) {
  OrderedJson json = {{"id", buffer.id}, {"kind", to_string(buffer.kind)}};
  if (buffer.part >= 0) json["part"] = spec.parts[static_cast<size_t>(buffer.part)].name;
  if (buffer.micro_batch >= 0) json["micro_batch"] = buffer.micro_batch;
  if (buffer.lane >= 0) json["lane"] = buffer.lane;
  json["bytes"] = buffer.bytes;
  json["made_by"] = buffer.made_by;
  json["freed_after"] = buffer.freed_after;
  if (buffer.offloaded_by >= 0) {
    json["offloaded_by"] = buffer.offloaded_by;
    json["released_before"] = buffer.released_before;
    json["reloaded_by"] = buffer.reloaded_by;
  }
  return json;
}

OrderedJson flops_json(const model::ModelSpec& spec, const Program& program) {
  const model::TokenFlops flops = model::flops_per_token(spec, program.strategy.seq_len,
                                                         recomputed_parts(spec, program.strategy));
  return {{"forward", flops.forward},
          {"backward", flops.backward()},
          {"recompute", flops.recompute},
          {"model", flops.model()},
          {"hardware", flops.hardware()}};
}

}  // namespace

OrderedJson explain_json(const model::ModelSpec& spec, const Program& program) {
  const Simulation simulation = simulate_in_issue_order(program);
  OrderedJson instructions = OrderedJson::array();
  for (const Instruction& instruction : program.instructions) {
    instructions.push_back(instruction_json(spec, instruction));
  }
  OrderedJson buffers = OrderedJson::array();
  for (const Buffer& buffer : program.buffers) buffers.push_back(buffer_json(spec, buffer));
  OrderedJson json = {{"family", spec.family},
                      {"parameters", spec.num_parameters()},
                      {"strategy", strategy_json(program.strategy)},
                      {"flops_per_token", flops_json(spec, program)},
                      {"resident_bytes", program.resident_bytes},
                      {"peak_bytes", simulation.peak_bytes},
                      {"host_peak_bytes", simulation.host_peak_bytes},
                      {"peak_instruction", simulation.peak_instruction},
                      {"instructions", std::move(instructions)},
                      {"buffers", std::move(buffers)}};
  if (program.strategy.parallel.world() > 1)
    json["layout"] = layout_json(whole_spec(spec), program.strategy);
  return json;
}

OrderedJson simulation_json(const model::ModelSpec& spec, const Program& program,
                            const Simulation& simulation) {
  const Strategy& strategy = program.strategy;
  const double tokens =
      static_cast<double>(strategy.sequences) * static_cast<double>(strategy.seq_len);
  const model::TokenFlops flops =
      model::flops_per_token(spec, strategy.seq_len, recomputed_parts(spec, program.strategy));
  const double step = simulation.step_s;
  OrderedJson critical = OrderedJson::array();
  for (const int id : simulation.critical_path) critical.push_back(id);
  OrderedJson memory = OrderedJson::array();
  for (const MemoryPoint& point : simulation.memory) {
    memory.push_back({point.time_s, point.bytes});
  }
  return {{"step_s", step},
          {"tokens_per_s", step > 0 ? tokens / step : 0.0},
          {"peak_bytes", {{"all", simulation.peak_bytes}}},
          {"exposed_comm_s", 0.0},
          {"hidden_comm_share", 1.0},
          {"bubble_share", step > 0 ? 1.0 - simulation.compute_busy_s / step : 0.0},
          {"flops_model", flops.model() * tokens},
          {"flops_hardware", flops.hardware() * tokens},
          {"resident_bytes", program.resident_bytes},
          {"host_peak_bytes", simulation.host_peak_bytes},
          {"copy_s", simulation.copy_s},
          {"exposed_copy_s", simulation.exposed_copy_s},
          {"peak_instruction", simulation.peak_instruction},
          {"critical_path", std::move(critical)},
          {"memory", std::move(memory)}};
}

std::string describe(const model::ModelSpec& spec, const Program& program,
                     const Simulation& simulation) {
  const OrderedJson json = simulation_json(spec, program, simulation);
  std::string text = strategy_text(spec, program);
  text += fmt::format("step {:.4g} s, {:.4g} tokens/s, {:.4g} model TFLOP a step, {:.1f} % idle\n",
                      simulation.step_s, json["tokens_per_s"].get<double>(),
                      json["flops_model"].get<double>() * 1e-12,
                      json["bubble_share"].get<double>() * 100.0);
  text += memory_text(spec, program, simulation);
  std::map<std::string, double> seconds;
  for (const int id : simulation.critical_path) {
    const auto at = static_cast<size_t>(id);
    seconds[to_string(program.instructions[at].kind)] +=
        simulation.instructions[at].end_s - simulation.instructions[at].start_s;
  }
  std::vector<std::pair<double, std::string>> order;
  order.reserve(seconds.size());
  for (const auto& [kind, time] : seconds) order.emplace_back(time, kind);
  std::sort(order.rbegin(), order.rend());
  text += fmt::format("critical path of {} instructions\n", simulation.critical_path.size());
  for (const auto& [time, kind] : order) {
    text += fmt::format("  {:<18}{:>10.4g} s  {:>5.1f} %\n", kind, time,
                        simulation.step_s > 0 ? 100.0 * time / simulation.step_s : 0.0);
  }
  return text;
}

}  // namespace trireme::plan
