// Lines for the person who runs the program. All go to stderr; stdout is for results.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace trireme::log {

enum class Level { kVerbose, kInfo, kWarning, kError };

/// Lines below `level` are dropped; --quiet sets kWarning, --verbose kVerbose. Thread-safe.
void set_level(Level level);
Level level();

/// Writes one line to stderr. Thread-safe; lines never interleave.
void write(Level level, std::string_view line);

template <typename... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void verbose(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kVerbose, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}

/// Writes a warning once per `key` and process. Thread-safe.
void warning_once(std::string_view key, std::string_view line);

}  // namespace trireme::log
