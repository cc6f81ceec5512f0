#include "trireme/data/token_decoder.h"

#include <optional>

#include "trireme/base/error.h"
#include "trireme/data/bpe.h"
#include "trireme/data/piece_regex.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data {
namespace {

constexpr char kStepHint[] =
    "supported are ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Strip, WordPiece and "
    "Sequences "
    "of them";
constexpr char kReplacement[] = "\xEF\xBF\xBD";

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  size_t at = 0;
  for (size_t found; (found = text.find(from, at)) != std::string_view::npos;
       at = found + from.size()) {
    result.append(text, at, found - at);
    result += to;
  }
  result.append(text, at);
  return result;
}

/// Holds a token's text until it is complete.
class WholeTokens : public TokenSink {
 public:
  explicit WholeTokens(TokenSink& next) : next_(next) {}
  void text(std::string_view part) final { token_ += part; }
  void end_token() final {
    take(std::exchange(token_, {}));
    ++index_;
  }
  void finish() override {
    index_ = 0;
    next_.finish();
  }

 protected:
  virtual void take(std::string token) = 0;
  void pass(std::string_view token) {
    next_.text(token);
    next_.end_token();
  }
  TokenSink& next_;
  int64_t index_ = 0;  ///< of the token in the sequence

 private:
  std::string token_;
};

/// A step that rewrites tokens each for itself, but for the first.
class RewritingStep : public DecoderStep {
 public:
  std::unique_ptr<TokenSink> start(TokenSink& next) const final {
    class Sink final : public WholeTokens {
     public:
      Sink(const RewritingStep& step, TokenSink& next) : WholeTokens(next), step_(step) {}
      void take(std::string token) override { pass(step_.rewrite(token, index_ == 0)); }

     private:
      const RewritingStep& step_;
    };
    return std::make_unique<Sink>(*this, next);
  }
  std::string bytes_amid(std::string token) const final {
    // A byte by itself is no text that a pattern could be looked for in.
    return is_valid_utf8(token) ? rewrite(token, false) : token;
  }

 protected:
  virtual std::string rewrite(std::string_view token, bool is_first) const = 0;
};

