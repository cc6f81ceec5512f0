#include "trireme/base/log.h"

#include <atomic>
#include <cstdio>
#include <mutex>
#include <set>
#include <string>

namespace trireme::log {

namespace {

std::atomic<Level> g_level{Level::kInfo};

std::string_view prefix(Level level) {
  switch (level) {
    case Level::kWarning:
      return "warning: ";
    case Level::kError:
      return "error: ";
    default:
      return "";
  }
}

}  // namespace

void set_level(Level level) {
  g_level.store(level, std::memory_order_relaxed);
}

Level level() {
  return g_level.load(std::memory_order_relaxed);
}

void write(Level level, std::string_view line) {
  if (level < g_level.load(std::memory_order_relaxed)) return;
  std::string text(prefix(level));
  text += line;
  text += '\n';
  // One call: stdio locks the stream, so lines of different threads never mix.
  std::fwrite(text.data(), 1, text.size(), stderr);
}

void warning_once(std::string_view key, std::string_view line) {
  static std::mutex mutex;
  static std::set<std::string, std::less<>> seen;
  {
    const std::lock_guard lock(mutex);
    if (!seen.emplace(key).second) return;
  }
  write(Level::kWarning, line);
}

}  // namespace trireme::log
