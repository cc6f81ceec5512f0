#include "trireme/base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "trireme/base/error.h"
#include "trireme/base/temporary_file.h"

namespace trireme {

namespace fs = std::filesystem;

namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

std::string read_hint(int error) {
  switch (error) {
    case ENOENT:
      return "check the path; relative paths start at the working directory";
    case EACCES:
      return "check the file's permissions";
    case EISDIR:
      return "name a file in this folder";
    default:
      return "check the path and the disk";
  }
}

std::string write_hint(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "free some space or name a folder on another disk; what was there before is untouched";
    case EACCES:
    case EPERM:
    case EROFS:
      return "name a folder that you may write to";
    case ENOENT:
      return "create the folder first";
    default:
      return "check the path and the disk; what was there before is untouched";
  }
}

[[noreturn]] void fail_read(const fs::path& path, int error) {
  throw Error(ErrorCode::kData, fmt::format("cannot read '{}': {}", path.string(), reason(error)),
              read_hint(error));
}

[[noreturn]] void fail_write(const fs::path& path, int error) {
  throw Error(ErrorCode::kData, fmt::format("cannot write '{}': {}", path.string(), reason(error)),
              write_hint(error));
}

/// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  /// Closes now; false with errno if the system reports a late write error.
  bool close_now() {
    const int fd = std::exchange(fd_, -1);
    return fd < 0 || ::close(fd) == 0;
  }
  void reset() { close_now(); }

 private:
  int fd_;
};

int open_retrying(const fs::path& path, int flags) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

struct Opened {
  Descriptor descriptor;
  size_t size;
};

Opened open_for_reading(const fs::path& path) {
  Opened opened{Descriptor(open_retrying(path, O_RDONLY)), 0};
  if (!opened.descriptor.valid()) fail_read(path, errno);
  struct stat info{};
  if (::fstat(opened.descriptor.get(), &info) != 0) fail_read(path, errno);
  if (S_ISDIR(info.st_mode)) fail_read(path, EISDIR);
  opened.size = static_cast<size_t>(info.st_size);
  return opened;
}

fs::path folder_of(const fs::path& path) {
  const fs::path folder = path.parent_path();
  return folder.empty() ? fs::path(".") : folder;
}

}  // namespace

std::string read_file(const fs::path& path) {
  const Opened opened = open_for_reading(path);
  std::string content(opened.size, '\0');
  size_t used = 0;
  // The size is only a first guess: a pipe has none and a file may grow while it is read.
  while (true) {
    if (used == content.size()) content.resize(std::max<size_t>(content.size() * 2, 1));
    const ssize_t count =
        ::read(opened.descriptor.get(), content.data() + used, content.size() - used);
    if (count < 0) {
      if (errno == EINTR) continue;
      fail_read(path, errno);
    }
    if (count == 0) break;
    used += static_cast<size_t>(count);
  }
  content.resize(used);
  return content;
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  const fs::path folder = folder_of(path);
  const fs::path temporary = temporary_path(path);
  Descriptor out(create_temporary(temporary));
  if (!out.valid()) fail_write(path, errno);
  const auto give_up = [&](int error) {
    out.reset();
    ::unlink(temporary.c_str());
    fail_write(path, error);
  };
  size_t written = 0;
  while (written < content.size()) {
    const ssize_t count = ::write(out.get(), content.data() + written, content.size() - written);
    if (count < 0) {
      if (errno == EINTR) continue;
      give_up(errno);
    }
    written += static_cast<size_t>(count);
  }
  if (::fsync(out.get()) != 0) give_up(errno);
  if (!out.close_now()) give_up(errno);
  if (::rename(temporary.c_str(), path.c_str()) != 0) give_up(errno);
  sync_path(folder);
}

void sync_path(const fs::path& path) {
  const Descriptor descriptor(open_retrying(path, O_RDONLY));
  if (!descriptor.valid()) fail_write(path, errno);
  // Some file systems cannot sync a folder and say EINVAL; the rename is as durable as they allow.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL) fail_write(path, errno);
}

MappedFile::MappedFile(const fs::path& path) {
  const Opened opened = open_for_reading(path);
  if (opened.size == 0) return;
  void* data = ::mmap(nullptr, opened.size, PROT_READ, MAP_SHARED, opened.descriptor.get(), 0);
  if (data == MAP_FAILED) fail_read(path, errno);
  data_ = data;
  size_ = opened.size;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace trireme
