#include "trireme/comm/rendezvous/announcement.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <span>
#include <sstream>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"

namespace trireme::comm {

namespace {

constexpr size_t kMaxFileBytes = 4096;
constexpr const char* kFolderHint = "set XDG_RUNTIME_DIR to a folder of your own";

std::string job_hash(const std::string& job) {
  return hash_text(xxh3(std::as_bytes(std::span(job.data(), job.size()))));
}

bool is_own(const struct stat& status) {
  return status.st_uid == ::geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

c10::intrusive_ptr<c10d::TCPStore> open_store(const Endpoint& store, double timeout_s) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(store.port);
  options.isServer = false;
  options.waitWorkers = false;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1e3) + 1);
  try {
    return c10::make_intrusive<c10d::TCPStore>(store.address, options);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    throw Error(ErrorCode::kDevice,
                fmt::format("cannot reach the store of the launcher at {}: {}", store.text(),
                            text.substr(0, text.find('\n'))),
                "torchrun keeps it at MASTER_ADDR:MASTER_PORT; is that machine reached from here?");
  }
}

}  // namespace

std::string announcement_path(const std::string& job, const std::string& runtime_folder,
                              const std::string& temporary_folder) {
  // After `su` it may name a folder that is not there.
  const bool runs = !runtime_folder.empty() && std::filesystem::is_directory(runtime_folder);
  const std::string& base = runs ? runtime_folder : temporary_folder;
  const std::string folder = fmt::format("{}/trireme-{}", base, ::geteuid());
  const bool made = ::mkdir(folder.c_str(), 0700) == 0;
  TRIREME_USER_CHECK(made || errno == EEXIST, kConfig, kFolderHint, "cannot make {}: {}", folder,
                     std::strerror(errno));
  // Not a link, not somebody else's: what is read there decides whom this rank trusts.
  struct stat status{};
  TRIREME_USER_CHECK(
      ::lstat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && is_own(status), kConfig,
      kFolderHint, "{} is not a folder of this user's alone", folder);
  return folder + "/" + job_hash(job);
}

void write_announcement(const std::string& path, const Announcement& announcement) {
  const std::string text = fmt::format("{} {} {}\n", announcement.endpoint.address,
                                       announcement.endpoint.port, announcement.token);
  const std::string temporary = fmt::format("{}.{}", path, ::getpid());
  ::unlink(temporary.c_str());
  const Descriptor file(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  const bool written =
      file && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
      ::rename(temporary.c_str(), path.c_str()) == 0;
  if (written) return;
  const int error = errno;
  ::unlink(temporary.c_str());
  throw Error(ErrorCode::kData, fmt::format("cannot write {}: {}", path, std::strerror(error)),
              kFolderHint);
}

std::optional<Announcement> read_announcement(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  struct stat status{};
  if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) || !is_own(status))
    return std::nullopt;
  std::array<char, kMaxFileBytes> bytes{};
  const ssize_t got = ::read(file.get(), bytes.data(), bytes.size());
  if (got <= 0 || bytes[static_cast<size_t>(got) - 1] != '\n') return std::nullopt;
  std::istringstream text(std::string(bytes.data(), static_cast<size_t>(got)));
  Announcement announcement;
  text >> announcement.endpoint.address >> announcement.endpoint.port >> announcement.token;
  if (!text || announcement.endpoint.port < 1 || announcement.endpoint.port > 65535)
    return std::nullopt;
  return announcement;
}

std::string parent_identity() {
  const pid_t parent = ::getppid();
  std::string began;
  try {
    // The 22nd field; the second one, in brackets, may hold blanks.
    const std::string status = read_file(fmt::format("/proc/{}/stat", parent));
    std::istringstream fields(status.substr(status.rfind(')') + 1));
    for (int field = 3; field <= 22; ++field) fields >> began;
  } catch (const Error&) {
    began = "?";  // another user's process, or no /proc: the number has to do
  }
  return fmt::format("{} {}", parent, began);
}

void announce_in_store(const Endpoint& store, const std::string& job, const Endpoint& own,
                       double timeout_s) {
  const std::string text = own.text();
  open_store(store, timeout_s)
      ->set("trireme/" + job_hash(job), std::vector<uint8_t>(text.begin(), text.end()));
}

std::optional<Endpoint> ask_store(const Endpoint& store, const std::string& job, double timeout_s) {
  const auto client = open_store(store, timeout_s);
  try {
    const std::vector<uint8_t> bytes = client->get("trireme/" + job_hash(job));
    return parse_endpoint(std::string(bytes.begin(), bytes.end()), "rank 0 is at");
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {  // its time is over
    return std::nullopt;
  }
}

}  // namespace trireme::comm
