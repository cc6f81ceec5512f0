#include "trireme/plan/simulate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/intervals.h"
#include "trireme/plan/memory.h"

namespace trireme::plan {

namespace {

// Start or end of an instruction, in the order in which memory changes hands.
struct MemoryEvent {
  double time_s = 0.0;
  int instruction = 0;
  bool end = false;
  bool operator<(const MemoryEvent& other) const {
    if (time_s != other.time_s) return time_s < other.time_s;
    // At one moment, what was issued earlier is done before what was issued later begins.
    if (instruction != other.instruction) return instruction < other.instruction;
    return !end && other.end;
  }
};

int64_t sum_bytes(const Program& program, const std::vector<int>& buffers) {
  int64_t sum = 0;
  for (const int buffer : buffers) sum += program.buffers[static_cast<size_t>(buffer)].bytes;
  return sum;
}

// What a copy moves beside optimizer states, whose place on the host is kept.
int64_t activation_bytes(const Program& program, const Instruction& copy) {
  int64_t sum = 0;
  for (const int id : copy.moves) {
    const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
    if (buffer.kind != BufferKind::kOptimizerState) sum += buffer.bytes;
  }
  return sum;
}

int64_t bytes_carried_in(const Program& program) {
  int64_t sum = 0;
  for (const Buffer& buffer : program.buffers) {
    if (buffer.is_carried_in()) sum += buffer.bytes;
  }
  return sum;
}

/// Whether an attention's phase has scores in it: from the first exchange of keys on on the way forward, before the last one on the
/// way back, in `phases` of them.
bool has_attention(const Instruction& instruction, const Parallel& parallel, int phases) {
  if (parallel.cp == 1) return true;
  const int phase = instruction.phase - (parallel.tp > 1 ? 1 : 0);  // after the norm
  return instruction.kind == OpKind::kBackwardInput ? phase <= phases : phase > 1;
}

void run_copies(const Program& program, Simulation& result) {
  std::vector<Interval> compute;
  std::vector<Interval> copies;
  for (const Instruction& instruction : program.instructions) {
    const SimulatedInstruction& timing = result.instructions[static_cast<size_t>(instruction.id)];
    if (instruction.resource == Resource::kCompute)
      compute.emplace_back(timing.start_s, timing.end_s);
    if (!is_copy(instruction.resource)) continue;
    // The next step, which is like this one, sees what this one leaves under way.
    const double begin = runs_on(program, instruction) ? result.step_s : 0.0;
    add_folded(copies, {timing.start_s - begin, timing.end_s - begin}, result.step_s);
  }
  const Coverage coverage = cover(std::move(copies), std::move(compute));
  result.copy_s = coverage.length;
  result.exposed_copy_s = coverage.uncovered;
}

void run_memory(const Program& program, Simulation& result) {
  std::vector<MemoryEvent> events;
  for (const Instruction& instruction : program.instructions) {
    const auto& timing = result.instructions[static_cast<size_t>(instruction.id)];
    events.push_back({timing.start_s, instruction.id, false});
    events.push_back({timing.end_s, instruction.id, true});
  }
  std::sort(events.begin(), events.end());

  int64_t held = program.resident_bytes + bytes_carried_in(program);
  int64_t on_host = program.host_resident_bytes;
  result.peak_bytes = held;
  result.host_peak_bytes = on_host;
  result.memory.push_back({0.0, held});
  std::vector<int> running;
  for (const MemoryEvent& event : events) {
    const Instruction& instruction = program.instructions[static_cast<size_t>(event.instruction)];
    if (!event.end) {
      held -= sum_bytes(program, instruction.releases);
      held += sum_bytes(program, instruction.makes) + instruction.workspace_bytes;
      if (instruction.kind == OpKind::kReload) held += sum_bytes(program, instruction.moves);
      if (instruction.kind == OpKind::kOffload) on_host += activation_bytes(program, instruction);
      result.host_peak_bytes = std::max(result.host_peak_bytes, on_host);
      running.push_back(instruction.id);
      for (const int id : running) {
        int64_t& peak = result.instructions[static_cast<size_t>(id)].peak_bytes;
        peak = std::max(peak, held);
      }
      if (held > result.peak_bytes) {
        result.peak_bytes = held;
        result.peak_instruction = instruction.id;
      }
    } else {
      held -= sum_bytes(program, instruction.frees) + instruction.workspace_bytes;
      if (instruction.kind == OpKind::kReload) on_host -= activation_bytes(program, instruction);
      running.erase(std::find(running.begin(), running.end(), instruction.id));
      result.instructions[static_cast<size_t>(instruction.id)].held_bytes_after = held;
    }
    if (result.memory.back().time_s == event.time_s && result.memory.back().bytes <= held) {
      result.memory.back().bytes = held;  // the higher of one moment stays visible
    } else {
      result.memory.push_back({event.time_s, held});
    }
  }
}

/// When the copies that the step before left under way end, by the instruction that began them; seconds of this step.
using CarriedEnds = std::vector<double>;

/// Times of a step that begins while those copies run.
Simulation run_times(const Program& program, const std::vector<double>& durations_s,
                     const CarriedEnds& carried_ends) {
  const size_t count = program.instructions.size();
  TRIREME_CHECK(durations_s.size() == count, "{} durations for {} instructions", durations_s.size(),
                count);
  Simulation result;
  result.instructions.resize(count);
  std::vector<int> cause(count, -1);                      // what an instruction waited for last
  std::map<std::pair<Resource, int>, int> last_in_queue;  // by resource and group
  double copies_out_until = 0.0;                          // those of the step before
  for (const double end : carried_ends) copies_out_until = std::max(copies_out_until, end);
  double compute_waits_until = 0.0;  // for their memory
  int last = -1;
  for (const Instruction& instruction : program.instructions) {
    const auto at = static_cast<size_t>(instruction.id);
    TRIREME_CHECK(durations_s[at] >= 0.0, "instruction {} takes {} s", instruction.id,
                  durations_s[at]);
    double start = 0.0;
    if (instruction.resource == Resource::kCopyOut) start = copies_out_until;
    for (const int id : instruction.releases) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (!buffer.is_carried_in()) continue;
      // So does the compute queue, whoever releases.
      const double end = carried_ends[static_cast<size_t>(buffer.offloaded_by)];
      compute_waits_until = std::max(compute_waits_until, end);
      start = std::max(start, end);
    }
    if (instruction.resource == Resource::kCompute) start = std::max(start, compute_waits_until);
    const auto wait_for = [&](int other) {
      if (other < 0) return;
      TRIREME_CHECK(other < instruction.id, "instruction {} waits for {}", instruction.id, other);
      const double end = result.instructions[static_cast<size_t>(other)].end_s;
      if (end > start || (cause[at] < 0 && end >= start)) {
        start = end;
        cause[at] = other;
      }
    };
    int& queue =
        last_in_queue.try_emplace({instruction.resource, instruction.group}, -1).first->second;
    for (const int dependency : instruction.depends_on) wait_for(dependency);
    wait_for(queue);
    queue = instruction.id;
    auto& timing = result.instructions[at];
    timing.start_s = start;
    timing.end_s = start + durations_s[at];
    if (runs_on(program, instruction)) continue;
    if (last < 0 || timing.end_s >= result.step_s) last = instruction.id;
    result.step_s = std::max(result.step_s, timing.end_s);
  }
  for (int id = last; id >= 0; id = cause[static_cast<size_t>(id)]) {
    result.critical_path.push_back(id);
  }
  std::reverse(result.critical_path.begin(), result.critical_path.end());
  return result;
}

}  // namespace

