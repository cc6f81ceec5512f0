#include "trireme/checkpoint/storage.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <set>
#include <string>
#include <system_error>

#include "trireme/base/error.h"
#include "trireme/base/log.h"
#include "trireme/checkpoint/template_folder.h"

namespace trireme::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kTemporaryPrefix = ".tmp-";
constexpr std::string_view kReplacedPrefix = ".old-";

const char* remedy(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free some space there, or write to another disk";
    case EROFS:
    case EACCES:
    case EPERM:
      return "make the folder writable, or write somewhere else";
    case ENOTDIR:
      return "a part of the path is a file; name a folder";
    default:
      return "check the path and the disk";
  }
}

[[noreturn]] void fail(const char* action, const fs::path& path, int error) {
  throw Error(ErrorCode::kData,
              fmt::format("cannot {} {}: {}", action, path.string(),
                          std::generic_category().message(error)),
              remedy(error));
}

class DiskFile final : public OutputFile {
 public:
  explicit DiskFile(fs::path path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor_ < 0) fail("create", path_, errno);
  }
  ~DiskFile() override {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  void write(std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        fail("write", path_, errno);
      }
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }
  void sync_and_close() override {
    // A file that cannot be synced by nature (a pipe, a character device) says EINVAL.
    if (::fsync(descriptor_) != 0 && errno != EINVAL) fail("sync", path_, errno);
    const int descriptor = descriptor_;
    descriptor_ = -1;
    if (::close(descriptor) != 0) fail("close", path_, errno);
  }

 private:
  fs::path path_;
  int descriptor_ = -1;
};

class Disk final : public Storage {
 public:
  std::unique_ptr<OutputFile> create(const fs::path& path) override {
    return std::make_unique<DiskFile>(path);
  }
  void make_folders(const fs::path& path) override {
    std::error_code error;
    fs::create_directories(path, error);
    if (error) fail("create the folder", path, error.value());
  }
  void sync_folder(const fs::path& path) override {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) fail("open the folder", path, errno);
    const int result = ::fsync(descriptor);
    const int error = errno;
    ::close(descriptor);
    if (result != 0 && error != EINVAL) fail("sync the folder", path, error);
  }
  void rename(const fs::path& from, const fs::path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      fail(fmt::format("rename {} to", from.string()).c_str(), to, errno);
    }
  }
  bool exchange(const fs::path& a, const fs::path& b) override {
#ifdef RENAME_EXCHANGE
    if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP) {
      fail(fmt::format("put {} in place of", a.string()).c_str(), b, errno);
    }
#endif
    return false;
  }
  void remove_all(const fs::path& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    if (error) fail("remove", path, error.value());
  }
  uint64_t free_bytes(const fs::path& path) override {
    struct statvfs status{};
    if (::statvfs(path.c_str(), &status) != 0) fail("ask for the free space of", path, errno);
    return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
  }
};

/// The process id at the end of ".tmp-<name>.<pid>", or -1.
pid_t owner_of(const std::string& temporary) {
  const size_t dot = temporary.rfind('.');
  if (dot == std::string::npos || dot + 1 == temporary.size()) return -1;
  pid_t pid = -1;
  const char* end = temporary.data() + temporary.size();
  const auto result = std::from_chars(temporary.data() + dot + 1, end, pid);
  return result.ec == std::errc() && result.ptr == end ? pid : -1;
}

fs::path parent_of(const fs::path& path) {
  return path.parent_path().empty() ? fs::path(".") : path.parent_path();
}

fs::path without_trailing_slash(const fs::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

}  // namespace

Storage& disk() {
  static Disk instance;
  return instance;
}

