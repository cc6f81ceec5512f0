#include "trireme/plan/step_floor.h"

#include <algorithm>
#include <deque>
#include <numeric>

#include "trireme/base/error.h"
#include "trireme/plan/fold.h"
#include "trireme/plan/pipeline_writer.h"

namespace trireme::plan {

namespace {

// Beyond so many steps of the timeline, filling and draining a pipeline hardly counts: busy_floor_s() says as much.
constexpr int64_t kMostTimelineSteps = 400000;

bool recomputable(model::PartKind kind) {
  return kind == model::PartKind::kAttention || kind == model::PartKind::kMlp ||
         kind == model::PartKind::kExperts || kind == model::PartKind::kCombine;
}

bool shares_gradients(const PlannedRun& run) {
  return run.strategy.parallel.dp * run.strategy.parallel.cp > 1;
}

// Place of the rank that a stage is on; as make_schedule() lays them out.
int rank_of(const Parallel& parallel, int stage) {
  const auto ranks = static_cast<int>(parallel.pp);
  if (fixed_chunks(parallel.schedule) == 2 && ranks > 1 && stage >= ranks)
    return 2 * ranks - 1 - stage;
  return stage % ranks;
}

bool keeps_backward_whole(ScheduleKind kind) {
  return kind == ScheduleKind::kGPipe || kind == ScheduleKind::k1F1B ||
         kind == ScheduleKind::kInterleaved;
}

/// One rank in event time.
struct RankTime {
  double compute = 0.0;    ///< when its computation is free
  double transfers = 0.0;  ///< when the replicas' queue is free
  double gathers = 0.0;    ///< ZeRO 3: the same of parameters
  double squares = 0.0;    ///< when all its gradients are summed
  struct Sent {
    int part = 0;
    double end = 0.0;
  };
  std::deque<Sent> sent;         ///< not yet added up
  std::vector<int> postponed;    ///< reduced after the last backward
  std::vector<double> gathered;  ///< by part: when this step's parameters are there
  // ZeRO 3: what the next gather waits for.
  double before_last = 0.0;
  double last = 0.0;
  int gathered_part = -1;
  bool gathered_forward = false;
};

class Timeline {
 public:
  Timeline(const FloorTask& task, const PipelineSchedule& schedule)
      : task_(task),
        schedule_(schedule),
        table_(stage_seconds(task)),
        shares_(shares_gradients(task.run)),
        zero_(shares_ ? task.run.strategy.parallel.zero : 0),
        send_s_(task.once.send),
        charge_s_(task.run.stack.overlap_send ? 0.0 : task.once.send),
        last_part_(static_cast<int>(task.run.spec.parts.size()) - 1) {}

  double run() {
    const auto micro_batches = static_cast<size_t>(schedule_.micro_batches);
    const size_t stages = schedule_.rank_of_stage.size();
    forward_done_.assign(stages * micro_batches, kNotDone);
    backward_done_.assign(stages * micro_batches, kNotDone);
    ranks_.resize(schedule_.ranks.size());
    for (size_t rank = 0; rank < ranks_.size(); ++rank) begin(static_cast<int>(rank));
    std::vector<size_t> next(ranks_.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t rank = 0; rank < ranks_.size(); ++rank) {
        const std::vector<Action>& actions = schedule_.ranks[rank];
        while (next[rank] < actions.size() && act(ranks_[rank], actions[next[rank]])) {
          ++next[rank];
          moved = true;
        }
      }
    }
    double squares = 0.0;
    double ends = 0.0;
    std::vector<double> optimizer(ranks_.size(), 0.0);
    for (int stage = 0; stage < num_stages(); ++stage)
      optimizer[static_cast<size_t>(schedule_.rank_of_stage[static_cast<size_t>(stage)])] +=
          table_[static_cast<size_t>(stage)].optimizer;
    for (RankTime& rank : ranks_) {
      finish(rank);
      squares = std::max(squares, rank.squares);
      ends = std::max(ends, rank.transfers);
    }
    if (shares_ || ranks_.size() > 1) squares += task_.once.tell;
    return std::max(squares + *std::ranges::max_element(optimizer), ends);
  }

 private:
  static constexpr double kNotDone = -1.0;
  static constexpr size_t kPartsInFlight = 2;  // as gradient_sums.cpp

