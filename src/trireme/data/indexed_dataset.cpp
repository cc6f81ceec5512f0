#include "trireme/data/indexed_dataset.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <type_traits>

#include "trireme/base/error.h"
#include "trireme/base/hash.h"
#include "trireme/base/json.h"
#include "trireme/base/temporary_file.h"

namespace trireme::data {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

namespace {

namespace fs = std::filesystem;

constexpr char kMmapMagic[] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr char kLegacyMagic[] = {'T', 'N', 'T', 'I', 'D', 'X', '\0', '\0'};
constexpr const char* kRebuildHint = "write the pair again, e.g. with `trireme data prepare`";
constexpr size_t kFlushBytes = size_t{1} << 20;

/// Takes little-endian fields off a byte range, never past its end.
class FieldReader {
 public:
  FieldReader(std::span<const std::byte> bytes, const std::string& origin)
      : bytes_(bytes), origin_(origin) {}

  template <typename T>
  T take(const char* field) {
    require(sizeof(T), field);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  template <typename T>
  std::vector<int64_t> take_array(uint64_t count, const char* field) {
    TRIREME_USER_CHECK(count <= remaining() / sizeof(T), kData, kRebuildHint,
                       "{}: the index ends inside its {} ({} of them announced, {} bytes left)",
                       origin_, field, count, remaining());
    std::vector<int64_t> values(count);
    for (uint64_t i = 0; i < count; ++i) {
      T value;
      std::memcpy(&value, bytes_.data() + position_ + i * sizeof(T), sizeof(T));
      values[i] = static_cast<int64_t>(value);
    }
    position_ += count * sizeof(T);
    return values;
  }

  size_t remaining() const { return bytes_.size() - position_; }
  void skip(size_t count) { position_ += count; }

 private:
  void require(size_t count, const char* field) const {
    TRIREME_USER_CHECK(count <= remaining(), kData, kRebuildHint,
                       "{}: the index ends before its {} ({} bytes in all)", origin_, field,
                       bytes_.size());
  }

  std::span<const std::byte> bytes_;
  size_t position_ = 0;
  const std::string& origin_;
};

TokenType checked_type(uint64_t code, const std::string& origin) {
  TRIREME_USER_CHECK(code != 6 && code != 7, kData,
                     "token ids are integers; " + std::string(kRebuildHint),
                     "{}: dtype code {} is floating point", origin, code);
  TRIREME_USER_CHECK(code <= 8 && token_size(static_cast<TokenType>(code)) != 0, kData,
                     kRebuildHint, "{}: unknown dtype code {}", origin, code);
  return static_cast<TokenType>(code);
}

void check_documents(const TokenIndex& index, const std::string& origin) {
  const auto& documents = index.documents;
  TRIREME_USER_CHECK(!documents.empty() && documents.front() == 0, kData, kRebuildHint,
                     "{}: the documents do not begin at sequence 0", origin);
  for (size_t d = 1; d < documents.size(); ++d) {
    TRIREME_USER_CHECK(documents[d] >= documents[d - 1], kData, kRebuildHint,
                       "{}: document {} begins before the one in front of it", origin, d);
  }
  TRIREME_USER_CHECK(documents.back() == static_cast<int64_t>(index.lengths.size()), kData,
                     kRebuildHint, "{}: the documents end at sequence {}, but there are {}", origin,
                     documents.back(), index.lengths.size());
}

void check_sequences(const TokenIndex& index, int64_t bin_bytes, const std::string& origin) {
  const auto size = static_cast<int64_t>(token_size(index.type));
  int64_t total = 0;
  for (size_t s = 0; s < index.lengths.size(); ++s) {
    const int64_t length = index.lengths[s];
    const int64_t offset = index.offsets[s];
    TRIREME_USER_CHECK(length >= 0, kData, kRebuildHint, "{}: sequence {} has length {}", origin, s,
                       length);
    TRIREME_USER_CHECK(offset >= 0 && offset % size == 0, kData, kRebuildHint,
                       "{}: sequence {} begins at byte {}, not a multiple of {}", origin, s, offset,
                       size);
    TRIREME_USER_CHECK(
        offset <= bin_bytes && length <= (bin_bytes - offset) / size, kData,
        "the .bin file is truncated or belongs to another .idx; " + std::string(kRebuildHint),
        "{}: sequence {} ({} ids of {} bytes at byte {}) lies past the end of the .bin file ({} "
        "bytes)",
        origin, s, length, size, offset, bin_bytes);
    // Sequences may overlap, so the sum is bounded on its own.
    TRIREME_USER_CHECK(total <= std::numeric_limits<int64_t>::max() / 16 - length, kData,
                       kRebuildHint, "{}: too many ids", origin);
    total += length;
  }
}

TokenIndex parse_mmap_index(FieldReader& reader, const std::string& origin) {
  const auto version = reader.take<uint64_t>("version");
  TRIREME_USER_CHECK(version == 1, kData, kRebuildHint, "{}: index version {}, only 1 is known",
                     origin, version);
  TokenIndex index;
  index.type = checked_type(reader.take<uint8_t>("dtype code"), origin);
  const auto num_sequences = reader.take<uint64_t>("number of sequences");
  const auto num_documents = reader.take<uint64_t>("number of documents");
  index.lengths = reader.take_array<int32_t>(num_sequences, "sequence lengths");
  index.offsets = reader.take_array<int64_t>(num_sequences, "sequence offsets");
  index.documents = reader.take_array<int64_t>(num_documents, "documents");
  // Multimodal sets append one mode byte a sequence; it says nothing about text.
  if (reader.remaining() == num_sequences) reader.skip(num_sequences);
  return index;
}

TokenIndex parse_legacy_index(FieldReader& reader, const std::string& origin) {
  const auto version = reader.take<uint64_t>("version");
  TRIREME_USER_CHECK(version == 1, kData, kRebuildHint, "{}: index version {}, only 1 is known",
                     origin, version);
  TokenIndex index;
  index.type = checked_type(reader.take<uint64_t>("dtype code"), origin);
  const auto element_size = reader.take<uint64_t>("element size");
  TRIREME_USER_CHECK(element_size == token_size(index.type), kData, kRebuildHint,
                     "{}: element size {} does not fit dtype code {}", origin, element_size,
                     static_cast<int>(index.type));
  const auto num_sequences = reader.take<uint64_t>("number of sequences");
  const auto num_sizes = reader.take<uint64_t>("number of sizes");
  const auto num_documents = reader.take<uint64_t>("number of documents");
  TRIREME_USER_CHECK(
      num_sequences < std::numeric_limits<uint64_t>::max() && num_sizes == num_sequences, kData,
      kRebuildHint, "{}: {} sequences with {} sizes; only one-dimensional sequences are text",
      origin, num_sequences, num_sizes);
  reader.take_array<int64_t>(num_sequences + 1, "dimension offsets");
  const auto starts = reader.take_array<int64_t>(num_sequences + 1, "data offsets");
  index.lengths = reader.take_array<int64_t>(num_sizes, "sizes");
  index.documents = reader.take_array<int64_t>(num_documents, "documents");
  const auto size = static_cast<int64_t>(element_size);
  index.offsets.reserve(num_sequences);
  for (size_t s = 0; s < num_sequences; ++s) {
    TRIREME_USER_CHECK(starts[s] >= 0 && starts[s] <= std::numeric_limits<int64_t>::max() / size,
                       kData, kRebuildHint, "{}: sequence {} begins at id {}", origin, s,
                       starts[s]);
    index.offsets.push_back(starts[s] * size);
  }
  return index;
}

template <typename From>
void copy_ids(const std::byte* source, std::span<int32_t> out, bool& valid) {
  for (size_t i = 0; i < out.size(); ++i) {
    From value;
    std::memcpy(&value, source + i * sizeof(From), sizeof(From));
    // Unsigned, a negative id is beyond every limit too.
    const auto id = static_cast<std::make_unsigned_t<From>>(value);
    if constexpr (std::is_signed_v<From>) {
      valid &= id <= static_cast<std::make_unsigned_t<From>>(std::min<int64_t>(
                         std::numeric_limits<From>::max(), std::numeric_limits<int32_t>::max()));
    }
    out[i] = static_cast<int32_t>(id);
  }
}

/// Widens ids to int32; false if one is negative or too large.
bool widen_ids(TokenType type, const std::byte* source, std::span<int32_t> out) {
  bool valid = true;
  switch (type) {
    case TokenType::kUint8:
      copy_ids<uint8_t>(source, out, valid);
      break;
    case TokenType::kInt8:
      copy_ids<int8_t>(source, out, valid);
      break;
    case TokenType::kInt16:
      copy_ids<int16_t>(source, out, valid);
      break;
    case TokenType::kUint16:
      copy_ids<uint16_t>(source, out, valid);
      break;
    case TokenType::kInt32:
      copy_ids<int32_t>(source, out, valid);
      break;
    case TokenType::kInt64:
      copy_ids<int64_t>(source, out, valid);
      break;
  }
  return valid;
}

int64_t largest_id(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
      return std::numeric_limits<uint8_t>::max();
    case TokenType::kInt8:
      return std::numeric_limits<int8_t>::max();
    case TokenType::kInt16:
      return std::numeric_limits<int16_t>::max();
    case TokenType::kUint16:
      return std::numeric_limits<uint16_t>::max();
    case TokenType::kInt32:
    case TokenType::kInt64:
      return std::numeric_limits<int32_t>::max();
  }
  return 0;
}

void write_fully(int descriptor, const std::string& bytes, const fs::path& path) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::write(descriptor, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    TRIREME_USER_CHECK(count > 0, kData, "make room on the disk or write elsewhere",
                       "cannot write {}: {}", path.string(), std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

fs::path with_suffix(const fs::path& prefix, const char* suffix) {
  return fs::path(prefix.string() + suffix);
}

}  // namespace

size_t token_size(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
    case TokenType::kInt8:
      return 1;
    case TokenType::kInt16:
    case TokenType::kUint16:
      return 2;
    case TokenType::kInt32:
      return 4;
    case TokenType::kInt64:
      return 8;
  }
  return 0;
}

TokenType narrowest_token_type(int64_t vocab_size) {
  return vocab_size <= 65536 ? TokenType::kUint16 : TokenType::kInt32;
}

TokenIndex parse_token_index(std::span<const std::byte> bytes, int64_t bin_bytes,
                             const std::string& origin) {
  const auto begins_with = [&](std::span<const char> magic) {
    return bytes.size() >= magic.size() &&
           std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
  };
  const bool mmap_format = begins_with(kMmapMagic);
  const bool legacy_format = begins_with(kLegacyMagic);
  TRIREME_USER_CHECK(mmap_format || legacy_format, kData, kRebuildHint,
                     "{}: not a Megatron index (it begins with neither MMIDIDX nor TNTIDX)",
                     origin);
  FieldReader reader(bytes, origin);
  reader.skip(mmap_format ? sizeof(kMmapMagic) : sizeof(kLegacyMagic));
  TokenIndex index =
      mmap_format ? parse_mmap_index(reader, origin) : parse_legacy_index(reader, origin);
  TRIREME_USER_CHECK(reader.remaining() == 0, kData, kRebuildHint,
                     "{}: {} bytes follow the end of the index", origin, reader.remaining());
  check_documents(index, origin);
  check_sequences(index, bin_bytes, origin);
  return index;
}

std::string format_token_index(TokenType type, std::span<const int32_t> lengths) {
  std::string out(kMmapMagic, sizeof(kMmapMagic));
  out.reserve(34 + lengths.size() * 20 + 8);
  const auto put = [&out](auto value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  put(uint64_t{1});
  put(static_cast<uint8_t>(type));
  put(static_cast<uint64_t>(lengths.size()));
  put(static_cast<uint64_t>(lengths.size() + 1));
  for (int32_t length : lengths) put(length);
  int64_t offset = 0;
  for (int32_t length : lengths) {
    put(offset);
    offset += int64_t{length} * static_cast<int64_t>(token_size(type));
  }
  for (int64_t d = 0; d <= static_cast<int64_t>(lengths.size()); ++d) put(d);
  return out;
}

uint64_t token_fingerprint(uint64_t index_hash, std::span<const std::byte> bin) {
  constexpr size_t kAll = size_t{1} << 20;
  constexpr size_t kPieces = 256;
  constexpr size_t kPiece = 4096;
  const uint64_t hash = mix(index_hash, bin.size());
  if (bin.size() <= kAll) return mix(hash, xxh3(bin));
  Hasher pieces;
  for (size_t piece = 0; piece < kPieces; ++piece) {
    // Divided first: the product with a size of petabytes stays in range.
    const size_t last = bin.size() - kPiece;
    const size_t begin =
        last / (kPieces - 1) * piece + last % (kPieces - 1) * piece / (kPieces - 1);
    pieces.update(bin.subspan(begin, kPiece));
  }
  return mix(hash, pieces.digest());
}

fs::path token_prefix(const fs::path& path) {
  const auto extension = path.extension();
  if (extension != ".bin" && extension != ".idx") return path;
  return fs::path(path).replace_extension();
}

IndexedDataset::IndexedDataset(const fs::path& prefix, bool masked)
    : prefix_(token_prefix(prefix)) {
  const fs::path index_path = with_suffix(prefix_, ".idx");
  const fs::path bin_path = with_suffix(prefix_, ".bin");
  ids_ = std::make_unique<MappedFile>(bin_path);
  const MappedFile index_file(index_path);
  index_ = parse_token_index(index_file.bytes(), static_cast<int64_t>(ids_->bytes().size()),
                             index_path.string());
  index_hash_ = xxh3(index_file.bytes());
  document_starts_.reserve(index_.documents.size());
  document_starts_.push_back(0);
  for (size_t d = 0; d + 1 < index_.documents.size(); ++d) {
    int64_t length = 0;
    for (auto s = index_.documents[d]; s < index_.documents[d + 1]; ++s) {
      length += index_.lengths[static_cast<size_t>(s)];
    }
    document_starts_.push_back(document_starts_.back() + length);
  }
  if (!masked) return;
  const fs::path mask_path = with_suffix(prefix_, ".mask");
  std::error_code ignored;
  TRIREME_USER_CHECK(
      fs::exists(mask_path, ignored), kData,
      "write it with `trireme data prepare --loss-mask answers`, or set data.loss_mask = \"none\"",
      "{} has no mask: there is no {}", prefix_.string(), mask_path.string());
  mask_ = std::make_unique<TokenMask>(
      mask_path, static_cast<int64_t>(ids_->bytes().size() / token_size(index_.type)));
}

template <typename Visit>
void IndexedDataset::visit(int64_t document, int64_t first, size_t size, Visit visit) const {
  TRIREME_CHECK(document >= 0 && document < num_documents() && first >= 0 &&
                    first + static_cast<int64_t>(size) <= document_length(document),
                "ids {} + {} of document {}", first, size, document);
  const auto id_bytes = static_cast<int64_t>(token_size(index_.type));
  auto sequence = static_cast<size_t>(index_.documents[static_cast<size_t>(document)]);
  for (size_t done = 0; done < size; ++sequence) {
    const int64_t length = index_.lengths[sequence];
    if (first >= length) {
      first -= length;
      continue;
    }
    const auto count = std::min<size_t>(size - done, static_cast<size_t>(length - first));
    visit(index_.offsets[sequence] + first * id_bytes, done, count);
    done += count;
    first = 0;
  }
}

void IndexedDataset::read(int64_t document, int64_t first, std::span<int32_t> out) const {
  visit(document, first, out.size(), [&](int64_t offset, size_t done, size_t count) {
    const std::byte* source = ids_->bytes().data() + offset;
    TRIREME_USER_CHECK(widen_ids(index_.type, source, out.subspan(done, count)), kData,
                       kRebuildHint, "{}.bin: document {} holds an id below 0 or above 2^31 - 1",
                       prefix_.string(), document);
  });
}

void IndexedDataset::read_mask(int64_t document, int64_t first, std::span<uint8_t> out) const {
  if (mask_ == nullptr) return std::fill(out.begin(), out.end(), uint8_t{1});
  const auto id_bytes = static_cast<int64_t>(token_size(index_.type));
  visit(document, first, out.size(), [&](int64_t offset, size_t done, size_t count) {
    for (size_t i = 0; i < count; ++i)
      out[done + i] = (*mask_)[offset / id_bytes + static_cast<int64_t>(i)] ? 1 : 0;
  });
}

int32_t IndexedDataset::max_id() const {
  const fs::path description = with_suffix(prefix_, ".json");
  if (fs::exists(description)) {
    const Json json = parse_json(read_file(description), description.string());
    if (json.is_object() && json.value("format", Json()) == "trireme-tokens" &&
        json.value("fingerprint", Json()) == hash_text(fingerprint()) && json.contains("max_id") &&
        json["max_id"].is_number_integer()) {
      return json["max_id"].get<int32_t>();
    }
  }
  int32_t largest = -1;
  std::vector<int32_t> chunk;
  constexpr int64_t kChunk = 1 << 16;
  for (int64_t d = 0; d < num_documents(); ++d) {
    for (int64_t first = 0; first < document_length(d); first += kChunk) {
      chunk.resize(static_cast<size_t>(std::min(kChunk, document_length(d) - first)));
      read(d, first, chunk);
      largest = std::max(largest, *std::max_element(chunk.begin(), chunk.end()));
    }
  }
  return largest;
}

uint64_t IndexedDataset::fingerprint() const {
  return token_fingerprint(index_hash_, ids_->bytes());
}

IndexedDatasetWriter::IndexedDatasetWriter(const fs::path& prefix, TokenType type)
    : prefix_(token_prefix(prefix)), type_(type) {
  std::error_code ignored;  // a folder that cannot be made shows below, with the reason
  if (prefix_.has_parent_path()) fs::create_directories(prefix_.parent_path(), ignored);
  for (const char* suffix : {".bin", ".idx", ".json"}) {
    const fs::path file = with_suffix(prefix_, suffix);
    const fs::path folder = file.parent_path();
    remove_abandoned_temporaries(folder.empty() ? "." : folder, file.filename().string());
  }
  temporary_ = temporary_path(with_suffix(prefix_, ".bin"));
  descriptor_ = create_temporary(temporary_);
  TRIREME_USER_CHECK(descriptor_ >= 0, kData, "write to a folder that exists and is writable",
                     "cannot write {}: {}", temporary_.string(), std::strerror(errno));
}

IndexedDatasetWriter::~IndexedDatasetWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void IndexedDatasetWriter::append(std::span<const int32_t> ids) {
  open_length_ += static_cast<int64_t>(ids.size());
  TRIREME_USER_CHECK(open_length_ <= std::numeric_limits<int32_t>::max(), kData,
                     "cut it into smaller documents", "{}: document {} has more than 2^31 - 1 ids",
                     prefix_.string(), lengths_.size());
  const int64_t limit = largest_id(type_);
  const size_t size = token_size(type_);
  size_t position = buffer_.size();
  buffer_.resize(position + ids.size() * size);
  for (const int32_t id : ids) {
    TRIREME_USER_CHECK(id >= 0 && id <= limit, kData,
                       "use a wider id type or the right vocabulary size",
                       "{}: id {} does not fit (0 .. {})", prefix_.string(), id, limit);
    max_id_ = std::max(max_id_, id);
    const auto wide = static_cast<int64_t>(id);
    std::memcpy(buffer_.data() + position, &wide, size);
    position += size;
  }
  num_tokens_ += static_cast<int64_t>(ids.size());
  if (buffer_.size() >= kFlushBytes) flush();
}

void IndexedDatasetWriter::end_document() {
  lengths_.push_back(static_cast<int32_t>(open_length_));
  open_length_ = 0;
}

void IndexedDatasetWriter::add(std::span<const int32_t> document) {
  append(document);
  end_document();
}

void IndexedDatasetWriter::flush() {
  write_fully(descriptor_, buffer_, temporary_);
  buffer_.clear();
}

uint64_t IndexedDatasetWriter::fingerprint() {
  TRIREME_CHECK(descriptor_ >= 0 && open_length_ == 0, "a document is open, or nothing is");
  flush();
  const std::string index = format_token_index(type_, lengths_);
  return token_fingerprint(xxh3(std::as_bytes(std::span(index))), MappedFile(temporary_).bytes());
}

void IndexedDatasetWriter::finish() {
  TRIREME_CHECK(descriptor_ >= 0 && open_length_ == 0,
                "finish() was called twice or inside a document");
  flush();
  TRIREME_USER_CHECK(::fsync(descriptor_) == 0, kData, "make room on the disk or write elsewhere",
                     "cannot write {}: {}", temporary_.string(), std::strerror(errno));
  // An old index beside a new .bin would be a pair that lies: it goes first, the new one comes
  // last.
  std::error_code error;
  fs::remove(with_suffix(prefix_, ".idx"), error);
  fs::rename(temporary_, with_suffix(prefix_, ".bin"), error);
  TRIREME_USER_CHECK(!error, kData, "write to a folder that is writable", "cannot write {}.bin: {}",
                     prefix_.string(), error.message());
  ::close(descriptor_);
  descriptor_ = -1;
  write_file_atomically(with_suffix(prefix_, ".idx"), format_token_index(type_, lengths_));
}

}  // namespace trireme::data