Simulation simulate(const Program& program, const std::vector<double>& durations_s) {
  CarriedEnds carried(program.instructions.size(), 0.0);
  Simulation result = run_times(program, durations_s, carried);
  // Step after step, until one leaves what it found.
  constexpr int kMostSteps = 8;
  constexpr double kSameTime = 1e-9;
  for (int step = 0; step < kMostSteps; ++step) {
    CarriedEnds left(program.instructions.size(), 0.0);
    for (const Instruction& instruction : program.instructions) {
      const auto at = static_cast<size_t>(instruction.id);
      if (runs_on(program, instruction))
        left[at] = std::max(0.0, result.instructions[at].end_s - result.step_s);
    }
    double change = 0.0;
    for (size_t i = 0; i < left.size(); ++i)
      change = std::max(change, std::abs(left[i] - carried[i]));
    if (change <= kSameTime * result.step_s) break;
    carried = std::move(left);
    result = run_times(program, durations_s, carried);
  }
  derive_figures(program, result);
  return result;
}

void derive_figures(const Program& program, Simulation& simulation) {
  simulation.compute_busy_s = 0.0;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.resource != Resource::kCompute) continue;
    const auto& timing = simulation.instructions[static_cast<size_t>(instruction.id)];
    simulation.compute_busy_s += timing.end_s - timing.start_s;
  }
  run_copies(program, simulation);
  run_memory(program, simulation);
}

