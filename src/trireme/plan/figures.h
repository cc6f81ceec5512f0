// What ranks tell each other at the end of a step beside gradients, as float64 values in a fixed order. Pure.
#pragma once

#include <cstdint>

#include "trireme/plan/program.h"

namespace trireme::plan {

/// How many values rank `rank` of the world hands out: first, if it has the heads, the losses, of each of its lanes the head's and
/// the modules' of multi-token prediction; then, part by part of those it has, the sums of squares of the nodes of its slice
/// (squares_nodes()), if it is in the first block of ranks that have all slices; then of each of its lanes and each MoE layer that it has a router's statistics: every expert's load, dropped
/// choices, balancing loss, z-loss, entropy; and last 1 if it was asked to end, else 0.
struct FigureLayout {
  int64_t losses = 0;
  int64_t squares = 0;
  int64_t routers = 0;
  int64_t total() const { return losses + squares + routers + 1; }
};
FigureLayout figure_layout(const model::ModelSpec& spec, const Program& program, int rank);

/// Values of a router's statistics beside the loads.
inline constexpr int64_t kRouterFigures = 4;

}  // namespace trireme::plan
