// memory_floor_bytes(): what is certainly held when a backward begins.
#include <algorithm>
#include <cmath>
#include <map>

#include "trireme/plan/memory.h"
#include "trireme/plan/shards.h"
#include "trireme/plan/stack_memory.h"
#include "trireme/plan/step_floor.h"

namespace trireme::plan {

namespace {

/// Of one part and micro-batch.
struct Kept {
  double output = 0.0;  ///< hidden state, where it is kept until the next part's backward
  double saved = 0.0;
  double again = 0.0;     ///< saved too, but only once recomputed
  double backward = 0.0;  ///< more while the part's backward runs: gradients, workspace
};

// Whether backward reads the output of the part before this one.
bool reads_input(model::PartKind kind) {
  switch (kind) {
    case model::PartKind::kAttention:
    case model::PartKind::kMlp:
    case model::PartKind::kRouter:
    case model::PartKind::kExperts:
    case model::PartKind::kHead:
      return true;
    default:
      return false;
  }
}

// Whose backward makes a gradient of its input beside the one of its output.
bool has_plain_gradients(model::PartKind kind) {
  return kind == model::PartKind::kAttention || kind == model::PartKind::kMlp;
}

std::vector<Kept> kept_by_stack(const PlannedRun& run) {
  const std::vector<KeptBytes> bytes = stack_kept_bytes(run);
  std::vector<Kept> all(bytes.size());
  for (size_t part = 0; part < bytes.size(); ++part) {
    const int index = static_cast<int>(part);
    Kept& kept = all[part];
    // Buffers have whole bytes.
    kept.output = std::round(stack_hidden_bytes(run, bytes, index));
    if (part > 0 && !run.spec.is_head(index))
      (runs_again(run, index) ? kept.again : kept.saved) = std::round(bytes[part].saved);
    kept.backward = std::round(bytes[part].working);
    const model::PartKind kind = run.spec.parts[part].kind;
    if (part > 0 && has_plain_gradients(kind))
      kept.backward += std::round(bytes[part].gradient) + std::round(bytes[part - 1].gradient);
  }
  return all;
}

// As Trireme's programs have them (micro_batch_writer.cpp).
std::vector<Kept> kept_by_programs(const PlannedRun& run, const Strategy& strategy) {
  std::vector<Kept> all(run.spec.parts.size());
  for (size_t part = 0; part < all.size(); ++part) {
    const int index = static_cast<int>(part);
    const bool again = runs_again(run, index);
    const Recompute mode =
        strategy.recompute.empty() || (!again && strategy.recompute[part] == Recompute::kFull)
            ? Recompute::kNone
            : strategy.recompute[part];
    Kept& kept = all[part];
    const model::PartKind kind = run.spec.parts[part].kind;
    kept.output = static_cast<double>(hidden_bytes(run.spec, strategy, index));
    if (run.spec.is_head(index)) {
      kept.backward =
          static_cast<double>(loss_workspace_bytes(run.spec, strategy, part + 1 == all.size()) +
                              hidden_bytes(run.spec, strategy, index - 1));
      continue;
    }
    if (part == 0) continue;
    const PartBytes bytes = part_bytes(run.spec, strategy, index, mode);
    (again ? kept.again : kept.saved) = static_cast<double>(bytes.saved_input + bytes.saved_weight);
    kept.backward = static_cast<double>(bytes.backward_input_workspace);
    if (has_plain_gradients(kind))
      kept.backward += static_cast<double>(hidden_bytes(run.spec, strategy, index) +
                                           hidden_bytes(run.spec, strategy, index - 1));
  }
  return all;
}

StageBytes of_stage(const PlannedRun& run, const std::vector<Kept>& kept, int first, int end) {
  StageBytes stage;
  const auto output_of = [&](int part) {
    const auto next = static_cast<size_t>(part) + 1;
    return next < kept.size() && reads_input(run.spec.parts[next].kind)
               ? kept[static_cast<size_t>(part)].output
               : 0.0;
  };
  for (int part = first; part < end; ++part) {
    const Kept& own = kept[static_cast<size_t>(part)];
    if (part > 0) stage.held += output_of(part - 1);
    stage.backward = std::max(stage.backward, stage.held + own.saved + own.again + own.backward);
    stage.held += own.saved;
  }
  // What a head alone begins with comes when it comes, not with a forward of its own.
  if (first + 1 == static_cast<int>(kept.size())) stage.held = 0.0;
  return stage;
}

// resident_bytes() of Trireme's own, without the slices' exact boundaries: those of an owner begin and end with a block.
double own_resident_floor_bytes(const PlannedRun& run, const std::vector<double>& elements,
                                int first, int end) {
  const Strategy& strategy = run.strategy;
  const bool shares = strategy.parallel.zero > 0 && strategy.parallel.dp > 1;
  const auto& floats = strategy.state_floats;
  const bool even = std::ranges::all_of(floats, [&](int64_t one) { return one == floats.front(); });
  double bytes = 0.0;
  for (int index = first; index < end; ++index) {
    const auto part = static_cast<size_t>(index);
    if (elements[part] == 0.0) continue;
    if (strategy.precision == Precision::kBf16) bytes += 2.0 * elements[part];
    const auto states = static_cast<double>(optimizer_state_bytes(run.spec, strategy, index));
    if (!shares) {
      bytes += 4.0 * elements[part] + states;
      continue;
    }
    const double share =
        strategy.whole_matrices
            ? 0.0
            : std::max(0.0, 1.0 / static_cast<double>(strategy.parallel.dp) -
                                static_cast<double>(kSquaresBlock) / elements[part]);
    const bool masters = shares_masters(run.spec, strategy, index);
    bytes += 4.0 * elements[part] * (masters ? share : 1.0) + (even ? share * states : 0.0);
  }
  return bytes;
}

}  // namespace

std::vector<RankInFlight> in_flight(const PipelineSchedule& schedule) {
  std::vector<RankInFlight> all;
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    RankInFlight& own = all.emplace_back();
    std::map<int, size_t> place;
    for (int stage = 0; stage < schedule.num_stages(); ++stage) {
      if (schedule.rank_of_stage[static_cast<size_t>(stage)] != rank) continue;
      place[stage] = own.stages.size();
      own.stages.push_back(stage);
    }
    std::vector<int64_t> kept(own.stages.size(), 0);
    std::vector<char> summed(own.stages.size(), 0);
    const auto covers = [](const InFlight& a, const InFlight& b) {
      if (a.stage != b.stage) return false;
      for (size_t i = 0; i < a.kept.size(); ++i) {
        if (a.kept[i] < b.kept[i] || a.summed[i] < b.summed[i]) return false;
      }
      return true;
    };
    for (const Action& action : schedule.ranks[static_cast<size_t>(rank)]) {
      const size_t at = place.at(action.stage);
      if (action.work == Work::kForward) {
        ++kept[at];
        continue;
      }
      if (action.work != Work::kBackwardWeight) {
        --kept[at];
        const InFlight moment{action.stage, kept, summed};
        if (std::ranges::none_of(own.moments,
                                 [&](const InFlight& other) { return covers(other, moment); })) {
          std::erase_if(own.moments, [&](const InFlight& other) { return covers(moment, other); });
          own.moments.push_back(moment);
        }
      }
      if (action.work != Work::kBackwardInput) summed[at] = 1;
    }
  }
  return all;
}