  double& done(std::vector<double>& of, int stage, int64_t micro_batch) const {
    return of[static_cast<size_t>(stage) * static_cast<size_t>(schedule_.micro_batches) +
              static_cast<size_t>(micro_batch)];
  }
  int num_stages() const { return task_.stages.count(); }
  int first_part(int stage) const { return task_.stages.begin[static_cast<size_t>(stage)]; }
  int end_part(int stage) const { return task_.stages.begin[static_cast<size_t>(stage) + 1]; }
  bool has(int part) const { return task_.classes.has_parameters[static_cast<size_t>(part)] != 0; }
  double of(const std::vector<double>& seconds, int part) const {
    return seconds[static_cast<size_t>(task_.classes.of_part[static_cast<size_t>(part)])];
  }
  bool same_rank(int a, int b) const {
    return schedule_.rank_of_stage[static_cast<size_t>(a)] ==
           schedule_.rank_of_stage[static_cast<size_t>(b)];
  }

  // Parameters of the step before come first, in the order of the parts.
  void begin(int rank) {
    if (!shares_ || zero_ == 0 || zero_ >= 3 || task_.run.stack.overlap_parameters) return;
    RankTime& time = ranks_[static_cast<size_t>(rank)];
    time.gathered.assign(task_.classes.of_part.size(), 0.0);
    for (int stage = 0; stage < num_stages(); ++stage) {
      if (schedule_.rank_of_stage[static_cast<size_t>(stage)] != rank) continue;
      for (int part = first_part(stage); part < end_part(stage); ++part) {
        if (!has(part)) continue;
        time.transfers += of(task_.once.gather, part);
        time.gathered[static_cast<size_t>(part)] = time.transfers;
      }
    }
  }

  bool act(RankTime& rank, const Action& action) {
    const int stage = action.stage;
    // Of a head alone there is no forward, of an embedding alone no gradient of its input: nobody waits there.
    const bool nothing = (action.work == Work::kForward && first_part(stage) == last_part_) ||
                         (action.work == Work::kBackwardInput && end_part(stage) == 1);
    if (nothing) return true;
    double start = rank.compute;
    if (action.work == Work::kForward && stage > 0) {
      const double input = done(forward_done_, stage - 1, action.micro_batch);
      if (input == kNotDone) return false;
      start = std::max(start, input);
    }
    if (action.work != Work::kForward && action.work != Work::kBackwardWeight && stage > 0 &&
        first_part(stage) == last_part_) {
      const double input = done(forward_done_, stage - 1, action.micro_batch);
      if (input == kNotDone) return false;
      start = std::max(start, input);
    }
    if ((action.work == Work::kBackward || action.work == Work::kBackwardInput) &&
        stage + 1 < num_stages()) {
      const double gradient = done(backward_done_, stage + 1, action.micro_batch);
      if (gradient == kNotDone) return false;
      start = std::max(start, gradient);
    }
    rank.compute = start;
    const bool last = action.micro_batch + 1 == schedule_.micro_batches;
    const bool by_part = zero_ >= 3 || (action.work == Work::kForward
                                            ? action.micro_batch == 0 && !rank.gathered.empty()
                                            : last && shares_);
    double sent = kNotDone;  // when the result of the stage is there
    if (by_part) {
      sent = parts(rank, action, last);
    } else {
      const StageSeconds& seconds = table_[static_cast<size_t>(stage)];
      switch (action.work) {
        case Work::kForward:
          rank.compute += seconds.forward;
          sent = rank.compute;
          break;
        case Work::kBackwardInput:
          rank.compute += seconds.backward_input;
          sent = rank.compute;
          break;
        case Work::kBackward:
          rank.compute += seconds.backward_input + seconds.backward_weight;
          sent = rank.compute - seconds.after_send;
          break;
        case Work::kBackwardWeight:
          rank.compute += seconds.backward_weight;
          break;
      }
    }
    if (action.work == Work::kBackwardWeight) return true;
    const int to = action.work == Work::kForward ? stage + 1 : stage - 1;
    if (to < 0 || to >= num_stages()) return true;
    if (!same_rank(stage, to)) {
      sent += send_s_;
      rank.compute += charge_s_;
    }
    done(action.work == Work::kForward ? forward_done_ : backward_done_, stage,
         action.micro_batch) = sent;
    return true;
  }

