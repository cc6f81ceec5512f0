#include "trireme/plan/own_prediction.h"

#include <algorithm>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/local_spec.h"
#include "trireme/plan/memory.h"

namespace trireme::plan {

namespace {

double sum_bytes(const Program& program, const std::vector<int>& buffers) {
  double sum = 0.0;
  for (const int id : buffers)
    sum += static_cast<double>(program.buffers[static_cast<size_t>(id)].bytes);
  return sum;
}

bool is_of_part(OpKind kind) {
  switch (kind) {
    case OpKind::kForward:
    case OpKind::kRecompute:
    case OpKind::kLoss:
    case OpKind::kBackwardInput:
    case OpKind::kBackwardWeight:
    case OpKind::kOptimizerStep:
      return true;
    default:
      return false;
  }
}

// Which of a link's shares a transfer has: how the exact reduction and ZeRO move bytes (execute/rank_exchange.h).
double share_of(const LinkProfile& link, OpKind kind) {
  switch (kind) {
    case OpKind::kSend:
    case OpKind::kReceive:
      return link.send_receive;
    case OpKind::kReduceGradients:
    case OpKind::kScatterSums:
    case OpKind::kExchangeCounts:
    case OpKind::kExchangeRows:
      return link.all_to_all;
    default:
      return link.all_gather;
  }
}

/// Of a rank: what its instructions do, by kind of work.
struct Shares {
  double products = 0.0;
  double attention = 0.0;
  double memory = 0.0;
  double host = 0.0;
  double measured = 0.0;
  double total() const { return products + attention + memory + host; }
};

class OwnPredictor {
 public:
  explicit OwnPredictor(const PlannedRun& run) : run_(run) {
    const auto ranks = static_cast<int>(run.strategy.parallel.world());
    for (int rank = 0; rank < ranks; ++rank) {
      programs_.push_back(build_program(run.spec, run.strategy, rank));
      if (!run.cluster.device.asynchronous) in_order_of_issue(programs_.back());
    }
    for (const Program& program : programs_) price(program);
  }

  Prediction predict(PredictedWorld* shown) {
    WorldSimulation world = simulate();
    Prediction result;
    result.step_s = world.step_s + run_.cluster.device.step_overhead_s;
    result.bubble_share = world.bubble_share;
    add_classes(world, result);
    size_t busiest = 0;
    for (size_t rank = 0; rank < shares_.size(); ++rank) {
      if (shares_[rank].total() > shares_[busiest].total()) busiest = rank;
    }
    const Shares& share = shares_[busiest];
    result.time_by_kind_s = {{"products", share.products},
                             {"attention", share.attention},
                             {"memory", share.memory},
                             {"host", share.host + run_.cluster.device.step_overhead_s}};
    if (share.total() > 0.0) result.measured_share = share.measured / share.total();
    double hidden = 0.0;
    const SimulatedRank& rank = world.ranks[busiest];
    for (const auto& [kind, time] : rank.by_kind) {
      result.exposed_by_kind_s[to_string(kind)] = time.exposed_s;
      result.exposed_comm_s += time.exposed_s;
      hidden += time.total_s - time.exposed_s;
      if (time.bytes > 0.0) result.sent_bytes[to_string(kind)] = time.bytes;
    }
    if (!rank.by_kind.empty()) result.time_by_kind_s["transfers"] = result.exposed_comm_s;
    if (rank.simulation.exposed_copy_s > 0.0)
      result.time_by_kind_s["copies"] = rank.simulation.exposed_copy_s;
    if (hidden + result.exposed_comm_s > 0.0)
      result.hidden_comm_share = hidden / (hidden + result.exposed_comm_s);
    double sum = 0.0;
    for (const auto& [kind, seconds] : result.time_by_kind_s) sum += seconds;
    result.time_by_kind_s["idle"] = std::max(0.0, result.step_s - sum);
    add_rates(run_, result);
    if (shown != nullptr) {
      shown->micro_batches = static_cast<int64_t>(programs_.front().micro_batches().size());
      shown->programs = std::move(programs_);
      shown->simulation = std::move(world);
      shown->whole = true;
    }
    return result;
  }

 private:
  void price(const Program& program) {
    InstructionPrices prices(run_, program);
    const DeviceProfile& device = run_.cluster.device;
    // Ranks of one node share what it has.
    const double slowdown =
        device.step_slowdown * (programs_.size() > 1 ? run_.cluster.node.busy_slowdown : 1.0);
    const double gap = device.asynchronous ? 0.0 : slowdown * device.instruction_gap_s;
    std::vector<double>& durations = durations_.emplace_back();
    Shares& shares = shares_.emplace_back();
    for (const Instruction& instruction : program.instructions) {
      if (instruction.resource == Resource::kCommunication) {
        durations.push_back(0.0);
        continue;
      }
      const double seconds = slowdown * prices.seconds(instruction);
      durations.push_back(seconds + gap);
      if (instruction.resource != Resource::kCompute) continue;
      add_shares(prices, instruction, seconds, shares);
      shares.host += gap;
    }
  }