class MetaspaceDecoder final : public RewritingStep {
 public:
  MetaspaceDecoder(std::string replacement, bool prepends)
      : replacement_(std::move(replacement)), prepends_(prepends) {}
  std::string rewrite(std::string_view token, bool is_first) const override {
    return replaced(token, replacement_, is_first && prepends_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool prepends_;
};

class ReplaceDecoder final : public RewritingStep {
 public:
  ReplaceDecoder(std::string pattern, std::unique_ptr<PieceRegex> regex, std::string content)
      : pattern_(std::move(pattern)), regex_(std::move(regex)), content_(std::move(content)) {}
  std::string rewrite(std::string_view token, bool) const override {
    if (regex_ == nullptr) return replaced(token, pattern_, content_);
    std::vector<TextPiece> matches;
    regex_->find(token, {0, token.size()}, matches);
    std::string result;
    size_t done = 0;
    for (const TextPiece& match : matches) {
      result.append(token, done, match.begin - done);
      result += content_;
      done = match.end;
    }
    result.append(token, done);
    return result;
  }

 private:
  std::string pattern_;
  std::unique_ptr<PieceRegex> regex_;  ///< none: pattern_ is the text looked for
  std::string content_;
};

class WordPieceDecoder final : public RewritingStep {
 public:
  WordPieceDecoder(std::string prefix, bool cleanup)
      : prefix_(std::move(prefix)), cleanup_(cleanup) {}
  std::string rewrite(std::string_view token, bool is_first) const override {
    std::string text(token);
    if (!is_first) {
      text = token.starts_with(prefix_) ? std::string(token.substr(prefix_.size()))
                                        : std::string(1, ' ').append(token);
    }
    if (!cleanup_) return text;
    constexpr std::pair<std::string_view, std::string_view> kRules[] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
        {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
        {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (const auto& [from, to] : kRules) {
      if (text.find(from) != std::string::npos) text = replaced(text, from, to);
    }
    return text;
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

/// Between tokens there is a space: what the library does without a decoder.
class SpacesBetween final : public DecoderStep {
 public:
  std::unique_ptr<TokenSink> start(TokenSink& next) const override {
    class Sink final : public WholeTokens {
     public:
      using WholeTokens::WholeTokens;
      void take(std::string token) override {
        pass(index_ == 0 ? token : std::string(1, ' ').append(token));
      }
    };
    return std::make_unique<Sink>(next);
  }
  std::string bytes_amid(std::string token) const override { return token; }
};

std::optional<char> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  // A sign before one digit is a number too to the library's reader.
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<char>(high * 16 + low);
}

/// Joins the bytes of neighbouring byte tokens; if they are no text, each becomes U+FFFD.
class ByteFallbackDecoder final : public DecoderStep {
 public:
  std::unique_ptr<TokenSink> start(TokenSink& next) const override {
    class Sink final : public WholeTokens {
     public:
      using WholeTokens::WholeTokens;
      void take(std::string token) override {
        if (const auto byte = byte_of(token)) {
          bytes_ += *byte;
          return;
        }
        flush();
        pass(token);
      }
      void finish() override {
        flush();
        WholeTokens::finish();
      }

     private:
      void flush() {
        if (bytes_.empty()) return;
        if (is_valid_utf8(bytes_)) {
          pass(bytes_);
        } else {
          for (size_t i = 0; i < bytes_.size(); ++i) pass(kReplacement);
        }
        bytes_.clear();
      }
      std::string bytes_;
    };
    return std::make_unique<Sink>(next);
  }
  std::string bytes_amid(std::string token) const override {
    const auto byte = byte_of(token);
    return byte ? std::string(1, *byte) : token;
  }
};

/// All tokens become one.
class FuseDecoder final : public DecoderStep {
 public:
  std::unique_ptr<TokenSink> start(TokenSink& next) const override {
    class Sink final : public TokenSink {
     public:
      explicit Sink(TokenSink& next) : next_(next) {}
      void text(std::string_view part) override { next_.text(part); }
      void end_token() override {}
      void finish() override {
        next_.end_token();
        next_.finish();
      }

     private:
      TokenSink& next_;
    };
    return std::make_unique<Sink>(next);
  }
  std::string bytes_amid(std::string token) const override { return token; }
};

/// Bytes out of their stand-ins; all tokens become one.
class ByteLevelDecoder final : public DecoderStep {
 public:
  std::unique_ptr<TokenSink> start(TokenSink& next) const override {
    class Sink final : public WholeTokens {
     public:
      using WholeTokens::WholeTokens;
      void take(std::string token) override {
        pending_ += token_to_bytes(token).value_or(token);
        const size_t complete = complete_utf8_prefix(pending_);
        next_.text(replace_invalid_utf8(std::string_view(pending_).substr(0, complete)));
        pending_.erase(0, complete);
      }
      void finish() override {
        next_.text(replace_invalid_utf8(pending_));
        pending_.clear();
        next_.end_token();
        WholeTokens::finish();
      }

     private:
      std::string pending_;
    };
    return std::make_unique<Sink>(next);
  }
  std::string bytes_amid(std::string token) const override {
    return token_to_bytes(token).value_or(token);
  }
};

/// Takes up to so many of a character from the ends of a token.
class StripDecoder final : public DecoderStep {
 public:
  StripDecoder(std::string content, size_t start, size_t stop, bool after_fuse)
      : content_(std::move(content)), start_(start), stop_(stop), after_fuse_(after_fuse) {}

  std::unique_ptr<TokenSink> start(TokenSink& next) const override {
    if (stop_ > 0) return std::make_unique<WholeSink>(*this, next);
    return std::make_unique<StartSink>(*this, next);
  }
  std::string bytes_amid(std::string token) const override {
    return after_fuse_ ? token : stripped(token);
  }

 private:
  std::string stripped(std::string_view token) const {
    for (size_t i = 0; i < start_ && token.starts_with(content_); ++i)
      token.remove_prefix(content_.size());
    for (size_t i = 0; i < stop_ && token.ends_with(content_); ++i)
      token.remove_suffix(content_.size());
    return std::string(token);
  }

  class WholeSink final : public WholeTokens {
   public:
    WholeSink(const StripDecoder& step, TokenSink& next) : WholeTokens(next), step_(step) {}
    void take(std::string token) override { pass(step_.stripped(token)); }

   private:
    const StripDecoder& step_;
  };

  /// Lets text through as soon as no more can be taken from the start.
  class StartSink final : public TokenSink {
   public:
    StartSink(const StripDecoder& step, TokenSink& next)
        : step_(step), next_(next), left_(step.start_) {}
    void text(std::string_view part) override {
      if (left_ == 0) return next_.text(part);
      head_ += part;
      while (left_ > 0 && head_.size() >= step_.content_.size()) {
        if (head_.starts_with(step_.content_)) {
          head_.erase(0, step_.content_.size());
          --left_;
        } else {
          left_ = 0;
        }
      }
      if (left_ == 0) {
        next_.text(head_);
        head_.clear();
      }
    }
    void end_token() override {
      next_.text(head_);
      head_.clear();
      left_ = step_.start_;
      next_.end_token();
    }
    void finish() override { next_.finish(); }

   private:
    const StripDecoder& step_;
    TokenSink& next_;
    size_t left_;       ///< how many may still be taken
    std::string head_;  ///< shorter than the character that is looked for
  };

  std::string content_;
  size_t start_;
  size_t stop_;
  bool after_fuse_;
};

}  // namespace

class TokenDecoder::Stream::Collector final : public TokenSink {
 public:
  explicit Collector(std::string& text) : text_(text) {}
  void text(std::string_view part) override { text_ += part; }
  void end_token() override {}
  void finish() override {}

 private:
  std::string& text_;
};

TokenDecoder::Stream::Stream(const TokenDecoder& decoder) {
  sinks_.push_back(std::make_unique<Collector>(text_));
  for (size_t i = decoder.steps_.size(); i-- > 0;)
    sinks_.push_back(decoder.steps_[i]->start(*sinks_.back()));
}
TokenDecoder::Stream::~Stream() = default;

void TokenDecoder::Stream::feed(std::string_view token) {
  sinks_.back()->text(token);
  sinks_.back()->end_token();
}

void TokenDecoder::Stream::finish() {
  sinks_.back()->finish();
}

TokenDecoder::TokenDecoder(const Json& json, const std::string& origin) {
  if (json.is_null()) {
    steps_.push_back(std::make_unique<SpacesBetween>());
  } else {
    add_step(json, origin);
  }
  joins_bytes_ =
      steps_.size() == 1 && dynamic_cast<const ByteLevelDecoder*>(steps_[0].get()) != nullptr;
}
TokenDecoder::~TokenDecoder() = default;

std::string TokenDecoder::bytes_of(const std::string& token) const {
  std::string bytes = token;
  for (const auto& step : steps_) bytes = step->bytes_amid(std::move(bytes));
  return bytes;
}

void TokenDecoder::add_step(const Json& json, const std::string& origin) {
  const auto check = [&](bool condition, const std::string& what) {
    TRIREME_USER_CHECK(condition, kData, kStepHint, "{}: decoder {} is not supported", origin,
                       what);
  };
  const bool has_type = json.is_object() && json.contains("type") && json["type"].is_string();
  check(has_type, json.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 200));
  const std::string type = json["type"].get<std::string>();
  const auto text = [&](const char* key) {
    check(json.contains(key) && json[key].is_string(), fmt::format("{} without {}", type, key));
    return json[key].get<std::string>();
  };
  const auto character = [&](const char* key) {
    const std::string value = text(key);
    check(!value.empty() && count_characters(value) == 1,
          fmt::format("{} with {} = '{}'", type, key, value));
    return value;
  };
  const auto count = [&](const char* key) {
    check(json.contains(key) && json[key].is_number_unsigned(),
          fmt::format("{} without {}", type, key));
    return json[key].get<size_t>();
  };
  const auto is_fused = [&] {
    for (const auto& step : steps_) {
      if (dynamic_cast<const FuseDecoder*>(step.get()) != nullptr ||
          dynamic_cast<const ByteLevelDecoder*>(step.get()) != nullptr)
        return true;
    }
    return false;
  };
  const auto add = [&](auto step) { steps_.push_back(std::move(step)); };
  if (type == "Sequence") {
    check(json.contains("decoders") && json["decoders"].is_array(), "Sequence without a list");
    for (const Json& step : json["decoders"]) add_step(step, origin);
  } else if (type == "ByteLevel") {
    add(std::make_unique<ByteLevelDecoder>());
  } else if (type == "ByteFallback") {
    add(std::make_unique<ByteFallbackDecoder>());
  } else if (type == "Fuse") {
    add(std::make_unique<FuseDecoder>());
  } else if (type == "Metaspace") {
    const bool old_never = json.contains("add_prefix_space") && json["add_prefix_space"] == false;
    const bool never = json.contains("prepend_scheme") && json["prepend_scheme"] == "never";
    add(std::make_unique<MetaspaceDecoder>(character("replacement"), !never && !old_never));
  } else if (type == "Strip") {
    add(std::make_unique<StripDecoder>(character("content"), count("start"), count("stop"),
                                       is_fused()));
  } else if (type == "WordPiece") {
    check(json.contains("cleanup") && json["cleanup"].is_boolean(), "WordPiece without cleanup");
    add(std::make_unique<WordPieceDecoder>(text("prefix"), json["cleanup"].get<bool>()));
  } else if (type == "Replace") {
    check(json.contains("pattern") && json["pattern"].is_object() && json["pattern"].size() == 1,
          "Replace without a pattern");
    const std::string kind = json["pattern"].begin().key();
    const Json& value = json["pattern"].begin().value();
    check((kind == "Regex" || kind == "String") && value.is_string(),
          "Replace with pattern " + kind);
    const std::string pattern = value.get<std::string>();
    std::unique_ptr<PieceRegex> regex;
    if (kind == "Regex") regex = std::make_unique<PieceRegex>(pattern, origin);
    check(!pattern.empty() && (regex == nullptr || !regex->matches_empty()),
          fmt::format("Replace with pattern '{}', which matches nothing at all,", pattern));
    add(std::make_unique<ReplaceDecoder>(pattern, std::move(regex), text("content")));
  } else {
    check(false, type);
  }
}

}  // namespace trireme::data
