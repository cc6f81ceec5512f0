#include "trireme/data/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>

#include "trireme/base/error.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr std::string_view kGpt2Text =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Text =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr char kRegexHint[] =
    "supported are the patterns of GPT-2, Llama-3, Qwen-2 and expressions made of literals, "
    "classes, \\p{..}, \\s, \\S, \\d, "
    "groups, look-ahead, | and quantifiers";

/// Rewrites an Oniguruma expression for PCRE2: letters, numbers and spaces as the peer library
/// knows them, and everything that the two engines read differently refused by name.
std::string translate_pattern(const std::string& pattern, const std::string& origin) {
  std::string out;
  bool in_class = false;
  const auto refuse = [&](std::string_view what) {
    TRIREME_USER_CHECK(false, kData, kRegexHint,
                       "{}: pre_tokenizer pattern '{}': {} is not supported", origin, pattern,
                       what);
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
          if (name == "L" || name == "N") {
            add_class("\\p{" + name + "}", late_class_members(name[0]), negated);
          } else {
            out += (negated ? "\\P{" : "\\p{") + name + "}";
          }
          i = end;
          break;
        }
        case 's':
        case 'S':
          if (in_class && e == 'S') refuse("\\S inside [...]");
          add_class("", space_class_members(), e == 'S');
          break;
        case 'd':
          out += "\\p{Nd}";
          break;
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

std::string_view pattern_text(KnownPattern pattern) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return kGpt2Text;
    case KnownPattern::kLlama3:
      return kLlama3Text;
    case KnownPattern::kQwen2:
      return kQwen2Text;
    case KnownPattern::kNone:
      break;
  }
  return "";
}

KnownPattern pattern_by_name(std::string_view name) {
  if (name == "gpt2") return KnownPattern::kGpt2;
  if (name == "llama3") return KnownPattern::kLlama3;
  if (name == "qwen2") return KnownPattern::kQwen2;
  return KnownPattern::kNone;
}

KnownPattern pattern_by_text(std::string_view text) {
  for (const auto pattern : {KnownPattern::kGpt2, KnownPattern::kLlama3, KnownPattern::kQwen2}) {
    if (text == pattern_text(pattern)) return pattern;
  }
  return KnownPattern::kNone;
}

// ---- PieceRegex
// -----------------------------------------------------------------------------------------------------

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
  TRIREME_USER_CHECK(impl_->code != nullptr, kData, kRegexHint,
                     "{}: pre_tokenizer pattern '{}': {}", origin, pattern, pcre2_message(error));
  // Without a compiler for this machine the interpreter runs, slower with the same result.
  pcre2_jit_compile(impl_->code, PCRE2_JIT_COMPLETE);
}

PieceRegex::~PieceRegex() {
  pcre2_code_free(impl_->code);
}

void PieceRegex::split(std::string_view text, TextPiece range, bool keep_matches, bool keep_gaps,
                       std::vector<TextPiece>& pieces) const {
  static thread_local MatchScratch scratch;
  const std::string_view subject = text.substr(range.begin, range.end - range.begin);
  size_t done = 0;
  const auto add = [&](size_t begin, size_t end, bool keep) {
    if (keep && begin < end) pieces.push_back({range.begin + begin, range.begin + end});
  };
  size_t at = 0;
  while (at <= subject.size()) {
    const int status =
        pcre2_match(impl_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), at,
                    PCRE2_NO_UTF_CHECK, scratch.match, scratch.context);
    if (status == PCRE2_ERROR_NOMATCH) break;
    TRIREME_USER_CHECK(status >= 0, kData, "simplify the pattern",
                       "pre_tokenizer pattern '{}' cannot be matched: {}", impl_->pattern,
                       pcre2_message(status));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(scratch.match);
    const size_t begin = bounds[0], end = bounds[1];
    if (begin == end) {  // an empty match cuts nothing
      if (end == subject.size()) break;
      at = end;
      next_code_point(subject, at);
      continue;
    }
    add(done, begin, keep_gaps);
    add(begin, end, keep_matches);
    done = at = end;
  }
  add(done, subject.size(), keep_gaps);
}

// ---- the hand-written matchers
// --------------------------------------------------------------------------------------

