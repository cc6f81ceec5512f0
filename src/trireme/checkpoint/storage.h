// The disk as the checkpoint room sees it: an interface, so that full disks and crashes are unit
// tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace trireme::checkpoint {

/// A file being written. Thread-safety: one thread. Every call blocks; Error{kData} names the path
/// and the reason.
class OutputFile {
 public:
  virtual ~OutputFile() = default;  ///< closes without syncing
  virtual void write(std::span<const std::byte> bytes) = 0;
  virtual void sync_and_close() = 0;  ///< fsync, then close
};

/// What writing a folder needs. Thread-safety: calls from several threads on different paths.
/// Asynchrony: every call blocks. Errors: Error{kData} naming the path and the reason.
class Storage {
 public:
  virtual ~Storage() = default;
  virtual std::unique_ptr<OutputFile> create(const std::filesystem::path& path) = 0;
  virtual void make_folders(const std::filesystem::path& path) = 0;
  virtual void sync_folder(const std::filesystem::path& path) = 0;
  virtual void rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  /// Swaps two folders in one step. False where the file system cannot.
  virtual bool exchange(const std::filesystem::path& a, const std::filesystem::path& b) = 0;
  virtual void remove_all(const std::filesystem::path& path) = 0;
  virtual uint64_t free_bytes(const std::filesystem::path& path) = 0;  ///< for an unprivileged user
};

/// Whether `path` holds a model or a checkpoint and nothing else: what --force and a run's export may replace. Empty
/// folders count. Looks at names only.
bool is_model_folder(const std::filesystem::path& path);

/// The real disk. Lives as long as the process.
Storage& disk();

/// A folder that appears under its name complete or not at all. Files are written into a hidden
/// temporary sibling; commit() syncs and renames. Without commit the destructor removes the
/// temporary. Thread-safety: one thread. Ownership: borrows the storage.
class FolderTransaction {
 public:
  FolderTransaction(Storage& storage, std::filesystem::path final_path);
  ~FolderTransaction();
  FolderTransaction(const FolderTransaction&) = delete;
  FolderTransaction& operator=(const FolderTransaction&) = delete;
  const std::filesystem::path& folder() const { return temporary_; }  ///< write here
  /// Writes and syncs a small file; of "folder/name" the folder, too.
  void write_file(const std::string& name, std::string_view content);
  /// Syncs the folder, renames it over `final_path` (what was there is replaced in one step and
  /// then deleted), syncs the parent. Blocking.
  void commit();

 private:
  Storage& storage_;
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  bool committed_ = false;
};

/// Removes temporaries that killed processes left beside `final_path`s in `parent`, and puts back a
/// folder that was being replaced. Call when no other process writes there. With `name` only those of
/// that folder: what else is in `parent` may be its owner's.
void clean_up_transactions(Storage& storage, const std::filesystem::path& parent,
                           const std::string& name = "");

}  // namespace trireme::checkpoint
