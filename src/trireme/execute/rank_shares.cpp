#include "trireme/execute/rank_shares.h"

#include <algorithm>

#include "trireme/plan/shards.h"

namespace trireme::execute {

std::vector<model::ElementRange> state_shares(const model::ModelSpec& spec,
                                              const plan::Program& program) {
  if (program.groups.empty()) return {};
  const bool sliced = program.strategy.parallel.zero > 0;
  if (!sliced && program.has_part.empty()) return {};
  std::vector<model::ElementRange> shares;
  for (size_t part = 0; part < spec.parts.size(); ++part) {
    const std::vector<int64_t>& bounds = program.slices[part];
    const auto slice = static_cast<size_t>(program.slice_of(static_cast<int>(part)));
    if (!program.has(static_cast<int>(part))) {
      shares.emplace_back();
    } else if (sliced) {
      shares.push_back({bounds[slice], bounds[slice + 1]});
    } else {
      shares.push_back({0, bounds.back()});
    }
  }
  return shares;
}

std::vector<char> gathered_parts(const model::ModelSpec& spec, const plan::Program& program) {
  std::vector<char> gathered;
  for (size_t part = 0; part < spec.parts.size(); ++part)
    gathered.push_back(plan::gathers_for_use(spec, program.strategy, static_cast<int>(part)));
  if (std::ranges::count(gathered, 0) == static_cast<int64_t>(gathered.size())) gathered.clear();
  return gathered;
}

std::vector<model::ElementRange> master_shares(const model::ModelSpec& spec,
                                               const plan::Program& program) {
  if (program.strategy.precision != plan::Precision::kBf16 && gathered_parts(spec, program).empty())
    return {};
  std::vector<model::ElementRange> shares = state_shares(spec, program);
  for (size_t part = 0; part < shares.size(); ++part) {
    if (program.has(static_cast<int>(part)) &&
        !plan::shares_masters(spec, program.strategy, static_cast<int>(part)))
      shares[part] = {0, program.slices[part].back()};
  }
  return shares;
}

}  // namespace trireme::execute
