// The one exception of the project and the checks that throw it.
//
// Two kinds of failure are kept apart: what the user wrote (TRIREME_USER_CHECK, with a code and a
// remedy) and what we got wrong (TRIREME_CHECK). Only cli/ turns a code into an exit status.
#pragma once

#include <fmt/format.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>

namespace trireme {

/// What failed; the value is the exit status that cli/ returns for it.
enum class ErrorCode : int {
  kInternal = 1,      ///< a defect of ours
  kConfig = 2,        ///< the user's configuration or arguments
  kData = 3,          ///< data, tokenizer or checkpoint
  kDevice = 4,        ///< device or communication
  kNumerical = 5,     ///< a loss that is not finite, after the configured policy
  kInterrupted = 130  ///< interrupted, after a checkpoint was written
};

/// Carries what is wrong (`what()`, naming what the user wrote), what to do (`hint()`) and where in
/// the source it was thrown (`where()`, shown by --verbose). Thread-safety: immutable after
/// construction.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::string hint = "",
        std::source_location where = std::source_location::current())
      : std::runtime_error(message), code_(code), hint_(std::move(hint)), where_(where) {}
  ErrorCode code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }
  const std::source_location& where() const noexcept { return where_; }

 private:
  ErrorCode code_;
  std::string hint_;
  std::source_location where_;
};

namespace detail {
[[noreturn]] void fail_check(std::source_location where, const char* condition,
                             const std::string& message);
}  // namespace detail

}  // namespace trireme

/// Stops on a defect of ours: TRIREME_CHECK(a == b, "sizes differ: {} and {}", a, b).
#define TRIREME_CHECK(condition, ...)                                              \
  do {                                                                             \
    if (!(condition)) [[unlikely]] {                                               \
      ::trireme::detail::fail_check(::std::source_location::current(), #condition, \
                                    ::fmt::format(__VA_ARGS__));                   \
    }                                                                              \
  } while (false)

/// Stops on what the user wrote: TRIREME_USER_CHECK(n > 0, kConfig, "make it positive", "n = {}",
/// n).
#define TRIREME_USER_CHECK(condition, code, hint, ...)                                        \
  do {                                                                                        \
    if (!(condition)) [[unlikely]] {                                                          \
      throw ::trireme::Error(::trireme::ErrorCode::code, ::fmt::format(__VA_ARGS__), (hint)); \
    }                                                                                         \
  } while (false)