namespace {

/// Length of a contraction after the apostrophe at `at`, or 0.
size_t contraction_length(std::string_view text, size_t at, bool ignore_case) {
  const auto letter = [&](size_t i) -> char {
    if (i >= text.size()) return 0;
    const char c = text[i];
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  };
  const char first = letter(at + 1), second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
      (first == 'l' && second == 'l'))
    return 3;
  // The long s folds to s.
  if (ignore_case && text.substr(at + 1).starts_with("\xC5\xBF")) return 3;
  return 0;
}

class PieceScanner {
 public:
  explicit PieceScanner(std::string_view text) : text_(text) {}

  /// Class of the character at `at`, with kOtherChar for the end; `next` is behind it.
  uint8_t class_at(size_t at, size_t& next) const {
    next = at;
    if (at >= text_.size()) return kOtherChar;
    return classes_[next_code_point(text_, next)];
  }

  size_t run(size_t at, uint8_t wanted) const {
    size_t next;
    while (at < text_.size() && class_at(at, next) == wanted) at = next;
    return at;
  }

  size_t newline_run(size_t at) const {
    while (at < text_.size() && is_newline(text_[at])) ++at;
    return at;
  }

  /// `\s+(?!\S)|\s+` on the run of spaces at `at`.
  size_t space_end(size_t at) const {
    size_t last = at, end = at, next;
    while (end < text_.size() && class_at(end, next) == kSpaceChar) {
      last = end;
      end = next;
    }
    return end == text_.size() || last == at ? end : last;
  }

  static bool is_newline(char c) { return c == '\r' || c == '\n'; }

 private:
  std::string_view text_;
  const CharClassTable& classes_ = CharClassTable::instance();
};

size_t gpt2_piece_end(std::string_view text, size_t at) {
  if (text[at] == '\'') {
    if (const size_t length = contraction_length(text, at, false)) return at + length;
  }
  const PieceScanner scanner(text);
  const size_t start = text[at] == ' ' ? at + 1 : at;
  size_t next;
  const uint8_t kind = scanner.class_at(start, next);
  if (start < text.size() && kind != kSpaceChar) return scanner.run(next, kind);
  return scanner.space_end(at);
}

size_t llama3_piece_end(std::string_view text, size_t at, int max_digits) {
  if (text[at] == '\'') {
    if (const size_t length = contraction_length(text, at, true)) return at + length;
  }
  const PieceScanner scanner(text);
  size_t next, after;
  const uint8_t kind = scanner.class_at(at, next);
  if (kind == kLetterChar) return scanner.run(next, kLetterChar);
  if (kind == kNumberChar) {
    for (int i = 1;
         i < max_digits && next < text.size() && scanner.class_at(next, after) == kNumberChar; ++i)
      next = after;
    return next;
  }
  const uint8_t following =
      next < text.size() ? scanner.class_at(next, after) : static_cast<uint8_t>(kSpaceChar);
  if (!PieceScanner::is_newline(text[at]) && following == kLetterChar)
    return scanner.run(after, kLetterChar);
  if (kind == kOtherChar) return scanner.newline_run(scanner.run(next, kOtherChar));
  if (text[at] == ' ' && following == kOtherChar)
    return scanner.newline_run(scanner.run(after, kOtherChar));
  // Spaces: up to the last newline of the run if there is one.
  size_t newline_end = 0;
  for (size_t end = at; end < text.size() && scanner.class_at(end, after) == kSpaceChar;
       end = after) {
    if (PieceScanner::is_newline(text[end])) newline_end = after;
  }
  return newline_end > 0 ? newline_end : scanner.space_end(at);
}

}  // namespace

size_t known_piece_end(KnownPattern pattern, std::string_view text, size_t at) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return gpt2_piece_end(text, at);
    case KnownPattern::kLlama3:
      return llama3_piece_end(text, at, 3);
    case KnownPattern::kQwen2:
      return llama3_piece_end(text, at, 1);
    case KnownPattern::kNone:
      break;
  }
  return text.size();
}

// ---- Pretokenizer
// ---------------------------------------------------------------------------------------------------

