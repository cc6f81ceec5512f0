#include "trireme/plan/stages.h"

#include <algorithm>
#include <limits>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"

namespace trireme::plan {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

std::vector<double> running_sum(const std::vector<double>& values) {
  std::vector<double> sums = {0.0};
  for (const double value : values) sums.push_back(sums.back() + value);
  return sums;
}

}  // namespace

int Stages::of_part(int part) const {
  const auto after = std::ranges::upper_bound(begin, part);
  return static_cast<int>(after - begin.begin()) - 1;
}

std::vector<int> stage_units(const model::ModelSpec& spec) {
  std::vector<int> begin;
  int layer = std::numeric_limits<int>::min();
  const int head = spec.head_part();
  for (int part = 0; part <= head; ++part) {
    const int mine = spec.parts[static_cast<size_t>(part)].layer;
    if (part == 0 || part == head || mine != layer) begin.push_back(part);
    layer = mine;
  }
  begin.push_back(static_cast<int>(spec.parts.size()));
  return begin;
}

std::vector<int> balanced_cuts(const std::vector<double>& costs, int stages,
                               const std::vector<double>& memory, double memory_limit) {
  const auto units = static_cast<int>(costs.size());
  TRIREME_CHECK(stages >= 1 && stages <= units, "{} stages of {} units", stages, units);
  TRIREME_CHECK(memory.empty() || memory.size() == costs.size(), "{} memories of {} units",
                memory.size(), units);
  const std::vector<double> cost_before = running_sum(costs);
  const std::vector<double> memory_before = running_sum(memory);
  const auto between = [](const std::vector<double>& sums, int first, int last) {
    return sums[static_cast<size_t>(last)] - sums[static_cast<size_t>(first)];
  };
  const auto fits = [&](int first, int last) {
    return memory.empty() || between(memory_before, first, last) <= memory_limit;
  };

  // best[s][u]: of the first u units in s stages. `add` joins what came before with the cost of one stage more.
  using Table = std::vector<std::vector<double>>;
  const auto solve = [&](const auto& add, std::vector<std::vector<int>>& from) {
    Table best(static_cast<size_t>(stages) + 1,
               std::vector<double>(static_cast<size_t>(units) + 1, kNever));
    from.assign(best.size(), std::vector<int>(best[0].size(), -1));
    best[0][0] = 0.0;
    for (int s = 1; s <= stages; ++s) {
      const auto at = static_cast<size_t>(s);
      for (int last = s; last <= units; ++last) {
        for (int first = s - 1; first < last; ++first) {
          const double before = best[at - 1][static_cast<size_t>(first)];
          if (before == kNever || !fits(first, last)) continue;
          const double value = add(before, between(cost_before, first, last));
          if (value >= best[at][static_cast<size_t>(last)]) continue;
          best[at][static_cast<size_t>(last)] = value;
          from[at][static_cast<size_t>(last)] = first;
        }
      }
    }
    return best.back().back();
  };
  std::vector<std::vector<int>> from;
  const double largest =
      solve([](double before, double cost) { return std::max(before, cost); }, from);
  if (largest == kNever) return {};
  const double allowed = largest * (1.0 + 1e-12);
  const double squares = solve(
      [&](double before, double cost) { return cost > allowed ? kNever : before + cost * cost; },
      from);
  TRIREME_CHECK(squares != kNever, "no cut with the largest cost {}", largest);
  std::vector<int> cuts = {units};
  for (int s = stages; s >= 1; --s)
    cuts.insert(cuts.begin(), from[static_cast<size_t>(s)][static_cast<size_t>(cuts.front())]);
  return cuts;
}

std::vector<double> unit_flops(const model::ModelSpec& spec, int64_t seq_len,
                               const std::vector<bool>& recomputed) {
  const std::vector<int> units = stage_units(spec);
  std::vector<double> costs;
  for (size_t unit = 0; unit + 1 < units.size(); ++unit) {
    double sum = 0.0;
    for (int part = units[unit]; part < units[unit + 1]; ++part) {
      const model::TokenFlops flops = model::part_flops(spec, part, seq_len);
      sum += flops.model();
      if (!recomputed.empty() && recomputed[static_cast<size_t>(part)]) sum += flops.recompute;
    }
    costs.push_back(sum);
  }
  return costs;
}

Stages cut_stages(const model::ModelSpec& spec, int stages, int64_t seq_len,
                  const std::vector<bool>& recomputed) {
  const std::vector<int> units = stage_units(spec);
  Stages result;
  for (const int cut : balanced_cuts(unit_flops(spec, seq_len, recomputed), stages))
    result.begin.push_back(units[static_cast<size_t>(cut)]);
  return result;
}

Stages stages_of_layers(const model::ModelSpec& spec, const std::vector<int64_t>& layers) {
  const std::vector<int> units = stage_units(spec);
  const auto num_layers = static_cast<int64_t>(units.size()) - 3;  // units, but embedding and head
  Stages result;
  result.begin.push_back(0);
  int64_t unit = 1;
  for (size_t stage = 0; stage + 1 < layers.size(); ++stage) {
    unit += layers[stage];
    const bool empty = layers[stage] < 0 || (layers[stage] == 0 && stage > 0);
    TRIREME_USER_CHECK(!empty && unit <= num_layers + 1, kConfig,
                       "give every stage at least one of the model's layers",
                       "stage {} has {} layers of {}", stage, layers[stage], num_layers);
    result.begin.push_back(units[static_cast<size_t>(unit)]);
  }
  unit += layers.empty() ? 0 : layers.back();
  TRIREME_USER_CHECK(unit == num_layers + 1, kConfig,
                     "let the numbers add up to the model's layers",
                     "the stages have {} layers, the model {}", unit - 1, num_layers);
  result.begin.push_back(units.back());
  return result;
}

std::vector<int64_t> layers_of_stages(const model::ModelSpec& spec, const Stages& stages) {
  const std::vector<int> units = stage_units(spec);
  std::vector<int64_t> layers;
  for (size_t stage = 0; stage + 1 < stages.begin.size(); ++stage) {
    const auto at = [&](int part) { return std::ranges::find(units, part) - units.begin(); };
    layers.push_back(at(stages.begin[stage + 1]) - at(stages.begin[stage]));
  }
  --layers.front();
  --layers.back();
  return layers;
}

}  // namespace trireme::plan
