#include "trireme/plan/prediction.h"

#include <algorithm>
#include <cmath>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"
#include "trireme/plan/fold.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/own_prediction.h"
#include "trireme/plan/part_transfers.h"
#include "trireme/plan/shards.h"
#include "trireme/plan/step_floor.h"

namespace trireme::plan {

namespace {

// Figures that grow linearly with the number of micro-batches.
struct StageFigures {
  double busy_s = 0.0;
  std::map<std::string, double> exposed_s;
  std::map<std::string, double> hidden_s;
  std::map<std::string, double> bytes;
  std::map<std::string, double> time;
};

struct WorldFigures {
  double step_s = 0.0;
  std::vector<double> peak_bytes;  ///< by stage, of what comes and goes
  std::vector<StageFigures> stages;
};

double between(double first, double second, double share) {
  return first + (second - first) * share;
}

std::map<std::string, double> between(const std::map<std::string, double>& first,
                                      const std::map<std::string, double>& second, double share) {
  std::map<std::string, double> result;
  for (const auto& [name, value] : second) {
    const auto found = first.find(name);
    result[name] = between(found == first.end() ? 0.0 : found->second, value, share);
  }
  return result;
}

class Predictor {
 public:
  explicit Predictor(const PlannedRun& run)
      : run_(run),
        cost_(run.spec, run.strategy, run.sharding, run.stack, run.cluster, run.tables,
              run.factors),
        transfers_(run, cost_) {}

  Prediction predict(PredictedWorld* shown) {
    Prediction result;
    const std::vector<int64_t> samples = sample_micro_batches(run_.strategy);
    std::vector<WorldFigures> worlds;
    worlds.reserve(samples.size());
    for (const int64_t micro_batches : samples)
      worlds.push_back(simulate(micro_batches, worlds.empty() ? &result : nullptr, shown));
    double share = 0.0;
    if (samples.size() == 2) {
      share = static_cast<double>(rank_micro_batches(run_.strategy) - samples[0]) /
              static_cast<double>(samples[1] - samples[0]);
    }
    const WorldFigures& first = worlds.front();
    const WorldFigures& last = worlds.back();
    result.step_s =
        between(first.step_s, last.step_s, share) + run_.stack.step_s * run_.factors.host;
    if (samples.size() == 2) {
      // What limits a few micro-batches (the first stage's tail) need not be what limits many (the slowest stage).
      result.step_s = std::max(result.step_s, step_floor_s(run_));
      add_memory(worlds.front(), worlds.back(), share, result);
    }
    fill_figures(first, last, share, result);
    return result;
  }

 private:
  double seconds(const Instruction& instruction) {
    if (instruction.resource != Resource::kCompute || instruction.part < 0) return 0.0;
    switch (instruction.kind) {
      case OpKind::kForward:
      case OpKind::kRecompute:
      case OpKind::kLoss:
      case OpKind::kBackwardInput:
      case OpKind::kBackwardWeight:
      case OpKind::kOptimizerStep:
        return cost_.of(instruction.part, instruction.kind).seconds;
      default:
        return 0.0;  // sums of lanes and pieces: the vendor's collective does them on its way
    }
  }

  void rewrite(Program& program) const {
    if (run_.strategy.parallel.zero >= 3) {
      gather_every_part(run_.spec, program);
    } else {
      if (!run_.stack.overlap_gradients) postpone_reductions(program);
      if (!run_.stack.overlap_parameters) wait_for_gathers(program);
    }
    if (run_.stack.sums_in_transfer) sum_in_transfers(program);
  }

