#include "trireme/plan/simulate_world.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/plan/figures.h"
#include "trireme/plan/intervals.h"
#include "trireme/plan/memory.h"
#include "trireme/plan/shards.h"

namespace trireme::plan {

namespace {

constexpr double kNotDone = -1.0;

bool point_to_point(const Instruction& instruction) {
  return instruction.kind == OpKind::kSend || instruction.kind == OpKind::kReceive;
}

double bytes_of(const Program& program, const std::vector<int>& buffers) {
  double sum = 0.0;
  for (const int buffer : buffers)
    sum += static_cast<double>(program.buffers[static_cast<size_t>(buffer)].bytes);
  return sum;
}

// Transfers of one queue follow one another: of a group, or from one rank of it to another (by place in the group).
struct Channel {
  int group = 0;
  int from = -1;
  int to = -1;
  bool operator<(const Channel& other) const {
    return std::tie(group, from, to) < std::tie(other.group, other.from, other.to);
  }
};

struct Member {
  int rank = 0;
  int instruction = 0;
  double ready_s = 0.0;
  WorldStep cause;
};

class World {
 public:
  World(const model::ModelSpec& spec, const std::vector<Program>& programs,
        const std::vector<std::vector<double>>& durations_s, const WorldOptions& options)
      : spec_(spec), programs_(programs), durations_(durations_s), options_(options) {
    TRIREME_CHECK(durations_s.size() == programs.size(), "{} lists of durations for {} programs",
                  durations_s.size(), programs.size());
    TRIREME_CHECK(!options.tiers.empty(), "no link between ranks");
    for (size_t r = 0; r < programs.size(); ++r) add_rank(static_cast<int>(r));
  }

