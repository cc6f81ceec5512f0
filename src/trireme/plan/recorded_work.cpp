#include "trireme/plan/recorded_work.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/memory.h"

namespace trireme::plan {
namespace {

using model::PartKind;

bool is_recorded(const model::ModelSpec& spec, const Instruction& instruction) {
  if (instruction.part < 0 || instruction.resource != Resource::kCompute) return false;
  const PartKind part = spec.parts[static_cast<size_t>(instruction.part)].kind;
  if (part != PartKind::kAttention && part != PartKind::kMlp) return false;
  switch (instruction.kind) {
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kBackwardInput:
    case OpKind::kBackwardWeight:
    case OpKind::kCombineLanes:  // only behind a micro-batch's: see find_runs()
      return true;
    default:
      return false;
  }
}

bool moves_between_parts(const Buffer& buffer) {
  return buffer.kind == BufferKind::kHidden || buffer.kind == BufferKind::kHiddenGradient;
}

std::vector<RecordedRun> find_runs(const model::ModelSpec& spec, const Program& program) {
  std::vector<RecordedRun> runs;
  for (const Instruction& instruction : program.instructions) {
    if (!is_recorded(spec, instruction)) continue;
    if (instruction.kind == OpKind::kCombineLanes) {
      if (!runs.empty() && runs.back().end == instruction.id) ++runs.back().end;
      continue;
    }
    if (runs.empty() || runs.back().end != instruction.id ||
        runs.back().micro_batch != instruction.micro_batch)
      runs.push_back({instruction.id, instruction.id, instruction.micro_batch, {}, {}});
    runs.back().end = instruction.id + 1;
  }
  return runs;
}

void find_ends(const Program& program, std::vector<RecordedRun>& runs) {
  std::vector<int> run_of(program.instructions.size(), -1);
  for (size_t i = 0; i < runs.size(); ++i) {
    for (int id = runs[i].first; id < runs[i].end; ++id)
      run_of[static_cast<size_t>(id)] = static_cast<int>(i);
  }
  std::set<std::pair<int, int>> takes;  // of a run, a buffer
  std::set<std::pair<int, int>> gives;
  for (const Instruction& instruction : program.instructions) {
    const int here = run_of[static_cast<size_t>(instruction.id)];
    for (const int id : instruction.uses) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (!moves_between_parts(buffer)) continue;
      const int there = run_of[static_cast<size_t>(buffer.made_by)];
      // What one run makes for another of its micro-batch stays where it was made.
      if (here >= 0 && there >= 0) continue;
      // A backward keeps its input from the forward.
      const bool reads =
          buffer.kind == BufferKind::kHiddenGradient || instruction.kind == OpKind::kForward;
      if (here >= 0 && reads) takes.emplace(here, id);
      if (there >= 0) gives.emplace(there, id);
    }
  }
  for (const auto& [run, buffer] : takes) runs[static_cast<size_t>(run)].takes.push_back(buffer);
  for (const auto& [run, buffer] : gives) runs[static_cast<size_t>(run)].gives.push_back(buffer);
}

/// The lowest free place for each, in issue order. What a transfer still reads is free once it is waited for.
void place_accumulators(const model::ModelSpec& spec, const Program& program, RecordedWork& work) {
  work.places.assign(program.buffers.size(), -1);
  work.num_places.assign(spec.parts.size(), 0);
  std::vector<std::set<int>> taken(spec.parts.size());
  std::map<int, std::vector<int>> under_way;  // buffers by the transfer that frees them
  const auto part_of = [&](int id) {
    return static_cast<size_t>(program.buffers[static_cast<size_t>(id)].part);
  };
  const auto accumulators = [&](std::vector<int> buffers) {
    std::erase_if(buffers, [&](int id) {
      return program.buffers[static_cast<size_t>(id)].kind != BufferKind::kParameterGradient;
    });
    return buffers;
  };
  const auto give_back = [&](const std::vector<int>& buffers) {
    for (const int id : buffers) taken[part_of(id)].erase(work.places[static_cast<size_t>(id)]);
  };
  for (const Instruction& instruction : program.instructions) {
    for (const int other : instruction.depends_on) {
      if (const auto ended = under_way.extract(other); !ended.empty()) give_back(ended.mapped());
    }
    for (const int id : accumulators(instruction.makes)) {
      const size_t part = part_of(id);
      int place = 0;
      while (taken[part].contains(place)) ++place;
      taken[part].insert(place);
      work.places[static_cast<size_t>(id)] = place;
      work.num_places[part] = std::max(work.num_places[part], place + 1);
    }
    std::vector<int> freed = accumulators(instruction.frees);
    if (instruction.resource == Resource::kCommunication) {
      under_way[instruction.id] = std::move(freed);
    } else {
      give_back(freed);
    }
  }
}

/// The accumulator that a lane's gradients of a part go to.
int accumulator_of(const Program& program, int64_t lane, int part) {
  for (const Buffer& buffer : program.buffers) {
    if (buffer.kind == BufferKind::kParameterGradient && buffer.lane == lane && buffer.part == part)
      return buffer.id;
  }
  throw Error(ErrorCode::kInternal,
              fmt::format("part {} has no accumulator of lane {}", part, lane));
}

}  // namespace