  WorldFigures simulate(int64_t micro_batches, Prediction* result, PredictedWorld* shown) {
    FoldedWorld world = fold(run_.spec, run_.strategy, micro_batches);
    std::vector<std::vector<double>> durations;
    std::vector<MemoryByKind> resident;
    for (size_t stage = 0; stage < world.programs.size(); ++stage) {
      Program& program = world.programs[stage];
      rewrite(program);
      if (run_.own_memory) {
        // An owner's sums of gradients: the folded world has two owners.
        const int64_t owners = std::max<int64_t>(run_.strategy.parallel.dp, 2);
        for (Buffer& buffer : program.buffers) {
          if (buffer.kind == BufferKind::kGradientSlice) buffer.bytes = buffer.bytes * 2 / owners;
        }
      } else {
        resident.push_back(use_stack_memory(run_, program));
      }
      std::vector<double>& own = durations.emplace_back();
      // Computation goes on when what it sent is gone: for as long as that alone takes, the queue is not its own.
      double sending = 0.0;
      for (const Instruction& instruction : program.instructions) {
        own.push_back(seconds(instruction));
        if (instruction.kind == OpKind::kSend && !run_.stack.overlap_send)
          sending += transfers_.of(instruction).seconds;
        if (instruction.resource == Resource::kCompute) {
          own.back() += sending;
          sending = 0.0;
        }
      }
    }
    WorldOptions options;
    options.transfer = [&](const Program&, const Instruction& instruction) {
      return transfers_.of(instruction);
    };
    WorldSimulation simulation = simulate_world(run_.spec, world.programs, durations, options);
    WorldFigures figures;
    figures.step_s = simulation.step_s;
    for (size_t stage = 0; stage < world.programs.size(); ++stage) {
      figures.stages.push_back(
          stage_figures(world.programs[stage], simulation.ranks[stage], simulation.step_s));
      figures.peak_bytes.push_back(
          static_cast<double>(simulation.ranks[stage].simulation.peak_bytes));
    }
    // Beside a transfer, computation is slower.
    double hidden = 0.0;
    for (const SimulatedRank& rank : simulation.ranks)
      hidden = std::max(hidden, rank.communication.total_s - rank.communication.exposed_s);
    figures.step_s += run_.stack.fsdp_contention * hidden;
    if (result == nullptr) return figures;
    add_classes(world, simulation, resident, *result);
    if (shown != nullptr)
      *shown = {std::move(world.programs), std::move(simulation), micro_batches, false};
    return figures;
  }

  StageFigures stage_figures(const Program& program, const SimulatedRank& rank, double step_s) {
    StageFigures figures;
    for (const Instruction& instruction : program.instructions) {
      if (seconds(instruction) == 0.0) continue;
      const InstructionCost& cost = cost_.of(instruction.part, instruction.kind);
      figures.busy_s += cost.seconds;
      figures.time["products"] += cost.products_s;
      figures.time["attention"] += cost.attention_s;
      figures.time["memory"] += cost.memory_s;
      figures.time["host"] += cost.host_s;
      figures.time["transfers"] += cost.exposed_transfer_s;
      for (const auto& [along, bytes] : cost.sent_bytes)
        figures.bytes[cluster::to_string(along)] += bytes;
      figures.exposed_s["inside parts"] += cost.exposed_transfer_s;
      figures.hidden_s["inside parts"] += cost.hidden_transfer_s;
    }
    for (const auto& [kind, time] : rank.by_kind) {
      figures.exposed_s[to_string(kind)] += time.exposed_s;
      figures.hidden_s[to_string(kind)] += time.total_s - time.exposed_s;
      if (time.bytes > 0.0) figures.bytes[to_string(kind)] += time.bytes;
      figures.time["transfers"] += time.exposed_s;
    }
    double sum = 0.0;
    for (const auto& [kind, time] : figures.time) sum += time;
    figures.time["idle"] = std::max(0.0, step_s - sum);
    return figures;
  }

  void add_classes(const FoldedWorld& world, const WorldSimulation& simulation,
                   const std::vector<MemoryByKind>& resident, Prediction& result) const {
    for (size_t stage = 0; stage < world.programs.size(); ++stage) {
      const Program& program = world.programs[stage];
      const Simulation& own = simulation.ranks[stage].simulation;
      RankClass one;
      one.stage = static_cast<int>(stage);
      one.ranks = run_.strategy.parallel.world() / run_.strategy.parallel.pp;
      if (resident.empty()) {
        // Trireme's own: what the program says, gradients among what comes and goes.
        const ResidentBytes held = own_resident_bytes(program);
        one.peak.weights =
            static_cast<double>(held.master_weights + held.compute_weights + held.tables);
        one.peak.optimizer = static_cast<double>(held.optimizer_states);
        one.peak.activations = static_cast<double>(own.peak_bytes - program.resident_bytes);
      } else {
        one.peak = resident[stage];
        one.peak.activations += static_cast<double>(own.peak_bytes);
      }
      result.classes.push_back(one);
    }
  }

  // GPipe keeps every micro-batch; the others keep no more once the pipeline is full.
  void add_memory(const WorldFigures& first, const WorldFigures& last, double share,
                  Prediction& result) const {
    const Parallel& parallel = run_.strategy.parallel;
    if (parallel.pp == 1 || parallel.schedule != ScheduleKind::kGPipe) return;
    for (size_t stage = 0; stage < result.classes.size(); ++stage)
      result.classes[stage].peak.activations +=
          std::max(0.0, last.peak_bytes[stage] - first.peak_bytes[stage]) * share;
  }

  // Of Trireme's own, among all the ranks that share it and not the folded world's two.
  ResidentBytes own_resident_bytes(const Program& program) const {
    const Strategy& strategy = run_.strategy;
    const int64_t owners = strategy.parallel.dp;
    if (owners <= 2 || strategy.parallel.zero == 0)
      return resident_bytes(run_.spec, program.strategy, program);
    Program shared;
    shared.has_part = program.has_part;
    for (int part = 0; part < static_cast<int>(run_.spec.parts.size()); ++part)
      shared.slices.push_back(program.has(part)
                                  ? part_slices(run_.spec, part, owners, strategy.whole_matrices)
                                  : std::vector<int64_t>());
    return resident_bytes(run_.spec, program.strategy, shared);
  }

