#include "trireme/data/piece_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

constexpr char kRegexHint[] =
    "supported are the patterns of the known families and expressions made of literals, classes, "
    "\\p{..}, \\s, \\S, \\d, groups, look-ahead, | and quantifiers";

/// Rewrites an Oniguruma expression for PCRE2: letters, numbers and spaces as the peer library
/// knows them, and everything that the two engines read differently refused by name.
std::string translate_pattern(const std::string& pattern, const std::string& origin) {
  std::string out;
  bool in_class = false;
  const auto refuse = [&](std::string_view what) {
    TRIREME_USER_CHECK(false, kData, kRegexHint, "{}: pattern '{}': {} is not supported", origin,
                       pattern, what);
  };
  const auto add_class = [&](std::string_view own, std::string_view members, bool negated) {
    if (in_class) {
      // A negated class inside a class cannot be written as a list of members.
      if (negated) refuse("a negated class with additions inside [...]");
      out += own;
      out += members;
    } else {
      out += negated ? "[^" : "[";
      out += own;
      out += members;
      out += ']';
    }
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (++i == pattern.size()) refuse("a backslash at the end");
      const char e = pattern[i];
      switch (e) {
        case 'p':
        case 'P': {
          size_t end = pattern.find('}', i);
          if (i + 1 >= pattern.size() || pattern[i + 1] != '{' || end == std::string::npos)
            refuse("\\p without {...}");
          std::string name = pattern.substr(i + 2, end - i - 2);
          bool negated = e == 'P';
          if (!name.empty() && name[0] == '^') {
            negated = !negated;
            name.erase(0, 1);
          }
          const auto members = property_members(name);
          if (!members) refuse("\\p{" + name + "}");
          add_class("", *members, negated);
          i = end;
          break;
        }
        case 's':
        case 'S':
          if (in_class && e == 'S') refuse("\\S inside [...]");
          add_class("", space_class_members(), e == 'S');
          break;
        case 'd':
          add_class("", *property_members("Nd"), false);
          break;
        case 'u': {
          const std::string digits = pattern.substr(i + 1, 4);
          if (digits.size() != 4 ||
              digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos)
            refuse("\\u without four digits");
          out += "\\x{" + digits + "}";
          i += 4;
          break;
        }
        case 'r':
        case 'n':
        case 't':
        case 'f':
        case 'v':
          out += e == 'v' ? std::string("\\x0b") : std::string{'\\', e};
          break;
        default:
          if ((e >= '0' && e <= '9') || (e >= 'a' && e <= 'z') || (e >= 'A' && e <= 'Z'))
            refuse(std::string{'\\', e});
          out += '\\';
          out += e;
      }
      continue;
    }
    if (in_class) {
      if (c == '[') refuse("a class inside a class");
      if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') refuse("&&");
      if (c == ']') in_class = false;
      out += c;
      continue;
    }
    if (c == '[') {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') refuse("] at the start of a class");
      continue;
    }
    if (c == '^' || c == '$' || c == '.') refuse(std::string{c});
    // A + after {n,m} repeats in one engine and forbids backtracking in the other.
    if (c == '}' && i + 1 < pattern.size() && pattern[i + 1] == '+') refuse("{..}+");
    if (c == '(') {
      const std::string_view rest = std::string_view(pattern).substr(i);
      const bool known = !rest.starts_with("(?") || rest.starts_with("(?:") ||
                         rest.starts_with("(?i:") || rest.starts_with("(?=") ||
                         rest.starts_with("(?!") || rest.starts_with("(?>");
      if (!known) refuse(rest.substr(0, 4));
      if (rest.starts_with("(*")) refuse("(*");
    }
    out += c;
  }
  return out;
}

/// Match data and the machine code's stack, of a thread's own.
struct MatchScratch {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(64 << 10, 64 << 20, nullptr);
  MatchScratch() { pcre2_jit_stack_assign(context, nullptr, stack); }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
  ~MatchScratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
};

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

}  // namespace

struct PieceRegex::Impl {
  pcre2_code* code = nullptr;
  std::string pattern;
};

PieceRegex::PieceRegex(const std::string& pattern, const std::string& origin)
    : impl_(std::make_unique<Impl>()) {
  impl_->pattern = pattern;
  const std::string translated = translate_pattern(pattern, origin);
  int error = 0;
  PCRE2_SIZE offset = 0;
  impl_->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  TRIREME_USER_CHECK(impl_->code != nullptr, kData, kRegexHint, "{}: pattern '{}': {}", origin,
                     pattern, pcre2_message(error));
  // Without a compiler for this machine the interpreter runs, slower with the same result.
  pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE);
}

PieceRegex::~PieceRegex() {
  pcre2_code_free(impl_->code);
}

bool PieceRegex::matches_empty() const {
  uint32_t answer = 0;
  pcre2_pattern_info(impl_->code, PCRE2_INFO_MATCHEMPTY, &answer);
  return answer != 0;
}

void PieceRegex::find(std::string_view text, TextPiece range,
                      std::vector<TextPiece>& matches) const {
  static thread_local MatchScratch scratch;
  const std::string_view subject = text.substr(range.begin, range.end - range.begin);
  size_t last_end = SIZE_MAX;
  for (size_t at = 0; at <= subject.size();) {
    const int status =
        pcre2_match(impl_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), at,
                    PCRE2_NO_UTF_CHECK, scratch.match, scratch.context);
    if (status == PCRE2_ERROR_NOMATCH) break;
    TRIREME_USER_CHECK(status >= 0, kData, "simplify the pattern",
                       "pattern '{}' cannot be matched: {}", impl_->pattern, pcre2_message(status));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.match);
    const size_t begin = bounds[0], end = bounds[1];
    if (begin == end && end == last_end) {  // an empty match right behind another counts not
      if (at >= subject.size()) break;
      next_code_point(subject, at);
      continue;
    }
    matches.push_back({range.begin + begin, range.begin + end});
    at = last_end = end;
  }
}

}  // namespace trireme::data
