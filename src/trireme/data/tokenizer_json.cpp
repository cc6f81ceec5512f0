#include "trireme/data/tokenizer_json.h"

#include <algorithm>
#include <unordered_map>

#include "trireme/base/error.h"
#include "trireme/data/bpe.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr char kSupportedHint[] =
    "byte-level BPE tokenizers (GPT-2, Llama-3, Qwen-2 and their like) can be read";
/// Embedding rows are allocated by the largest id, so a wild one is refused early.
constexpr int64_t kMaxTokenId = (int64_t{1} << 28) - 1;

/// Reads one file; every refusal names the file and the place.
class Reader {
 public:
  explicit Reader(const std::string& origin) : origin_(origin) {}

  TokenizerFile read(std::string_view text) {
    const Json json = parse_json(text, origin_);
    check(json.is_object(), "not a JSON object");
    check(!json.contains("truncation") || json["truncation"].is_null(),
          "truncation is not supported: set it to null");
    check(!json.contains("padding") || json["padding"].is_null(),
          "padding is not supported: set it to null");
    read_model(member(json, "model", "the file"));
    read_added_tokens(json.value("added_tokens", Json::array()));
    file_.normalizer = json.value("normalizer", Json());
    read_normalizer(file_.normalizer);
    file_.pre_tokenizer = json.value("pre_tokenizer", Json());
    check(!file_.pre_tokenizer.is_null(), "a null pre_tokenizer is not supported");
    file_.post_processor = json.value("post_processor", Json());
    if (!file_.post_processor.is_null()) read_post_processor(file_.post_processor);
    file_.decoder = json.value("decoder", Json());
    read_decoder(file_.decoder);
    return std::move(file_);
  }

 private:
  void check(bool condition, const std::string& message) const {
    TRIREME_USER_CHECK(condition, kData, kSupportedHint, "{}: {}", origin_, message);
  }

  const Json& member(const Json& object, const std::string& key, const std::string& where) const {
    check(object.is_object() && object.contains(key), fmt::format("{} has no '{}'", where, key));
    return object[key];
  }

  std::string text_of(const Json& value, const std::string& where) const {
    check(value.is_string(), fmt::format("{} is not a string: {}", where, excerpt(value)));
    return value.get<std::string>();
  }

  bool flag_of(const Json& object, const char* key, bool fallback, const std::string& where) const {
    if (!object.contains(key) || object[key].is_null()) return fallback;
    check(object[key].is_boolean(),
          fmt::format("{}: {} is not true or false: {}", where, key, excerpt(object[key])));
    return object[key].get<bool>();
  }

  int32_t id_of(const Json& value, const std::string& where) const {
    check(value.is_number_integer() && value.get<int64_t>() >= 0 &&
              value.get<int64_t>() <= kMaxTokenId,
          fmt::format("{}: not a token id: {}", where, excerpt(value)));
    return static_cast<int32_t>(value.get<int64_t>());
  }

  static std::string excerpt(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    return text.size() > 80 ? text.substr(0, complete_utf8_prefix(text.substr(0, 77))) + "..."
                            : text;
  }

  std::string type_of(const Json& section, const std::string& where) const {
    return text_of(member(section, "type", where), where + " type");
  }

  void read_model(const Json& model) {
    check(model.is_object(), "model is not an object");
    // Files of old versions have no type and are told by their merges.
    const std::string type = model.contains("type")     ? type_of(model, "model")
                             : model.contains("merges") ? "BPE"
                                                        : "unknown";
    check(type == "BPE", fmt::format("model type {} is not supported", type));
    check(!model.contains("dropout") || model["dropout"].is_null() || model["dropout"] == 0.0,
          "model: dropout is not supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      check(!model.contains(key) || model[key].is_null() || model[key] == "",
            fmt::format("model: {} = {} is not supported", key,
                        model.contains(key) ? excerpt(model[key]) : ""));
    }
    check(!flag_of(model, "byte_fallback", false, "model"),
          "model: byte_fallback is not supported");
    file_.ignore_merges = flag_of(model, "ignore_merges", false, "model");
    file_.has_unknown_token =
        model.contains("unk_token") && !model["unk_token"].is_null() && model["unk_token"] != "";
    for (const auto& [key, value] : model.items()) {
      if (key != "vocab" && key != "merges") file_.model_options[key] = value;
    }
    file_.model_options["type"] = "BPE";

