// Time behind an interface, so that what waits or measures is tested without waiting.
#pragma once

#include <cstdint>

namespace trireme {

/// A monotonic clock. Thread-safety: now_ns may be called from any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Nanoseconds since an arbitrary start; never goes back.
  virtual int64_t now_ns() const = 0;

  double now_s() const { return static_cast<double>(now_ns()) * 1e-9; }
};

/// The machine's monotonic clock.
class SteadyClock final : public Clock {
 public:
  int64_t now_ns() const override;
};

/// The process-wide steady clock, for callers that were given none.
const Clock& steady_clock();

/// Stands still until it is told to move. Not thread-safe.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(int64_t start_ns = 0) : now_ns_(start_ns) {}
  int64_t now_ns() const override { return now_ns_; }
  void advance_ns(int64_t duration_ns) { now_ns_ += duration_ns; }
  void advance_s(double duration_s) { now_ns_ += static_cast<int64_t>(duration_s * 1e9); }

 private:
  int64_t now_ns_;
};

/// Seconds since the UNIX epoch (wall clock), for stamps in files; never for durations.
double wall_time_s();

}  // namespace trireme