  static void add_shares(InstructionPrices& prices, const Instruction& instruction, double seconds,
                         Shares& shares) {
    const TableSeconds tables = prices.tables_of(instruction);
    const InstructionRate* const rate = prices.rate_of(instruction);
    InstructionRate plain;
    const InstructionRate& terms = rate != nullptr ? *rate : plain;
    if (rate != nullptr) shares.measured += seconds;
    const double fitted = terms.fitted(tables);
    if (fitted <= 0.0) {
      shares.host += seconds;
      return;
    }
    const double scale = seconds / fitted;
    shares.products += scale * terms.products * tables.products;
    shares.attention += scale * terms.attention * tables.attention;
    shares.memory += scale * terms.memory * tables.memory;
    shares.host += scale * terms.fixed_s;
  }

  TransferCost transfer(const Program& program, const Instruction& instruction) const {
    const std::vector<int>& members = program.groups[static_cast<size_t>(instruction.group)];
    const int node = run_.cluster.node.accelerators;
    const bool inside = members.front() / node == members.back() / node;
    const LinkProfile* link = &run_.cluster.network.link;
    if (inside) {
      TRIREME_USER_CHECK(
          !run_.cluster.node.links.empty(), kConfig, "add a link to the node's profile",
          "node \"{}\" has no link between its accelerators", run_.cluster.node.name);
      link = &run_.cluster.node.links.back();
      for (const LinkProfile& one : run_.cluster.node.links) {
        if (one.ranks == 0 || static_cast<int>(members.size()) <= one.ranks) {
          link = &one;
          break;
        }
      }
    }
    const TransferBytes bytes = transfer_bytes(run_.spec, program, instruction);
    const double rate =
        link->bytes_per_s * share_of(*link, instruction.kind) * run_.factors.network;
    return {link->fixed_s + link->latency_s + std::max(bytes.sent, bytes.received) / rate,
            bytes.sent};
  }

  WorldSimulation simulate() const {
    if (programs_.size() == 1) {
      WorldSimulation world;
      SimulatedRank& rank = world.ranks.emplace_back();
      rank.simulation = plan::simulate(programs_.front(), durations_.front());
      world.step_s = rank.simulation.step_s;
      for (const int id : rank.simulation.critical_path) world.critical_path.push_back({0, id});
      if (world.step_s > 0.0)
        rank.bubble_share = std::max(0.0, 1.0 - rank.simulation.compute_busy_s / world.step_s);
      world.bubble_share = rank.bubble_share;
      return world;
    }
    WorldOptions options;
    options.host_computes = !run_.cluster.device.asynchronous;
    options.transfer = [this](const Program& program, const Instruction& instruction) {
      return transfer(program, instruction);
    };
    return simulate_world(run_.spec, programs_, durations_, options);
  }

  void add_classes(const WorldSimulation& world, Prediction& result) const {
    const auto pp = static_cast<int>(run_.strategy.parallel.pp);
    const auto a_stage = static_cast<int>(programs_.size()) / pp;
    for (int stage = 0; stage < pp; ++stage) {
      RankClass one;
      one.stage = stage;
      one.ranks = a_stage;
      for (int rank = stage * a_stage; rank < (stage + 1) * a_stage; ++rank) {
        const Program& program = programs_[static_cast<size_t>(rank)];
        const SimulatedRank& simulated = world.ranks[static_cast<size_t>(rank)];
        const ResidentBytes held = resident_bytes(
            local_spec(run_.spec, program.strategy.parallel, rank), program.strategy, program);
        MemoryByKind peak;
        peak.weights =
            static_cast<double>(held.master_weights + held.compute_weights + held.tables);
        peak.optimizer = static_cast<double>(held.optimizer_states);
        peak.activations =
            static_cast<double>(simulated.simulation.peak_bytes - program.resident_bytes);
        if (peak.total() > one.peak.total()) one.peak = peak;
        one.busy_s = std::max(one.busy_s, simulated.simulation.compute_busy_s);
        one.bubble_share = std::max(one.bubble_share, simulated.bubble_share);
      }
      result.classes.push_back(one);
    }
  }

