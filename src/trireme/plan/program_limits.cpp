#include "trireme/plan/program_limits.h"

#include "trireme/base/error.h"

namespace trireme::plan {

std::vector<std::string> program_limits(const model::ModelSpec& /*spec*/,
                                        const Strategy& strategy) {
  std::vector<std::string> reasons;
  const Parallel& parallel = strategy.parallel;
  const auto only_one = [&](const char* key, int64_t value) {
    if (value > 1)
      reasons.push_back(
          fmt::format("parallel.{} = {}: training does not go over ranks in this way "
                      "yet; use parallel.{} = 1",
                      key, value, key));
  };
  only_one("tp", parallel.tp);
  only_one("cp", parallel.cp);
  only_one("ep", parallel.ep);
  only_one("etp", parallel.etp);
  return reasons;
}

}  // namespace trireme::plan