  // Part by part; returns when the stage's result is there.
  double parts(RankTime& rank, const Action& action, bool last_micro_batch) {
    const int first = first_part(action.stage);
    const int end = end_part(action.stage);
    double sent = rank.compute;
    if (action.work == Work::kForward) {
      for (int part = first; part < end && part < last_part_; ++part) {
        if (action.micro_batch == 0 && !rank.gathered.empty())
          rank.compute = std::max(rank.compute, rank.gathered[static_cast<size_t>(part)]);
        compute(rank, part, true, of(task_.parts.forward, part));
      }
      return rank.compute;
    }
    const bool delays = task_.run.strategy.delay_weight_gradients;
    const auto weight = [&](int part) {
      if (!has(part) || task_.run.spec.is_head(part)) return;
      compute(rank, part, false, of(task_.parts.backward_weight, part));
      weights_done(rank, part, last_micro_batch);
    };
    if (action.work == Work::kBackwardWeight) {
      for (int part = end - 1; part >= first; --part) weight(part);
      return rank.compute;
    }
    for (int part = end - 1; part >= first; --part) {
      if (task_.run.spec.is_head(part)) {
        compute(rank, part, false, of(task_.parts.loss, part));
        weights_done(rank, part, last_micro_batch);
      } else if (part > 0) {
        if (runs_again(task_.run, part))
          compute(rank, part, false, of(task_.parts.recompute, part));
        compute(rank, part, false, of(task_.parts.backward_input, part));
      }
      if (part == first) sent = rank.compute;
      if (action.work == Work::kBackward && part > 0 && !delays) weight(part);
    }
    if (action.work == Work::kBackward) {
      for (int part = end - 1; part >= first; --part) {
        if (part == 0 || delays) weight(part);
      }
    }
    return sent;
  }

  void compute(RankTime& rank, int part, bool forward, double seconds) {
    if (zero_ >= 3 && has(part)) {
      if (part != rank.gathered_part || forward != rank.gathered_forward) {
        rank.gathers = std::max(rank.gathers, rank.before_last) + of(task_.once.gather, part);
        rank.compute = std::max(rank.compute, rank.gathers);
        rank.before_last = rank.last;
        rank.gathered_part = part;
        rank.gathered_forward = forward;
      }
      rank.compute += seconds;
      rank.last = rank.compute;
      return;
    }
    rank.compute += seconds;
  }

  // Gradients of a part for one more micro-batch are there.
  void weights_done(RankTime& rank, int part, bool last_micro_batch) {
    if (!shares_) return;
    if (!last_micro_batch) {
      if (zero_ >= 3) reduce(rank, part);
      return;
    }
    if (zero_ < 3 && !task_.run.stack.overlap_gradients) {
      rank.postponed.push_back(part);
      return;
    }
    reduce_last(rank, part);
  }

  void reduce_last(RankTime& rank, int part) const {
    reduce(rank, part);
    rank.sent.push_back({part, rank.transfers});
    if (rank.sent.size() > kPartsInFlight) add_oldest(rank);
  }

  void reduce(RankTime& rank, int part) const {
    rank.transfers = std::max(rank.transfers, rank.compute) + of(task_.once.reduce, part);
  }

  void add_oldest(RankTime& rank) const {
    const RankTime::Sent sent = rank.sent.front();
    rank.sent.pop_front();
    if (!task_.run.stack.sums_in_transfer) rank.compute = std::max(rank.compute, sent.end);
    rank.squares = std::max(rank.squares, sent.end);
    if (zero_ == 0)
      rank.transfers =
          std::max(rank.transfers, sent.end) + of(task_.once.gather_gradients, sent.part);
  }

  void finish(RankTime& rank) {
    for (const int part : rank.postponed) reduce_last(rank, part);
    while (!rank.sent.empty()) add_oldest(rank);
    rank.squares = std::max(rank.squares, rank.compute);
  }