struct Pretokenizer::Step {
  std::shared_ptr<const PieceRegex> regex;
  bool keep_matches = true;
  bool keep_gaps = true;
  KnownPattern known = KnownPattern::kNone;
};

Pretokenizer::Pretokenizer(const Json& json, const std::string& origin) {
  add_step(json, origin);
  TRIREME_USER_CHECK(has_byte_level_, kData, "only byte-level BPE tokenizers can be read",
                     "{}: the pre_tokenizer has no ByteLevel step", origin);
  for (const Step& step : steps_) splittable_ = splittable_ && step.known != KnownPattern::kNone;
  if (steps_.size() == 1) known_pattern_ = steps_[0].known;
}

Pretokenizer::~Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;

void Pretokenizer::add_step(const Json& json, const std::string& origin) {
  const auto check = [&](bool condition, std::string_view what) {
    TRIREME_USER_CHECK(condition, kData,
                       "supported are ByteLevel, Split, Digits and Sequences of them",
                       "{}: pre_tokenizer {} is not supported", origin, what);
  };
  check(json.is_object() && json.contains("type") && json["type"].is_string(),
        json.dump().substr(0, 200));
  const std::string type = json["type"].get<std::string>();
  const auto flag = [&](const char* key, bool fallback) {
    if (!json.contains(key)) return fallback;
    check(json[key].is_boolean(), fmt::format("{} with {} = {}", type, key, json[key].dump()));
    return json[key].get<bool>();
  };
  if (type == "Sequence") {
    check(json.contains("pretokenizers") && json["pretokenizers"].is_array(),
          "Sequence without a list");
    for (const Json& step : json["pretokenizers"]) add_step(step, origin);
    return;
  }
  check(!has_byte_level_, type + " after ByteLevel");
  if (type == "ByteLevel") {
    has_byte_level_ = true;
    add_prefix_space_ = flag("add_prefix_space", true);
    check(!add_prefix_space_ || steps_.empty(),
          "ByteLevel with add_prefix_space after another step");
    if (flag("use_regex", true)) {
      steps_.push_back({std::make_shared<PieceRegex>(std::string(kGpt2Text), origin), true, true,
                        KnownPattern::kGpt2});
    }
  } else if (type == "Digits") {
    const bool single = flag("individual_digits", false);
    steps_.push_back({std::make_shared<PieceRegex>(single ? "\\p{N}" : "\\p{N}+", origin), true,
                      true, KnownPattern::kNone});
  } else if (type == "Split") {
    check(json.contains("pattern") && json["pattern"].is_object() && json["pattern"].size() == 1,
          "Split without a pattern");
    const std::string kind = json["pattern"].begin().key();
    const Json& value = json["pattern"].begin().value();
    check((kind == "Regex" || kind == "String") && value.is_string(),
          "Split with pattern " + json["pattern"].dump());
    std::string pattern = value.get<std::string>();
    if (kind == "String") {
      std::string quoted;
      for (const char c : pattern) {
        if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c)))
          quoted += '\\';
        quoted += c;
      }
      pattern = quoted;
    }
    const std::string behavior = json.contains("behavior") && json["behavior"].is_string()
                                     ? json["behavior"].get<std::string>()
                                     : std::string("none");
    const bool invert = flag("invert", false);
    check(behavior == "Isolated" || behavior == "Removed",
          fmt::format("Split with behavior {} (Isolated and Removed are)", behavior));
    const bool removed = behavior == "Removed";
    // "Removed" drops what matches; inverted, what lies between. A known pattern leaves nothing
    // between.
    Step step{std::make_shared<PieceRegex>(pattern, origin), !removed || invert,
              !removed || !invert, KnownPattern::kNone};
    if (step.keep_matches) step.known = pattern_by_text(pattern);
    steps_.push_back(std::move(step));
  } else {
    check(false, type);
  }
}

std::vector<TextPiece> Pretokenizer::split(std::string_view text) const {
  std::vector<TextPiece> pieces;
  if (text.empty()) return pieces;
  pieces.push_back({0, text.size()});
  for (const Step& step : steps_) {
    std::vector<TextPiece> next;
    for (const TextPiece& piece : pieces)
      step.regex->split(text, piece, step.keep_matches, step.keep_gaps, next);
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace trireme::data