  WorldSimulation run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t r = 0; r < ranks_.size(); ++r) {
        for (Queue& queue : ranks_[r].queues) moved = advance(static_cast<int>(r), queue) || moved;
      }
    }
    check_all_done();
    return result();
  }

 private:
  struct Queue {
    std::vector<int> instructions;
    size_t next = 0;
    bool posted = false;  ///< the transfer at `next` waits for others
  };
  struct Rank {
    std::vector<Queue> queues;
    std::vector<double> start;
    std::vector<double> end;
    std::vector<WorldStep> cause;
    std::vector<int> compute_before;
    std::vector<int> queue_of;
  };

  const Instruction& instruction_of(int rank, int id) const {
    return programs_[static_cast<size_t>(rank)].instructions[static_cast<size_t>(id)];
  }

  int place_of(int rank, int group) const {
    const std::vector<int>& members =
        programs_[static_cast<size_t>(rank)].groups[static_cast<size_t>(group)];
    const auto found = std::ranges::find(members, rank);
    TRIREME_CHECK(found != members.end(), "rank {} is not in group {}", rank, group);
    return static_cast<int>(found - members.begin());
  }

  Channel channel_of(int rank, const Instruction& instruction) const {
    if (!point_to_point(instruction)) return {instruction.group, -1, -1};
    const int mine = place_of(rank, instruction.group);
    if (instruction.kind == OpKind::kSend) return {instruction.group, mine, instruction.peer};
    return {instruction.group, instruction.peer, mine};
  }

  void add_rank(int rank) {
    const Program& program = programs_[static_cast<size_t>(rank)];
    const size_t count = program.instructions.size();
    TRIREME_CHECK(program.rank == rank, "the program of rank {} is in the place of rank {}",
                  program.rank, rank);
    TRIREME_CHECK(durations_[static_cast<size_t>(rank)].size() == count,
                  "{} durations for {} instructions", durations_[static_cast<size_t>(rank)].size(),
                  count);
    Rank& state = ranks_.emplace_back();
    state.start.assign(count, 0.0);
    state.end.assign(count, kNotDone);
    state.cause.assign(count, {-1, -1});
    std::map<std::pair<Resource, Channel>, int> queues;
    int compute = -1;
    for (const Instruction& instruction : program.instructions) {
      const bool transfer = instruction.resource == Resource::kCommunication;
      const Channel channel = transfer ? channel_of(rank, instruction) : Channel{};
      const auto [queue, is_new] = queues.try_emplace({instruction.resource, channel},
                                                      static_cast<int>(state.queues.size()));
      if (is_new) state.queues.emplace_back();
      state.queues[static_cast<size_t>(queue->second)].instructions.push_back(instruction.id);
      state.queue_of.push_back(queue->second);
      state.compute_before.push_back(compute);
      if (instruction.resource == Resource::kCompute) compute = instruction.id;
    }
  }

  // When an instruction can begin and what it waited for last; false if that is not known yet.
  bool ready(int rank, int id, const Queue& queue, Member& member) const {
    const Rank& state = ranks_[static_cast<size_t>(rank)];
    const Instruction& instruction = instruction_of(rank, id);
    member = {rank, id, 0.0, {-1, -1}};
    bool known = true;
    const auto wait_for = [&](int other) {
      if (other < 0) return;
      const double end = state.end[static_cast<size_t>(other)];
      known = known && end != kNotDone;
      if (member.cause.rank >= 0 && end <= member.ready_s) return;
      member.ready_s = std::max(end, 0.0);
      member.cause = {rank, other};
    };
    for (const int dependency : instruction.depends_on) wait_for(dependency);
    if (queue.next > 0) wait_for(queue.instructions[queue.next - 1]);
    if (options_.host_computes && instruction.resource == Resource::kCommunication)
      wait_for(state.compute_before[static_cast<size_t>(id)]);
    return known;
  }

  bool advance(int rank, Queue& queue) {
    bool moved = false;
    while (queue.next < queue.instructions.size() && !queue.posted) {
      const int id = queue.instructions[queue.next];
      Member member;
      if (!ready(rank, id, queue, member)) break;
      moved = true;
      const Instruction& instruction = instruction_of(rank, id);
      if (instruction.resource == Resource::kCommunication) {
        queue.posted = true;
        post(instruction, member);
        continue;
      }
      const double duration = durations_[static_cast<size_t>(rank)][static_cast<size_t>(id)];
      TRIREME_CHECK(duration >= 0.0, "instruction {} of rank {} takes {} s", id, rank, duration);
      finish(member, member.ready_s, member.ready_s + duration, member.cause);
    }
    return moved;
  }

  void finish(const Member& member, double start, double end, WorldStep cause) {
    Rank& state = ranks_[static_cast<size_t>(member.rank)];
    const auto at = static_cast<size_t>(member.instruction);
    state.start[at] = start;
    state.end[at] = end;
    state.cause[at] = cause;
    Queue& queue = state.queues[static_cast<size_t>(state.queue_of[at])];
    ++queue.next;
    queue.posted = false;
  }

  const std::vector<int>& members_of(const Instruction& instruction) const {
    return programs_.front().groups[static_cast<size_t>(instruction.group)];
  }

  void post(const Instruction& instruction, const Member& member) {
    std::vector<Member>& waiting = waiting_[channel_of(member.rank, instruction)];
    if (!waiting.empty()) check_same(waiting.front(), member);
    waiting.push_back(member);
    const size_t expected = point_to_point(instruction) ? 2 : members_of(instruction).size();
    if (waiting.size() < expected) return;
    const auto last = std::ranges::max_element(
        waiting, [](const Member& a, const Member& b) { return a.ready_s < b.ready_s; });
    const double start = last->ready_s;
    const double end = start + duration(waiting);
    const WorldStep cause = last->cause;
    const std::vector<Member> all = std::move(waiting);
    waiting.clear();
    for (const Member& one : all) finish(one, start, end, cause);
  }

  double duration(const std::vector<Member>& members) const {
    if (options_.transfer) {
      double seconds = 0.0;
      for (const Member& member : members)
        seconds = std::max(seconds, options_
                                        .transfer(programs_[static_cast<size_t>(member.rank)],
                                                  instruction_of(member.rank, member.instruction))
                                        .seconds);
      return seconds;
    }
    double bytes = 0.0;
    int first = members.front().rank;
    int last = first;
    for (const Member& member : members) {
      const TransferBytes moved = transfer_bytes(spec_, programs_[static_cast<size_t>(member.rank)],
                                                 instruction_of(member.rank, member.instruction));
      bytes = std::max({bytes, moved.sent, moved.received});
      first = std::min(first, member.rank);
      last = std::max(last, member.rank);
    }
    for (const LinkTier& tier : options_.tiers) {
      if (tier.ranks == 0 || first / tier.ranks == last / tier.ranks)
        return tier.latency_s + bytes / tier.bytes_per_s;
    }
    const LinkTier& outer = options_.tiers.back();
    return outer.latency_s + bytes / outer.bytes_per_s;
  }

  std::string name_of(const Member& member) const {
    return fmt::format("rank {} with {}", member.rank,
                       describe(spec_, instruction_of(member.rank, member.instruction)));
  }

  // Ranks that share sequences have other leaves of one lane; those that exchange rows of experts have lanes of their own.
  static bool same_work(const Instruction& one, const Instruction& other) {
    if (one.kind == OpKind::kExchangeCounts || one.kind == OpKind::kExchangeRows) return true;
    if (one.kind == OpKind::kExchangeContext) return one.micro_batch == other.micro_batch;
    return one.lane == other.lane;
  }

  void check_same(const Member& a, const Member& b) const {
    const Instruction& one = instruction_of(a.rank, a.instruction);
    const Instruction& other = instruction_of(b.rank, b.instruction);
    const bool pair = point_to_point(one) && point_to_point(other) && one.kind != other.kind &&
                      one.micro_batch == other.micro_batch && one.of_gradient == other.of_gradient;
    const bool same = one.kind == other.kind && !point_to_point(one) && one.phase == other.phase &&
                      one.of_gradient == other.of_gradient && same_work(one, other);
    TRIREME_CHECK((pair || same) && one.part == other.part, "{} meets {}", name_of(a), name_of(b));
  }

  void check_all_done() const {
    std::string text;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      const auto undone = std::ranges::find(ranks_[r].end, kNotDone);
      if (undone == ranks_[r].end.end()) continue;
      // The first one that is issued and has no end: the others wait for it.
      const int id = static_cast<int>(undone - ranks_[r].end.begin());
      text += fmt::format("{}rank {} at {}", text.empty() ? "" : ", ", r,
                          describe(spec_, instruction_of(static_cast<int>(r), id)));
    }
    TRIREME_CHECK(text.empty(), "ranks wait for one another for ever: {}", text);
  }

  WorldSimulation result() const {
    WorldSimulation world;
    WorldStep last{-1, -1};
    for (size_t r = 0; r < ranks_.size(); ++r) {
      for (size_t id = 0; id < ranks_[r].end.size(); ++id) {
        if (last.rank >= 0 && ranks_[r].end[id] < world.step_s) continue;
        world.step_s = ranks_[r].end[id];
        last = {static_cast<int>(r), static_cast<int>(id)};
      }
    }
    for (WorldStep at = last; at.rank >= 0;
         at = ranks_[static_cast<size_t>(at.rank)].cause[static_cast<size_t>(at.instruction)])
      world.critical_path.push_back(at);
    std::ranges::reverse(world.critical_path);
    double communication = 0.0;
    double exposed = 0.0;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      world.ranks.push_back(figures_of(static_cast<int>(r), world.step_s));
      communication += world.ranks.back().communication.total_s;
      exposed += world.ranks.back().communication.exposed_s;
      world.bubble_share += world.ranks.back().bubble_share / static_cast<double>(ranks_.size());
    }
    if (communication > 0.0) world.hidden_comm_share = 1.0 - exposed / communication;
    return world;
  }

  SimulatedRank figures_of(int rank, double step_s) const {
    const Rank& state = ranks_[static_cast<size_t>(rank)];
    const Program& program = programs_[static_cast<size_t>(rank)];
    SimulatedRank figures;
    Simulation& simulation = figures.simulation;
    simulation.instructions.resize(program.instructions.size());
    std::vector<Interval> compute;
    std::map<OpKind, std::vector<Interval>> transfers;
    for (const Instruction& instruction : program.instructions) {
      const auto at = static_cast<size_t>(instruction.id);
      simulation.instructions[at].start_s = state.start[at];
      simulation.instructions[at].end_s = state.end[at];
      simulation.step_s = std::max(simulation.step_s, state.end[at]);
      const Interval interval{state.start[at], state.end[at]};
      if (instruction.resource == Resource::kCompute) compute.push_back(interval);
      if (instruction.resource != Resource::kCommunication) continue;
      transfers[instruction.kind].push_back(interval);
      const double sent = options_.transfer ? options_.transfer(program, instruction).bytes
                                            : transfer_bytes(spec_, program, instruction).sent;
      figures.by_kind[instruction.kind].bytes += sent;
      figures.communication.bytes += sent;
    }
    derive_figures(program, simulation);
    std::vector<Interval> all;
    for (auto& [kind, intervals] : transfers) {
      all.insert(all.end(), intervals.begin(), intervals.end());
      const Coverage coverage = cover(std::move(intervals), compute);
      figures.by_kind[kind].total_s = coverage.length;
      figures.by_kind[kind].exposed_s = coverage.uncovered;
    }
    const Coverage coverage = cover(std::move(all), compute);
    figures.communication.total_s = coverage.length;
    figures.communication.exposed_s = coverage.uncovered;
    if (step_s > 0.0) figures.bubble_share = 1.0 - length(merged(std::move(compute))) / step_s;
    return figures;
  }

  const model::ModelSpec& spec_;
  const std::vector<Program>& programs_;
  const std::vector<std::vector<double>>& durations_;
  const WorldOptions& options_;
  std::vector<Rank> ranks_;
  std::map<Channel, std::vector<Member>> waiting_;
};

}  // namespace