Simulation simulate_in_issue_order(const Program& program) {
  Simulation result;
  result.instructions.resize(program.instructions.size());
  for (const Instruction& instruction : program.instructions) {
    auto& timing = result.instructions[static_cast<size_t>(instruction.id)];
    timing.start_s = result.step_s;
    timing.end_s = result.step_s + 1.0;
    result.step_s = timing.end_s;
    if (instruction.resource == Resource::kCompute) result.compute_busy_s += 1.0;
    result.critical_path.push_back(instruction.id);
  }
  run_memory(program, result);
  return result;
}

std::vector<double> estimate_durations(const model::ModelSpec& spec, const Program& program,
                                       const DeviceRates& rates) {
  std::vector<double> durations;
  const auto tokens = static_cast<double>(program.strategy.tokens());
  // In so many instructions a ring has its scores.
  const Parallel& parallel = program.strategy.parallel;
  const int phases = parallel.cp_kind == ContextKind::kRing ? static_cast<int>(parallel.cp) : 1;
  // Of the attention heads a rank has so many alone.
  const double heads = spec.tensor.is_cut() ? 1.0 : 1.0 / static_cast<double>(parallel.tp);
  for (const Instruction& instruction : program.instructions) {
    if (is_copy(instruction.resource)) {
      durations.push_back(rates.instruction_s +
                          static_cast<double>(sum_bytes(program, instruction.moves)) /
                              rates.host_link_bytes);
      continue;
    }
    if (instruction.resource == Resource::kCommunication) {
      durations.push_back(rates.instruction_s +
                          static_cast<double>(sum_bytes(program, instruction.makes) +
                                              sum_bytes(program, instruction.uses)) /
                              rates.network_bytes);
      continue;
    }
    double attention = 0.0;
    if (instruction.part >= 0 &&
        spec.parts[static_cast<size_t>(instruction.part)].kind == model::PartKind::kAttention &&
        instruction.flops > 0 && instruction.kind != OpKind::kBackwardWeight &&
        has_attention(instruction, parallel, phases)) {
      const auto layer =
          static_cast<size_t>(spec.parts[static_cast<size_t>(instruction.part)].layer);
      const model::AttentionSpec& shape = spec.layers[layer].attention;
      const double width =
          static_cast<double>(shape.num_heads * (shape.head_dim + shape.value_dim)) / 2.0;
      const double passes = instruction.kind == OpKind::kBackwardInput ? 2.0 : 1.0;
      attention = heads * passes * 2.0 * static_cast<double>(program.strategy.seq_len) * width *
                  tokens / phases;
    }
    double bytes = static_cast<double>(sum_bytes(program, instruction.makes) +
                                       sum_bytes(program, instruction.uses));
    if (instruction.kind == OpKind::kOptimizerStep) {
      // Reads gradient, weights and states, writes weights and states: gradients are 4 bytes each.
      bytes =
          (1.0 + 2.0 + 4.0) * static_cast<double>(parameter_gradient_bytes(spec, instruction.part));
    }
    durations.push_back(rates.instruction_s +
                        (instruction.flops - attention) / rates.product_flops +
                        attention / rates.attention_flops + bytes / rates.memory_bytes);
  }
  return durations;
}

}  // namespace trireme::plan