  const PlannedRun& run_;
  std::vector<Program> programs_;
  std::vector<std::vector<double>> durations_;
  std::vector<Shares> shares_;
};

}  // namespace

InstructionPrices::InstructionPrices(const PlannedRun& run, const Program& program)
    : run_(run),
      program_(program),
      cost_(run.spec, run.strategy, run.sharding, run.stack, run.cluster, run.tables, run.factors) {
  for (const InstructionRate& rate : run.cluster.device.instructions) rates_[rate.of] = &rate;
}

InstructionClass InstructionPrices::class_of(const Instruction& instruction) const {
  const bool whole = run_.strategy.precision == Precision::kFp32;
  InstructionClass of{std::string("-"), std::string(to_string(instruction.kind)),
                      whole ? ComputeType::kFp32 : ComputeType::kBf16};
  // An optimizer's step passes over elements, whatever part they are of.
  if (!is_of_part(instruction.kind) || instruction.kind == OpKind::kOptimizerStep) return of;
  of.part = model::to_string(run_.spec.parts[static_cast<size_t>(instruction.part)].kind);
  // Gradients of weights are the same work whatever was kept.
  const bool kept_matters =
      instruction.kind != OpKind::kRecompute && instruction.kind != OpKind::kBackwardWeight;
  if (instruction.recompute != Recompute::kNone && kept_matters)
    of.kind += fmt::format("/{}", to_string(instruction.recompute));
  if (adds_to_gradients(instruction)) of.kind += "/add";
  return of;
}

bool InstructionPrices::adds_to_gradients(const Instruction& instruction) const {
  if (instruction.kind != OpKind::kBackwardWeight && instruction.kind != OpKind::kLoss)
    return false;
  return std::ranges::none_of(instruction.makes, [&](int id) {
    return program_.buffers[static_cast<size_t>(id)].kind == BufferKind::kParameterGradient;
  });
}

double InstructionPrices::moved_bytes(const Instruction& instruction) const {
  switch (instruction.kind) {
    case OpKind::kCombineLanes:
      return 3.0 * static_cast<double>(parameter_gradient_bytes(run_.spec, instruction.part));
    case OpKind::kGradNorm:
    case OpKind::kSumSquares: {
      // The norm of several ranks comes from sums that they have told each other.
      if (instruction.kind == OpKind::kGradNorm && !program_.groups.empty()) return 0.0;
      double bytes = 0.0;
      for (int part = 0; part < static_cast<int>(run_.spec.parts.size()); ++part) {
        if (!program_.has(part)) continue;
        const std::vector<int64_t>& bounds = program_.slices[static_cast<size_t>(part)];
        const auto mine = static_cast<size_t>(program_.slice_of(part));
        bytes += 4.0 * static_cast<double>(bounds[mine + 1] - bounds[mine]);
      }
      return bytes;
    }
    default:
      return sum_bytes(program_, instruction.makes) + sum_bytes(program_, instruction.uses);
  }
}

TableSeconds InstructionPrices::tables_of(const Instruction& instruction) {
  TRIREME_CHECK(instruction.resource != Resource::kCommunication, "{} is a transfer",
                to_string(instruction.kind));
  if (is_of_part(instruction.kind)) {
    const InstructionCost& cost = cost_.of(instruction.part, instruction.kind);
    return {cost.products_s, cost.attention_s, cost.memory_s};
  }
  if (instruction.kind == OpKind::kOffload || instruction.kind == OpKind::kReload) {
    const DeviceProfile& device = run_.cluster.device;
    const double rate = device.host_link_bytes_per_s > 0.0 ? device.host_link_bytes_per_s
                                                           : device.memory_bytes_per_s;
    return {0.0, 0.0, sum_bytes(program_, instruction.moves) / rate + device.kernel_gap_s};
  }
  return {0.0, 0.0, cost_.memory(moved_bytes(instruction), 1.0)};
}

const InstructionRate* InstructionPrices::rate_of(const Instruction& instruction) const {
  InstructionClass of = class_of(instruction);
  for (;;) {
    if (const auto found = rates_.find(of); found != rates_.end()) return found->second;
    const size_t mode = of.kind.rfind('/');
    if (mode == std::string::npos) return nullptr;
    of.kind.resize(mode);
  }
}

double InstructionPrices::seconds(const Instruction& instruction) {
  const TableSeconds tables = tables_of(instruction);
  const InstructionRate* const rate = rate_of(instruction);
  return rate != nullptr ? rate->seconds(tables) : tables.total();
}

bool has_own_rates(const PlannedRun& run) {
  const Parallel& parallel = run.strategy.parallel;
  return !run.cluster.device.instructions.empty() && run.own_memory &&
         run.stack.name == "trireme" && parallel.world() <= kMostOwnRanks;
}

void in_order_of_issue(Program& program) {
  for (Instruction& instruction : program.instructions) {
    if (instruction.resource != Resource::kCommunication) instruction.resource = Resource::kCompute;
  }
}

Prediction predict_own(const PlannedRun& run, PredictedWorld* world) {
  return OwnPredictor(run).predict(world);
}

}  // namespace trireme::plan
