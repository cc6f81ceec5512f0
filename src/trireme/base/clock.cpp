#include "trireme/base/clock.h"

#include <chrono>

namespace trireme {

int64_t SteadyClock::now_ns() const {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

const Clock& steady_clock() {
  static const SteadyClock clock;
  return clock;
}

double wall_time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

}  // namespace trireme
