#include "trireme/data/tokenizer.h"

#include <algorithm>

#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/data/bpe.h"
#include "trireme/data/composed_tokenizer.h"
#include "trireme/data/tokenizer_json.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr char kEndOfText[] = "<|endoftext|>";
/// Texts longer than twice this are cut for several threads.
constexpr size_t kParallelBytes = size_t{256} << 10;

AddedToken end_of_text_token(int32_t id) {
  AddedToken token;
  token.id = id;
  token.content = kEndOfText;
  token.special = true;
  return token;
}

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    matcher_.split(text, !options.parse_special,
                   [&](const AddedToken* token, size_t begin, size_t end) {
                     if (token != nullptr) {
                       ids.push_back(token->id);
                       return;
                     }
                     for (size_t i = begin; i < end; ++i)
                       ids.push_back(static_cast<unsigned char>(text[i]));
                   });
    return ids;
  }

  Encoding encode_with_offsets(std::string_view text, const EncodeOptions& options) const override {
    Encoding encoding;
    int64_t character = 0;
    matcher_.split(text, !options.parse_special,
                   [&](const AddedToken* token, size_t begin, size_t end) {
                     std::string_view part = text.substr(begin, end - begin);
                     if (token != nullptr) {
                       encoding.ids.push_back(token->id);
                       encoding.offsets.push_back({character, character + count_characters(part)});
                       character += count_characters(part);
                       return;
                     }
                     // Every byte belongs to the character that it is part of; an ill-formed
                     // sequence counts as the one U+FFFD that a reader would see.
                     while (!part.empty()) {
                       const size_t length = first_character_length(part);
                       for (size_t i = 0; i < length; ++i) {
                         encoding.ids.push_back(static_cast<unsigned char>(part[i]));
                         encoding.offsets.push_back({character, character + 1});
                       }
                       ++character;
                       part.remove_prefix(length);
                     }
                   });
    return encoding;
  }

  int64_t vocab_size() const override { return kByteTokenizerEos + 1; }

  std::optional<int32_t> token_to_id(std::string_view token) const override {
    if (token == kEndOfText) return kByteTokenizerEos;
    if (!is_valid_utf8(token)) return std::nullopt;
    const auto bytes = token_to_bytes(token);
    if (!bytes || bytes->size() != 1) return std::nullopt;
    return static_cast<unsigned char>((*bytes)[0]);
  }

  std::string id_to_token(int32_t id) const override {
    if (id == kByteTokenizerEos) return kEndOfText;
    const std::string bytes = id_to_bytes(id);
    return bytes_to_token(bytes);
  }

  std::string id_to_bytes(int32_t id) const override {
    if (id == kByteTokenizerEos) return kEndOfText;
    return id >= 0 && id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  }

  bool is_special(int32_t id) const override { return id == kByteTokenizerEos; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return kByteTokenizerEos; }

  std::string to_json() const override {
    TokenizerFile file = make_tokenizer_file({{"type", "ByteLevel"},
                                              {"add_prefix_space", false},
                                              {"trim_offsets", false},
                                              {"use_regex", false}},
                                             false);
    for (int b = 0; b < 256; ++b) file.vocab.emplace_back(id_to_token(b), b);
    file.added_tokens.push_back(end_of_text_token(kByteTokenizerEos));
    return write_tokenizer_file(file);
  }

  bool splittable() const override { return true; }

 private:
  AddedTokenMatcher matcher_{{end_of_text_token(kByteTokenizerEos)}};
};

/// The token that a tokenizer_config.json names under `key`, or "".
std::string named_token(const Json& config, const char* key) {
  if (!config.is_object() || !config.contains(key)) return "";
  const Json& value = config[key];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return "";
}

bool is_graphic_ascii(char c) {
  return c > 0x20 && c < 0x7F;
}

/// Last place after `from` where text may be cut: before a space behind a printable ASCII
/// character. 0 if there is none.
size_t last_cut(std::string_view text, size_t from) {
  for (size_t at = text.size(); at-- > std::max<size_t>(from, 1);) {
    if (text[at] == ' ' && is_graphic_ascii(text[at - 1])) return at;
  }
  return 0;
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) bytes += id_to_bytes(id);
  }
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::unique_ptr<DecodingStream> Tokenizer::start_decoding(bool skip_special) const {
  class Stream final : public DecodingStream {
   public:
    Stream(const Tokenizer& tokenizer, bool skip_special)
        : tokenizer_(tokenizer), skip_special_(skip_special) {}
    std::string feed(int32_t id) override {
      if (!skip_special_ || !tokenizer_.is_special(id)) pending_ += tokenizer_.id_to_bytes(id);
      const size_t complete = complete_utf8_prefix(pending_);
      std::string text = replace_invalid_utf8(std::string_view(pending_).substr(0, complete));
      pending_.erase(0, complete);
      return text;
    }
    std::string finish() override {
      std::string text = replace_invalid_utf8(pending_);
      pending_.clear();
      return text;
    }

   private:
    const Tokenizer& tokenizer_;
    bool skip_special_;
    std::string pending_;
  };
  return std::make_unique<Stream>(*this, skip_special);
}

