// A storage for tests: fails where it is told to, as a full disk, a kill or a power cut would.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/checkpoint/storage.h"

namespace trireme::checkpoint {

/// Thrown by every operation from the moment of the simulated kill on: nothing that a dead process
/// would not do may reach the disk, clean-up included.
struct Killed : std::runtime_error {
  Killed() : std::runtime_error("killed") {}
};

/// Passes everything to the real disk until a fault.
/// Thread-safety: one thread at a time. Ownership: owns nothing on disk.
class FaultyStorage final : public Storage {
 public:
  int64_t kill_at =
      -1;  ///< the operation (from 0) that does not happen; of a write, half of it does
  bool power_cut = false;         ///< a kill also loses what was not synced, renames included
  int64_t full_after_bytes = -1;  ///< writes beyond fail as on a full disk
  bool can_exchange = true;
  std::optional<uint64_t> free;  ///< what free_bytes says
  int64_t operations = 0;        ///< counted so far

  std::unique_ptr<OutputFile> create(const std::filesystem::path& path) override {
    before();
    return std::make_unique<File>(*this, path);
  }
  void make_folders(const std::filesystem::path& path) override {
    before();
    disk().make_folders(path);
  }
  void sync_folder(const std::filesystem::path& path) override {
    before();
    std::erase_if(renames_, [&](const Rename& rename) { return rename.to.parent_path() == path; });
    std::erase_if(unlisted_, [&](const auto& file) { return file.parent_path() == path; });
  }
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    before();
    disk().rename(from, to);
    renames_.push_back({from, to, false});
    move_paths(from, to);
  }
  bool exchange(const std::filesystem::path& a, const std::filesystem::path& b) override {
    before();
    if (!can_exchange || !disk().exchange(a, b)) return false;
    renames_.push_back({a, b, true});
    move_paths(a, b);
    return true;
  }
  void remove_all(const std::filesystem::path& path) override {
    before();
    disk().remove_all(path);
  }
  uint64_t free_bytes(const std::filesystem::path& path) override {
    before();
    return free ? *free : disk().free_bytes(path);
  }

 private:
  struct Rename {
    std::filesystem::path from, to;
    bool exchange;
  };
  class File final : public OutputFile {
   public:
    File(FaultyStorage& storage, const std::filesystem::path& path)
        : storage_(storage), path_(path), file_(disk().create(path)) {
      storage_.unsynced_.insert(path);
      storage_.unlisted_.insert(path);
    }
    void write(std::span<const std::byte> bytes) override {
      if (storage_.next_dies()) file_->write(bytes.first(bytes.size() / 2));
      storage_.before();
      storage_.written_ += static_cast<int64_t>(bytes.size());
      TRIREME_USER_CHECK(
          storage_.full_after_bytes < 0 || storage_.written_ <= storage_.full_after_bytes, kData,
          "free some space", "cannot write {}: No space left on device", path_.string());
      file_->write(bytes);
    }
    void sync_and_close() override {
      storage_.before();
      file_->sync_and_close();
      storage_.unsynced_.erase(path_);
    }

   private:
    FaultyStorage& storage_;
    std::filesystem::path path_;
    std::unique_ptr<OutputFile> file_;
  };

  bool next_dies() const { return !dead_ && operations == kill_at; }
  void before() {
    if (next_dies()) {
      dead_ = true;
      if (power_cut) lose_unsynced();
    }
    if (dead_) throw Killed();
    ++operations;
  }
  void lose_unsynced() {
    for (const auto& path : unsynced_) {
      if (std::filesystem::exists(path))
        std::filesystem::resize_file(path, std::filesystem::file_size(path) / 3);
    }
    for (const auto& path : unlisted_) std::filesystem::remove(path);
    for (auto rename = renames_.rbegin(); rename != renames_.rend(); ++rename) {
      if (!std::filesystem::exists(rename->to)) continue;
      if (rename->exchange) {
        if (std::filesystem::exists(rename->from)) disk().exchange(rename->from, rename->to);
      } else {
        disk().rename(rename->to, rename->from);
      }
    }
  }
  /// Files inside a renamed folder have a new path.
  void move_paths(const std::filesystem::path& from, const std::filesystem::path& to) {
    for (auto* paths : {&unsynced_, &unlisted_}) {
      std::set<std::filesystem::path> moved;
      for (const auto& path : *paths)
        moved.insert(path.parent_path() == from ? to / path.filename() : path);
      *paths = std::move(moved);
    }
  }

  bool dead_ = false;
  int64_t written_ = 0;
  std::set<std::filesystem::path> unsynced_;  ///< files whose bytes are not safe
  std::set<std::filesystem::path> unlisted_;  ///< files whose names are not safe
  std::vector<Rename> renames_;               ///< renames that are not safe
};

}  // namespace trireme::checkpoint
