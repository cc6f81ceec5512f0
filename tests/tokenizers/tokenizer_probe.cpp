// Encodes and decodes for scripts that compare with the `tokenizers` library: one JSON request a
// line on standard input, one JSON answer a line.
//
//   {"load": "text of a tokenizer.json"}  {"ok": true, "splittable", "load_s"} or {"error": "..."};
//                                         "path" reads a file
//   {"encode": ["hex", ...]}              [{"ids", "offsets" (flat), "plain"} or {"error"}, ...]
//   {"ids": "path", "lengths": [...]}     {"tokens", "bytes", "seconds": [...]}: one for each "repeat" of
//                                         all texts that follow each other in the file, with offsets
//                                         for "offsets"; "write" is a file for the results
//   {"decode": [[1, 2], ...]}             [["special skipped", "special kept"], ...]
//   {"json": true}                        {"json": "..."}
//
// Encoding also checks that ids are the same with and without offsets, and in a stream; decoding that a
// stream gives the same text.
#include <chrono>
#include <cstdio>
#include <iostream>
#include <random>
#include <string>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/json.h"
#include "trireme/data/tokenizer.h"

namespace {

using namespace trireme;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Probe {
 public:
  Json answer(const Json& request) {
    try {
      if (request.contains("load") || request.contains("path")) return load(request);
      if (request.contains("encode")) return encode(request["encode"]);
      if (request.contains("ids")) return time_ids(request);
      if (request.contains("decode")) return decode(request["decode"]);
      if (request.contains("json")) return {{"json", tokenizer_->to_json()}};
    } catch (const Error& error) {
      return {{"error", error.what()}};
    }
    return {{"error", "no such request"}};
  }

 private:
  Json load(const Json& request) {
    tokenizer_ = nullptr;
    const auto start = std::chrono::steady_clock::now();
    const std::string text =
        request.contains("path") ? read_file(request["path"]) : request["load"].get<std::string>();
    tokenizer_ = data::parse_tokenizer(text, "probe.json");
    return {
        {"ok", true}, {"splittable", tokenizer_->splittable()}, {"load_s", seconds_since(start)}};
  }

  Json encode(const Json& texts) {
    Json answers = Json::array();
    for (const Json& hex : texts) {
      const std::string text = from_hex(hex);
      try {
        answers.push_back(encode_one(text));
      } catch (const Error& error) {
        answers.push_back({{"error", error.what()}});
      }
    }
    return answers;
  }

  Json encode_one(const std::string& text) {
    const auto encoding = tokenizer_->encode_with_offsets(text);
    if (encoding.ids != tokenizer_->encode(text)) return {{"error", "offsets change the ids"}};
    std::vector<int64_t> offsets;
    for (const auto& range : encoding.offsets) {
      offsets.push_back(range.begin);
      offsets.push_back(range.end);
    }
    const data::EncodeOptions plain{.add_special_tokens = false, .parse_special = false};
    const auto plain_ids = tokenizer_->encode(text, plain);
    data::StreamEncoder stream(*tokenizer_, false);
    std::vector<int32_t> streamed;
    for (size_t at = 0; at < text.size();) {
      const size_t length = std::min<size_t>(1 + random_() % 40, text.size() - at);
      stream.feed(std::string_view(text).substr(at, length), streamed);
      at += length;
    }
    stream.finish(streamed);
    if (streamed != plain_ids) return {{"error", "a stream changes the ids"}};
    return {{"ids", encoding.ids}, {"offsets", offsets}, {"plain", plain_ids}};
  }

  Json decode(const Json& sequences) {
    Json answers = Json::array();
    for (const Json& sequence : sequences) {
      const auto ids = sequence.get<std::vector<int32_t>>();
      Json texts = Json::array();
      for (const bool skip : {true, false}) {
        const std::string text = tokenizer_->decode(ids, skip);
        data::StreamDecoder stream(*tokenizer_, skip);
        std::string streamed;
        for (const int32_t id : ids) streamed += stream.feed(id);
        streamed += stream.finish();
        texts.push_back(streamed == text ? text : "A STREAM DECODES OTHERWISE: " + streamed);
      }
      answers.push_back(texts);
    }
    return answers;
  }

  /// Per text the number of ids and the ids; with offsets those too, and the bytes and the text that
  /// the ids decode to, padded to whole numbers.
  std::string results(const std::vector<std::string_view>& texts, bool with_offsets) const {
    std::string out;
    const auto put = [&](const void* data, size_t bytes) {
      out.append(static_cast<const char*>(data), bytes);
    };
    const auto put_count = [&](size_t count) {
      const auto number = static_cast<int32_t>(count);
      put(&number, sizeof number);
    };
    const data::EncodeOptions options{.add_special_tokens = false};
    for (const auto text : texts) {
      const auto ids = tokenizer_->encode(text, options);
      put_count(ids.size());
      put(ids.data(), ids.size() * sizeof(int32_t));
      if (!with_offsets) continue;
      for (const auto& range : tokenizer_->encode_with_offsets(text, options).offsets) {
        put_count(static_cast<size_t>(range.begin));
        put_count(static_cast<size_t>(range.end));
      }
      const std::string decoded = tokenizer_->decode(ids);
      put_count(decoded.size());
      out += decoded;
      out.append((4 - decoded.size() % 4) % 4, '\0');
    }
    return out;
  }

  Json time_ids(const Json& request) {
    const MappedFile map(request["ids"].get<std::string>());
    std::vector<std::string_view> texts;
    std::string_view rest = map.text();
    for (const Json& length : request["lengths"]) {
      texts.push_back(rest.substr(0, length.get<size_t>()));
      rest.remove_prefix(texts.back().size());
    }
    std::vector<double> seconds;
    int64_t tokens = 0;
    for (int repeat = 0; repeat < request.value("repeat", 1); ++repeat) {
      const auto start = std::chrono::steady_clock::now();
      tokens = 0;
      for (const auto text : texts)
        tokens += static_cast<int64_t>(
            request.value("offsets", false)
                ? tokenizer_->encode_with_offsets(text, {.add_special_tokens = false}).ids.size()
                : tokenizer_->encode(text, {.add_special_tokens = false}).size());
      seconds.push_back(seconds_since(start));
    }
    if (request.contains("write"))
      write_file_atomically(request["write"].get<std::string>(),
                            results(texts, request.value("offsets", false)));
    return {{"tokens", tokens}, {"bytes", map.text().size()}, {"seconds", seconds}};
  }

  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::mt19937 random_{41};
};

}  // namespace

int main() {
  Probe probe;
  for (std::string line; std::getline(std::cin, line);) {
    const Json request = Json::parse(line, nullptr, false);
    std::cout << probe.answer(request).dump(-1, ' ', false, Json::error_handler_t::replace)
              << std::endl;
  }
}
