// TensorBoard event files, written natively: TFRecord frames around hand-encoded Event messages.
//
// Formats: tensorflow/core/lib/io/record_writer (length, masked crc32c, data, masked crc32c) and
// tensorflow/core/util/event.proto. Every start of a run makes a new file; it opens with a
// SessionLog START event, at which TensorBoard forgets what an earlier, killed process wrote of
// later steps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trireme::train {

/// crc32c (Castagnoli), and TFRecord's masked form of it.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

/// One TFRecord frame around `data`.
std::string tfrecord(std::string_view data);

/// Thread-safety: one thread. Ownership: owns the file descriptor. Blocks until the system has the
/// record.
class EventFile {
 public:
  /// Makes `folder` and a new event file in it. `first_step`: the first step that will be written.
  EventFile(const std::filesystem::path& folder, double wall_time_s, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  /// All scalars of one step as one event. Error{kData} if it cannot be written.
  void add_scalars(double wall_time_s, int64_t step,
                   const std::vector<std::pair<std::string, float>>& scalars);
  const std::filesystem::path& path() const { return path_; }

 private:
  void write(const std::string& event);

  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace trireme::train
