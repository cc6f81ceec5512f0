#include "trireme/data/token_mask.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "trireme/base/error.h"
#include "trireme/base/temporary_file.h"

namespace trireme::data {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

namespace {

constexpr std::array<char, 8> kMagic = {'T', 'R', 'I', 'M', 'A', 'S', 'K', '1'};
constexpr size_t kHeaderBytes = 16;
constexpr size_t kFlushBytes = size_t{1} << 20;
constexpr const char* kRebuildHint = "write the pair again with `trireme data prepare --loss-mask`";

void write_at(int descriptor, const char* bytes, size_t size, off_t offset,
              const std::filesystem::path& path) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count =
        ::pwrite(descriptor, bytes + done, size - done, offset + static_cast<off_t>(done));
    if (count < 0 && errno == EINTR) continue;
    TRIREME_USER_CHECK(count > 0, kData, "make room on the disk or write elsewhere",
                       "cannot write {}: {}", path.string(), std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

}  // namespace

std::span<const std::byte> parse_token_mask(std::span<const std::byte> bytes, int64_t bin_ids,
                                            const std::string& origin) {
  TRIREME_USER_CHECK(
      bytes.size() >= kHeaderBytes && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0,
      kData, kRebuildHint, "{}: not a mask of tokens", origin);
  uint64_t count = 0;
  std::memcpy(&count, bytes.data() + kMagic.size(), sizeof(count));
  TRIREME_USER_CHECK(count == static_cast<uint64_t>(bin_ids), kData, kRebuildHint,
                     "{}: a mask of {} ids beside a .bin file of {}", origin, count, bin_ids);
  TRIREME_USER_CHECK(bytes.size() - kHeaderBytes == (count + 7) / 8, kData, kRebuildHint,
                     "{}: {} bytes for a mask of {} ids", origin, bytes.size(), count);
  return bytes.subspan(kHeaderBytes);
}

TokenMask::TokenMask(const std::filesystem::path& path, int64_t bin_ids)
    : file_(std::make_unique<MappedFile>(path)),
      bits_(parse_token_mask(file_->bytes(), bin_ids, path.string())) {}

TokenMaskWriter::TokenMaskWriter(const std::filesystem::path& path)
    : path_(path), temporary_(temporary_path(path)) {
  std::error_code ignored;  // a folder that cannot be made shows below, with the reason
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), ignored);
  descriptor_ = create_temporary(temporary_);
  TRIREME_USER_CHECK(descriptor_ >= 0, kData, "write to a folder that exists and is writable",
                     "cannot write {}: {}", temporary_.string(), std::strerror(errno));
}

TokenMaskWriter::~TokenMaskWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void TokenMaskWriter::append(std::span<const uint8_t> predicted) {
  for (const uint8_t bit : predicted) {
    if (num_ids_ % 8 == 0) {
      if (buffer_.size() >= kFlushBytes) flush();
      buffer_ += '\0';
    }
    if (bit != 0) {
      buffer_.back() = static_cast<char>(static_cast<uint8_t>(buffer_.back()) |
                                         static_cast<uint8_t>(1U << (num_ids_ % 8)));
      ++num_predicted_;
    }
    ++num_ids_;
  }
}

// Called only when the last byte of the buffer is complete, or at the end.
void TokenMaskWriter::flush() {
  const auto bytes_before =
      static_cast<off_t>((num_ids_ + 7) / 8) - static_cast<off_t>(buffer_.size());
  write_at(descriptor_, buffer_.data(), buffer_.size(),
           static_cast<off_t>(kHeaderBytes) + bytes_before, temporary_);
  buffer_.clear();
}

void TokenMaskWriter::finish() {
  TRIREME_CHECK(descriptor_ >= 0, "finish() was called twice");
  flush();
  const auto count = static_cast<uint64_t>(num_ids_);
  write_at(descriptor_, kMagic.data(), kMagic.size(), 0, temporary_);
  write_at(descriptor_, reinterpret_cast<const char*>(&count), sizeof(count), kMagic.size(),
           temporary_);
  TRIREME_USER_CHECK(::fsync(descriptor_) == 0, kData, "make room on the disk or write elsewhere",
                     "cannot write {}: {}", temporary_.string(), std::strerror(errno));
  std::error_code error;
  std::filesystem::rename(temporary_, path_, error);
  TRIREME_USER_CHECK(!error, kData, "write to a folder that is writable", "cannot write {}: {}",
                     path_.string(), error.message());
  ::close(descriptor_);
  descriptor_ = -1;
}

}  // namespace trireme::data
