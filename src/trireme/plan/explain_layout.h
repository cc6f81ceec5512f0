// A strategy over ranks as a picture in text: which rank holds what, who talks to whom, and how much.
#pragma once

#include <string>

#include "trireme/base/json.h"
#include "trireme/plan/program.h"

namespace trireme::plan {

/// Stages and their parts by rank, bytes that are always held, groups, and what a rank sends in a step by kind of transfer (the most
/// that any of them does). Empty for one rank. Builds a program for every pipeline rank: of a valid strategy.
std::string explain_layout(const model::ModelSpec& spec, const Strategy& strategy);

/// The same figures: {"ranks", "stages": [{stage, ranks, parts, parameters}], "groups": {dimension: [[rank]]}, "sent": {kind: {bytes,
/// transfers}}}.
OrderedJson layout_json(const model::ModelSpec& spec, const Strategy& strategy);

}  // namespace trireme::plan
