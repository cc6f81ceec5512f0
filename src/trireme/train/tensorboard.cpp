#include "trireme/train/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "trireme/base/error.h"

namespace trireme::train {

namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

template <typename T>
void put_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>((value >> (8 * i)) & 0xff);
}

// The three wire types of protobuf that an Event needs.
void put_varint(std::string& out, uint64_t value) {
  while (value >= 0x80) {
    out += static_cast<char>(value | 0x80);
    value >>= 7;
  }
  out += static_cast<char>(value);
}
void put_tag(std::string& out, int field, int wire_type) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type));
}
void put_int(std::string& out, int field, int64_t value) {
  put_tag(out, field, 0);
  put_varint(out, static_cast<uint64_t>(value));
}
void put_double(std::string& out, int field, double value) {
  put_tag(out, field, 1);
  put_little_endian(out, std::bit_cast<uint64_t>(value));
}
void put_float(std::string& out, int field, float value) {
  put_tag(out, field, 5);
  put_little_endian(out, std::bit_cast<uint32_t>(value));
}
void put_bytes(std::string& out, int field, std::string_view value) {
  put_tag(out, field, 2);
  put_varint(out, value.size());
  out += value;
}

// Field numbers of event.proto and summary.proto.
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2;
constexpr int kSessionStatus = 1, kSessionStart = 1;

std::string event_head(double wall_time_s, int64_t step) {
  std::string event;
  put_double(event, kWallTime, wall_time_s);
  if (step != 0) put_int(event, kStep, step);
  return event;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes)
    crc = kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ (crc >> 8);
  return crc ^ 0xffffffffu;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

std::string tfrecord(std::string_view data) {
  std::string length;
  put_little_endian(length, static_cast<uint64_t>(data.size()));
  std::string record = length;
  put_little_endian(record, masked_crc32c(length));
  record += data;
  put_little_endian(record, masked_crc32c(data));
  return record;
}

EventFile::EventFile(const std::filesystem::path& folder, double wall_time_s, int64_t first_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  char host[256] = "localhost";
  gethostname(host, sizeof(host) - 1);
  // Readers take files in the order of their names: a later start needs a larger name, even within
  // a second.
  for (int number = 0; fd_ < 0; ++number) {
    path_ = folder / fmt::format("events.out.tfevents.{:010}.{:06}.{}.{}",
                                 static_cast<int64_t>(wall_time_s), number, host, getpid());
    bool taken = false;
    if (std::filesystem::is_directory(folder, error)) {
      const std::string prefix = fmt::format("events.out.tfevents.{:010}.{:06}.",
                                             static_cast<int64_t>(wall_time_s), number);
      for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        taken = taken || entry.path().filename().string().rfind(prefix, 0) == 0;
      }
    }
    if (taken) continue;
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    TRIREME_USER_CHECK(fd_ >= 0 || errno == EEXIST, kData,
                       "check the folder's permissions and free space", "{}: cannot write: {}",
                       path_.string(), std::strerror(errno));
  }
  std::string version = event_head(wall_time_s, 0);
  put_bytes(version, kFileVersion, "brain.Event:2");
  write(version);
  std::string status;
  put_int(status, kSessionStatus, kSessionStart);
  std::string start = event_head(wall_time_s, first_step);
  put_bytes(start, kSessionLog, status);
  write(start);
}

EventFile::~EventFile() {
  if (fd_ >= 0) ::close(fd_);
}

void EventFile::add_scalars(double wall_time_s, int64_t step,
                            const std::vector<std::pair<std::string, float>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string item;
    put_bytes(item, kValueTag, tag);
    put_float(item, kValueSimple, value);
    put_bytes(summary, kSummaryValue, item);
  }
  std::string event = event_head(wall_time_s, step);
  put_bytes(event, kSummary, summary);
  write(event);
}

void EventFile::write(const std::string& event) {
  const std::string record = tfrecord(event);
  size_t done = 0;
  while (done < record.size()) {
    const ssize_t n = ::write(fd_, record.data() + done, record.size() - done);
    if (n < 0 && errno == EINTR) continue;
    TRIREME_USER_CHECK(n > 0, kData, "make room on the disk or set log.tensorboard = false",
                       "{}: cannot write: {}", path_.string(), std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

}  // namespace trireme::train