  void fill_figures(const WorldFigures& first, const WorldFigures& last, double share,
                    Prediction& result) const {
    size_t busiest = 0;
    double bubbles = 0.0;
    for (size_t stage = 0; stage < result.classes.size(); ++stage) {
      RankClass& one = result.classes[stage];
      one.busy_s = between(first.stages[stage].busy_s, last.stages[stage].busy_s, share);
      one.bubble_share = std::max(0.0, 1.0 - one.busy_s / result.step_s);
      bubbles += one.bubble_share / static_cast<double>(result.classes.size());
      if (one.busy_s > result.classes[busiest].busy_s) busiest = stage;
    }
    result.bubble_share = bubbles;
    const StageFigures& a = first.stages[busiest];
    const StageFigures& b = last.stages[busiest];
    result.exposed_by_kind_s = between(a.exposed_s, b.exposed_s, share);
    result.sent_bytes = between(a.bytes, b.bytes, share);
    result.time_by_kind_s = between(a.time, b.time, share);
    double hidden = 0.0;
    for (const auto& [kind, seconds] : result.exposed_by_kind_s) result.exposed_comm_s += seconds;
    for (const auto& [kind, seconds] : between(a.hidden_s, b.hidden_s, share)) hidden += seconds;
    const double all = hidden + result.exposed_comm_s;
    if (all > 0.0) result.hidden_comm_share = hidden / all;

    add_rates(run_, result);
  }

  const PlannedRun& run_;
  CostModel cost_;
  PartTransfers transfers_;
};

}  // namespace

void use_profiles(const ProfileLibrary& library, const std::string& without, PlannedRun& run) {
  const std::string& device = run.cluster.device.name;
  const std::string& stack = run.stack.version_of.empty() ? run.stack.name : run.stack.version_of;
  run.tables = run.cluster.device.measured;
  if (!run.cluster.device.tables.empty()) {
    const auto found = library.devices.find(run.cluster.device.tables);
    TRIREME_USER_CHECK(found != library.devices.end(), kConfig,
                       "name a device with measured shapes",
                       "device \"{}\" has the tables of \"{}\", which has no profile", device,
                       run.cluster.device.tables);
    run.tables = found->second.measured;
  }
  const auto calibrated = [&](const char* key, double fallback) {
    return library.calibrated(key, device, stack, without, fallback);
  };
  run.interval = calibrated("interval", run.interval);
  // Instructions that were measured there are as slow as a long run makes them.
  if (has_own_rates(run)) {
    run.factors = {};
    return;
  }
  run.factors.sustained = calibrated("sustained", 1.0);
  run.factors.memory = calibrated("memory", 1.0);
  run.factors.host = calibrated("host", 1.0);
  run.factors.network = calibrated("network", 1.0);
}

bool programs_say(const Parallel& parallel) {
  return parallel.tp * parallel.cp * parallel.ep == 1 && parallel.zero < 3;
}

double Prediction::peak_bytes() const {
  double most = 0.0;
  for (const RankClass& one : classes) most = std::max(most, one.peak.total());
  return most;
}

void add_rates(const PlannedRun& run, Prediction& prediction) {
  const Strategy& strategy = run.strategy;
  const double world = static_cast<double>(strategy.parallel.world());
  const double tokens =
      static_cast<double>(strategy.sequences) * static_cast<double>(strategy.seq_len) / world;
  const model::TokenFlops flops =
      model::flops_per_token(run.spec, strategy.seq_len, recomputed_parts(run.spec, strategy));
  prediction.tokens_per_s = tokens / prediction.step_s;
  prediction.flops_model = tokens * flops.model();
  prediction.flops_hardware = tokens * flops.hardware();
  const auto& peaks = run.cluster.device.peak_flops;
  const ComputeType type = run.sharding.fp8                         ? ComputeType::kFp8
                           : strategy.precision == Precision::kFp32 ? ComputeType::kFp32
                                                                    : ComputeType::kBf16;
  if (const auto peak = peaks.find(type); peak != peaks.end()) prediction.peak_flops = peak->second;
  prediction.low_s = prediction.step_s / (1.0 + run.interval);
  prediction.high_s = prediction.step_s * (1.0 + run.interval);
  prediction.usable_bytes = run.cluster.device.usable_bytes;
}

Prediction predict(const PlannedRun& run, PredictedWorld* world) {
  return has_own_rates(run) ? predict_own(run, world) : Predictor(run).predict(world);
}

}  // namespace trireme::plan
