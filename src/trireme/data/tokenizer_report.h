// What `trireme tokenize` prints: ids of texts, lists of ids read back, and a description of a tokenizer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/base/thread_pool.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

/// Writes the ids (and, as JSON, the offsets) of texts as they come, so that no result of all files is ever held.
/// JSON is one document: an object {"file", "ids", "offsets"} if there is `single_object`, else an array of such objects, with
/// "line" (from 1) where lines are texts. Plain output is one line of ids a text.
class EncodeReport {
 public:
  EncodeReport(bool json, bool lines, bool single_object, std::FILE* out);
  void add(const std::string& file, std::string_view content, const Tokenizer& tokenizer,
           const EncodeOptions& options, ThreadPool& pool);
  void finish();

 private:
  void write(const std::string& text);
  bool json_;
  bool lines_;
  bool single_object_;
  bool first_ = true;
  std::FILE* out_;
};

/// The lines of a text: split at \n alone; a \n at the end ends the last line and starts no other.
std::vector<std::string_view> split_lines(std::string_view text);

/// Lists of ids: JSON arrays, one a line; one array of arrays; or what EncodeReport wrote. Error{kData} naming `origin`.
std::vector<std::vector<int32_t>> read_id_sequences(std::string_view text,
                                                    const std::string& origin);

struct TokenizerInspection {
  int64_t vocab_size = 0;
  std::optional<std::string> bos;
  std::optional<std::string> eos;
  std::vector<std::pair<int32_t, std::string>> special_tokens;
  std::vector<std::pair<int32_t, std::string>> longest_tokens;  ///< longest first
  std::string fingerprint;
  int64_t bytes = 0;  ///< of the files
  int64_t characters = 0;
  int64_t tokens = 0;
  double encode_seconds = 0;
};

TokenizerInspection inspect_tokenizer(const Tokenizer& tokenizer,
                                      const std::vector<std::filesystem::path>& files,
                                      ThreadPool& pool);
OrderedJson inspection_json(const TokenizerInspection& inspection);
std::string inspection_text(const TokenizerInspection& inspection);

}  // namespace trireme::data
