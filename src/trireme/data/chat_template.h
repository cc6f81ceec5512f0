// Conversations as the model's own chat template writes them, and which part of that the model is to
// learn.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/jinja/template.h"
#include "trireme/data/tokenizer.h"

namespace trireme::data {

/// What one line of chat data says. `messages` is checked: a list, not empty, of objects with a
/// "role" of text.
struct Conversation {
  OrderedJson messages;
  OrderedJson tools;      ///< null if there are none
  OrderedJson variables;  ///< "chat_template_kwargs": more variables of the template; null if none
};

/// Parses {"messages": [{"role": ..., "content": ...}, ...]}; nothing for a blank line. Error{kData}
/// that begins with `origin` (file and line).
std::optional<Conversation> parse_conversation(std::string_view line, const std::string& origin);

/// A conversation as text.
struct RenderedConversation {
  /// Marked with the index of the message that it comes from (all of a message but its role), or as
  /// jinja::kGenerated what {% generation %} blocks print.
  jinja::Text text;
  /// Bytes of what the assistant says: the generation blocks if the template has them, else from the
  /// first to the last byte of each assistant message.
  std::vector<std::pair<size_t, size_t>> answers;
};

/// Thread-safety: const access from any thread.
class ChatTemplate {
 public:
  /// `special_tokens`: variables such as bos_token. `now` (seconds since 1970) is what templates that
  /// write the date see. Error{kData} naming `origin` and what is not covered.
  ChatTemplate(std::string source, const std::string& origin,
               std::vector<std::pair<std::string, std::string>> special_tokens, int64_t now);

  /// Error{kData} that begins with `origin`.
  RenderedConversation render(const Conversation& conversation, const std::string& origin,
                              bool add_generation_prompt = false) const;

  const std::string& source() const { return source_; }
  bool has_generation() const { return template_.has_generation(); }
  /// xxh3 of the template and the special tokens, 16 hexadecimal digits.
  std::string fingerprint() const;

 private:
  std::string source_;
  jinja::Template template_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;
  int64_t now_;
};

/// The template of the tokenizer `name` (its folder or a file in it): `file` if not empty, else
/// chat_template.jinja beside it, else "chat_template" of tokenizer_config.json (the one named
/// "default" of several). Null if there is none. Special tokens come from tokenizer_config.json and
/// special_tokens_map.json. Error{kData}.
std::shared_ptr<const ChatTemplate> load_chat_template(const std::string& name,
                                                       const std::string& file = "");

/// Token ids and, for each, whether it is to be predicted.
struct EncodedConversation {
  std::vector<int32_t> ids;
  std::vector<uint8_t> predicted;  ///< 0 or 1
  size_t bytes = 0;                ///< of rendered text
};

/// Encodes what the template makes of a conversation as transformers' apply_chat_template does
/// (special tokens are found in all of the text, none is added) and marks the answers: tokens that
/// share a character with one, and, where no {% generation %} block says otherwise, those behind it up
/// to the first special token (the end of the turn) unless text of another message comes before.
/// Error{kData}: nothing in it is to be predicted.
EncodedConversation encode_conversation(const ChatTemplate& chat, const Tokenizer& tokenizer,
                                        const Conversation& conversation,
                                        const std::string& origin);

}  // namespace trireme::data
