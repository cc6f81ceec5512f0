// Models with enough layers for pipelines, their schedules, and a transport that shows what does not wait. Header only, for tests.
#pragma once

#include <array>
#include <stdexcept>
#include <string>

#include "trireme/base/json.h"
#include "trireme/comm/local/local_world.h"
#include "trireme/nn/testing/tiny_models.h"
#include "trireme/plan/schedule.h"

namespace trireme::execute {

inline constexpr std::array kSchedules = {
    plan::ScheduleKind::kGPipe,       plan::ScheduleKind::k1F1B,
    plan::ScheduleKind::kInterleaved, plan::ScheduleKind::kZeroBubbleH1,
    plan::ScheduleKind::kZeroBubbleV, plan::ScheduleKind::kDualPipeV,
    plan::ScheduleKind::kVHalf};

/// Bytes move when they are waited for: what is not waited for is not there.
inline comm::LocalOptions late() {
  comm::LocalOptions options;
  options.late = true;
  return options;
}

/// As tiny(3), of so many layers.
inline model::ModelSpec deep(int layers, uint64_t seed = 4) {
  Json config = nn::testing::model_json(nn::testing::tiny_configs(seed).at(3));
  config["num_hidden_layers"] = layers;
  return model::spec_from_config(config.dump(), "deep.json");
}

/// `experts` of them, if groups come out even.
inline model::ModelSpec deep_moe(const std::string& name, int layers, uint64_t seed = 4,
                                 int64_t experts = 6) {
  for (auto variant : nn::testing::moe_variants()) {
    if (variant.name != name) continue;
    if (experts % variant.moe.num_groups == 0) variant.moe.num_experts = experts;
    return nn::testing::with_experts(deep(layers, seed), variant.moe, variant.first);
  }
  throw std::runtime_error(name);
}

}  // namespace trireme::execute