std::string Tokenizer::fingerprint() const {
  const std::string json = to_json();
  return hash_text(xxh3(std::as_bytes(std::span(json))));
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() {
  return std::make_unique<ByteTokenizer>();
}

std::unique_ptr<Tokenizer> parse_tokenizer(std::string_view json, const std::string& origin,
                                           std::string_view config) {
  std::string bos, eos;
  if (!config.empty()) {
    const Json parsed = parse_json(config, origin + " (its tokenizer_config.json)");
    bos = named_token(parsed, "bos_token");
    eos = named_token(parsed, "eos_token");
  }
  return make_composed_tokenizer(parse_tokenizer_file(json, origin), origin, bos, eos);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& name) {
  if (name == "bytes") return make_byte_tokenizer();
  std::filesystem::path path = name;
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) path /= "tokenizer.json";
  TRIREME_USER_CHECK(std::filesystem::exists(path, ignored), kData,
                     "name a tokenizer.json, a folder that holds one, or \"bytes\"",
                     "tokenizer '{}': there is no file {}", name, path.string());
  const std::filesystem::path config = path.parent_path() / "tokenizer_config.json";
  return parse_tokenizer(read_file(path), path.string(),
                         std::filesystem::exists(config, ignored) ? read_file(config) : "");
}

size_t safe_prefix(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.splittable() ? last_cut(text, 1) : 0;
}

std::vector<std::vector<int32_t>> encode_parallel(ThreadPool& pool, const Tokenizer& tokenizer,
                                                  std::span<const std::string_view> texts,
                                                  const EncodeOptions& options) {
  // What is added around a text belongs to the whole of it, so such texts stay whole.
  const bool may_cut = tokenizer.splittable() &&
                       (!options.add_special_tokens || tokenizer.encode("", options).empty());
  struct Job {
    size_t text;
    std::string_view part;
    std::vector<int32_t> ids;
  };
  std::vector<Job> jobs;
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string_view rest = texts[i];
    while (may_cut && rest.size() > 2 * kParallelBytes) {
      size_t cut = kParallelBytes;
      while (cut < rest.size() && !(rest[cut] == ' ' && is_graphic_ascii(rest[cut - 1]))) ++cut;
      if (cut >= rest.size()) break;
      jobs.push_back({i, rest.substr(0, cut), {}});
      rest.remove_prefix(cut);
    }
    jobs.push_back({i, rest, {}});
  }
  // Small texts go to a thread in groups, so that the threads' hand-over costs nothing beside the
  // work.
  std::vector<size_t> starts;
  size_t bytes = kParallelBytes;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (bytes >= kParallelBytes / 4) {
      starts.push_back(i);
      bytes = 0;
    }
    bytes += jobs[i].part.size();
  }
  starts.push_back(jobs.size());
  pool.parallel_for(static_cast<int64_t>(starts.size()) - 1, [&](int64_t group) {
    for (size_t i = starts[static_cast<size_t>(group)]; i < starts[static_cast<size_t>(group) + 1];
         ++i) {
      jobs[i].ids = tokenizer.encode(jobs[i].part, options);
    }
  });
  std::vector<std::vector<int32_t>> result(texts.size());
  for (Job& job : jobs) {
    auto& ids = result[job.text];
    if (ids.empty()) {
      ids = std::move(job.ids);
    } else {
      ids.insert(ids.end(), job.ids.begin(), job.ids.end());
    }
  }
  return result;
}

StreamEncoder::StreamEncoder(const Tokenizer& tokenizer, bool parse_special)
    : tokenizer_(tokenizer), parse_special_(parse_special) {}

void StreamEncoder::feed(std::string_view piece, std::vector<int32_t>& ids) {
  const size_t before = pending_.size();
  pending_ += piece;
  if (!tokenizer_.splittable()) return;
  const size_t cut = last_cut(pending_, before);  // there was none in what was pending
  if (cut == 0) return;
  const auto found =
      tokenizer_.encode(std::string_view(pending_).substr(0, cut), {false, parse_special_});
  ids.insert(ids.end(), found.begin(), found.end());
  pending_.erase(0, cut);
}

void StreamEncoder::finish(std::vector<int32_t>& ids) {
  const auto found = tokenizer_.encode(pending_, {false, parse_special_});
  ids.insert(ids.end(), found.begin(), found.end());
  pending_.clear();
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : stream_(tokenizer.start_decoding(skip_special)) {}

std::string StreamDecoder::feed(int32_t id) {
  return stream_->feed(id);
}

std::string StreamDecoder::finish() {
  return stream_->finish();
}

std::string tokenizer_config_json(const Tokenizer& tokenizer, int64_t max_len) {
  OrderedJson config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["model_max_length"] = max_len;
  config["clean_up_tokenization_spaces"] = false;
  const auto token = [&](std::optional<int32_t> id) {
    return id ? OrderedJson(tokenizer.id_to_token(*id)) : OrderedJson();
  };
  config["bos_token"] = token(tokenizer.bos_id());
  config["eos_token"] = token(tokenizer.eos_id());
  return config.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace trireme::data