TransferBytes transfer_bytes(const model::ModelSpec& spec, const Program& program,
                             const Instruction& instruction) {
  // All but this rank's slice come from others, and as much goes to them: as over a ring.
  const bool of_part = instruction.part >= 0 && !instruction.of_replicas;
  const auto mine = static_cast<size_t>(of_part ? program.slice_of(instruction.part)
                                        : instruction.of_replicas ? program.replica
                                                                  : program.slice);
  const auto bounds_of_part = [&]() -> const std::vector<int64_t>& {
    const auto part = static_cast<size_t>(instruction.part);
    return instruction.of_replicas ? program.replica_slices[part] : program.slices[part];
  };
  const auto slices = [&](double bytes_an_element) {
    const std::vector<int64_t>& bounds = bounds_of_part();
    const int64_t others = bounds.back() - (bounds[mine + 1] - bounds[mine]);
    return bytes_an_element * static_cast<double>(others);
  };
  TransferBytes bytes;
  switch (instruction.kind) {
    case OpKind::kSend:
      bytes.sent = bytes_of(program, instruction.uses);
      break;
    case OpKind::kReceive:
      bytes.received = bytes_of(program, instruction.makes);
      break;
    case OpKind::kReduceGradients: {
      const std::vector<int64_t>& bounds = bounds_of_part();
      const auto own = static_cast<double>(bounds[mine + 1] - bounds[mine]);
      const auto sum_bytes = static_cast<double>(program.strategy.sum_bytes());
      for (const Piece& piece : instruction.pieces) {
        if (piece.from == static_cast<int>(mine)) {
          bytes.sent += slices(sum_bytes);
        } else {
          bytes.received += sum_bytes * own;
        }
      }
      break;
    }
    case OpKind::kGatherGradients:
      bytes.sent = bytes.received =
          slices(instruction.of_replicas ? static_cast<double>(program.strategy.sum_bytes()) : 4.0);
      break;
    case OpKind::kGatherTokens:
    case OpKind::kGatherRows:
    case OpKind::kScatterSums:
    case OpKind::kShareGradients: {
      // What is made has a piece of each rank, one of them its own.
      const auto ranks =
          static_cast<double>(program.groups[static_cast<size_t>(instruction.group)].size());
      double all = bytes_of(program, instruction.makes);
      if (instruction.kind == OpKind::kShareGradients) all *= ranks / (ranks + 1.0);
      bytes.sent = bytes.received = all * (ranks - 1.0) / ranks;
      break;
    }
    case OpKind::kGatherParameters: {
      const bool copies = shares_masters(spec, program.strategy, instruction.part);
      bytes.sent = bytes.received =
          slices(copies ? static_cast<double>(element_bytes(program.strategy.precision)) : 4.0);
      break;
    }
    case OpKind::kExchangeContext: {
      // Of keys and values every rank sends its own to each other one; of their gradients all but those of its own.
      const auto ranks = static_cast<double>(program.strategy.parallel.cp);
      const auto context = static_cast<double>(program.context);
      const double made = bytes_of(program, instruction.makes);
      if (program.strategy.parallel.cp_kind == ContextKind::kRing) {
        // To one rank, from another. With the first keys this rank's own are packed.
        bytes.received = made / static_cast<double>(instruction.makes.size());
        bytes.sent = instruction.of_gradient ? bytes_of(program, instruction.uses) : bytes.received;
        break;
      }
      if (!instruction.of_gradient) {
        bytes.sent = bytes.received = made * (ranks - 1.0) / ranks;
        break;
      }
      // In pieces: 2 of its own stay, 2 cp - c are seen, cp + c + 1 come, of which 2 are its own.
      const double piece = made / (ranks + context + 1.0);
      bytes.sent = piece * (2.0 * ranks - context - 2.0);
      bytes.received = piece * (ranks + context - 1.0);
      break;
    }
    case OpKind::kReduceFigures: {
      for (const int rank : program.groups[static_cast<size_t>(instruction.group)]) {
        const auto values = static_cast<double>(figure_layout(spec, program, rank).total());
        (rank == program.rank ? bytes.sent : bytes.received) += 8.0 * values;
      }
      break;
    }
    case OpKind::kCountTargets:
      bytes.sent = bytes.received = 8.0;
      break;
    case OpKind::kExchangeCounts:
    case OpKind::kExchangeRows: {
      // With routing that is even.
      const auto ranks = static_cast<double>(program.strategy.parallel.ep);
      const int layer = spec.parts[static_cast<size_t>(instruction.part)].layer;
      const double counts =
          8.0 *
          static_cast<double>(spec.layers[static_cast<size_t>(layer)].moe.value().num_experts);
      const double all =
          instruction.kind == OpKind::kExchangeRows ? bytes_of(program, instruction.makes) : counts;
      bytes.sent = bytes.received = all * (ranks - 1.0) / ranks;
      break;
    }
    default:
      TRIREME_CHECK(false, "{} is no transfer", to_string(instruction.kind));
  }
  return bytes;
}

WorldSimulation simulate_world(const model::ModelSpec& spec, const std::vector<Program>& programs,
                               const std::vector<std::vector<double>>& durations_s,
                               const WorldOptions& options) {
  return World(spec, programs, durations_s, options).run();
}

}  // namespace trireme::plan
