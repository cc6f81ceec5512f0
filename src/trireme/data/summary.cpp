#include "trireme/data/summary.h"

#include <algorithm>
#include <bit>
#include <map>

#include "trireme/base/error.h"

namespace trireme::data {

namespace {

constexpr size_t kSampleIds = 128;
constexpr size_t kSampleBytes = 400;

const char* name_of(TokenType type) {
  switch (type) {
    case TokenType::kUint8:
      return "uint8";
    case TokenType::kInt8:
      return "int8";
    case TokenType::kInt16:
      return "int16";
    case TokenType::kInt32:
      return "int32";
    case TokenType::kInt64:
      return "int64";
    case TokenType::kUint16:
      return "uint16";
  }
  return "unknown";
}

std::string ids_or_text(const std::vector<int32_t>& ids, const Tokenizer* tokenizer) {
  return tokenizer != nullptr ? tokenizer->decode(ids) : fmt::format("{}", fmt::join(ids, " "));
}

DataSummary summarize_pair(const std::string& path, const Tokenizer* tokenizer) {
  const IndexedDataset dataset{token_prefix(path)};
  DataSummary summary;
  summary.name = path;
  summary.kind = "tokens";
  summary.type = name_of(dataset.type());
  summary.max_id = dataset.max_id();
  std::vector<int64_t> lengths;
  for (int64_t d = 0; d < dataset.num_documents(); ++d) {
    lengths.push_back(dataset.document_length(d));
    if (!summary.sample.empty() || lengths.back() == 0) continue;
    std::vector<int32_t> ids(std::min(kSampleIds, static_cast<size_t>(lengths.back())));
    dataset.read(d, 0, ids);
    summary.sample = ids_or_text(ids, tokenizer);
  }
  summary.tokens = summarize_lengths(std::move(lengths));
  return summary;
}

DataSummary summarize_text(const std::string& path, const DocumentFormat& format,
                           const Tokenizer* tokenizer) {
  DataSummary summary;
  summary.name = path;
  summary.kind = is_jsonl(path) ? "jsonl" : "text";
  std::vector<int64_t> bytes;
  std::vector<int64_t> tokens;
  const auto documents = open_documents(path, format);
  TextPiece piece;
  while (documents->next(piece)) {
    bytes.push_back(static_cast<int64_t>(piece.text.size()));
    if (summary.sample.empty()) summary.sample = piece.text.substr(0, kSampleBytes);
    if (tokenizer == nullptr) continue;
    const auto ids =
        tokenizer->encode(piece.text, {.add_special_tokens = false, .parse_special = false});
    tokens.push_back(static_cast<int64_t>(ids.size()));
  }
  summary.bytes = summarize_lengths(std::move(bytes));
  summary.tokens = summarize_lengths(std::move(tokens));
  return summary;
}

OrderedJson json_of(const LengthSummary& lengths) {
  OrderedJson histogram = OrderedJson::array();
  for (const auto& [from, count] : lengths.histogram)
    histogram.push_back({{"from", from}, {"documents", count}});
  return {{"total", lengths.total}, {"min", lengths.min}, {"median", lengths.median},
          {"p90", lengths.p90},     {"p99", lengths.p99}, {"max", lengths.max},
          {"histogram", histogram}};
}

void append_lengths(std::string& out, const LengthSummary& lengths, const char* unit) {
  out += fmt::format("  {} {}, {} documents; length min {}, median {}, 90% {}, 99% {}, max {}\n",
                     lengths.total, unit, lengths.count, lengths.min, lengths.median, lengths.p90,
                     lengths.p99, lengths.max);
  int64_t most = 1;
  for (const auto& [from, count] : lengths.histogram) most = std::max(most, count);
  for (const auto& [from, count] : lengths.histogram) {
    const auto bar = static_cast<size_t>((count * 40 + most - 1) / most);
    out +=
        fmt::format("  {:>12} {:>10} {}\n", fmt::format("{}+", from), count, std::string(bar, '#'));
  }
}

}  // namespace

LengthSummary summarize_lengths(std::vector<int64_t> lengths) {
  LengthSummary summary;
  summary.count = static_cast<int64_t>(lengths.size());
  if (lengths.empty()) return summary;
  std::sort(lengths.begin(), lengths.end());
  const auto rank = [&lengths](size_t percent) {
    return lengths[(lengths.size() * percent + 99) / 100 - 1];
  };
  summary.min = lengths.front();
  summary.median = rank(50);
  summary.p90 = rank(90);
  summary.p99 = rank(99);
  summary.max = lengths.back();
  std::map<int64_t, int64_t> histogram;
  for (const int64_t length : lengths) {
    summary.total += length;
    ++histogram[static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(length)))];
  }
  summary.histogram.assign(histogram.begin(), histogram.end());
  return summary;
}

DataSummary summarize_data(const std::string& path, const DocumentFormat& format,
                           const Tokenizer* tokenizer) {
  std::error_code error;
  const bool is_pair =
      std::filesystem::is_regular_file(token_prefix(path).string() + ".idx", error);
  return is_pair ? summarize_pair(path, tokenizer) : summarize_text(path, format, tokenizer);
}

OrderedJson to_json(const DataSummary& summary) {
  OrderedJson json = {{"name", summary.name}, {"kind", summary.kind}};
  json["documents"] = std::max(summary.tokens.count, summary.bytes.count);
  if (summary.type) json["type"] = *summary.type;
  if (summary.max_id) json["max_id"] = *summary.max_id;
  if (summary.tokens.count > 0) json["tokens"] = json_of(summary.tokens);
  if (summary.bytes.count > 0) json["bytes"] = json_of(summary.bytes);
  json["sample"] = summary.sample;
  return json;
}

std::string to_text(const DataSummary& summary) {
  std::string out = fmt::format("{}: {}", summary.name, summary.kind);
  if (summary.type) out += fmt::format(" ({}, largest id {})", *summary.type, *summary.max_id);
  out += "\n";
  if (summary.bytes.count > 0) append_lengths(out, summary.bytes, "bytes");
  if (summary.tokens.count > 0) append_lengths(out, summary.tokens, "tokens");
  out += "  begins: " +
         OrderedJson(summary.sample).dump(-1, ' ', false, OrderedJson::error_handler_t::replace) +
         "\n";
  return out;
}

}  // namespace trireme::data
