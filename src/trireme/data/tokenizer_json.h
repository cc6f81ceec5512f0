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
    kTemplate      ///< TemplateProcessing: ids around the text
  };
  Kind kind = Kind::kTrimOffsets;
  bool add_prefix_space =
      false;  ///< of kTrimOffsets: the first token's leading space was added, not read
  std::vector<int32_t> before;  ///< of kTemplate
  std::vector<int32_t> after;
};

struct TokenizerFile {
  std::vector<std::pair<std::string, int32_t>> vocab;  ///< token as spelled in the file, id; by id
  std::vector<std::pair<std::string, std::string>> merges;
  bool ignore_merges = false;
  bool has_unknown_token =
      false;  ///< the file names one; never used if all bytes are in the vocabulary
  std::vector<AddedToken> added_tokens;  ///< by id
  bool nfc = false;
  Json pre_tokenizer;
  std::vector<PostStep> post_steps;
  // Small sections, kept to be written as they were read.
  Json normalizer;
  Json post_processor;
  Json decoder;
  Json model_options;  ///< of "model", without vocab and merges
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
