#include "trireme/data/tokenizer_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_tables.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr char kSupportedHint[] =
    "docs/formats/tokenizer.md says which part of the format can be read";
/// Embedding rows are allocated by the largest id, so a wild one is refused early.
constexpr int64_t kMaxTokenId = (int64_t{1} << 28) - 1;

/// Reads one file; every refusal names the file and the place.
class Reader {
 public:
  explicit Reader(const std::string& origin) : origin_(origin) {}

  TokenizerFile read(std::string_view text) {
    if (auto tables = read_tokenizer_tables(text, kMaxTokenId)) {
      tables_ = std::move(*tables);
    } else {
      tables_.document = parse_json(text, origin_);
    }
    const Json& json = tables_.document;
    check(json.is_object(), "not a JSON object");
    check(!json.contains("truncation") || json["truncation"].is_null(),
          "truncation is not supported: set it to null");
    check(!json.contains("padding") || json["padding"].is_null(),
          "padding is not supported: set it to null");
    read_model(member(json, "model", "the file"));
    read_added_tokens(json.value("added_tokens", Json::array()));
    file_.normalizer = json.value("normalizer", Json());
    file_.pre_tokenizer = json.value("pre_tokenizer", Json());
    file_.post_processor = json.value("post_processor", Json());
    if (!file_.post_processor.is_null()) read_post_processor(file_.post_processor);
    file_.decoder = json.value("decoder", Json());
    return std::move(file_);
  }

