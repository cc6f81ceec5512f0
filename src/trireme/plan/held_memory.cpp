#include "trireme/plan/held_memory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>
#include <vector>

#include "trireme/plan/memory.h"

namespace trireme::plan {

int64_t HeldMemory::activation_bytes() const {
  int64_t sum = 0;
  for (const auto& [part, bytes] : activations) sum += bytes;
  return sum;
}

int64_t HeldMemory::total() const {
  return weights + optimizer_states + tables + libraries + gradients + batches + recorded_work +
         activation_bytes();
}

HeldMemory held_before(const model::ModelSpec& spec, const Program& program, int instruction) {
  const ResidentBytes resident = resident_bytes(spec, program.strategy, program);
  HeldMemory held;
  held.weights = resident.master_weights + resident.compute_weights;
  held.optimizer_states = resident.optimizer_states;
  held.tables = resident.tables;
  held.libraries = resident.libraries;
  held.recorded_work = program.recorded_bytes;
  const auto add = [&](const std::vector<int>& buffers, int64_t sign) {
    for (const int id : buffers) {
      const Buffer& buffer = program.buffers[static_cast<size_t>(id)];
      const int64_t bytes = sign * buffer.bytes;
      switch (buffer.kind) {
        case BufferKind::kBatch:
          held.batches += bytes;
          break;
        case BufferKind::kParameterGradient:
        case BufferKind::kGradientPieces:
        case BufferKind::kGradientSlice:
        case BufferKind::kReplicaSlice:
        case BufferKind::kSharedGradients:
          held.gradients += bytes;
          break;
        case BufferKind::kOptimizerState:
          held.optimizer_states += bytes;
          break;
        case BufferKind::kGatheredWeights:
          held.weights += bytes;
          break;
        case BufferKind::kHidden:
        case BufferKind::kSaved:
        case BufferKind::kHiddenGradient:
        case BufferKind::kDelayed:
        case BufferKind::kExchangedRows:
        case BufferKind::kExchangedGradient:
        case BufferKind::kContextKeys:
        case BufferKind::kContextGradients:
        case BufferKind::kTokens:
          held.activations[buffer.part] += bytes;
      }
    }
  };
  for (const Buffer& buffer : program.buffers) {
    if (buffer.is_carried_in()) held.optimizer_states += buffer.bytes;
  }
  for (const Instruction& one : program.instructions) {
    if (one.id > instruction) break;
    add(one.releases, -1);
    if (one.id == instruction) break;
    add(one.makes, 1);
    if (one.kind == OpKind::kReload) add(one.moves, 1);
    add(one.frees, -1);
  }
  std::erase_if(held.activations, [](const auto& entry) { return entry.second == 0; });
  return held;
}

std::string memory_text(int64_t bytes) {
  constexpr std::pair<double, const char*> kUnits[] = {
      {1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}};
  for (const auto& [unit, name] : kUnits) {
    if (static_cast<double>(bytes) >= unit)
      return fmt::format("{:.3g} {}", static_cast<double>(bytes) / unit, name);
  }
  return fmt::format("{} bytes", bytes);
}

std::string describe(const model::ModelSpec& spec, const HeldMemory& held, int64_t beyond) {
  std::vector<std::string> kinds;
  const auto add = [&](const char* name, int64_t bytes) {
    if (bytes > 0) kinds.push_back(fmt::format("{} {}", name, memory_text(bytes)));
  };
  add("weights", held.weights);
  add("optimizer states", held.optimizer_states);
  add("tables", held.tables);
  add("libraries", held.libraries);
  add("recorded work", held.recorded_work);
  add("gradients", held.gradients);
  add("batches", held.batches);
  if (const int64_t activations = held.activation_bytes(); activations > 0) {
    std::map<model::PartKind, std::pair<int64_t, int>> by_kind;
    for (const auto& [part, bytes] : held.activations) {
      auto& [sum, count] = by_kind[spec.parts[static_cast<size_t>(part)].kind];
      sum += bytes;
      ++count;
    }
    std::vector<std::string> parts;
    parts.reserve(by_kind.size());
    for (const auto& [kind, sum] : by_kind) {
      parts.push_back(fmt::format("{} {}{}", model::to_string(kind), memory_text(sum.first),
                                  sum.second == 1 ? "" : fmt::format(" in {} parts", sum.second)));
    }
    kinds.push_back(
        fmt::format("activations {} ({})", memory_text(activations), fmt::join(parts, ", ")));
  }
  add("workspace", beyond);
  return fmt::format("{}", fmt::join(kinds, ", "));
}

}  // namespace trireme::plan
