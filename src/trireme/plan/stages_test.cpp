#include "trireme/plan/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "trireme/base/error.h"
#include "trireme/model/flops.h"
#include "trireme/model/mtp_test_specs.h"

namespace trireme::plan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Figures {
  double largest = 0.0;
  double squares = 0.0;
  double memory = 0.0;
};

Figures figures_of(const std::vector<int>& cuts, const std::vector<double>& costs,
                   const std::vector<double>& memory) {
  Figures figures;
  for (size_t s = 0; s + 1 < cuts.size(); ++s) {
    double cost = 0.0;
    double held = 0.0;
    for (int unit = cuts[s]; unit < cuts[s + 1]; ++unit) {
      cost += costs[static_cast<size_t>(unit)];
      if (!memory.empty()) held += memory[static_cast<size_t>(unit)];
    }
    figures.largest = std::max(figures.largest, cost);
    figures.squares += cost * cost;
    figures.memory = std::max(figures.memory, held);
  }
  return figures;
}

// Every way to cut.
template <class Body>
void for_each_cut(int units, int stages, std::vector<int>& cuts, const Body& body) {
  if (stages == 0) {
    if (cuts.back() == units) body(cuts);
    return;
  }
  for (int next = cuts.back() + 1; next <= units; ++next) {
    cuts.push_back(next);
    for_each_cut(units, stages - 1, cuts, body);
    cuts.pop_back();
  }
}

TEST(Stages, CutsAsWellAsTryingAllDoes) {
  std::mt19937 random(3);
  int without = 0;
  for (int round = 0; round < 400; ++round) {
    const int units = 1 + static_cast<int>(random() % 9);
    const int stages = 1 + static_cast<int>(random() % static_cast<unsigned>(units));
    std::vector<double> costs;
    std::vector<double> memory;
    for (int i = 0; i < units; ++i) {
      costs.push_back(static_cast<double>(random() % 12));
      memory.push_back(static_cast<double>(random() % 6));
    }
    const double limit = round % 3 == 0 ? static_cast<double>(3 + random() % 10) : 1e9;
    Figures best{1e9, 1e9, 0.0};
    std::vector<int> begun = {0};
    for_each_cut(units, stages, begun, [&](const std::vector<int>& cuts) {
      const Figures figures = figures_of(cuts, costs, memory);
      if (figures.memory > limit) return;
      if (std::pair(figures.largest, figures.squares) < std::pair(best.largest, best.squares))
        best = figures;
    });
    const std::vector<int> cuts = balanced_cuts(costs, stages, memory, limit);
    if (best.largest == 1e9) {
      ++without;
      EXPECT_THAT(cuts, IsEmpty());
      continue;
    }
    ASSERT_EQ(cuts.size(), static_cast<size_t>(stages) + 1);
    EXPECT_EQ(cuts.front(), 0);
    EXPECT_EQ(cuts.back(), units);
    const Figures figures = figures_of(cuts, costs, memory);
    EXPECT_LE(figures.memory, limit);
    EXPECT_EQ(figures.largest, best.largest);
    EXPECT_EQ(figures.squares, best.squares);
  }
  EXPECT_GT(without, 5);
}

model::ModelSpec llama(int layers, int vocab) {
  return model::spec_from_config(
      fmt::format(R"({{"model_type": "llama", "vocab_size": {}, "hidden_size": 16,
      "intermediate_size": 24, "num_hidden_layers": {}, "num_attention_heads": 4,
      "num_key_value_heads": 2, "max_position_embeddings": 64}})",
                  vocab, layers),
      "test");
}

TEST(Stages, CutBetweenLayersOnly) {
  // embedding; attention and mlp of three layers; head.
  EXPECT_THAT(stage_units(llama(3, 40)), ElementsAre(0, 1, 3, 5, 7, 8));
  // Modules of multi-token prediction stay with the head.
  EXPECT_THAT(stage_units(model::with_mtp(llama(2, 40), 1, 0.3)),
              ElementsAre(0, 1, 3, 5,
                          static_cast<int>(model::with_mtp(llama(2, 40), 1, 0.3).parts.size())));
  const std::vector<double> costs = unit_flops(llama(3, 40), 8);
  EXPECT_EQ(costs.size(), 5);
  EXPECT_EQ(costs.front(), 0.0);  // a look-up
  EXPECT_NEAR(std::accumulate(costs.begin(), costs.end(), 0.0),
              model::flops_per_token(llama(3, 40), 8).model(), 1e-6);
}

TEST(Stages, AHeavyHeadLeavesTheLastStageFewerLayers) {
  // A layer has 6 x (2 x 16 x 16 + 2 x 16 x 8 + 3 x 16 x 24) + 6 x 8 x 16 = 12288 operations a token, a head of 256 rows twice that.
  const model::ModelSpec spec = llama(6, 256);
  const std::vector<double> costs = unit_flops(spec, 8);
  EXPECT_EQ(costs[1], 12288.0);
  EXPECT_EQ(costs.back(), 24576.0);
  const Stages stages = cut_stages(spec, 2, 8);
  // Four layers, and two with the head.
  EXPECT_THAT(stages.begin, ElementsAre(0, 9, 14));
  EXPECT_EQ(stages.count(), 2);
  EXPECT_EQ(stages.of_part(0), 0);
  EXPECT_EQ(stages.of_part(8), 0);
  EXPECT_EQ(stages.of_part(9), 1);
  EXPECT_EQ(stages.of_part(13), 1);
  EXPECT_THAT(cut_stages(spec, 8, 8).begin, ElementsAre(0, 1, 3, 5, 7, 9, 11, 13, 14));
  EXPECT_THROW(cut_stages(spec, 9, 8), Error);
}

}  // namespace
}  // namespace trireme::plan
