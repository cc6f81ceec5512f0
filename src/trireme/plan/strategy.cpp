// Names, defaults and validation of a Strategy.
#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"
#include "trireme/plan/offload.h"
#include "trireme/plan/program.h"
#include "trireme/plan/recorded_work.h"
#include "trireme/plan/validate_parallel.h"

namespace trireme::plan {

std::vector<bool> recomputed_parts(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<bool> recomputed(spec.parts.size(), false);
  for (size_t part = 0; part < strategy.recompute.size(); ++part)
    recomputed[part] = strategy.recompute[part] == Recompute::kFull;
  return recomputed;
}

const char* to_string(Recompute recompute) {
  switch (recompute) {
    case Recompute::kNone:
      return "none";
    case Recompute::kSelective:
      return "selective";
    case Recompute::kFull:
      return "full";
  }
  return "?";
}

const char* to_string(Precision precision) {
  return precision == Precision::kBf16 ? "bf16" : "fp32";
}

namespace {

bool parse_mode(const std::string& name, Recompute& mode) {
  for (const Recompute candidate : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
    if (name == to_string(candidate)) {
      mode = candidate;
      return true;
    }
  }
  return false;
}

bool recomputable(const model::PartSpec& part) {
  return part.kind == model::PartKind::kAttention || part.kind == model::PartKind::kMlp;
}

// "layer.3.mlp", its kind "mlp", or its layer "layer.3".
bool matches(const model::PartSpec& part, const std::string& name) {
  return name == part.name || name == model::to_string(part.kind) ||
         name == fmt::format("layer.{}", part.layer);
}

}  // namespace

std::vector<Recompute> recompute_from_names(const model::ModelSpec& spec,
                                            const std::vector<std::string>& names) {
  std::vector<Recompute> result(spec.parts.size(), Recompute::kNone);
  for (const std::string& entry : names) {
    Recompute mode = Recompute::kFull;
    if (parse_mode(entry, mode)) {
      for (size_t i = 0; i < spec.parts.size(); ++i) {
        if (recomputable(spec.parts[i])) result[i] = mode;
      }
      continue;
    }
    const size_t colon = entry.find(':');
    const std::string name = entry.substr(0, colon);
    if (colon != std::string::npos) {
      const std::string mode_name = entry.substr(colon + 1);
      TRIREME_USER_CHECK(parse_mode(mode_name, mode), kConfig,
                         suggestion(mode_name, {"none", "selective", "full"}),
                         "recompute entry \"{}\": \"{}\" is not a mode", entry, mode_name);
    }
    std::vector<std::string> known = {"none", "selective", "full"};
    bool found = false;
    for (size_t i = 0; i < spec.parts.size(); ++i) {
      const model::PartSpec& part = spec.parts[i];
      if (!recomputable(part)) {
        TRIREME_USER_CHECK(name != part.name, kConfig,
                           "name attention or mlp parts; embedding and head keep nothing to drop",
                           "recompute entry \"{}\": the {} is never recomputed", entry, part.name);
        continue;
      }
      known.push_back(part.name);
      if (matches(part, name)) {
        result[i] = mode;
        found = true;
      }
    }
    known.insert(known.begin() + 3, {"attention", "mlp"});
    if (!found) {
      const std::string nearest = nearest_name(name, known);
      throw Error(ErrorCode::kConfig,
                  fmt::format("recompute entry \"{}\": the model has no part \"{}\"", entry, name),
                  nearest.empty()
                      ? fmt::format("name a part (layer.0.attention to layer.{}.mlp), a "
                                    "layer, attention, mlp, none, selective or full",
                                    spec.layers.size() - 1)
                      : fmt::format("did you mean \"{}\"?", nearest));
    }
  }
  return result;
}

std::vector<char> offload_from_names(const model::ModelSpec& spec,
                                     const std::vector<std::string>& names) {
  std::vector<char> result(spec.parts.size(), 0);
  for (const std::string& name : names) {
    if (name == "none" || name == "all") {
      for (size_t i = 0; i < spec.parts.size(); ++i)
        result[i] = name == "all" && offloadable(spec.parts[i]);
      continue;
    }
    std::vector<std::string> known = {"none", "all"};
    bool found = false;
    for (size_t i = 0; i < spec.parts.size(); ++i) {
      const model::PartSpec& part = spec.parts[i];
      if (!offloadable(part)) {
        TRIREME_USER_CHECK(name != part.name, kConfig,
                           "name parts of layers; embedding and heads keep nothing to offload",
                           "offload_activations entry \"{}\": the {} keeps nothing for backward",
                           name, part.name);
        continue;
      }
      known.push_back(part.name);
      known.emplace_back(model::to_string(part.kind));
      if (matches(part, name)) {
        result[i] = 1;
        found = true;
      }
    }
    if (!found) {
      const std::string nearest = nearest_name(name, known);
      throw Error(ErrorCode::kConfig,
                  fmt::format("offload_activations entry \"{}\": the model has no such part", name),
                  nearest.empty()
                      ? fmt::format("name a part (layer.0.attention to layer.{}.mlp), a layer, "
                                    "attention, mlp, none or all",
                                    spec.layers.size() - 1)
                      : fmt::format("did you mean \"{}\"?", nearest));
    }
  }
  return result;
}

int64_t choose_loss_chunk_rows(const model::ModelSpec& spec, const Strategy& strategy) {
  constexpr int64_t kElements = int64_t{8} << 20;
  const int64_t tokens = strategy.tokens();
  const int64_t half = (tokens + 1) / 2;
  int64_t rows = kElements / (spec.vocab_size / spec.tensor.ranks);
  rows = std::max<int64_t>(rows / 64 * 64, 64);
  return std::min(rows, half);
}

std::vector<std::string> validate(const model::ModelSpec& spec, const Strategy& strategy) {
  std::vector<std::string> reasons;
  const auto reject = [&](std::string reason) { reasons.push_back(std::move(reason)); };
  if (strategy.sequences < 1 || strategy.micro < 1 || strategy.lanes < 1 || strategy.seq_len < 1) {
    reject(
        fmt::format("batch.sequences = {}, batch.micro = {}, batch.lanes = {} and data.seq_len = "
                    "{} must all be "
                    "at least 1",
                    strategy.sequences, strategy.micro, strategy.lanes, strategy.seq_len));
    return reasons;  // the rest divides by them
  }
  const bool power_of_two = (strategy.lanes & (strategy.lanes - 1)) == 0;
  if (!power_of_two) {
    int64_t below = 1;
    while (below * 2 < strategy.lanes) below *= 2;
    reject(fmt::format("batch.lanes = {} is not a power of two: use {} or {}", strategy.lanes,
                       below, below * 2));
  }
  if (strategy.sequences % strategy.micro != 0) {
    reject(
        fmt::format("batch.sequences = {} is not a multiple of batch.micro = {}: use {} or {} "
                    "sequences",
                    strategy.sequences, strategy.micro,
                    std::max<int64_t>(strategy.sequences / strategy.micro, 1) * strategy.micro,
                    (strategy.sequences / strategy.micro + 1) * strategy.micro));
  } else if (power_of_two && strategy.micro_batches() % strategy.lanes != 0) {
    const int64_t unit = strategy.micro * strategy.lanes;
    reject(
        fmt::format("batch.sequences = {} is not a multiple of batch.micro x batch.lanes = {} x {} "
                    "= {}: a lane "
                    "holds whole micro-batches; use {} sequences, a smaller micro or fewer lanes",
                    strategy.sequences, strategy.micro, strategy.lanes, unit,
                    (strategy.sequences / unit + 1) * unit));
  }
  if (strategy.seq_len > spec.max_positions) {
    reject(
        fmt::format("data.seq_len = {} exceeds the model's {} positions: shorten it or raise "
                    "max_position_embeddings (n_positions) in the config",
                    strategy.seq_len, spec.max_positions));
  }
  if (strategy.loss_chunk_rows < 0) {
    reject(fmt::format("memory.loss_chunk_rows = {} is negative: use 0 to let it be chosen",
                       strategy.loss_chunk_rows));
  }
  if (!strategy.recompute.empty() && strategy.recompute.size() != spec.parts.size()) {
    reject(fmt::format("recompute has {} entries for {} parts: give one per part",
                       strategy.recompute.size(), spec.parts.size()));
  }
  if (!strategy.offload_activations.empty() &&
      strategy.offload_activations.size() != spec.parts.size()) {
    reject(fmt::format("offload_activations has {} entries for {} parts: give one per part",
                       strategy.offload_activations.size(), spec.parts.size()));
  }
  if (!strategy.optimizer_state_bytes.empty() &&
      strategy.optimizer_state_bytes.size() != spec.parts.size()) {
    reject(fmt::format("optimizer_state_bytes has {} entries for {} parts: give one per part",
                       strategy.optimizer_state_bytes.size(), spec.parts.size()));
  }
  if (strategy.record) {
    for (std::string& reason : validate_recording(spec, strategy)) reject(std::move(reason));
  }
  if (power_of_two) {
    for (ParallelProblem& problem : validate_parallel(spec, strategy))
      reject(std::move(problem.reason));
  }
  return reasons;
}

}  // namespace trireme::plan
