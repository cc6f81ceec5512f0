#include "trireme/data/tokenizer_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

std::string escaped(std::string_view text) {
  return Json(std::string(text)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

/// One object of the output on one line.
std::string object_text(const std::string& file, int64_t line, const Encoding& encoding) {
  fmt::memory_buffer out;
  fmt::format_to(std::back_inserter(out), "{{\"file\": {}", escaped(file));
  if (line > 0) fmt::format_to(std::back_inserter(out), ", \"line\": {}", line);
  fmt::format_to(std::back_inserter(out), ", \"ids\": [{}], \"offsets\": [",
                 fmt::join(encoding.ids, ", "));
  for (size_t i = 0; i < encoding.offsets.size(); ++i) {
    fmt::format_to(std::back_inserter(out), "{}[{}, {}]", i == 0 ? "" : ", ",
                   encoding.offsets[i].begin, encoding.offsets[i].end);
  }
  fmt::format_to(std::back_inserter(out), "]}}");
  return fmt::to_string(out);
}

std::vector<int32_t> ids_of(const Json& list, const std::string& origin) {
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    TRIREME_USER_CHECK(
        id.is_number_integer() && id.get<int64_t>() >= 0 && id.get<int64_t>() <= INT32_MAX, kData,
        "write ids as numbers in JSON arrays", "{}: not a token id: {}", origin,
        id.dump().substr(0, 60));
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
  return ids;
}

void collect_sequences(const Json& json, const std::string& origin,
                       std::vector<std::vector<int32_t>>& sequences) {
  if (json.is_object() && json.contains("ids") && json["ids"].is_array()) {
    sequences.push_back(ids_of(json["ids"], origin));
  } else if (json.is_array() && !json.empty() && (json[0].is_array() || json[0].is_object())) {
    for (const Json& item : json) collect_sequences(item, origin, sequences);
  } else {
    TRIREME_USER_CHECK(json.is_array(), kData, "write ids as JSON arrays, one a line",
                       "{}: no list of ids: {}", origin, json.dump().substr(0, 60));
    sequences.push_back(ids_of(json, origin));
  }
}

}  // namespace

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    lines.push_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

EncodeReport::EncodeReport(bool json, bool lines, bool single_object, std::FILE* out)
    : json_(json), lines_(lines), single_object_(single_object), out_(out) {
  if (json_ && !single_object_) write("[");
}

void EncodeReport::write(const std::string& text) {
  const bool complete = std::fwrite(text.data(), 1, text.size(), out_) == text.size();
  TRIREME_USER_CHECK(complete, kData, "check the disk or the reader of the pipe",
                     "the output cannot be written");
}

void EncodeReport::add(const std::string& file, std::string_view content,
                       const Tokenizer& tokenizer, const EncodeOptions& options, ThreadPool& pool) {
  const std::vector<std::string_view> texts =
      lines_ ? split_lines(content) : std::vector<std::string_view>{content};
  if (!json_) {
    for (const auto& ids : encode_parallel(pool, tokenizer, texts, options))
      write(fmt::format("{}\n", fmt::join(ids, " ")));
    return;
  }
  // A bounded number of texts at a time.
  constexpr size_t kGroup = 4096;
  for (size_t begin = 0; begin < texts.size(); begin += kGroup) {
    const size_t count = std::min(kGroup, texts.size() - begin);
    std::vector<std::string> objects(count);
    constexpr size_t kStride = 16;
    pool.parallel_for(static_cast<int64_t>((count + kStride - 1) / kStride), [&](int64_t stride) {
      const size_t first = static_cast<size_t>(stride) * kStride;
      for (size_t i = first; i < std::min(first + kStride, count); ++i) {
        const int64_t line = lines_ ? static_cast<int64_t>(begin + i + 1) : 0;
        objects[i] =
            object_text(file, line, tokenizer.encode_with_offsets(texts[begin + i], options));
      }
    });
    for (const auto& object : objects) {
      write(single_object_ ? object : (first_ ? "\n" : ",\n") + object);
      first_ = false;
    }
  }
}

void EncodeReport::finish() {
  if (json_) write(single_object_ ? "\n" : "\n]\n");
  TRIREME_USER_CHECK(std::fflush(out_) == 0, kData, "check the disk or the reader of the pipe",
                     "the output cannot be written");
}

std::vector<std::vector<int32_t>> read_id_sequences(std::string_view text,
                                                    const std::string& origin) {
  std::vector<std::vector<int32_t>> sequences;
  // One document, or one document a line.
  const Json whole = Json::parse(text, nullptr, false);
  if (!whole.is_discarded()) {
    collect_sequences(whole, origin, sequences);
    return sequences;
  }
  int64_t number = 0;
  for (const std::string_view line : split_lines(text)) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}, line {}", origin, number);
    collect_sequences(parse_json(line, where), where, sequences);
  }
  return sequences;
}

