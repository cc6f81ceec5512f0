// What is in a data set or in files of text, for a person to look at.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/document_source.h"
#include "trireme/data/indexed_dataset.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

/// Lengths of documents, in tokens or bytes.
struct LengthSummary {
  int64_t count = 0;
  int64_t total = 0;
  int64_t min = 0;
  int64_t median = 0;
  int64_t p90 = 0;
  int64_t p99 = 0;
  int64_t max = 0;
  /// (lower bound, count): empty documents, then [1, 2), [2, 4), [4, 8) ...; only those that occur.
  std::vector<std::pair<int64_t, int64_t>> histogram;
};

/// Percentiles are nearest-rank: the smallest length that at least that share of the documents does
/// not exceed.
LengthSummary summarize_lengths(std::vector<int64_t> lengths);

struct DataSummary {
  std::string name;
  std::string kind;                 ///< "tokens", "jsonl" or "text"
  LengthSummary tokens;             ///< of a .bin/.idx pair, or of text with a tokenizer
  LengthSummary bytes;              ///< of text
  std::optional<std::string> type;  ///< "uint16" ...
  std::optional<int32_t> max_id;
  std::string sample;  ///< the beginning of the first document: text, or its ids
};

/// A .bin/.idx pair (path or prefix), or a file of text or JSONL, which is read whole. `tokenizer`
/// may be null. Blocks. Error{kData}.
DataSummary summarize_data(const std::string& path, const DocumentFormat& format,
                           const Tokenizer* tokenizer);

OrderedJson to_json(const DataSummary& summary);
std::string to_text(const DataSummary& summary);

}  // namespace trireme::data