RecordedWork recorded_work(const model::ModelSpec& spec, const Program& program) {
  RecordedWork work;
  work.runs = find_runs(spec, program);
  find_ends(program, work.runs);
  place_accumulators(spec, program, work);
  const auto place = [&](int64_t lane, int part) {
    return work.places[static_cast<size_t>(accumulator_of(program, lane, part))];
  };
  std::set<std::pair<int64_t, int>> written;  // lane and part: what comes later is added
  for (const RecordedRun& run : work.runs) {
    std::string& alike = work.alike[run.micro_batch];
    for (int id = run.first; id < run.end; ++id) {
      const Instruction& instruction = program.instructions[static_cast<size_t>(id)];
      alike += fmt::format("{} {} {}", to_string(instruction.kind), instruction.part,
                           to_string(instruction.recompute));
      if (instruction.kind == OpKind::kBackwardWeight) {
        const bool first = written.emplace(instruction.lane, instruction.part).second;
        alike += fmt::format(" {} {}", first ? "to" : "added to",
                             place(instruction.lane, instruction.part));
      }
      if (instruction.kind == OpKind::kCombineLanes) {
        for (const int64_t lane : {instruction.lane, instruction.right_lane})
          alike += fmt::format(" {}", place(lane, instruction.part));
      }
      alike += "; ";
    }
    alike += "| ";
  }
  return work;
}

std::vector<std::string> validate_recording(const model::ModelSpec& /*spec*/,
                                            const Strategy& strategy) {
  std::vector<std::string> reasons;
  const auto offloads = [](char one) { return one != 0; };
  if (strategy.offload_optimizer || std::ranges::any_of(strategy.offload_activations, offloads)) {
    reasons.emplace_back(
        "device.graphs and memory.offload are on: recorded work holds its memory all the time; use "
        "one of them");
  }
  if (strategy.parallel.pp > 1) {
    reasons.push_back(fmt::format(
        "device.graphs is on and parallel.pp = {}: micro-batches of a pipeline are under way at "
        "once, and recorded work is done for one at a time; use parallel.pp = 1 or no graphs",
        strategy.parallel.pp));
  }
  if (strategy.parallel.zero >= 3 && strategy.parallel.sharing() > 1) {
    reasons.push_back(fmt::format(
        "device.graphs is on and parallel.zero = {}: weights come to another place each time, and "
        "recorded work reads them where they were; use parallel.zero = 2 or no graphs",
        strategy.parallel.zero));
  }
  return reasons;
}

void hold_recorded_work(const model::ModelSpec& spec, Program& program) {
  const RecordedWork work = recorded_work(spec, program);
  std::set<int> inner;
  for (const RecordedRun& run : work.runs) {
    for (int id = run.first; id < run.end; ++id) {
      for (const int buffer : program.instructions[static_cast<size_t>(id)].makes)
        inner.insert(buffer);
    }
  }
  // One micro-batch after the other in the same memory: the most that one ever holds.
  std::set<int> given;
  for (const RecordedRun& run : work.runs) given.insert(run.gives.begin(), run.gives.end());
  const auto bytes_of = [&](const std::vector<int>& buffers, bool with_given) {
    int64_t sum = 0;
    for (const int id : buffers) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      if (inner.contains(id) && buffer.kind != BufferKind::kParameterGradient &&
          (with_given || !given.contains(id)))
        sum += buffer.bytes;
    }
    return sum;
  };
  int64_t held = 0;
  int64_t most = 0;
  for (const RecordedRun& run : work.runs) {
    for (int id = run.first; id < run.end; ++id) {
      const Instruction& instruction = program.instructions[static_cast<size_t>(id)];
      held += bytes_of(instruction.makes, true);
      most = std::max(most, held + instruction.workspace_bytes);
      held -= bytes_of(instruction.frees, false);
    }
    held -= bytes_of(run.gives, true);  // copied to its place at the end
  }
  std::map<std::pair<BufferKind, int>, int64_t> kept;  // by what it is of: one place each
  for (const RecordedRun& run : work.runs) {
    for (const std::vector<int>* ends : {&run.takes, &run.gives}) {
      for (const int id : *ends) {
        const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
        kept[{buffer.kind, buffer.part}] = buffer.bytes;
      }
    }
  }
  const int64_t tokens = program.strategy.micro * program.strategy.seq_len;
  int64_t resident =
      most + tensor_bytes(tokens * static_cast<int64_t>(sizeof(int64_t)));  // positions
  for (const auto& [of, bytes] : kept) resident += bytes;
  for (size_t part = 0; part < spec.parts.size(); ++part)
    resident += work.num_places[part] *
                tensor_bytes(parameter_gradient_bytes(spec, static_cast<int>(part)));

  for (Buffer& buffer : program.buffers) {
    if (buffer.kind == BufferKind::kParameterGradient || inner.contains(buffer.id))
      buffer.bytes = 0;
  }
  for (const RecordedRun& run : work.runs) {
    for (int id = run.first; id < run.end; ++id)
      program.instructions[static_cast<size_t>(id)].workspace_bytes = 0;
  }
  program.recorded_bytes = resident;
  program.resident_bytes += resident;
}

}  // namespace trireme::plan
