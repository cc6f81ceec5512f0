// The large tables of a tokenizer.json, read straight into vectors: as JSON documents they would
// take most of the time of loading.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::data {

struct TokenizerTables {
  Json document;  ///< the file without model.vocab and model.merges
  enum class Vocabulary { kNone, kIds, kScores };
  Vocabulary kind = Vocabulary::kNone;
  std::vector<std::pair<std::string, int32_t>> vocab;  ///< in the file's order
  std::vector<double> scores;                          ///< of kScores
  bool has_merges = false;
  std::vector<std::pair<std::string, std::string>> merges;
};

/// Nothing if the text is not JSON or the tables are not as they should be (ids up to `largest_id`):
/// the document as a whole then tells what is wrong.
std::optional<TokenizerTables> read_tokenizer_tables(std::string_view text, int64_t largest_id);

}  // namespace trireme::data
