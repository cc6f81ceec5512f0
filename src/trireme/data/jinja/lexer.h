// A template's text and tags as tokens. Private to this folder.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::data::jinja {

enum class TokenKind {
  kText,  ///< outside of tags, whitespace control applied
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  ///< a string's value, escapes resolved
  int line = 1;
};

/// The tokens of a template as chat templates are read: a block tag takes the white space before it
/// on its line and the newline behind it along, `-` all white space, `+` none; the last newline of
/// the file goes. A Problem for text that is no template. Comments are left out.
std::vector<Token> tokenize_template(std::string_view source);

}  // namespace trireme::data::jinja
