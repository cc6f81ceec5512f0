// What a long command does now: one line that renews itself on a terminal, elsewhere a line for every new stage and every few seconds.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

#include "trireme/base/clock.h"
#include "trireme/base/log.h"

namespace trireme::cli {

/// Of texts "stage: detail". Writes to stderr. One thread. Ends the line when it is destroyed.
class StageLine {
 public:
  explicit StageLine(bool quiet)
      : quiet_(quiet || log::level() > log::Level::kInfo), terminal_(isatty(STDERR_FILENO) != 0) {}
  ~StageLine() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }
  StageLine(const StageLine&) = delete;
  StageLine& operator=(const StageLine&) = delete;

  /// Whether show() would write now: not more often than people read, or the first of a stage.
  bool is_due(const std::string& stage) const {
    const double often_s = terminal_ ? 0.1 : 5.0;
    return !quiet_ && (stage != stage_ || steady_clock().now_s() - at_s_ > often_s);
  }

  void show(const std::string& text) {
    const std::string stage = text.substr(0, text.find(':'));
    if (!is_due(stage)) return;
    stage_ = stage;
    at_s_ = steady_clock().now_s();
    if (terminal_) {
      std::fprintf(stderr, "\r\x1b[K%.*s", 100, text.c_str());
      std::fflush(stderr);
      shown_ = true;
      return;
    }
    log::info("{}", text);
  }

 private:
  const bool quiet_;
  const bool terminal_;
  bool shown_ = false;
  std::string stage_;
  double at_s_ = 0.0;  ///< of the last text
};

}  // namespace trireme::cli