    const Json& vocab = member(model, "vocab", "model");
    check(vocab.is_object(), "model: vocab is not an object");
    file_.vocab.reserve(vocab.size());
    for (const auto& [token, id] : vocab.items())
      file_.vocab.emplace_back(token, id_of(id, "model: vocab: '" + token + "'"));
    std::sort(file_.vocab.begin(), file_.vocab.end(),
              [](const auto& a, const auto& b) { return a.second < b.second; });
    for (size_t i = 1; i < file_.vocab.size(); ++i) {
      check(file_.vocab[i].second != file_.vocab[i - 1].second,
            fmt::format("model: vocab: '{}' and '{}' both have id {}", file_.vocab[i - 1].first,
                        file_.vocab[i].first, file_.vocab[i].second));
    }

    const Json& merges = member(model, "merges", "model");
    check(merges.is_array(), "model: merges is not a list");
    file_.merges.reserve(merges.size());
    for (const Json& merge : merges) {
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        check(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
              fmt::format("model: merges: '{}' is not two tokens with a space between", text));
        file_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
      } else {
        check(merge.is_array() && merge.size() == 2,
              "model: merges: not a pair of tokens: " + excerpt(merge));
        file_.merges.emplace_back(text_of(merge[0], "model: merges"),
                                  text_of(merge[1], "model: merges"));
      }
    }
  }

  void read_added_tokens(const Json& tokens) {
    if (tokens.is_null()) return;
    check(tokens.is_array(), "added_tokens is not a list");
    std::unordered_map<std::string, int32_t> ids;
    for (const auto& [token, id] : file_.vocab) ids.emplace(token, id);
    const auto vocab_size = static_cast<int32_t>(file_.vocab.size());
    int32_t largest = -1;
    for (const Json& entry : tokens) {
      AddedToken token;
      const std::string where = "added_tokens";
      token.content = text_of(member(entry, "content", where), where + ": content");
      token.id = id_of(member(entry, "id", where), "added_tokens: '" + token.content + "'");
      check(!token.content.empty(), "added_tokens: an empty token");
      token.special = flag_of(entry, "special", false, where);
      token.single_word = flag_of(entry, "single_word", false, where);
      token.lstrip = flag_of(entry, "lstrip", false, where);
      token.rstrip = flag_of(entry, "rstrip", false, where);
      token.normalized = flag_of(entry, "normalized", !token.special, where);
      // The library ignores the file's id if the vocabulary has the token, and otherwise counts on
      // from the largest id.
      const auto it = ids.find(token.content);
      const int32_t expected = it != ids.end()         ? it->second
                               : largest >= vocab_size ? largest + 1
                                                       : vocab_size;
      check(token.id == expected,
            fmt::format("added_tokens: '{}' has id {} where Hugging Face's library gives it {}",
                        token.content, token.id, expected));
      ids.emplace(token.content, token.id);
      largest = std::max(largest, token.id);
      file_.added_tokens.push_back(std::move(token));
    }
    std::stable_sort(file_.added_tokens.begin(), file_.added_tokens.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    for (size_t i = 1; i < file_.added_tokens.size(); ++i) {
      const auto& token = file_.added_tokens[i];
      check(token.id != file_.added_tokens[i - 1].id,
            fmt::format("added_tokens: id {} appears twice", token.id));
    }
  }

  void read_normalizer(const Json& section) {
    if (section.is_null()) return;
    const std::string type = type_of(section, "normalizer");
    if (type == "NFC") {
      file_.nfc = true;
    } else if (type == "Sequence") {
      const Json& list = member(section, "normalizers", "normalizer");
      check(list.is_array(), "normalizer: Sequence without a list");
      for (const Json& step : list) read_normalizer(step);
    } else {
      check(false, fmt::format("normalizer {} is not supported (NFC is)", type));
    }
  }

  void read_post_processor(const Json& section) {
    const std::string type = type_of(section, "post_processor");
    if (type == "Sequence") {
      const Json& list = member(section, "processors", "post_processor");
      check(list.is_array(), "post_processor: Sequence without a list");
      for (const Json& step : list) read_post_processor(step);
    } else if (type == "ByteLevel") {
      if (!flag_of(section, "trim_offsets", true, "post_processor")) return;
      PostStep step;
      step.add_prefix_space = flag_of(section, "add_prefix_space", true, "post_processor");
      file_.post_steps.push_back(step);
    } else if (type == "TemplateProcessing") {
      read_template(section);
    } else {
      check(false, fmt::format("post_processor {} is not supported (ByteLevel, TemplateProcessing "
                               "and Sequences of them are)",
                               type));
    }
  }

  void read_template(const Json& section) {
    const std::string where = "post_processor TemplateProcessing";
    const Json& single = member(section, "single", where);
    const Json tokens = section.value("special_tokens", Json::object());
    check(single.is_array() && tokens.is_object(),
          where + ": 'single' is not a list or 'special_tokens' not an object");
    PostStep step;
    step.kind = PostStep::Kind::kTemplate;
    bool text_seen = false;
    for (const Json& item : single) {
      check(item.is_object() && item.size() == 1, where + ": " + excerpt(item));
      if (item.contains("Sequence")) {
        check(!text_seen && member(item["Sequence"], "id", where) == "A",
              where + ": not exactly one sequence A in 'single'");
        text_seen = true;
        continue;
      }
      const std::string name =
          text_of(member(member(item, "SpecialToken", where), "id", where), where + ": id");
      const Json& ids = member(member(tokens, name, where + ": special_tokens"), "ids",
                               where + ": '" + name + "'");
      check(ids.is_array(), where + ": ids of '" + name + "' are not a list");
      for (const Json& id : ids) (text_seen ? step.after : step.before).push_back(id_of(id, where));
    }
    check(text_seen, where + ": no sequence A in 'single'");
    file_.post_steps.push_back(std::move(step));
  }

  void read_decoder(const Json& section) {
    check(!section.is_null(), "a null decoder is not supported (ByteLevel is)");
    const std::string type = type_of(section, "decoder");
    if (type == "Sequence") {
      const Json& list = member(section, "decoders", "decoder");
      check(list.is_array() && list.size() == 1,
            "decoder: a Sequence of other than one step is not supported");
      read_decoder(list[0]);
      return;
    }
    check(type == "ByteLevel", fmt::format("decoder {} is not supported (ByteLevel is)", type));
  }

  std::string origin_;
  TokenizerFile file_;
};

