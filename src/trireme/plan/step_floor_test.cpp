#include "trireme/plan/step_floor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"
#include "trireme/plan/fold.h"
#include "trireme/plan/random_runs.h"

namespace trireme::plan {
namespace {

/// A run that predict() takes, of all dimensions.
PlannedRun random_run(RandomRuns& random) {
  for (;;) {
    PlannedRun run;
    run.spec = random.model();
    run.cluster = random.cluster();
    run.stack = random.stack();
    Strategy& strategy = run.strategy;
    Parallel& parallel = strategy.parallel;
    strategy.precision = random.coin() ? Precision::kBf16 : Precision::kFp32;
    strategy.seq_len = 256;
    strategy.micro = random.pick<int64_t>({1, 2});
    parallel.tp = random.pick<int64_t>({1, 1, 2, 4});
    parallel.cp = random.pick<int64_t>({1, 1, 2});
    parallel.dp = random.pick<int64_t>({1, 2, 4, 16});
    parallel.pp = random.pick<int64_t>({1, 2, 3, 4});
    parallel.zero = random.pick<int64_t>({0, 1, 2, 3});
    parallel.schedule = schedule_from_name(random.pick(schedule_names()));
    parallel.chunks = fixed_chunks(parallel.schedule);
    if (parallel.chunks == 0) parallel.chunks = 2;
    if (parallel.pp == 1) {
      parallel.schedule = ScheduleKind::k1F1B;
      parallel.chunks = 1;
    }
    if (parallel.stages() > static_cast<int64_t>(run.spec.layers.size()) + 2) continue;
    if (run.spec.layers.front().moe)
      parallel.ep = random.pick<int64_t>({1, std::min<int64_t>(parallel.dp * parallel.cp, 4)});
    strategy.sequences = parallel.dp * strategy.micro * random.pick<int64_t>({1, 2, 3, 5, 8, 40});
    strategy.delay_weight_gradients = random.pick<int>({0, 0, 1}) == 1;
    strategy.recompute.assign(run.spec.parts.size(), Recompute::kNone);
    const int every = random.pick<int>({0, 1, 2});
    for (size_t part = 0; part < strategy.recompute.size() && every > 0; ++part) {
      const int layer = run.spec.parts[part].layer;
      if (layer >= 0 && layer % every == 0) strategy.recompute[part] = Recompute::kFull;
    }
    run.sharding.sequence_parallel = parallel.tp > 1 && random.coin();
    run.own_memory = parallel.tp * parallel.cp * parallel.ep == 1 && parallel.zero < 3 &&
                     run.stack.name == "trireme";
    use_profiles(shipped_profiles(), "", run);
    return run;
  }
}

double memory_floor(const PlannedRun& run) {
  const Parallel& parallel = run.strategy.parallel;
  const int64_t micro_batches = memory_micro_batches(run.strategy);
  return memory_floor_bytes(
      run, stage_bytes(run, PartClasses(run), stages_of(run)),
      in_flight(make_schedule(parallel.schedule, static_cast<int>(parallel.pp), micro_batches,
                              static_cast<int>(parallel.chunks))));
}

// A step that is simulated as a whole, all its micro-batches: nothing of the floor is in it.
TEST(StepFloor, IsNeverAboveTheSimulatedStep) {
  RandomRuns random(1);
  double sum = 0.0;
  int runs = 0;
  for (int i = 0; i < 1500; ++i) {
    const PlannedRun run = random_run(random);
    if (sample_micro_batches(run.strategy).size() > 1) continue;
    const double floor = step_floor_s(run);
    const double step = predict(run).step_s;
    ASSERT_LE(floor, step * (1.0 + 1e-9))
        << describe(run.strategy.parallel) << " of " << rank_micro_batches(run.strategy)
        << " micro-batches, stack " << run.stack.name << ", run " << i;
    sum += floor / step;
    ++runs;
  }
  EXPECT_GT(runs, 500);
  // Near enough to leave out what is not near.
  EXPECT_GT(sum / runs, 0.95);
}

TEST(StepFloor, OfMemoryIsNeverAboveTheSimulatedPeak) {
  RandomRuns random(2);
  double sum = 0.0;
  constexpr int kRuns = 1000;
  for (int i = 0; i < kRuns; ++i) {
    const PlannedRun run = random_run(random);
    const double floor = memory_floor(run);
    const double peak = predict(run).peak_bytes();
    ASSERT_LE(floor, peak * (1.0 + 1e-9))
        << describe(run.strategy.parallel) << " of " << rank_micro_batches(run.strategy)
        << " micro-batches, stack " << run.stack.name << ", run " << i << " own " << run.own_memory;
    sum += floor / peak;
  }
  EXPECT_GT(sum / kRuns, 0.9);
}

// One rank that does one thing after the other: floor and step are both the sum of its instructions.
TEST(StepFloor, OfOneRankIsItsStep) {
  RandomRuns random(3);
  for (int i = 0; i < 50; ++i) {
    PlannedRun run = random_run(random);
    run.strategy.parallel = {};
    run.strategy.sequences = run.strategy.micro * 2;
    run.own_memory = run.stack.name == "trireme";
    EXPECT_NEAR(step_floor_s(run) / predict(run).step_s, 1.0, 1e-9);
  }
}

}  // namespace
}  // namespace trireme::plan
