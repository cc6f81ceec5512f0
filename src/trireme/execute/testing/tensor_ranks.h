// A few steps of training over tensor parallel ranks that are threads, put together as one rank would have it. Header only, for
// tests.
#pragma once

#include <cmath>

#include "trireme/cluster/mesh.h"
#include "trireme/execute/testing/trained_ranks.h"

namespace trireme::execute {

struct TensorTrained : Trained {
  /// What ranks should have had alike and had not: parameters, states, losses, norms.
  std::vector<std::string> different;
};

/// What splitting the sums of one rank may do to what follows from them, relative to it (docs/parallelism.md): every layer has two
/// sums that are split each way, the head one more. A sum of K products is added in another order, 2 K roundings of float32 at most;
/// in bfloat16 every rank's part of it is rounded too, and what rounds at random adds up as a walk does.
inline double tensor_bound(const TrainingCase& one, int64_t tp) {
  const auto layers = static_cast<double>(one.spec.layers.size());
  const double split_sums = 4.0 * layers + 1.0;
  double longest = static_cast<double>(one.spec.hidden);
  for (const model::LayerSpec& layer : one.spec.layers)
    longest = std::max(longest, static_cast<double>(layer.mlp.hidden));
  const double order = split_sums * 2.0 * longest * 0x1.0p-24;
  if (one.strategy.precision == plan::Precision::kFp32) return order;
  return order + std::sqrt(split_sums * (static_cast<double>(tp) + 1.0)) * 0x1.0p-8;
}

inline double relative(double got, double want) {
  return std::abs(got - want) / std::abs(want);
}

/// Of all AdamW's first moments, which are gradients after one step.
inline double relative_error(const std::vector<at::Tensor>& got,
                             const std::vector<at::Tensor>& want) {
  double error = 0.0;
  double size = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]).to(at::kDouble).square().sum().item<double>();
    size += want[i].to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(error / size);
}

/// `share` of a part's flat elements of the rank's own layout, at its place in the whole part's. Names what somebody else wrote there
/// with other bits.
inline void put_stretches(const model::ModelSpec& local, const model::ModelSpec& whole, int part,
                          const at::Tensor& share, at::Tensor& into, at::Tensor& written,
                          std::vector<std::string>& different) {
  int64_t from = 0;
  int64_t to = 0;
  for (size_t i = 0; i < whole.parameters.size(); ++i) {
    const model::ParameterSpec& mine = local.parameters[i];
    const model::ParameterSpec& all = whole.parameters[i];
    if (all.part != part) continue;
    const at::Tensor values = share.narrow(0, from, mine.numel()).view(mine.shape);
    const auto place = [&](const at::Tensor& flat) {
      return nn::stretch(flat.narrow(0, to, all.numel()).view(all.shape), mine);
    };
    at::Tensor target = place(into);
    at::Tensor seen = place(written);
    if (seen.any().item<bool>() && !at::equal(target, values)) different.push_back(all.name);
    target.copy_(values);
    seen.fill_(true);
    from += mine.numel();
    to += all.numel();
  }
}

/// The case over its strategy's ranks; `change` may plant something in the program of a rank.
inline TensorTrained train_on_tensor_ranks(
    const TrainingCase& one, const std::vector<at::Device>& devices = {at::kCPU},
    const std::function<void(int rank, plan::Program&)>& change = {},
    const comm::LocalOptions& options = {}) {
  const plan::Parallel& parallel = one.strategy.parallel;
  const auto ranks = static_cast<size_t>(parallel.world());
  std::vector<RankTrained> all(ranks);
  comm::run_ranks(
      static_cast<int>(ranks),
      [&](comm::World& world) {
        const auto rank = static_cast<size_t>(world.rank());
        all[rank] =
            train_rank(one, world, devices[rank % devices.size()], [&](plan::Program& program) {
              if (change) change(world.rank(), program);
            });
      },
      options);
  TensorTrained trained;
  trained.steps = all.front().steps;
  for (const RankTrained& rank : all) {
    for (size_t step = 0; step < trained.steps.size(); ++step) {
      if (rank.steps[step].loss != trained.steps[step].loss) trained.different.emplace_back("loss");
      if (rank.steps[step].grad_norm != trained.steps[step].grad_norm)
        trained.different.emplace_back("norm");
      EXPECT_EQ(rank.steps[step].tokens, trained.steps[step].tokens);
      EXPECT_EQ(rank.steps[step].num_targets, trained.steps[step].num_targets);
    }
  }
  const cluster::Mesh mesh(plan::mesh_shape(parallel));
  const size_t parts = one.spec.parts.size();
  std::vector<std::vector<at::Tensor>> states(parts);
  for (size_t part = 0; part < parts; ++part) {
    int64_t elements = 0;
    for (const model::ParameterSpec& parameter : one.spec.parameters)
      elements += parameter.part == static_cast<int>(part) ? parameter.numel() : 0;
    const auto floats = at::TensorOptions().dtype(at::kFloat);
    at::Tensor weights = at::zeros({elements}, floats);
    at::Tensor seen = at::zeros({elements}, floats.dtype(at::kBool));
    states[part] = {at::zeros({elements}, floats), at::zeros({elements}, floats)};
    std::vector<at::Tensor> seen_states = {seen.clone(), seen.clone()};
    for (int place = 0; place < parallel.tp; ++place) {
      model::ModelSpec local;
      at::Tensor masters;
      at::Tensor known;
      std::vector<std::vector<at::Tensor>> shares(2);
      for (size_t rank = 0; rank < ranks; ++rank) {
        const RankTrained& of = all[rank];
        if (mesh.coordinates(static_cast<int>(rank)).tp != place || !of.has(part)) continue;
        local = plan::local_spec(one.spec, parallel, static_cast<int>(rank));
        if (!masters.defined()) {
          masters = at::zeros({of.compute[part].numel()}, floats);
          known = at::zeros(masters.sizes(), floats.dtype(at::kBool));
        }
        const model::ElementRange range = of.master_ranges[part];
        at::Tensor mine = masters.narrow(0, range.first, range.count());
        // Ranks that have the same ones have the same bits.
        if (known.narrow(0, range.first, range.count()).all().item<bool>() &&
            !at::equal(mine, of.masters[part]))
          trained.different.emplace_back("masters");
        mine.copy_(of.masters[part]);
        known.narrow(0, range.first, range.count()).fill_(true);
        // Blocks of ranks that share states have all of them each.
        const bool shared = parallel.zero > 0 && one.strategy.owners() > 1;
        const int index =
            mesh.index_in_group(cluster::Dimension::kDataContext, static_cast<int>(rank));
        if (index >= one.strategy.owners()) continue;
        for (size_t i = 0; i < 2; ++i) {
          if (shared || shares[i].empty()) shares[i].push_back(of.states[part][i]);
        }
      }
      put_stretches(local, one.spec, static_cast<int>(part), masters, weights, seen,
                    trained.different);
      for (size_t i = 0; i < 2; ++i)
        put_stretches(local, one.spec, static_cast<int>(part), at::cat(shares[i]), states[part][i],
                      seen_states[i], trained.different);
    }
    EXPECT_TRUE(elements == 0 || seen.all().item<bool>()) << "part " << part << " is not complete";
    trained.weights.push_back(weights);
  }
  for (const optim::StateTensor& state : optim::state_views(one.optimizer, one.spec, states))
    trained.states.push_back(state.tensor);
  return trained;
}

}  // namespace trireme::execute