 private:
  void check(bool condition, const std::string& message) const {
    if (!condition) fail(message);
  }
  /// For places where making the message takes longer than the check: vocabularies are large.
  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ErrorCode::kData, fmt::format("{}: {}", origin_, message), kSupportedHint);
  }

  const Json& member(const Json& object, const std::string& key, const std::string& where) const {
    if (!object.is_object() || !object.contains(key))
      fail(fmt::format("{} has no '{}'", where, key));
    return object[key];
  }

  const std::string& text_of(const Json& value, std::string_view where) const {
    if (!value.is_string()) fail(fmt::format("{} is not a string: {}", where, excerpt(value)));
    return value.get_ref<const std::string&>();
  }

  bool flag_of(const Json& object, const char* key, bool fallback, const std::string& where) const {
    if (!object.contains(key) || object[key].is_null()) return fallback;
    check(object[key].is_boolean(),
          fmt::format("{}: {} is not true or false: {}", where, key, excerpt(object[key])));
    return object[key].get<bool>();
  }

  static bool is_id(const Json& value) {
    return value.is_number_integer() && value.get<int64_t>() >= 0 &&
           value.get<int64_t>() <= kMaxTokenId;
  }

  int32_t id_of(const Json& value, const std::string& where) const {
    if (!is_id(value)) fail(fmt::format("{}: not a token id: {}", where, excerpt(value)));
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

  std::string model_type(const Json& model) const {
    // Files of old versions have no type and are told by what they have.
    if (tables_.has_merges || model.contains("merges")) return "BPE";
    if (model.contains("max_input_chars_per_word")) return "WordPiece";
    if (tables_.kind == TokenizerTables::Vocabulary::kScores) return "Unigram";
    return "unknown";
  }

  void read_model(const Json& model) {
    check(model.is_object(), "model is not an object");
    const std::string type = model.contains("type") ? type_of(model, "model") : model_type(model);
    if (type == "BPE") {
      read_bpe(model);
    } else if (type == "Unigram") {
      read_unigram(model);
    } else if (type == "WordPiece") {
      read_word_piece(model);
    } else {
      check(false, fmt::format("model type {} is not supported", type));
    }
  }

  /// Tokens with their ids.
  void read_vocabulary(const Json& model) {
    if (tables_.kind == TokenizerTables::Vocabulary::kIds) {
      file_.vocab = std::move(tables_.vocab);
    } else {
      check(tables_.kind == TokenizerTables::Vocabulary::kNone, "model: vocab is not an object");
      read_vocabulary_entries(member(model, "vocab", "model"));
    }
    const auto by_id = [](const auto& a, const auto& b) { return a.second < b.second; };
    if (!std::is_sorted(file_.vocab.begin(), file_.vocab.end(), by_id))
      std::sort(file_.vocab.begin(), file_.vocab.end(), by_id);
    for (size_t i = 1; i < file_.vocab.size(); ++i) {
      if (file_.vocab[i].second != file_.vocab[i - 1].second) continue;
      fail(fmt::format("model: vocab: '{}' and '{}' both have id {}", file_.vocab[i - 1].first,
                       file_.vocab[i].first, file_.vocab[i].second));
    }
  }

  void read_vocabulary_entries(const Json& vocab) {
    check(vocab.is_object(), "model: vocab is not an object");
    file_.vocab.reserve(vocab.size());
    for (auto it = vocab.begin(); it != vocab.end(); ++it) {
      if (!is_id(*it)) id_of(*it, "model: vocab: '" + it.key() + "'");
      file_.vocab.emplace_back(it.key(), static_cast<int32_t>(it->get<int64_t>()));
    }
  }

  void read_bpe(const Json& model) {
    check(!model.contains("dropout") || model["dropout"].is_null() || model["dropout"] == 0.0,
          "model: dropout is not supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      check(!model.contains(key) || model[key].is_null() || model[key] == "",
            fmt::format("model: {} = {} is not supported for BPE", key,
                        model.contains(key) ? excerpt(model[key]) : ""));
    }
    file_.byte_fallback = flag_of(model, "byte_fallback", false, "model");
    file_.fuse_unknown = flag_of(model, "fuse_unk", false, "model");
    file_.ignore_merges = flag_of(model, "ignore_merges", false, "model");
    if (model.contains("unk_token") && !model["unk_token"].is_null())
      file_.unknown_token = text_of(model["unk_token"], "model: unk_token");
    read_vocabulary(model);

    if (tables_.has_merges) {
      file_.merges = std::move(tables_.merges);
    } else {
      read_merges(member(model, "merges", "model"));
    }
  }

  void read_merges(const Json& merges) {
    check(merges.is_array(), "model: merges is not a list");
    file_.merges.reserve(merges.size());
    for (const Json& merge : merges) {
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
          fail(fmt::format("model: merges: '{}' is not two tokens with a space between", text));
        file_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
      } else {
        if (!merge.is_array() || merge.size() != 2)
          fail("model: merges: not a pair of tokens: " + excerpt(merge));
        file_.merges.emplace_back(text_of(merge[0], "model: merges"),
                                  text_of(merge[1], "model: merges"));
      }
    }
  }

  void read_unigram(const Json& model) {
    file_.model = ModelKind::kUnigram;
    file_.byte_fallback = flag_of(model, "byte_fallback", false, "model");
    if (tables_.kind == TokenizerTables::Vocabulary::kScores) {
      file_.vocab = std::move(tables_.vocab);
      file_.scores = std::move(tables_.scores);
    } else {
      check(tables_.kind == TokenizerTables::Vocabulary::kNone,
            "model: vocab is not a list of tokens and scores");
      read_scores(member(model, "vocab", "model"));
    }
    if (!model.contains("unk_id") || model["unk_id"].is_null()) return;
    file_.unknown_id = id_of(model["unk_id"], "model: unk_id");
    check(*file_.unknown_id < static_cast<int32_t>(file_.vocab.size()),
          fmt::format("model: unk_id {} is not in the vocabulary", *file_.unknown_id));
  }

  void read_scores(const Json& vocab) {
    check(vocab.is_array(), "model: vocab is not a list of tokens and scores");
    check(static_cast<int64_t>(vocab.size()) <= kMaxTokenId, "model: vocab is too long");
    for (const Json& entry : vocab) {
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() ||
          !entry[1].is_number() || !std::isfinite(entry[1].get<double>()))
        fail("model: vocab: not a token and its score: " + excerpt(entry));
      file_.vocab.emplace_back(entry[0].get_ref<const std::string&>(),
                               static_cast<int32_t>(file_.vocab.size()));
      file_.scores.push_back(entry[1].get<double>());
    }
  }

  void read_word_piece(const Json& model) {
    file_.model = ModelKind::kWordPiece;
    file_.unknown_token = text_of(member(model, "unk_token", "model"), "model: unk_token");
    file_.continuing_prefix = text_of(member(model, "continuing_subword_prefix", "model"),
                                      "model: continuing_subword_prefix");
    const Json& most = member(model, "max_input_chars_per_word", "model");
    check(most.is_number_unsigned() && most.get<uint64_t>() <= INT64_MAX,
          "model: max_input_chars_per_word is not a number: " + excerpt(most));
    file_.max_word_characters = most.get<int64_t>();
    read_vocabulary(model);
  }

  void read_added_tokens(const Json& tokens) {
    std::unordered_map<std::string_view, int32_t> ids;
    ids.reserve(file_.vocab.size() + tokens.size());
    for (const auto& [token, id] : file_.vocab) {
      // Of the same token twice, Unigram's last one counts; the other models have ids by token.
      const bool added = ids.insert_or_assign(token, id).second;
      if (!added && file_.model != ModelKind::kUnigram)
        fail(fmt::format("model: vocab: '{}' appears twice", token));
    }
    if (tokens.is_null()) return;
    check(tokens.is_array(), "added_tokens is not a list");
    const auto vocab_size = static_cast<int32_t>(file_.vocab.size());
    int32_t largest = -1;
    for (const Json& entry : tokens) {
      AddedToken token;
      const std::string where = "added_tokens";
      const std::string_view content =
          text_of(member(entry, "content", where), "added_tokens: content");
      token.content = content;
      token.id = id_of(member(entry, "id", where), "added_tokens: '" + token.content + "'");
      check(!token.content.empty(), "added_tokens: an empty token");
      token.special = flag_of(entry, "special", false, where);
      token.single_word = flag_of(entry, "single_word", false, where);
      token.lstrip = flag_of(entry, "lstrip", false, where);
      token.rstrip = flag_of(entry, "rstrip", false, where);
      token.normalized = flag_of(entry, "normalized", !token.special, where);
      // The library ignores the file's id if the vocabulary has the token, and otherwise counts on
      // from the largest id.
      const auto it = ids.find(content);
      const int32_t expected = it != ids.end()         ? it->second
                               : largest >= vocab_size ? largest + 1
                                                       : vocab_size;
      if (token.id != expected) {
        fail(fmt::format("added_tokens: '{}' has id {} where Hugging Face's library gives it {}",
                         content, token.id, expected));
      }
      ids.emplace(content, token.id);
      largest = std::max(largest, token.id);
      file_.added_tokens.push_back(std::move(token));
    }
    std::stable_sort(file_.added_tokens.begin(), file_.added_tokens.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
    for (size_t i = 1; i < file_.added_tokens.size(); ++i) {
      const int32_t id = file_.added_tokens[i].id;
      if (id == file_.added_tokens[i - 1].id)
        fail(fmt::format("added_tokens: id {} appears twice", id));
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
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      read_bert(section, type);
    } else {
      check(false, fmt::format("post_processor {} is not supported (BertProcessing, ByteLevel, "
                               "RobertaProcessing, TemplateProcessing and Sequences of them are)",
                               type));
    }
  }

  void read_bert(const Json& section, const std::string& type) {
    if (type == "RobertaProcessing" && flag_of(section, "trim_offsets", true, type)) {
      PostStep trim;
      trim.add_prefix_space = flag_of(section, "add_prefix_space", true, type);
      file_.post_steps.push_back(trim);
    }
    PostStep around;
    around.kind = PostStep::Kind::kTemplate;
    const auto id = [&](const char* key) {
      const Json& pair = member(section, key, "post_processor " + type);
      check(pair.is_array() && pair.size() == 2 && pair[0].is_string(),
            fmt::format("post_processor {}: {} is not a token and its id", type, key));
      return id_of(pair[1], "post_processor " + type);
    };
    around.before = {id("cls")};
    around.after = {id("sep")};
    file_.post_steps.push_back(around);
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

  std::string origin_;
  TokenizerTables tables_;
  TokenizerFile file_;
};

std::string quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Keys of small sections in the library's order; others follow by name.
constexpr std::string_view kKeyOrder[] = {"type",          "sep",
                                          "cls",           "single",
                                          "pair",          "special_tokens",
                                          "clean_text",    "handle_chinese_chars",
                                          "strip_accents", "lowercase",
                                          "strip_left",    "strip_right",
                                          "pattern",       "content",
                                          "behavior",      "invert",
                                          "replacement",   "prepend_scheme",
                                          "split",         "prefix",
                                          "cleanup",       "start",
                                          "stop",          "add_prefix_space",
                                          "trim_offsets",  "use_regex"};

OrderedJson in_order(const Json& section) {
  if (section.is_array()) {
    OrderedJson list = OrderedJson::array();
    for (const Json& item : section) list.push_back(in_order(item));
    return list;
  }
  if (!section.is_object())
    return OrderedJson::parse(section.dump(-1, ' ', false, Json::error_handler_t::replace));
  OrderedJson object = OrderedJson::object();
  const bool is_roberta = section.contains("type") && section["type"] == "RobertaProcessing";
  for (const std::string_view key : kKeyOrder) {
    // The library writes these two the other way round here.
    if (is_roberta && key == "add_prefix_space") continue;
    if (const auto it = section.find(key); it != section.end())
      object[std::string(key)] = in_order(*it);
  }
  for (const auto& [key, value] : section.items()) {
    if (!object.contains(key)) object[key] = in_order(value);
  }
  return object;
}

/// `section` as it looks two spaces deep in the file.
std::string indented(const Json& section) {
  const std::string text =
      in_order(section).dump(2, ' ', false, OrderedJson::error_handler_t::replace);
  std::string result;
  for (const char c : text) {
    result += c;
    if (c == '\n') result += "  ";
  }
  return result;
}

/// The shortest text that reads back as `score`, as the library spells it.
std::string score_text(double score) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, std::abs(score), std::chars_format::scientific)
          .ptr;
  std::string digits;
  const char* at = buffer;
  for (; at < end && *at != 'e'; ++at) {
    if (*at != '.') digits += *at;
  }
  int exponent = 0;
  if (at < end) std::from_chars(at[1] == '+' ? at + 2 : at + 1, end, exponent);
  const int length = static_cast<int>(digits.size());
  const int point = exponent + 1;  // digits before the decimal point
  std::string text = std::signbit(score) ? "-" : "";
  if (score == 0) return text + "0.0";
  if (point >= length && point <= 16) {
    text += digits + std::string(static_cast<size_t>(point - length), '0') + ".0";
  } else if (point > 0 && point <= 16) {
    text += digits.substr(0, static_cast<size_t>(point)) + "." +
            digits.substr(static_cast<size_t>(point));
  } else if (point > -5 && point <= 0) {
    text += "0." + std::string(static_cast<size_t>(-point), '0') + digits;
  } else {
    text += digits.substr(0, 1);
    if (length > 1) text += "." + digits.substr(1);
    text += fmt::format("e{}", exponent);
  }
  return text;
}

