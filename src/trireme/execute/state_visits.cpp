#include "trireme/execute/state_visits.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "trireme/base/error.h"

namespace trireme::execute {

void StateVisits::come(int part) {
  const auto [visit, fresh] = visits_.try_emplace(part);
  TRIREME_CHECK(fresh, "states of part {} come while they are there", part);
  const std::vector<at::Tensor> home = optimizer_.part_states(part);
  std::vector<at::Tensor>& here = visit->second.here;
  for (const at::Tensor& state : home)
    here.push_back(at::empty(state.sizes(), state.options().device(device_.torch_device())));
  copies_.in_after_compute();
  for (size_t i = 0; i < home.size(); ++i) device_.copy(here[i], home[i], copies_.in());
}

void StateVisits::go(int part) {
  Visit& visit = visits_.at(part);
  const std::vector<at::Tensor> home = optimizer_.part_states(part);
  for (size_t i = 0; i < home.size(); ++i) device_.copy(home[i], visit.here[i], copies_.out());
  visit.gone = copies_.out().record();
}

void StateVisits::give_up(int part, bool carried) {
  const auto found = visits_.find(part);
  if (found == visits_.end()) {
    TRIREME_CHECK(carried, "states of part {} are given up before they came", part);
    return;
  }
  Visit& visit = found->second;
  TRIREME_CHECK(visit.gone != nullptr, "states of part {} are given up before they went", part);
  device_.compute_queue().wait_for(visit.end());
  if (carried) ended_.insert_or_assign(part, std::move(visit.when));
  visits_.erase(found);
}

bool StateVisits::are_leaving(const std::vector<int>& parts) const {
  return std::ranges::equal(visits_, parts, [](const auto& visit, int part) {
    return visit.first == part && visit.second.gone != nullptr;
  });
}

void StateVisits::settle() {
  bool whole = true;
  for (auto& [part, visit] : visits_) {
    if (visit.gone == nullptr) {
      whole = false;
    } else {
      visit.end().wait();
    }
  }
  // Copies in may still write to what is dropped.
  if (!whole) device_.synchronize();
  for (auto& [part, visit] : visits_) {
    if (visit.gone != nullptr) ended_.insert_or_assign(part, std::move(visit.when));
  }
  visits_.clear();
}

}  // namespace trireme::execute