std::vector<StageBytes> stage_bytes(const PlannedRun& run, const PartClasses& classes,
                                    const Stages& stages) {
  // What programs of the folded world have in place of the run's own (fold.h).
  Strategy strategy;
  std::vector<double> elements;
  if (run.own_memory) {
    strategy = run.strategy;
    strategy.parallel = {};
    strategy.loss_chunk_rows = choose_loss_chunk_rows(run.spec, strategy);
    elements.assign(run.spec.parts.size(), 0.0);
    for (const model::ParameterSpec& parameter : run.spec.parameters)
      elements[static_cast<size_t>(parameter.part)] += static_cast<double>(parameter.numel());
  }
  const std::vector<Kept> kept =
      run.own_memory ? kept_by_programs(run, strategy) : kept_by_stack(run);
  std::vector<StageBytes> all;
  for (int index = 0; index < stages.count(); ++index) {
    const int first = stages.begin[static_cast<size_t>(index)];
    const int end = stages.begin[static_cast<size_t>(index) + 1];
    StageBytes& stage = all.emplace_back(of_stage(run, kept, first, end));
    if (run.own_memory) stage.always = own_resident_floor_bytes(run, elements, first, end);
    for (int part = first; part < end; ++part) {
      const auto at = static_cast<size_t>(part);
      const RankParameters own = rank_parameters(classes.elements[at], run.strategy.parallel);
      stage.parameters.shared += own.shared;
      stage.parameters.expert += own.expert;
      stage.largest = std::max(stage.largest, own.shared + own.expert);
      if (run.own_memory && classes.has_parameters[at] != 0)
        stage.gradients += static_cast<double>(parameter_gradient_bytes(run.spec, part));
    }
  }
  return all;
}

double memory_floor_bytes(const PlannedRun& run, const std::vector<StageBytes>& stages,
                          const std::vector<RankInFlight>& ranks) {
  double most = 0.0;
  for (const RankInFlight& rank : ranks) {
    double activations = 0.0;
    for (const InFlight& moment : rank.moments) {
      double held = stages[static_cast<size_t>(moment.stage)].backward;
      for (size_t i = 0; i < rank.stages.size(); ++i) {
        const StageBytes& stage = stages[static_cast<size_t>(rank.stages[i])];
        held += static_cast<double>(moment.kept[i]) * stage.held;
        if (moment.summed[i] != 0) held += stage.gradients;
      }
      activations = std::max(activations, held);
    }
    double always = 0.0;
    RankParameters parameters;
    double largest = 0.0;
    for (const int index : rank.stages) {
      const StageBytes& stage = stages[static_cast<size_t>(index)];
      always += stage.always;
      parameters.shared += stage.parameters.shared;
      parameters.expert += stage.parameters.expert;
      largest = std::max(largest, stage.largest);
    }
    if (!run.own_memory) always = stack_held_bytes(run, parameters, largest).total();
    most = std::max(most, always + activations);
  }
  return most;
}

}  // namespace trireme::plan
