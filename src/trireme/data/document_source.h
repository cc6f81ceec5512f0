// Documents of text out of files: plain text, JSONL, either of them compressed with gzip or
// Zstandard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace trireme::data {

/// The bytes of a file, decompressed if its name ends in .gz or .zst. Thread-safety: none.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills at most `size` bytes and returns how many; 0 only at the end. Blocks. Error{kData}
  /// naming the file: unreadable, not of its format, truncated or damaged.
  virtual size_t read(char* out, size_t size) = 0;
};

std::unique_ptr<ByteSource> open_bytes(const std::filesystem::path& path);

/// True for .jsonl and .ndjson, also with .gz or .zst behind it. Every other file is text.
bool is_jsonl(const std::filesystem::path& path);

/// How files become documents.
struct DocumentFormat {
  std::string jsonl_field = "text";
  std::string separator;  ///< cuts text files, e.g. "<|endoftext|>"; empty: a file is one document
  /// Every document is a line of JSONL as it stands, to be read as a conversation.
  bool conversations = false;
};

/// A document, or a stretch of a long one.
struct TextPiece {
  std::string text;
  bool begins = true;  ///< the first piece of its document
  bool ends = true;    ///< the last one
  std::string origin;  ///< file and line of a conversation
};

/// The documents of one file in order. Memory: one document, or a few times `piece_bytes` for a
/// text file that is one document. Thread-safety: none.
class DocumentSource {
 public:
  virtual ~DocumentSource() = default;
  /// False at the end. Blocks. Error{kData} with file and line. Empty documents are passed over.
  virtual bool next(TextPiece& piece) = 0;
};

/// `safe_cut` returns the length of the longest prefix of a text that may be encoded on its own (0:
/// none); a document longer than `piece_bytes` is cut there. Empty: documents are never cut.
using SafeCut = std::function<size_t(std::string_view text)>;
/// Error{kData} for conversations in a file that is not JSONL.
std::unique_ptr<DocumentSource> open_documents(const std::filesystem::path& path,
                                               const DocumentFormat& format,
                                               size_t piece_bytes = size_t{16} << 20,
                                               SafeCut safe_cut = {});

/// The text of one JSONL line; nothing for a blank line. Pure. Error{kData} that begins with
/// `origin` (file and line).
std::optional<std::string> jsonl_text(std::string_view line, const std::string& field,
                                      const std::string& origin);

}  // namespace trireme::data
