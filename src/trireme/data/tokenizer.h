// Tokenizers: raw bytes (built in) and those of Hugging Face's tokenizer.json.
//
// Text is UTF-8. A tokenizer.json's tokenizer reads invalid UTF-8 the way Python's
// bytes.decode(errors="replace") does: every maximal ill-formed subpart becomes U+FFFD. The byte
// tokenizer keeps bytes as they are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/base/thread_pool.h"

namespace trireme::data {

struct EncodeOptions {
  /// Adds what the file's post-processor adds around a text (a beginning-of-text token, for
  /// instance).
  bool add_special_tokens = true;
  /// Finds special tokens written out in the text ("<|endoftext|>"). Turn off for text that is not
  /// trusted.
  bool parse_special = true;
};

/// Half-open range of Unicode characters of the text that was encoded.
struct CharRange {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const CharRange&) const = default;
};

struct Encoding {
  std::vector<int32_t> ids;
  std::vector<CharRange> offsets;  ///< one per id; {0, 0} for tokens that the post-processor added
};

/// Decodes ids one after the other. Not thread-safe.
class DecodingStream {
 public:
  virtual ~DecodingStream() = default;
  virtual std::string feed(int32_t id) = 0;  ///< the text that became certain; may be empty
  virtual std::string finish() = 0;          ///< the rest; ready for another sequence
};

/// Text to ids and back. Thread-safety: all methods are const and may be called from any number of
/// threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;
  virtual Encoding encode_with_offsets(std::string_view text,
                                       const EncodeOptions& options = {}) const = 0;

  /// Valid UTF-8; bytes that form none become U+FFFD. Ids outside the vocabulary are skipped.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special = true) const;
  /// The same in pieces. Keeps a reference to the tokenizer.
  virtual std::unique_ptr<DecodingStream> start_decoding(bool skip_special = true) const;

  /// One more than the largest id: rows that an embedding needs at least.
  virtual int64_t vocab_size() const = 0;
  /// A token as tokenizer.json spells it ("Ġthe", "<|endoftext|>").
  virtual std::optional<int32_t> token_to_id(std::string_view token) const = 0;
  /// "" for an id outside the vocabulary.
  virtual std::string id_to_token(int32_t id) const = 0;
  /// The bytes that the token stands for amid others, which need not be valid UTF-8; "" for an id
  /// outside the vocabulary.
  virtual std::string id_to_bytes(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;

  /// From tokenizer_config.json beside the file if there is one, else the known names
  /// ("<|endoftext|>", "</s>", ...).
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;  ///< also the separator between documents

  /// The text of a tokenizer.json that Hugging Face's libraries load with the same ids.
  virtual std::string to_json() const = 0;
  /// xxh3 of to_json(), 16 hexadecimal digits: equal if and only if the tokenizers are.
  std::string fingerprint() const;

  /// True if text may be cut before an ASCII space that follows a printable ASCII character without
  /// changing any id (with add_special_tokens off): what lets one long text be encoded in pieces.
  virtual bool splittable() const = 0;
};

/// `name` is "bytes", a tokenizer.json, or a folder that holds one. Error{kData} says what is wrong
/// with the file, or names the feature of it that is not supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name);

/// The same from the text of a tokenizer.json; `origin` names it in errors. `config` is the text of
/// a tokenizer_config.json or "".
std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& origin,
                                           std::string_view config = "");

/// Ids 0..255 are the bytes; 256 is "<|endoftext|>" (end of a document, special).
std::unique_ptr<Tokenizer> make_byte_tokenizer();
inline constexpr int32_t kByteTokenizerEos = 256;

/// Encodes every text; the same ids as encode() on each. Long texts are cut where splittable()
/// allows, so that one large file uses all threads. Blocks. The pool must not be running anything
/// else.
std::vector<std::vector<int32_t>> encode_parallel(ThreadPool& pool, const Tokenizer& tokenizer,
                                                  std::span<const std::string_view> texts,
                                                  const EncodeOptions& options = {});

/// Length of the longest prefix of `text` that may be encoded on its own: 0 if there is no such
/// place (or the tokenizer is not splittable). `text` may be cut off anywhere.
size_t safe_prefix(const Tokenizer& tokenizer, std::string_view text);

/// Encodes a text that arrives in pieces; holds back only what the next piece could still change.
/// The ids of all calls together are those of encode(whole text, {add_special_tokens = false,
/// parse_special}). Ownership: keeps a reference to the tokenizer. Thread-safety: one thread at a
/// time.
class StreamEncoder {
 public:
  explicit StreamEncoder(const Tokenizer& tokenizer, bool parse_special = true);
  void feed(std::string_view piece, std::vector<int32_t>& ids);  ///< appends to `ids`
  void finish(std::vector<int32_t>& ids);  ///< the rest; ready for another text

 private:
  const Tokenizer& tokenizer_;
  bool parse_special_;
  std::string pending_;
};

/// Decodes ids that arrive one by one into text to show: never half a UTF-8 sequence.
/// Ownership: keeps a reference to the tokenizer. Thread-safety: one thread at a time.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  std::string feed(int32_t id);  ///< the text that became complete; may be empty
  std::string finish();          ///< the rest, ill-formed bytes as U+FFFD; ready for another text

 private:
  std::unique_ptr<DecodingStream> stream_;
};

/// Text of the tokenizer_config.json that belongs into an exported model's folder. `max_len`: the
/// model's context length.
std::string tokenizer_config_json(const Tokenizer& tokenizer, int64_t max_len);

}  // namespace trireme::data