  const FloorTask& task_;
  const PipelineSchedule& schedule_;
  const std::vector<StageSeconds> table_;
  const bool shares_;
  const int64_t zero_;
  const double send_s_;
  const double charge_s_;
  const int last_part_;
  std::vector<RankTime> ranks_;
  mutable std::vector<double> forward_done_;  // by stage and micro-batch
  mutable std::vector<double> backward_done_;
};

double once_a_step(const PlannedRun& run) {
  return run.stack.step_s * run.factors.host;
}

}  // namespace

PartClasses::PartClasses(const PlannedRun& run) : elements(part_elements(run.spec)) {
  const CostModel cost(run.spec, run.strategy, run.sharding, run.stack, run.cluster, run.tables,
                       run.factors);
  has_parameters.assign(run.spec.parts.size(), 0);
  for (const model::ParameterSpec& parameter : run.spec.parameters)
    has_parameters[static_cast<size_t>(parameter.part)] = 1;
  for (size_t part = 0; part < run.spec.parts.size(); ++part) {
    const auto same = std::ranges::find_if(first, [&](int other) {
      const auto at = static_cast<size_t>(other);
      return cost.alike(other) == cost.alike(static_cast<int>(part)) &&
             elements[at] == elements[part] && has_parameters[at] == has_parameters[part];
    });
    of_part.push_back(static_cast<int>(same - first.begin()));
    if (same == first.end()) first.push_back(static_cast<int>(part));
  }
}

PartSeconds::PartSeconds(const PlannedRun& run, const PartClasses& classes, CostModel& cost) {
  for (const int part : classes.first) {
    const auto of = [&](OpKind kind) { return cost.of(part, kind).seconds; };
    const bool head = run.spec.is_head(part);
    forward.push_back(of(OpKind::kForward));
    loss.push_back(head ? of(OpKind::kLoss) : 0.0);
    recompute.push_back(head ? 0.0 : of(OpKind::kRecompute));
    backward_input.push_back(head ? 0.0 : of(OpKind::kBackwardInput));
    backward_weight.push_back(head ? 0.0 : of(OpKind::kBackwardWeight));
  }
}

OnceSeconds::OnceSeconds(const PlannedRun& run, const PartClasses& classes, CostModel& cost) {
  const PartTransfers transfers(run, cost);
  for (const int part : classes.first) {
    reduce.push_back(transfers.reduce(part).seconds);
    gather_gradients.push_back(transfers.gather_gradients(part).seconds);
    gather.push_back(transfers.gather(part).seconds);
    optimizer.push_back(cost.of(part, OpKind::kOptimizerStep).seconds);
  }
  send = transfers.send().seconds;
  tell = transfers.tell().seconds;
}

bool runs_again(const PlannedRun& run, int part) {
  const auto at = static_cast<size_t>(part);
  return at < run.strategy.recompute.size() && run.strategy.recompute[at] == Recompute::kFull &&
         recomputable(run.spec.parts[at].kind);
}

std::vector<StageSeconds> stage_seconds(const FloorTask& task) {
  std::vector<StageSeconds> stages;
  const model::ModelSpec& spec = task.run.spec;
  const int last_part = static_cast<int>(spec.parts.size()) - 1;
  const bool delays = task.run.strategy.delay_weight_gradients;
  const bool gathers = shares_gradients(task.run) && task.run.strategy.parallel.zero >= 3;
  for (int stage = 0; stage < task.stages.count(); ++stage) {
    StageSeconds seconds;
    int gathered = 0;
    const int first = task.stages.begin[static_cast<size_t>(stage)];
    const int end = task.stages.begin[static_cast<size_t>(stage) + 1];
    for (int part = first; part < end; ++part) {
      const auto at = static_cast<size_t>(part);
      const auto of = static_cast<size_t>(task.classes.of_part[at]);
      const bool has = task.classes.has_parameters[at] != 0;
      const bool head = spec.is_head(part);
      if (part < last_part) seconds.forward += task.parts.forward[of];
      if (head) {
        seconds.backward_input += task.parts.loss[of];
      } else if (part > 0) {
        if (runs_again(task.run, part)) seconds.backward_input += task.parts.recompute[of];
        seconds.backward_input += task.parts.backward_input[of];
      }
      if (has && !head) {
        seconds.backward_weight += task.parts.backward_weight[of];
        if (part == first || delays) seconds.after_send += task.parts.backward_weight[of];
      }
      if (has) {
        seconds.optimizer += task.once.optimizer[of];
        if (gathers) {
          seconds.gathers += task.once.gather[of] * (part < last_part ? 2.0 : 1.0);
          ++gathered;
        }
      }
    }
    // One part alone stays gathered from micro-batch to micro-batch.
    if (gathered < 2) seconds.gathers = 0.0;
    stages.push_back(seconds);
  }
  return stages;
}