FolderTransaction::FolderTransaction(Storage& storage, fs::path final_path)
    : storage_(storage), final_(without_trailing_slash(final_path)) {
  const fs::path parent = parent_of(final_);
  const std::string stem = std::string(kTemporaryPrefix) + final_.filename().string() + ".";
  storage_.make_folders(parent);
  // Leftovers of the same target: ours or of processes that are no more.
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(parent, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(stem)) continue;
    const pid_t owner = owner_of(name);
    const bool dead = owner > 0 && ::kill(owner, 0) != 0 && errno == ESRCH;
    if (name.rfind('.') + 1 == stem.size() && (owner == ::getpid() || dead))
      storage_.remove_all(entry.path());
  }
  temporary_ = parent / (stem + std::to_string(::getpid()));
  storage_.make_folders(temporary_);
}

FolderTransaction::~FolderTransaction() {
  if (committed_) return;
  try {
    storage_.remove_all(temporary_);
  } catch (const std::exception& error) {
    log::warning("{} is left behind: {}", temporary_.string(), error.what());
  }
}

void FolderTransaction::write_file(const std::string& name, std::string_view content) {
  const fs::path path = temporary_ / name;
  const bool inner = path.parent_path() != temporary_;
  if (inner) storage_.make_folders(path.parent_path());
  const auto file = storage_.create(path);
  file->write(std::as_bytes(std::span(content.data(), content.size())));
  file->sync_and_close();
  if (inner) storage_.sync_folder(path.parent_path());
}

void FolderTransaction::commit() {
  const fs::path parent = parent_of(final_);
  storage_.sync_folder(temporary_);
  if (!fs::exists(final_)) {
    storage_.rename(temporary_, final_);
    committed_ = true;
    storage_.sync_folder(parent);
    return;
  }
  if (storage_.exchange(temporary_, final_)) {
    committed_ = true;
    storage_.sync_folder(parent);
    storage_.remove_all(temporary_);
    return;
  }
  // Without an exchange the old folder steps aside first; clean_up_transactions puts it back after
  // a crash.
  const fs::path replaced = parent / (std::string(kReplacedPrefix) + final_.filename().string());
  storage_.remove_all(replaced);
  storage_.rename(final_, replaced);
  try {
    storage_.rename(temporary_, final_);
  } catch (...) {
    storage_.rename(replaced, final_);
    throw;
  }
  committed_ = true;
  storage_.sync_folder(parent);
  storage_.remove_all(replaced);
}

namespace {

/// A folder of templates alone.
bool is_template_folder(const fs::directory_entry& folder) {
  std::error_code error;
  if (folder.path().filename() != kTemplateFolder || !folder.is_directory(error)) return false;
  for (const auto& entry : fs::directory_iterator(folder.path(), error)) {
    if (!entry.is_regular_file(error) || entry.path().extension() != ".jinja") return false;
  }
  return !error;
}

}  // namespace

bool is_model_folder(const fs::path& path) {
  static const std::set<std::string> kinds = {".safetensors", ".json", ".jinja", ".model",
                                              ".toml",        ".md",   ".txt"};
  std::error_code error;
  bool has_config = false;
  bool empty = true;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    empty = false;
    const std::string name = entry.path().filename().string();
    has_config = has_config || name == "config.json" || name == "manifest.json";
    if (is_template_folder(entry)) continue;
    if (!entry.is_regular_file(error) || !kinds.contains(entry.path().extension().string()))
      return false;
  }
  return !error && (empty || has_config);
}

void clean_up_transactions(Storage& storage, const fs::path& parent, const std::string& only) {
  std::vector<fs::path> entries;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(parent, ignored)) entries.push_back(entry.path());
  for (const fs::path& entry : entries) {
    const std::string name = entry.filename().string();
    if (name.starts_with(kTemporaryPrefix)) {
      const bool ours =
          only.empty() ||
          (name.starts_with(std::string(kTemporaryPrefix) + only + ".") && owner_of(name) > 0);
      if (ours) storage.remove_all(entry);
    } else if (name.starts_with(kReplacedPrefix)) {
      const fs::path original = parent / name.substr(kReplacedPrefix.size());
      if (!only.empty() && original.filename() != only) continue;
      if (fs::exists(original)) {
        storage.remove_all(entry);
      } else {
        storage.rename(entry, original);
      }
    }
  }
}

}  // namespace trireme::checkpoint