std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// `section` as it looks two spaces deep in the file.
std::string indented(const Json& section) {
  std::string text = section.dump(2, ' ', false, Json::error_handler_t::replace), result;
  for (const char c : text) {
    result += c;
    if (c == '\n') result += "  ";
  }
  return result;
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view json, const std::string& origin) {
  return Reader(origin).read(json);
}

std::string write_tokenizer_file(const TokenizerFile& file) {
  std::string out =
      "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  "
      "\"added_tokens\": [";
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  for (size_t i = 0; i < file.added_tokens.size(); ++i) {
    const AddedToken& token = file.added_tokens[i];
    out += fmt::format(
        "{}\n    {{\n      \"id\": {},\n      \"content\": {},\n      \"single_word\": {},\n      "
        "\"lstrip\": {},\n"
        "      \"rstrip\": {},\n      \"normalized\": {},\n      \"special\": {}\n    }}",
        i == 0 ? "" : ",", token.id, quoted(token.content), flag(token.single_word),
        flag(token.lstrip), flag(token.rstrip), flag(token.normalized), flag(token.special));
  }
  out += file.added_tokens.empty() ? "],\n" : "\n  ],\n";
  out += "  \"normalizer\": " + indented(file.normalizer) + ",\n";
  out += "  \"pre_tokenizer\": " + indented(file.pre_tokenizer) + ",\n";
  out += "  \"post_processor\": " + indented(file.post_processor) + ",\n";
  out += "  \"decoder\": " + indented(file.decoder) + ",\n";
  out += "  \"model\": {\n";
  // The type goes first: readers of some versions look for it there.
  out += "    \"type\": \"BPE\",\n";
  for (const auto& [key, value] : file.model_options.items()) {
    if (key != "type") out += fmt::format("    {}: {},\n", quoted(key), value.dump());
  }
  out += "    \"vocab\": {";
  for (size_t i = 0; i < file.vocab.size(); ++i) {
    out += fmt::format("{}\n      {}: {}", i == 0 ? "" : ",", quoted(file.vocab[i].first),
                       file.vocab[i].second);
  }
  out += file.vocab.empty() ? "},\n" : "\n    },\n";
  out += "    \"merges\": [";
  for (size_t i = 0; i < file.merges.size(); ++i) {
    out += fmt::format("{}\n      [\n        {},\n        {}\n      ]", i == 0 ? "" : ",",
                       quoted(file.merges[i].first), quoted(file.merges[i].second));
  }
  out += file.merges.empty() ? "]\n" : "\n    ]\n";
  out += "  }\n}\n";
  return out;
}

TokenizerFile make_tokenizer_file(Json pre_tokenizer, bool nfc) {
  TokenizerFile file;
  file.pre_tokenizer = std::move(pre_tokenizer);
  file.nfc = nfc;
  if (nfc) file.normalizer = {{"type", "NFC"}};
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", false},
                           {"use_regex", false}};
  file.post_processor = byte_level;
  file.decoder = byte_level;
  file.model_options = {{"type", "BPE"},
                        {"dropout", nullptr},
                        {"unk_token", nullptr},
                        {"continuing_subword_prefix", nullptr},
                        {"end_of_word_suffix", nullptr},
                        {"fuse_unk", false},
                        {"byte_fallback", false},
                        {"ignore_merges", false}};
  return file;
}

}  // namespace trireme::data
