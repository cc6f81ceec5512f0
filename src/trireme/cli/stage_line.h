// What a long command does now: one line that renews itself on a terminal, elsewhere a line for every new stage.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

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

  void show(const std::string& text) {
    if (quiet_) return;
    if (terminal_) {
      std::fprintf(stderr, "\r\x1b[K%.*s", 100, text.c_str());
      std::fflush(stderr);
      shown_ = true;
      return;
    }
    const std::string stage = text.substr(0, text.find(':'));
    if (stage == stage_) return;
    stage_ = stage;
    log::info("{}", stage);
  }

 private:
  const bool quiet_;
  const bool terminal_;
  bool shown_ = false;
  std::string stage_;
};

}  // namespace trireme::cli