std::string vocabulary_text(const TokenizerFile& file) {
  std::string out = "    \"vocab\": {";
  for (size_t i = 0; i < file.vocab.size(); ++i) {
    out += fmt::format("{}\n      {}: {}", i == 0 ? "" : ",", quoted(file.vocab[i].first),
                       file.vocab[i].second);
  }
  return out + (file.vocab.empty() ? "}" : "\n    }");
}

std::string bpe_text(const TokenizerFile& file) {
  const auto flag = [](bool value) { return value ? "true" : "false"; };
  std::string out = fmt::format(
      "    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": {},\n"
      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
      "    \"fuse_unk\": {},\n    \"byte_fallback\": {},\n    \"ignore_merges\": {},\n",
      file.unknown_token ? quoted(*file.unknown_token) : "null", flag(file.fuse_unknown),
      flag(file.byte_fallback), flag(file.ignore_merges));
  out += vocabulary_text(file) + ",\n    \"merges\": [";
  for (size_t i = 0; i < file.merges.size(); ++i) {
    out += fmt::format("{}\n      [\n        {},\n        {}\n      ]", i == 0 ? "" : ",",
                       quoted(file.merges[i].first), quoted(file.merges[i].second));
  }
  return out + (file.merges.empty() ? "]" : "\n    ]");
}