TokenizerInspection inspect_tokenizer(const Tokenizer& tokenizer,
                                      const std::vector<std::filesystem::path>& files,
                                      ThreadPool& pool) {
  TokenizerInspection inspection;
  inspection.vocab_size = tokenizer.vocab_size();
  inspection.fingerprint = tokenizer.fingerprint();
  if (const auto id = tokenizer.bos_id()) inspection.bos = tokenizer.id_to_token(*id);
  if (const auto id = tokenizer.eos_id()) inspection.eos = tokenizer.id_to_token(*id);
  std::vector<int32_t> by_length;
  for (int32_t id = 0; id < inspection.vocab_size; ++id) {
    if (tokenizer.is_special(id)) {
      inspection.special_tokens.emplace_back(id, tokenizer.id_to_token(id));
    } else {
      by_length.push_back(id);
    }
  }
  std::stable_sort(by_length.begin(), by_length.end(), [&](int32_t a, int32_t b) {
    return tokenizer.id_to_bytes(a).size() > tokenizer.id_to_bytes(b).size();
  });
  by_length.resize(std::min<size_t>(by_length.size(), 10));
  for (const int32_t id : by_length)
    inspection.longest_tokens.emplace_back(id, tokenizer.id_to_token(id));

  for (const auto& file : files) {
    const MappedFile map(file);
    const std::string_view text = map.text();
    const auto start = std::chrono::steady_clock::now();
    const auto ids = encode_parallel(pool, tokenizer, std::span(&text, 1),
                                     {.add_special_tokens = false, .parse_special = false});
    inspection.encode_seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    inspection.tokens += static_cast<int64_t>(ids[0].size());
    inspection.bytes += static_cast<int64_t>(text.size());
    inspection.characters += count_characters(text);
  }
  return inspection;
}

OrderedJson inspection_json(const TokenizerInspection& inspection) {
  const auto pairs = [](const std::vector<std::pair<int32_t, std::string>>& tokens) {
    OrderedJson list = OrderedJson::array();
    for (const auto& [id, token] : tokens) list.push_back({{"id", id}, {"token", token}});
    return list;
  };
  OrderedJson json;
  json["vocab_size"] = inspection.vocab_size;
  json["bos"] = inspection.bos ? OrderedJson(*inspection.bos) : OrderedJson();
  json["eos"] = inspection.eos ? OrderedJson(*inspection.eos) : OrderedJson();
  json["special_tokens"] = pairs(inspection.special_tokens);
  json["longest_tokens"] = pairs(inspection.longest_tokens);
  json["fingerprint"] = inspection.fingerprint;
  if (inspection.bytes > 0) {
    json["bytes"] = inspection.bytes;
    json["characters"] = inspection.characters;
    json["tokens"] = inspection.tokens;
    json["bytes_per_token"] = static_cast<double>(inspection.bytes) /
                              static_cast<double>(std::max<int64_t>(1, inspection.tokens));
    json["bytes_per_s"] =
        static_cast<double>(inspection.bytes) / std::max(1e-9, inspection.encode_seconds);
  }
  return json;
}

std::string inspection_text(const TokenizerInspection& inspection) {
  std::string text =
      fmt::format("tokens       {}\nbos          {}\neos          {}\n", inspection.vocab_size,
                  inspection.bos.value_or("none"), inspection.eos.value_or("none"));
  text += "special     ";
  for (const auto& [id, token] : inspection.special_tokens)
    text += fmt::format(" {} ({})", token, id);
  text += "\nlongest     ";
  for (const auto& [id, token] : inspection.longest_tokens)
    text += fmt::format(" {} ({})", token, id);
  text += fmt::format("\nfingerprint  {}\n", inspection.fingerprint);
  if (inspection.bytes > 0) {
    const auto bytes = static_cast<double>(inspection.bytes);
    text += fmt::format("on the text  {} bytes, {} tokens, {:.3f} bytes a token, {:.1f} MB/s\n",
                        inspection.bytes, inspection.tokens,
                        bytes / static_cast<double>(std::max<int64_t>(1, inspection.tokens)),
                        bytes / 1e6 / std::max(1e-9, inspection.encode_seconds));
  }
  return text;
}

}  // namespace trireme::data
