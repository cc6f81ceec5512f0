#include "trireme/data/document_source.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "trireme/base/error.h"
#include "trireme/base/json.h"
#include "trireme/base/suggest.h"

namespace trireme::data {

namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{256} << 10;
constexpr const char* kDamagedHint = "fetch or make the file again";

class PlainSource final : public ByteSource {
 public:
  explicit PlainSource(const fs::path& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    TRIREME_USER_CHECK(descriptor_ >= 0, kData, "check the path and its permissions",
                       "cannot read {}: {}", path.string(), std::strerror(errno));
  }
  ~PlainSource() override { ::close(descriptor_); }
  PlainSource(const PlainSource&) = delete;
  PlainSource& operator=(const PlainSource&) = delete;

  size_t read(char* out, size_t size) override {
    ssize_t count;
    do {
      count = ::read(descriptor_, out, size);
    } while (count < 0 && errno == EINTR);
    TRIREME_USER_CHECK(count >= 0, kData, "check that it is a readable file", "cannot read {}: {}",
                       path_.string(), std::strerror(errno));
    return static_cast<size_t>(count);
  }

 private:
  fs::path path_;
  int descriptor_;
};

/// gzip, of one or more members.
class GzipSource final : public ByteSource {
 public:
  explicit GzipSource(const fs::path& path) : path_(path), file_(gzopen(path.c_str(), "rb")) {
    TRIREME_USER_CHECK(file_ != nullptr, kData, "check the path and its permissions",
                       "cannot read {}: {}", path.string(), std::strerror(errno));
    gzbuffer(file_, kReadBytes);
  }
  ~GzipSource() override { gzclose(file_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  size_t read(char* out, size_t size) override {
    const int count = gzread(file_, out, static_cast<unsigned>(std::min<size_t>(size, 1U << 30)));
    // zlib hands out a file without a gzip header as it is; the name promised otherwise.
    TRIREME_USER_CHECK(count <= 0 || gzdirect(file_) == 0, kData,
                       "rename it or compress it with gzip", "{}: not a gzip file", path_.string());
    int code = Z_OK;
    const char* message = gzerror(file_, &code);
    TRIREME_USER_CHECK(count >= 0 && (code == Z_OK || code == Z_STREAM_END), kData, kDamagedHint,
                       "{}: damaged or truncated gzip data ({})", path_.string(),
                       code == Z_ERRNO ? std::strerror(errno) : message);
    return static_cast<size_t>(count);
  }

 private:
  fs::path path_;
  gzFile file_;
};

/// Zstandard, of one or more frames.
class ZstdSource final : public ByteSource {
 public:
  explicit ZstdSource(const fs::path& path)
      : path_(path), file_(path), stream_(ZSTD_createDStream()), compressed_(kReadBytes) {
    TRIREME_CHECK(stream_ != nullptr, "out of memory for Zstandard");
  }
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }
  ZstdSource(const ZstdSource&) = delete;
  ZstdSource& operator=(const ZstdSource&) = delete;

  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0 && size > 0) {
      if (input_.pos == input_.size && !drain_) {
        input_ = {compressed_.data(), file_.read(compressed_.data(), compressed_.size()), 0};
        if (input_.size == 0) {
          TRIREME_USER_CHECK(!inside_frame_, kData, kDamagedHint, "{}: truncated Zstandard data",
                             path_.string());
          return 0;
        }
      }
      const size_t left = ZSTD_decompressStream(stream_, &output, &input_);
      TRIREME_USER_CHECK(ZSTD_isError(left) == 0, kData, kDamagedHint,
                         "{}: not Zstandard data, or damaged ({})", path_.string(),
                         ZSTD_getErrorName(left));
      inside_frame_ = left != 0;
      // A full output may hide bytes that are still inside the decoder.
      drain_ = inside_frame_ && output.pos == output.size;
    }
    return output.pos;
  }

 private:
  fs::path path_;
  PlainSource file_;
  ZSTD_DStream* stream_;
  std::vector<char> compressed_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool inside_frame_ = false;
  bool drain_ = false;
};

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

/// Stretches of a byte source between occurrences of a delimiter.
class DelimitedReader {
 public:
  DelimitedReader(std::unique_ptr<ByteSource> source, std::string delimiter)
      : source_(std::move(source)), delimiter_(std::move(delimiter)) {}

  bool next(std::string& stretch) {
    size_t searched = begin_;
    while (true) {
      const size_t found = buffer_.find(delimiter_, searched);
      if (found != std::string::npos) {
        stretch.assign(buffer_, begin_, found - begin_);
        begin_ = found + delimiter_.size();
        return true;
      }
      // The delimiter may be cut in two by the end of what was read.
      const size_t overlap = std::min(buffer_.size() - begin_, delimiter_.size() - 1);
      searched = buffer_.size() - overlap - begin_;
      buffer_.erase(0, begin_);
      begin_ = 0;
      const size_t old_size = buffer_.size();
      buffer_.resize(old_size + kReadBytes);
      buffer_.resize(old_size + source_->read(buffer_.data() + old_size, kReadBytes));
      if (buffer_.size() == old_size) {
        if (old_size == 0) return false;
        stretch = std::move(buffer_);
        buffer_.clear();
        return true;
      }
    }
  }