std::string unigram_text(const TokenizerFile& file) {
  std::string out = fmt::format("    \"type\": \"Unigram\",\n    \"unk_id\": {},\n    \"vocab\": [",
                                file.unknown_id ? std::to_string(*file.unknown_id) : "null");
  for (size_t i = 0; i < file.vocab.size(); ++i) {
    out += fmt::format("{}\n      [\n        {},\n        {}\n      ]", i == 0 ? "" : ",",
                       quoted(file.vocab[i].first), score_text(file.scores[i]));
  }
  return out + (file.vocab.empty() ? "]" : "\n    ]") +
         fmt::format(",\n    \"byte_fallback\": {}", file.byte_fallback ? "true" : "false");
}

std::string word_piece_text(const TokenizerFile& file) {
  return fmt::format(
             "    \"type\": \"WordPiece\",\n    \"unk_token\": {},\n"
             "    \"continuing_subword_prefix\": {},\n    \"max_input_chars_per_word\": {},\n",
             quoted(file.unknown_token.value_or("")), quoted(file.continuing_prefix),
             file.max_word_characters) +
         vocabulary_text(file);
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
  switch (file.model) {
    case ModelKind::kBpe:
      out += bpe_text(file);
      break;
    case ModelKind::kUnigram:
      out += unigram_text(file);
      break;
    case ModelKind::kWordPiece:
      out += word_piece_text(file);
      break;
  }
  return out + "\n  }\n}";
}

TokenizerFile make_tokenizer_file(Json pre_tokenizer, bool nfc) {
  TokenizerFile file;
  file.pre_tokenizer = std::move(pre_tokenizer);
  if (nfc) file.normalizer = {{"type", "NFC"}};
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", false},
                           {"use_regex", false}};
  file.post_processor = byte_level;
  file.decoder = byte_level;
  return file;
}

}  // namespace trireme::data
