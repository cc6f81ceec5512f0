#include "trireme/data/chat_template.h"

#include <algorithm>
#include <filesystem>

#include "trireme/base/clock.h"
#include "trireme/base/error.h"
#include "trireme/base/file.h"
#include "trireme/base/hash.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {

namespace {

namespace fs = std::filesystem;

constexpr const char* kAssistant = "assistant";
constexpr const char* kShape =
    "write {\"messages\": [{\"role\": \"user\", \"content\": text}, {\"role\": \"assistant\", "
    "\"content\": text}]} on a line";

/// A message as the template sees it, its text marked; roles are names, not text.
jinja::Value marked_message(const OrderedJson& message, int32_t source) {
  std::vector<std::pair<std::string, jinja::Value>> items;
  for (const auto& [key, value] : message.items()) {
    items.emplace_back(key, key == "role" ? jinja::Value::from_json(value)
                                          : jinja::Value::from_json(value, source));
  }
  return jinja::Value::dict(std::move(items));
}

/// The text of a special token that a JSON file names: "<s>" or {"content": "<s>", ...}.
std::string token_text(const OrderedJson& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  return "";
}

OrderedJson json_beside(const fs::path& folder, const char* name) {
  std::error_code ignored;
  const fs::path path = folder / name;
  if (!fs::exists(path, ignored)) return OrderedJson::object();
  OrderedJson json = parse_ordered_json(read_file(path), path.string());
  return json.is_object() ? json : OrderedJson::object();
}

/// "chat_template" of a tokenizer_config.json; "" if there is none.
std::string template_of(const OrderedJson& config) {
  if (!config.contains("chat_template")) return "";
  const OrderedJson& given = config["chat_template"];
  if (given.is_string()) return given.get<std::string>();
  if (!given.is_array()) return "";
  for (const OrderedJson& named : given) {
    if (named.is_object() && named.value("name", "") == "default" && named.contains("template") &&
        named["template"].is_string())
      return named["template"].get<std::string>();
  }
  return "";
}

/// Assistant messages from their first byte to their last, other messages' text never in between.
std::vector<std::pair<size_t, size_t>> answers_of(const jinja::Text& text, bool by_generation,
                                                  const std::vector<bool>& is_answer) {
  std::vector<std::pair<size_t, size_t>> answers;
  int32_t last = -2;
  for (const jinja::Text::Run& run : text.runs()) {
    const bool counts = by_generation
                            ? run.source == jinja::kGenerated
                            : run.source >= 0 && is_answer.at(static_cast<size_t>(run.source));
    if (counts && !by_generation && run.source == last) {
      answers.back().second = run.end;
    } else if (counts) {
      answers.emplace_back(run.begin, run.end);
    }
    last = run.source;
  }
  return answers;
}

/// Ranges of bytes, in order, as ranges of characters.
class CharacterCounter {
 public:
  explicit CharacterCounter(std::string_view text) : text_(text) {}
  int64_t operator()(size_t byte) {
    count_ += count_characters(text_.substr(at_, byte - at_));
    at_ = byte;
    return count_;
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
  int64_t count_ = 0;
};

bool overlaps(const CharRange& token, const CharRange& range) {
  return token.begin < range.end && token.end > range.begin;
}

}  // namespace

std::optional<Conversation> parse_conversation(std::string_view line, const std::string& origin) {
  if (line.find_first_not_of(" \t\r\n") == std::string_view::npos) return std::nullopt;
  OrderedJson json = parse_ordered_json(line, origin);
  TRIREME_USER_CHECK(json.is_object(), kData, kShape, "{}: not a JSON object but {}", origin,
                     json.type_name());
  TRIREME_USER_CHECK(
      json.contains("messages"), kData,
      std::string(kShape) + ", or set data.loss_mask = \"none\" for lines of plain text",
      "{}: no key \"messages\"", origin);
  Conversation conversation;
  conversation.messages = std::move(json["messages"]);
  TRIREME_USER_CHECK(conversation.messages.is_array() && !conversation.messages.empty(), kData,
                     kShape, "{}: \"messages\" is not a list of messages", origin);
  for (size_t i = 0; i < conversation.messages.size(); ++i) {
    const OrderedJson& message = conversation.messages[i];
    TRIREME_USER_CHECK(
        message.is_object() && message.contains("role") && message["role"].is_string(), kData,
        kShape, "{}: message {} is not an object with a \"role\" of text", origin, i + 1);
    TRIREME_USER_CHECK(message.contains("content") || message.contains("tool_calls"), kData, kShape,
                       "{}: message {} has no \"content\"", origin, i + 1);
  }
  if (json.contains("tools")) conversation.tools = std::move(json["tools"]);
  if (json.contains("chat_template_kwargs"))
    conversation.variables = std::move(json["chat_template_kwargs"]);
  TRIREME_USER_CHECK(conversation.variables.is_null() || conversation.variables.is_object(), kData,
                     "write {\"name\": value}", "{}: \"chat_template_kwargs\" is not an object",
                     origin);
  return conversation;
}

ChatTemplate::ChatTemplate(std::string source, const std::string& origin,
                           std::vector<std::pair<std::string, std::string>> special_tokens,
                           int64_t now)
    : source_(std::move(source)),
      template_(source_, origin),
      special_tokens_(std::move(special_tokens)),
      now_(now) {}

std::string ChatTemplate::fingerprint() const {
  std::string key = source_;
  for (const auto& [name, token] : special_tokens_) key += '\n' + name + '=' + token;
  return hash_text(xxh3(std::as_bytes(std::span(key))));
}

RenderedConversation ChatTemplate::render(const Conversation& conversation,
                                          const std::string& origin,
                                          bool add_generation_prompt) const {
  try {
    std::vector<std::pair<std::string, jinja::Value>> variables;
    for (const auto& [name, token] : special_tokens_) variables.emplace_back(name, token);
    std::vector<jinja::Value> messages;
    std::vector<bool> is_answer;
    for (const OrderedJson& message : conversation.messages) {
      messages.push_back(marked_message(message, static_cast<int32_t>(messages.size())));
      is_answer.push_back(message["role"] == kAssistant);
    }
    variables.emplace_back("messages", jinja::Value::list(std::move(messages)));
    variables.emplace_back("tools", jinja::Value::from_json(conversation.tools));
    variables.emplace_back("documents", jinja::Value::None{});
    variables.emplace_back("add_generation_prompt", add_generation_prompt);
    if (conversation.variables.is_object()) {
      for (const auto& [name, value] : conversation.variables.items())
        variables.emplace_back(name, jinja::Value::from_json(value));
    }
    RenderedConversation result;
    result.text = template_.render(std::move(variables), now_);
    result.answers = answers_of(result.text, has_generation(), is_answer);
    return result;
  } catch (const jinja::Problem& problem) {
    throw Error(ErrorCode::kData, fmt::format("{}: {}", origin, problem.what));
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", origin, error.what()), error.hint());
  }
}

std::shared_ptr<const ChatTemplate> load_chat_template(const std::string& name,
                                                       const std::string& file) {
  std::error_code ignored;
  const bool has_folder = name != "bytes";
  const fs::path folder =
      fs::is_directory(name, ignored) ? fs::path(name) : fs::path(name).parent_path();
  const OrderedJson config =
      has_folder ? json_beside(folder, "tokenizer_config.json") : OrderedJson::object();
  std::string source;
  std::string origin = file;
  if (!file.empty()) {
    source = read_file(file);
  } else if (has_folder && fs::exists(folder / "chat_template.jinja", ignored)) {
    origin = (folder / "chat_template.jinja").string();
    source = read_file(origin);
  } else {
    origin = "chat_template of " + (folder / "tokenizer_config.json").string();
    source = template_of(config);
    if (source.empty()) return nullptr;
  }
  std::vector<std::pair<std::string, std::string>> tokens;
  const OrderedJson map =
      has_folder ? json_beside(folder, "special_tokens_map.json") : OrderedJson::object();
  for (const char* key : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                          "cls_token", "mask_token"}) {
    std::string token = config.contains(key) ? token_text(config[key]) : "";
    if (token.empty() && map.contains(key)) token = token_text(map[key]);
    if (!token.empty()) tokens.emplace_back(key, std::move(token));
  }
  return std::make_shared<const ChatTemplate>(std::move(source), origin, std::move(tokens),
                                              static_cast<int64_t>(wall_time_s()));
}

