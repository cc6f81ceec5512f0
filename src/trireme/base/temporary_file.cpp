#include "trireme/base/temporary_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>
#include <vector>

namespace trireme {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSuffix = ".tmp";

/// Cuts ".<digits>" off the end of `text`; false if it does not end so.
bool cut_number(std::string_view& text) {
  const size_t dot = text.rfind('.');
  if (dot == std::string_view::npos || dot + 1 == text.size()) return false;
  if (text.find_first_not_of("0123456789", dot + 1) != std::string_view::npos) return false;
  text = text.substr(0, dot);
  return true;
}

/// "NAME" of ".NAME.PID.N.tmp"; empty if `file` is named otherwise.
std::string_view written_name(std::string_view file) {
  if (!file.starts_with('.') || !file.ends_with(kSuffix)) return {};
  file.remove_suffix(kSuffix.size());
  if (!cut_number(file) || !cut_number(file)) return {};
  return file.substr(1);
}

int open_retrying(const fs::path& path, int flags) {
  int descriptor = -1;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

fs::path temporary_path(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return path.parent_path() / fmt::format(".{}.{}.{}{}", path.filename().string(), ::getpid(),
                                          counter.fetch_add(1, std::memory_order_relaxed), kSuffix);
}

int create_temporary(const fs::path& temporary) {
  while (true) {
    int descriptor = open_retrying(temporary, O_WRONLY | O_CREAT | O_EXCL);
    if (descriptor < 0 && errno == EEXIST) {
      // Left by a killed process that had our number, as every first process of a container has.
      ::unlink(temporary.c_str());
      descriptor = open_retrying(temporary, O_WRONLY | O_CREAT | O_EXCL);
    }
    if (descriptor < 0) return -1;
    // File systems without locks have no abandoned temporaries removed either.
    if (::flock(descriptor, LOCK_EX) != 0) return descriptor;
    // Between its creation and the lock another process may have taken it for abandoned.
    struct stat info{};
    if (::fstat(descriptor, &info) != 0 || info.st_nlink > 0) return descriptor;
    ::close(descriptor);
  }
}

void remove_abandoned_temporaries(const fs::path& folder, std::string_view name) {
  std::error_code ignored;
  std::vector<fs::path> temporaries;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string file = entry.path().filename().string();
    const std::string_view written = written_name(file);
    if (written.empty() || (!name.empty() && written != name)) continue;
    if (entry.is_regular_file(ignored)) temporaries.push_back(entry.path());
  }
  for (const fs::path& temporary : temporaries) {
    const int descriptor = open_retrying(temporary, O_RDWR);
    if (descriptor < 0) continue;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(temporary.c_str());
    ::close(descriptor);
  }
}

}  // namespace trireme
