// What an allocator throws when it cannot give out a block.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <string>

#include "trireme/base/error.h"

namespace trireme::device {

/// Of the CPU's allocator.
class OutOfMemory : public Error {
 public:
  OutOfMemory(const std::string& message, std::string hint, int64_t asked_bytes, int64_t held_bytes)
      : Error(ErrorCode::kDevice, message, std::move(hint)),
        asked_bytes_(asked_bytes),
        held_bytes_(held_bytes) {}
  int64_t asked_bytes() const { return asked_bytes_; }
  int64_t held_bytes() const { return held_bytes_; }  ///< at that moment

 private:
  int64_t asked_bytes_;
  int64_t held_bytes_;
};

/// PyTorch's, with what was asked for: of accelerators whose allocator is ours.
class AcceleratorOutOfMemory : public c10::OutOfMemoryError {
 public:
  AcceleratorOutOfMemory(c10::SourceLocation where, std::string message, int64_t asked_bytes,
                         int64_t held_bytes)
      : c10::OutOfMemoryError(where, std::move(message)),
        asked_bytes_(asked_bytes),
        held_bytes_(held_bytes) {}
  int64_t asked_bytes() const { return asked_bytes_; }
  int64_t held_bytes() const { return held_bytes_; }

 private:
  int64_t asked_bytes_;
  int64_t held_bytes_;
};

/// An error in words, if it says that a device (or the host) has no memory left.
struct MemoryRefusal {
  std::string message;
  int64_t asked_bytes = 0;  ///< 0: not known
  int64_t held_bytes = 0;   ///< 0: not known
};
inline std::optional<MemoryRefusal> memory_refusal(const std::exception& error) {
  if (const auto* ours = dynamic_cast<const OutOfMemory*>(&error))
    return MemoryRefusal{ours->what(), ours->asked_bytes(), ours->held_bytes()};
  if (const auto* ours = dynamic_cast<const AcceleratorOutOfMemory*>(&error))
    return MemoryRefusal{ours->what_without_backtrace(), ours->asked_bytes(), ours->held_bytes()};
  if (const auto* torchs = dynamic_cast<const c10::OutOfMemoryError*>(&error))
    return MemoryRefusal{torchs->what_without_backtrace(), 0, 0};
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr)
    return MemoryRefusal{"the host has no memory left", 0, 0};
  return std::nullopt;
}

}  // namespace trireme::device