double busy_floor_s(const FloorTask& task, const std::vector<StageSeconds>& table) {
  const Parallel& parallel = task.run.strategy.parallel;
  const auto micro_batches = static_cast<double>(task.micro_batches);
  const auto ranks = static_cast<size_t>(parallel.pp);
  std::vector<StageSeconds> of_rank(ranks);
  for (size_t stage = 0; stage < table.size(); ++stage) {
    StageSeconds& rank = of_rank[static_cast<size_t>(rank_of(parallel, static_cast<int>(stage)))];
    rank.forward += table[stage].forward;
    rank.backward_input += table[stage].backward_input;
    rank.backward_weight += table[stage].backward_weight;
    rank.optimizer += table[stage].optimizer;
    rank.gathers += table[stage].gathers;
  }
  const bool whole = keeps_backward_whole(parallel.schedule);
  const bool delays = task.run.strategy.delay_weight_gradients;
  double floor = 0.0;
  double optimizer = 0.0;
  double before = 0.0;  // forwards of the stages before, of one micro-batch
  double after = 0.0;   // backwards of the same
  for (size_t rank = 0; rank < ranks; ++rank) {
    const StageSeconds& all = of_rank[rank];
    // Its lowest stage is the rank's number, in every schedule.
    const StageSeconds& own = table[rank];
    floor = std::max(floor, before + micro_batches * all.both());
    floor = std::max(floor, micro_batches * all.gathers);
    const double needed = whole && !delays ? micro_batches * all.both() - own.after_send
                                           : micro_batches * (all.forward + all.backward_input);
    floor = std::max(floor, before + needed + (rank > 0 ? task.once.send : 0.0) + after);
    optimizer = std::max(optimizer, all.optimizer);
    before += own.forward + task.once.send;
    after += (rank > 0 ? task.once.send : 0.0) + own.backward_input;
  }
  if (shares_gradients(task.run) || ranks > 1) floor += task.once.tell;
  return floor + optimizer + once_a_step(task.run);
}

double timeline_floor_s(const FloorTask& task, const PipelineSchedule& schedule) {
  TRIREME_CHECK(schedule.micro_batches == task.micro_batches,
                "{} micro-batches, and a schedule for {}", task.micro_batches,
                schedule.micro_batches);
  int64_t steps = task.micro_batches * task.stages.count();
  if (task.run.strategy.parallel.zero >= 3)
    steps = task.micro_batches * static_cast<int64_t>(task.run.spec.parts.size());
  if (steps > kMostTimelineSteps / 3) return busy_floor_s(task, stage_seconds(task));
  return Timeline(task, schedule).run() + once_a_step(task.run);
}

Stages stages_of(const PlannedRun& run) {
  return pipeline_layout(run.spec, run.strategy, 1).stages;
}

int64_t memory_micro_batches(const Strategy& strategy) {
  return strategy.parallel.schedule == ScheduleKind::kGPipe && strategy.parallel.pp > 1
             ? rank_micro_batches(strategy)
             : sample_micro_batches(strategy).front();
}

double step_floor_s(const PlannedRun& run) {
  CostModel cost(run.spec, run.strategy, run.sharding, run.stack, run.cluster, run.tables,
                 run.factors);
  const PartClasses classes(run);
  const PartSeconds parts(run, classes, cost);
  const OnceSeconds once(run, classes, cost);
  // fold() spreads no experts: what they exchange is a price.
  Strategy as_priced = run.strategy;
  as_priced.in_turn = 1;
  const PipelineLayout layout =
      pipeline_layout(run.spec, as_priced, rank_micro_batches(run.strategy));
  const FloorTask task{run, classes, parts, once, layout.stages, rank_micro_batches(run.strategy)};
  return std::max(busy_floor_s(task, stage_seconds(task)), timeline_floor_s(task, layout.schedule));
}

}  // namespace trireme::plan