EncodedConversation encode_conversation(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                        const Conversation& conversation,
                                        const std::string& origin) {
  const auto is_assistant = [](const OrderedJson& message) {
    return message["role"] == kAssistant;
  };
  TRIREME_USER_CHECK(
      std::any_of(conversation.messages.begin(), conversation.messages.end(), is_assistant), kData,
      "every conversation needs an answer to learn: add one, or leave the line out",
      "{}: no message has the role \"{}\"", origin, kAssistant);
  const RenderedConversation rendered = chat.render(conversation, origin);
  TRIREME_USER_CHECK(!rendered.answers.empty(), kData,
                     "give the assistant something to say, or leave the line out",
                     "{}: the conversation as the chat template writes it holds nothing that an "
                     "assistant says",
                     origin);
  Encoding encoding = tokenizer.encode_with_offsets(
      rendered.text.bytes(), {.add_special_tokens = false, .parse_special = true});

  std::vector<CharRange> answers;
  CharacterCounter count_answers(rendered.text.bytes());
  for (const auto& [begin, end] : rendered.answers) {
    const int64_t first = count_answers(begin);
    answers.push_back({first, count_answers(end)});
  }
  std::vector<CharRange> messages;
  CharacterCounter count_messages(rendered.text.bytes());
  for (const jinja::Text::Run& run : rendered.text.runs()) {
    const int64_t first = count_messages(run.begin);
    messages.push_back({first, count_messages(run.end)});
  }

  EncodedConversation result;
  result.bytes = rendered.text.size();
  result.ids = std::move(encoding.ids);
  result.predicted.assign(result.ids.size(), 0);
  size_t token = 0;
  for (const CharRange& answer : answers) {
    while (token < result.ids.size() && !overlaps(encoding.offsets[token], answer)) ++token;
    size_t end = token;
    for (; end < result.ids.size() && encoding.offsets[end].begin < answer.end; ++end)
      result.predicted[end] = 1;
    token = end;
    if (chat.has_generation()) continue;
    const auto next = std::find_if(messages.begin(), messages.end(), [&](const CharRange& message) {
      return message.begin >= answer.end;
    });
    const int64_t limit = next == messages.end() ? INT64_MAX : next->begin;
    while (end < result.ids.size() && !tokenizer.is_special(result.ids[end]) &&
           encoding.offsets[end].end <= limit)
      ++end;
    if (end == result.ids.size() || encoding.offsets[end].end > limit ||
        !tokenizer.is_special(result.ids[end]))
      continue;
    for (; token <= end; ++token) result.predicted[token] = 1;
  }
  return result;
}

}  // namespace trireme::data
