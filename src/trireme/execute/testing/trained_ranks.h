// A few steps of training over ranks that are threads, put together as one rank would have it. Header only, for tests.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>

#include "trireme/comm/local/local_world.h"
#include "trireme/execute/rank_shares.h"
#include "trireme/execute/testing/trained_runs.h"
#include "trireme/execute/weight_gather.h"
#include "trireme/plan/local_spec.h"

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
  const model::ModelSpec local = plan::local_spec(one.spec, one.strategy.parallel, world.rank());
  nn::ParameterStore store(local, bf16 ? at::kBFloat16 : at::kFloat, at::kFloat, device,
                           master_shares(local, program), program.has_part,
                           gathered_parts(local, program));
  store.initialize(6);
  nn::Model model(store);
  const auto optimizer = optim::make_optimizer(
      one.optimizer, store.spec(), device,
      one.strategy.offload_optimizer ? optim::StatePlace::kHost : optim::StatePlace::kDevice,
      state_shares(local, program));
  Executor executor(model, store, *optimizer, &world);
  StepInput input;
  input.learning_rate = 1e-2;
  input.clip_norm = 1.0;
  RankTrained trained;
  trained.has_part = program.has_part;
  for (input.step = 0; input.step < one.steps; ++input.step) {
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

/// A part as one rank would have it.
struct WholePart {
  at::Tensor compute;
  at::Tensor masters;
  std::vector<at::Tensor> states;
};

/// Of ranks that have the same parameters: blocks of `block` ranks that have all of it, each; the same.
inline WholePart join_holders(const std::vector<const RankTrained*>& holders, size_t part,
                              size_t block, bool shared) {
  const auto each = [&](auto&& value) {
    std::vector<at::Tensor> tensors;
    for (size_t i = 0; i < holders.size(); ++i) {
      if (i < block) {
        tensors.push_back(value(*holders[i]));
      } else {
        EXPECT_TRUE(at::equal(value(*holders[i]), tensors[i % block])) << "part " << part;
      }
    }
    return tensors;
  };
  WholePart whole;
  whole.compute = join(each([&](const RankTrained& r) { return r.compute[part]; }), false);
  const auto is_whole = [&](const RankTrained* rank) {
    return rank->master_ranges[part].count() == whole.compute.numel();
  };
  whole.masters = join(each([&](const RankTrained& r) { return r.masters[part]; }),
                       shared && !(is_whole(holders.front()) && is_whole(holders.back())));
  for (size_t i = 0; i < 2; ++i)
    whole.states.push_back(
        join(each([&](const RankTrained& r) { return r.states[part][i]; }), shared));
  return whole;
}

/// Experts that are spread over ranks: the stretches of every place, each in its own.
inline WholePart join_places(const TrainingCase& one, const std::vector<WholePart>& places,
                             int part) {
  const plan::Parallel& parallel = one.strategy.parallel;
  WholePart whole;
  int64_t elements = 0;
  for (const WholePart& place : places) elements += place.masters.numel();
  whole.compute = at::empty({elements}, places.front().compute.options());
  whole.masters = at::empty({elements}, at::kFloat);
  for (const int64_t size : optim::part_state_sizes(one.optimizer, one.spec, part))
    whole.states.push_back(at::empty({size}, at::kFloat));
  const auto to = optim::part_state_views(one.optimizer, one.spec, part, whole.states);
  for (size_t p = 0; p < places.size(); ++p) {
    const model::ModelSpec local = plan::local_spec(one.spec, parallel, static_cast<int>(p));
    int64_t here = 0;
    int64_t there = 0;
    for (size_t i = 0; i < local.parameters.size(); ++i) {
      const model::ParameterSpec& parameter = local.parameters[i];
      if (parameter.part != part) continue;
      const int64_t all = one.spec.parameters[i].numel();
      const auto place = [&](const at::Tensor& flat, const at::Tensor& of_rank) {
        nn::stretch(flat.narrow(0, there, all).view(parameter.whole_shape()), parameter)
            .copy_(of_rank.narrow(0, here, parameter.numel()).view(parameter.shape));
      };
      place(whole.compute, places[p].compute);
      place(whole.masters, places[p].masters);
      here += parameter.numel();
      there += all;
    }
    const auto from = optim::part_state_views(one.optimizer, local, part, places[p].states);
    for (size_t i = 0; i < from.size(); ++i) {
      const auto index = static_cast<size_t>(local.parameter_index(from[i].parameter));
      nn::stretch(to[i].tensor, local.parameters[index]).copy_(from[i].tensor);
    }
  }
  return whole;
}

inline WholePart whole_part(const TrainingCase& one, const std::vector<RankTrained>& all,
                            int part) {
  const plan::Parallel& parallel = one.strategy.parallel;
  const auto at = static_cast<size_t>(part);
  const bool spread = parallel.ep > 1 && one.spec.parts[at].kind == model::PartKind::kExperts;
  const int64_t places = spread ? parallel.ep : 1;
  const int64_t block = spread ? parallel.dp * parallel.cp / parallel.ep : one.strategy.owners();
  std::vector<WholePart> wholes;
  for (int64_t place = 0; place < places; ++place) {
    std::vector<const RankTrained*> holders;
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (all[rank].has(at) && static_cast<int64_t>(rank) % places == place)
        holders.push_back(&all[rank]);
    }
    wholes.push_back(
        join_holders(holders, at, static_cast<size_t>(block), parallel.zero > 0 && block > 1));
  }
  return spread ? join_places(one, wholes, part) : wholes.front();
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
  std::vector<std::vector<at::Tensor>> states;
  for (int part = 0; part < static_cast<int>(one.spec.parts.size()); ++part) {
    WholePart whole = whole_part(one, all, part);
    trained.weights.push_back(whole.masters);
    // A selection bias moves in float32 and is read so.
    if (std::ranges::none_of(one.spec.parameters, [&](const model::ParameterSpec& parameter) {
          return parameter.part == part && !parameter.trainable;
        })) {
      EXPECT_TRUE(at::equal(whole.compute, whole.masters.to(whole.compute.scalar_type())));
    }
    states.push_back(whole.states);
  }
  for (const optim::StateTensor& state : optim::state_views(one.optimizer, one.spec, states))
    trained.states.push_back(state.tensor);
  return trained;
}

}  // namespace trireme::execute
