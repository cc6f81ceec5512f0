// Hugging Face's tokenizer.json as plain data: read, checked against what is supported, and
// written. docs/formats/tokenizer.md says which part of the format that is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/tokenizer_added_tokens.h"

namespace trireme::data {

/// One step of the post-processor.
struct PostStep {
  enum class Kind {
    kTrimOffsets,  ///< ByteLevel: offsets leave out the white space at a token's ends
    kTemplate      ///< TemplateProcessing and its older forms: ids around the text
  };
  Kind kind = Kind::kTrimOffsets;
  bool add_prefix_space =
      false;  ///< of kTrimOffsets: the first token's leading space was added, not read
  std::vector<int32_t> before;  ///< of kTemplate
  std::vector<int32_t> after;
};

enum class ModelKind { kBpe, kUnigram, kWordPiece };

struct TokenizerFile {
  ModelKind model = ModelKind::kBpe;
  std::vector<std::pair<std::string, int32_t>> vocab;  ///< token as spelled in the file, id; by id
  std::vector<std::pair<std::string, std::string>> merges;  ///< of BPE
  std::vector<double> scores;                               ///< of Unigram, by id
  std::optional<std::string> unknown_token;                 ///< of BPE and WordPiece
  std::optional<int32_t> unknown_id;                        ///< of Unigram
  bool fuse_unknown = false;                                ///< of BPE
  bool byte_fallback = false;                               ///< of BPE and Unigram
  bool ignore_merges = false;                               ///< of BPE
  std::string continuing_prefix;                            ///< of WordPiece
  int64_t max_word_characters = 0;                          ///< of WordPiece
  std::vector<AddedToken> added_tokens;                     ///< by id
  std::vector<PostStep> post_steps;
  // Sections as they were read; what they mean is for those to say who use them.
  Json normalizer;
  Json pre_tokenizer;
  Json post_processor;
  Json decoder;
};

/// Error{kData} naming `origin` and what is wrong or not supported.
TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& origin);

/// The text of a tokenizer.json; parse_tokenizer_file() of it gives the same file. The same file
/// gives the same text.
std::string write_tokenizer_file(const TokenizerFile& file);

/// A byte-level BPE file with nothing but a vocabulary: the frame that training fills.
/// `pre_tokenizer` as in tokenizer.json.
TokenizerFile make_tokenizer_file(Json pre_tokenizer, bool nfc);

}  // namespace trireme::data
