// Files read whole or mapped, and written so that nothing on disk is ever half there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

/// Reads a whole file. Error{code kData} that names the path and the reason.
std::string read_file(const std::filesystem::path& path);

/// Writes to a temporary name beside `path`, fsyncs, renames over it, fsyncs the folder. On any
/// failure (full disk, read-only folder) the temporary is removed, what was there stays, and
/// Error{kData} says why.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// fsync of a file or a folder; Error{kData} on failure.
void sync_path(const std::filesystem::path& path);

/// A read-only memory map. Thread-safety: const access from any thread. Movable, not copyable.
class MappedFile {
 public:
  explicit MappedFile(
      const std::filesystem::path& path);  ///< Error{kData}; an empty file maps to an empty span
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  std::string_view text() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// Expands a shell-like pattern (*, ?, [..], ** for any depth) below the working directory or an
/// absolute path; sorted by bytes, files only. A plain existing path expands to itself.
std::vector<std::filesystem::path> expand_glob(const std::string& pattern);

}  // namespace trireme