 private:
  std::unique_ptr<ByteSource> source_;
  std::string delimiter_;
  std::string buffer_;
  size_t begin_ = 0;
};

class JsonlSource final : public DocumentSource {
 public:
  JsonlSource(const fs::path& path, const DocumentFormat& format)
      : path_(path.string()),
        lines_(open_bytes(path), "\n"),
        field_(format.jsonl_field),
        whole_lines_(format.conversations) {}

  bool next(TextPiece& piece) override {
    std::string line;
    while (lines_.next(line)) {
      std::string origin = fmt::format("{}:{}", path_, ++line_number_);
      if (whole_lines_) {
        if (is_blank(line)) continue;
        piece = {std::move(line), true, true, std::move(origin)};
        return true;
      }
      auto text = jsonl_text(line, field_, origin);
      if (!text || text->empty()) continue;
      piece = {std::move(*text), true, true, ""};
      return true;
    }
    return false;
  }

 private:
  std::string path_;
  DelimitedReader lines_;
  std::string field_;
  bool whole_lines_;
  int64_t line_number_ = 0;
};

class SeparatedSource final : public DocumentSource {
 public:
  SeparatedSource(const fs::path& path, const std::string& separator)
      : stretches_(open_bytes(path), separator) {}

  bool next(TextPiece& piece) override {
    while (stretches_.next(piece.text)) {
      if (is_blank(piece.text)) continue;
      piece.begins = piece.ends = true;
      return true;
    }
    return false;
  }

 private:
  DelimitedReader stretches_;
};

/// A file that is one document, cut into pieces where that cannot change the ids.
class WholeFileSource final : public DocumentSource {
 public:
  WholeFileSource(const fs::path& path, size_t piece_bytes, SafeCut safe_cut)
      : source_(open_bytes(path)), piece_bytes_(piece_bytes), safe_cut_(std::move(safe_cut)) {}

  bool next(TextPiece& piece) override {
    if (done_) return false;
    for (size_t wanted = piece_bytes_;; wanted *= 2) {
      const bool at_end = !fill(wanted);
      if (at_end) {
        done_ = true;
        if (buffer_.empty() && begins_) return false;
        piece = {std::move(buffer_), begins_, true, ""};
        return true;
      }
      const size_t cut = safe_cut_ ? safe_cut_(buffer_) : 0;
      if (cut == 0) continue;
      piece = {buffer_.substr(0, cut), begins_, false, ""};
      buffer_.erase(0, cut);
      begins_ = false;
      return true;
    }
  }

 private:
  /// Reads until the buffer holds more than `wanted` bytes; false at the end of the file.
  bool fill(size_t wanted) {
    while (buffer_.size() <= wanted) {
      const size_t old_size = buffer_.size();
      buffer_.resize(old_size + kReadBytes);
      buffer_.resize(old_size + source_->read(buffer_.data() + old_size, kReadBytes));
      if (buffer_.size() == old_size) return false;
    }
    return true;
  }

  std::unique_ptr<ByteSource> source_;
  size_t piece_bytes_;
  SafeCut safe_cut_;
  std::string buffer_;
  bool begins_ = true;
  bool done_ = false;
};

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const fs::path& path) {
  const auto extension = path.extension();
  if (extension == ".gz") return std::make_unique<GzipSource>(path);
  if (extension == ".zst") return std::make_unique<ZstdSource>(path);
  return std::make_unique<PlainSource>(path);
}

bool is_jsonl(const fs::path& path) {
  fs::path name = path.filename();
  if (name.extension() == ".gz" || name.extension() == ".zst") name = name.stem();
  return name.extension() == ".jsonl" || name.extension() == ".ndjson";
}

std::unique_ptr<DocumentSource> open_documents(const fs::path& path, const DocumentFormat& format,
                                               size_t piece_bytes, SafeCut safe_cut) {
  if (is_jsonl(path)) return std::make_unique<JsonlSource>(path, format);
  TRIREME_USER_CHECK(!format.conversations, kData,
                     "name .jsonl files, one conversation a line, or set data.loss_mask = \"none\"",
                     "{}: conversations are read from JSONL, not from text", path.string());
  if (!format.separator.empty()) return std::make_unique<SeparatedSource>(path, format.separator);
  return std::make_unique<WholeFileSource>(path, piece_bytes, std::move(safe_cut));
}

std::optional<std::string> jsonl_text(std::string_view line, const std::string& field,
                                      const std::string& origin) {
  if (is_blank(line)) return std::nullopt;
  Json json = parse_json(line, origin, ErrorCode::kData);
  TRIREME_USER_CHECK(json.is_object(), kData, "write one JSON object a line",
                     "{}: not a JSON object but {}", origin, json.type_name());
  const auto found = json.find(field);
  if (found == json.end()) {
    std::vector<std::string> fields;
    for (const auto& [name, value] : json.items()) fields.push_back(name);
    throw Error(ErrorCode::kData, fmt::format("{}: no field \"{}\"", origin, field),
                "set data.jsonl_field (--jsonl-field); " + suggestion(field, fields));
  }
  TRIREME_USER_CHECK(found->is_string(), kData,
                     "set data.jsonl_field (--jsonl-field) to the field that holds the text",
                     "{}: the field \"{}\" is not a string but {}", origin, field,
                     found->type_name());
  return std::move(found->get_ref<std::string&>());
}

}  // namespace trireme::data
