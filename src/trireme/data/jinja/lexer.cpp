#include "trireme/data/jinja/lexer.h"

#include <algorithm>
#include <cctype>

#include "trireme/data/jinja/value.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

namespace {

/// Newlines of any kind as "\n", the last one gone.
std::string normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

bool begins_name(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    try {
      return read();
    } catch (const Problem& problem) {
      fail("line {}: {}", line_, problem.what);
    }
  }

 private:
  std::vector<Token> read() {
    while (at_ < source_.size()) {
      const size_t tag = next_tag();
      read_text(tag);
      if (tag == source_.size()) break;
      const char kind = source_[tag + 1];
      at_ = tag + 2;
      if (at_ < source_.size() && (source_[at_] == '-' || (source_[at_] == '+' && kind != '{')))
        ++at_;
      if (kind == '#') {
        skip_comment();
      } else {
        read_tag(kind == '{');
      }
    }
    push(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

  void push(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  size_t next_tag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i) {
      if (source_[i] == '{' &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#'))
        return i;
    }
    return source_.size();
  }

  void read_text(size_t end) {
    std::string_view text = std::string_view(source_).substr(at_, end - at_);
    if (end < source_.size()) {
      const char kind = source_[end + 1];
      const char sign = end + 2 < source_.size() ? source_[end + 2] : '\0';
      if (sign == '-') {
        text = stripped_end(text);
      } else if (kind != '{' && sign != '+') {
        const size_t line = text.rfind('\n') + 1;  // 0 if there is none
        if ((line > 0 || at_line_start_) && stripped_end(text.substr(line)).empty())
          text = text.substr(0, line);
      }
    }
    if (!text.empty()) push(TokenKind::kText, std::string(text));
    advance(end);
  }

  static std::string_view stripped_end(std::string_view text) {
    while (!text.empty()) {
      size_t begin = text.size() - 1;
      while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
      size_t at = begin;
      if (!is_python_space(next_code_point(text, at))) break;
      text = text.substr(0, begin);
    }
    return text;
  }

  void skip_space() {
    size_t end = at_;
    while (end < source_.size()) {
      size_t next = end;
      if (!is_python_space(next_code_point(source_, next))) break;
      end = next;
    }
    advance(end);
  }

  /// Behind a tag: the white space that goes with it.
  void after_tag(bool strip, bool trim_newline) {
    const size_t before = at_;
    if (strip) {
      skip_space();
    } else if (trim_newline && at_ < source_.size() && source_[at_] == '\n') {
      advance(at_ + 1);
    }
    at_line_start_ = at_ > before && source_[at_ - 1] == '\n';
  }

  void skip_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail("a comment {{# without its #}}");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2);
    after_tag(sign == '-', sign != '+');
  }

  void read_tag(bool variable) {
    push(variable ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
    const std::string_view close = variable ? "}}" : "%}";
    std::string open;
    while (true) {
      skip_space();
      if (at_ >= source_.size()) fail("a tag is not closed");
      const std::string_view rest = std::string_view(source_).substr(at_);
      if (open.empty()) {
        const bool signed_end = rest.size() >= 3 &&
                                (rest[0] == '-' || (rest[0] == '+' && !variable)) &&
                                rest.substr(1, 2) == close;
        if (signed_end || rest.starts_with(close)) {
          push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
          advance(at_ + (signed_end ? 3 : 2));
          after_tag(signed_end && rest[0] == '-', !variable && !signed_end);
          return;
        }
      }
      read_token(open);
    }
  }

  void read_token(std::string& open) {
    const char c = source_[at_];
    if (begins_name(c)) {
      size_t end = at_;
      while (end < source_.size() && (begins_name(source_[end]) || is_digit(source_[end]))) ++end;
      push(TokenKind::kName, source_.substr(at_, end - at_));
      advance(end);
    } else if (is_digit(c)) {
      read_number();
    } else if (c == '\'' || c == '"') {
      read_string(c);
    } else {
      read_operator(open);
    }
  }

  void read_number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    digits();
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      is_float = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-'))
        ++exponent;
      if (exponent < source_.size() && is_digit(source_[exponent])) {
        is_float = true;
        end = exponent;
        digits();
      }
    }
    if (end < source_.size() && begins_name(source_[end]))
      fail("the number '{}{}' is not covered", source_.substr(at_, end - at_), source_[end]);
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    push(is_float ? TokenKind::kFloat : TokenKind::kInteger, text);
    advance(end);
  }

  void read_string(char quote) {
    size_t end = at_ + 1;
    std::string value;
    while (true) {
      if (end >= source_.size()) fail("a string is not closed");
      const char c = source_[end];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        ++end;
        continue;
      }
      ++end;
      if (end >= source_.size()) fail("a string is not closed");
      end += read_escape(end, value);
    }
    push(TokenKind::kString, std::move(value));
    advance(end + 1);
  }

  /// Appends what the escape behind a backslash stands for; returns its length.
  size_t read_escape(size_t at, std::string& value) {
    const char c = source_[at];
    static constexpr std::string_view kFrom = "nrtabfv\\'\"";
    static constexpr std::string_view kTo = "\n\r\t\a\b\f\v\\'\"";
    const size_t simple = kFrom.find(c);
    if (simple != std::string_view::npos) {
      value += kTo[simple];
      return 1;
    }
    if (c == '\n') return 1;
    if (is_digit(c) || c == 'N') fail("the escape \\{} in a string is not covered", c);
    const size_t digits = c == 'x' ? 2 : (c == 'u' ? 4 : (c == 'U' ? 8 : 0));
    if (digits == 0) {
      value += '\\';  // as in Python, an unknown escape stands for itself
      return 0;
    }
    const std::string number = source_.substr(at + 1, digits);
    const bool hex = number.size() == digits &&
                     number.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
    const unsigned long code = hex ? std::stoul(number, nullptr, 16) : 0x110000;
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail("the escape \\{}{} in a string is no character", c, hex ? number : "");
    append_utf8(static_cast<uint32_t>(code), value);
    return 1 + digits;
  }

  void read_operator(std::string& open) {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    const std::string_view rest = std::string_view(source_).substr(at_);
    for (const std::string_view two : kTwo) {
      if (!rest.starts_with(two)) continue;
      push(TokenKind::kOperator, std::string(two));
      return advance(at_ + 2);
    }
    const char c = rest[0];
    if (std::string_view("+-/*%~[](){}<>=.:|,").find(c) == std::string_view::npos) {
      fail("'{}' has no meaning in a tag",
           replace_invalid_utf8(rest.substr(0, first_character_length(rest))));
    }
    if (c == '(' || c == '[' || c == '{') open += c;
    if (c == ')' || c == ']' || c == '}') {
      const char wanted = c == ')' ? '(' : (c == ']' ? '[' : '{');
      if (open.empty() || open.back() != wanted) fail("'{}' closes nothing", c);
      open.pop_back();
    }
    push(TokenKind::kOperator, std::string(1, c));
    advance(at_ + 1);
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) {
  return Lexer(normalized(source)).run();
}

}  // namespace trireme::data::jinja
