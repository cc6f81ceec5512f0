// A few steps of training over ranks that are threads, put together as one rank would have it. Header only, for tests.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>

#include "trireme/comm/local/local_world.h"
#include "trireme/execute/rank_shares.h"
#include "trireme/execute/testing/trained_runs.h"
#include "trireme/execute/weight_gather.h"

namespace trireme::execute {

/// What one rank is left with.
struct RankTrained {
  std::vector<char> has_part;  ///< empty: all
  bool has(size_t part) const { return has_part.empty() || has_part[part] != 0; }
  std::vector<StepResult> steps;
  std::vector<at::Tensor> compute;              ///< by part: what products read
  std::vector<at::Tensor> masters;              ///< by part: its share
  std::vector<std::vector<at::Tensor>> states;  ///< by part: its share
  std::vector<model::ElementRange> master_ranges;
};

/// With the rank's program as `change` leaves it.
inline RankTrained train_rank(const TrainingCase& one, comm::World& world, at::Device device,
                              const std::function<void(plan::Program&)>& change = {},
                              const std::function<void()>& after_step = {}) {
  plan::Program program = plan::build_program(one.spec, one.strategy, world.rank());
  if (change) change(program);
  const bool bf16 = one.strategy.precision == plan::Precision::kBf16;
  nn::ParameterStore store(one.spec, bf16 ? at::kBFloat16 : at::kFloat, at::kFloat, device,
                           master_shares(one.spec, program), program.has_part,
                           gathered_parts(one.spec, program));
  store.initialize(6);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(
      one.optimizer, store.spec(), device,
      one.strategy.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice,
      state_shares(one.spec, program));
  Executor executor(model, store, *optimizer, &world);
  StepInput input;
  input.learning_rate = 1e-2;
  input.clip_norm = 1.0;
  RankTrained trained;
  trained.has_part = program.has_part;
  for (input.step = 0; input.step < 3; ++input.step) {
    const std::vector<data::Batch> all =
        random_batches(store.spec(), one.strategy.micro_batches(), one.strategy.micro,
                       one.strategy.seq_len, 20 + static_cast<uint64_t>(input.step));
    input.micro_batches.clear();
    for (const int64_t index : program.micro_batches())
      input.micro_batches.push_back(all.at(static_cast<size_t>(index)));
    if (one.one_document) join_documents(input.micro_batches);
    trained.steps.push_back(executor.run_step(program, input));
    if (after_step) after_step();
  }
  executor.settle();
  WeightGather weights(store, program, world);
  for (int part = 0; part < store.num_parts(); ++part) {
    weights.begin(part);
    weights.wait(part);
    trained.compute.push_back(
        store.part_compute(part).to(at::kCPU, /*non_blocking=*/false, /*copy=*/true));
    weights.drop(part);
    trained.masters.push_back(store.part_master(part).cpu());
    trained.master_ranges.push_back(store.master_range(part));
    trained.states.emplace_back();
    for (const at::Tensor& state : optimizer->part_states(part))
      trained.states.back().push_back(state.cpu());
  }
  return trained;
}

/// Shares one after the other; what every rank has whole must be the same on each.
inline at::Tensor join(const std::vector<at::Tensor>& shares, bool shared) {
  if (shared) return at::cat(shares);
  for (const at::Tensor& share : shares) EXPECT_TRUE(at::equal(share, shares.front()));
  return shares.front();
}

/// The case over its strategy's ranks, `devices` by rank.
inline Trained train_on_ranks(const TrainingCase& one, const std::vector<at::Device>& devices,
                              const comm::LocalOptions& options = {}) {
  const auto ranks = static_cast<size_t>(one.strategy.parallel.world());
  std::vector<RankTrained> all(ranks);
  comm::run_ranks(
      static_cast<int>(ranks),
      [&](comm::World& world) {
        const auto rank = static_cast<size_t>(world.rank());
        all[rank] = train_rank(one, world, devices[rank % devices.size()]);
      },
      options);
  Trained trained;
  trained.steps = all.front().steps;
  for (const RankTrained& rank : all) {
    for (size_t step = 0; step < trained.steps.size(); ++step) {
      EXPECT_EQ(rank.steps[step].loss, trained.steps[step].loss);
      EXPECT_EQ(rank.steps[step].grad_norm, trained.steps[step].grad_norm);
      EXPECT_EQ(rank.steps[step].tokens, trained.steps[step].tokens);
      EXPECT_EQ(rank.steps[step].applied, trained.steps[step].applied);
    }
  }
  const bool shared = one.strategy.parallel.zero > 0 && one.strategy.owners() > 1;
  std::vector<std::vector<at::Tensor>> states;
  for (size_t part = 0; part < all.front().masters.size(); ++part) {
    std::vector<const RankTrained*> holders;
    for (const RankTrained& rank : all) {
      if (rank.has(part)) holders.push_back(&rank);
    }
    // Blocks of ranks that have all of it, each: the same.
    const auto block = static_cast<size_t>(one.strategy.owners());
    const auto each = [&](auto&& value) {
      std::vector<at::Tensor> tensors;
      for (const RankTrained* rank : holders) {
        if (tensors.size() < block) {
          tensors.push_back(value(*rank));
        } else {
          const auto place =
              static_cast<size_t>(std::ranges::find(holders, rank) - holders.begin());
          EXPECT_TRUE(at::equal(value(*rank), tensors[place % block])) << "part " << part;
        }
      }
      return tensors;
    };
    const at::Tensor compute =
        join(each([&](const RankTrained& r) { return r.compute[part]; }), false);
    const bool whole = holders.front()->master_ranges[part].count() == compute.numel();
    trained.weights.push_back(
        join(each([&](const RankTrained& r) { return r.masters[part]; }),
             shared && !(whole && holders.back()->master_ranges[part].count() == compute.numel())));
    // A selection bias moves in float32 and is read so.
    if (std::ranges::none_of(one.spec.parameters, [&](const model::ParameterSpec& parameter) {
          return parameter.part == static_cast<int>(part) && !parameter.trainable;
        })) {
      EXPECT_TRUE(at::equal(compute, trained.weights.back().to(compute.scalar_type())));
    }
    states.emplace_back();
    for (size_t i = 0; i < 2; ++i)
      states.back().push_back(
          join(each([&](const RankTrained& r) { return r.states[part][i]; }), shared));
  }
  for (const optim::StateTensor& state : optim::state_views(one.optimizer, one.spec, states))
    trained.states.push_back(state.tensor);
  return trained;
}

}  // namespace trireme::execute
