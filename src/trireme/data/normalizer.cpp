#include "trireme/data/normalizer.h"

#include "trireme/base/error.h"
#include "trireme/data/piece_regex.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_forms.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

constexpr char kStepHint[] =
    "supported are BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, "
    "StripAccents and Sequences of them";

class FormStep final : public NormalizerStep {
 public:
  explicit FormStep(NormalForm form) : form_(form) {}
  void apply(AlignedText& text) const override {
    if (!is_settled(text.text(), form_)) text.transform(normal_form(text.text(), form_));
  }
  bool is_local() const override { return true; }

 private:
  NormalForm form_;
};

class LowercaseStep final : public NormalizerStep {
 public:
  void apply(AlignedText& text) const override {
    constexpr uint32_t kDottedI = 0x130;
    const std::string_view whole = text.text();
    std::vector<CharChange> changes;
    changes.reserve(whole.size());
    bool changed = false;
    for (size_t at = 0; at < whole.size();) {
      const uint32_t c = next_code_point(whole, at);
      if (c == kDottedI) {
        changes.insert(changes.end(), {{'i', 0}, {0x307, 1}});
        changed = true;
        continue;
      }
      changes.push_back({lower_case(c), 0});
      changed = changed || changes.back().code_point != c;
    }
    if (changed) text.transform(changes);
  }
  bool is_local() const override { return true; }
};

class StripStep final : public NormalizerStep {
 public:
  StripStep(bool left, bool right) : left_(left), right_(right) {}
  void apply(AlignedText& text) const override {
    const std::string_view whole = text.text();
    std::vector<uint32_t> characters;
    for (size_t at = 0; at < whole.size();) characters.push_back(next_code_point(whole, at));
    size_t begin = 0, end = characters.size();
    while (left_ && begin < end && is_white_space(characters[begin])) ++begin;
    while (right_ && begin < end && is_white_space(characters[end - 1])) --end;
    if (begin == 0 && end == characters.size()) return;
    std::vector<CharChange> changes;
    for (size_t i = begin; i < end; ++i) changes.push_back({characters[i], 0});
    text.transform(changes, begin);
  }
  bool is_local() const override { return false; }

 private:
  bool left_;
  bool right_;
};

class StripAccentsStep final : public NormalizerStep {
 public:
  void apply(AlignedText& text) const override {
    if (skip_ascii(text.text(), 0) == text.text().size()) return;
    text.filter([](uint32_t c) { return !combining_marks().contains(c); });
  }
  bool is_local() const override { return true; }
};

class PrependStep final : public NormalizerStep {
 public:
  explicit PrependStep(std::string content) : content_(std::move(content)) {}
  void apply(AlignedText& text) const override { text.prepend(content_); }
  bool is_local() const override { return false; }

 private:
  std::string content_;
};

class ReplaceStep final : public NormalizerStep {
 public:
  ReplaceStep(std::string pattern, std::unique_ptr<PieceRegex> regex, std::string content)
      : pattern_(std::move(pattern)), regex_(std::move(regex)), content_(std::move(content)) {}
  void apply(AlignedText& text) const override {
    const std::string_view whole = text.text();
    if (whole.empty()) return;
    std::vector<TextPiece> matches;
    if (regex_ != nullptr) {
      regex_->find(whole, {0, whole.size()}, matches);
    } else {
      for (size_t at = 0; (at = whole.find(pattern_, at)) != std::string_view::npos;
           at += pattern_.size())
        matches.push_back({at, at + pattern_.size()});
    }
    text.replace(matches, content_);
  }
  bool is_local() const override { return false; }

 private:
  std::string pattern_;
  std::unique_ptr<PieceRegex> regex_;  ///< none: pattern_ is the text looked for
  std::string content_;
};

class BertStep final : public NormalizerStep {
 public:
  struct Options {
    bool clean_text;
    bool handle_chinese_chars;
    bool strip_accents;
    bool lowercase;
  };
  explicit BertStep(Options options) : options_(options) {}
  void apply(AlignedText& text) const override {
    if (options_.clean_text) clean(text);
    if (options_.handle_chinese_chars) set_off_ideographs(text);
    if (options_.strip_accents) {
      decomposed_.apply(text);
      if (skip_ascii(text.text(), 0) != text.text().size())
        text.filter([](uint32_t c) { return !nonspacing_marks().contains(c); });
    }
    if (options_.lowercase) lower_.apply(text);
  }
  bool is_local() const override { return true; }

 private:
  static void clean(AlignedText& text) {
    constexpr uint32_t kReplacement = 0xFFFD;
    text.filter([](uint32_t c) {
      return c != 0 && c != kReplacement && !control_characters().contains(c);
    });
    const std::string_view whole = text.text();
    std::vector<CharChange> changes;
    changes.reserve(whole.size());
    bool changed = false;
    for (size_t at = 0; at < whole.size();) {
      const uint32_t c = next_code_point(whole, at);
      changes.push_back({is_white_space(c) ? ' ' : c, 0});
      changed = changed || changes.back().code_point != c;
    }
    if (changed) text.transform(changes);
  }

  static void set_off_ideographs(AlignedText& text) {
    const std::string_view whole = text.text();
    if (skip_ascii(whole, 0) == whole.size()) return;
    std::vector<CharChange> changes;
    changes.reserve(whole.size() * 2);
    for (size_t at = 0; at < whole.size();) {
      const uint32_t c = next_code_point(whole, at);
      if (is_cjk_ideograph(c)) {
        changes.insert(changes.end(), {{' ', 0}, {c, 1}, {' ', 1}});
      } else {
        changes.push_back({c, 0});
      }
    }
    text.transform(changes);
  }

  Options options_;
  FormStep decomposed_{NormalForm::kNfd};
  LowercaseStep lower_;
};

}  // namespace

Normalizer::Normalizer(const Json& json, const std::string& origin) {
  if (!json.is_null()) add_step(json, origin);
  if (steps_.size() != 1) space_replacement_.clear();
}

Normalizer::~Normalizer() = default;

bool Normalizer::is_local() const {
  for (const auto& step : steps_) {
    if (!step->is_local()) return false;
  }
  return true;
}

std::string Normalizer::normalized(std::string text) const {
  AlignedText aligned = AlignedText::without_map(std::move(text), false);
  apply(aligned);
  return std::string(aligned.text());
}

void Normalizer::add_step(const Json& json, const std::string& origin) {
  const auto excerpt = [](const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 200);
  };
  const auto check = [&](bool condition, const std::string& what) {
    TRIREME_USER_CHECK(condition, kData, kStepHint, "{}: normalizer {} is not supported", origin,
                       what);
  };
  const bool has_type = json.is_object() && json.contains("type") && json["type"].is_string();
  check(has_type, excerpt(json));
  const std::string type = json["type"].get<std::string>();
  const auto text = [&](const char* key) {
    check(json.contains(key) && json[key].is_string(), fmt::format("{} without {}", type, key));
    return json[key].get<std::string>();
  };
  const auto flag = [&](const char* key) {
    check(json.contains(key) && json[key].is_boolean(), fmt::format("{} without {}", type, key));
    return json[key].get<bool>();
  };
  const auto add = [&](auto step) { steps_.push_back(std::move(step)); };
  if (type == "Sequence") {
    check(json.contains("normalizers") && json["normalizers"].is_array(),
          "Sequence without a list");
    for (const Json& step : json["normalizers"]) add_step(step, origin);
  } else if (type == "NFC") {
    add(std::make_unique<FormStep>(NormalForm::kNfc));
  } else if (type == "NFD") {
    add(std::make_unique<FormStep>(NormalForm::kNfd));
  } else if (type == "NFKC") {
    add(std::make_unique<FormStep>(NormalForm::kNfkc));
  } else if (type == "NFKD") {
    add(std::make_unique<FormStep>(NormalForm::kNfkd));
  } else if (type == "Lowercase") {
    add(std::make_unique<LowercaseStep>());
  } else if (type == "Strip") {
    add(std::make_unique<StripStep>(flag("strip_left"), flag("strip_right")));
  } else if (type == "StripAccents") {
    add(std::make_unique<StripAccentsStep>());
  } else if (type == "Prepend") {
    const std::string content = text("prepend");
    check(!content.empty(), "Prepend of nothing");
    add(std::make_unique<PrependStep>(content));
  } else if (type == "Replace") {
    check(json.contains("pattern") && json["pattern"].is_object() && json["pattern"].size() == 1,
          "Replace without a pattern");
    const std::string kind = json["pattern"].begin().key();
    const Json& value = json["pattern"].begin().value();
    check((kind == "Regex" || kind == "String") && value.is_string(),
          "Replace with pattern " + excerpt(json["pattern"]));
    const std::string pattern = value.get<std::string>();
    std::unique_ptr<PieceRegex> regex;
    if (kind == "Regex") regex = std::make_unique<PieceRegex>(pattern, origin);
    // The library gives text that stands for nothing offsets that no rule describes.
    check(!pattern.empty() && (regex == nullptr || !regex->matches_empty()),
          fmt::format("Replace with pattern '{}', which matches nothing at all,", pattern));
    if (kind == "String" && pattern == " ") space_replacement_ = text("content");
    add(std::make_unique<ReplaceStep>(pattern, std::move(regex), text("content")));
  } else if (type == "BertNormalizer" || type == "Bert") {
    const bool lowercase = flag("lowercase");
    const bool decides = json.contains("strip_accents") && !json["strip_accents"].is_null();
    add(std::make_unique<BertStep>(
        BertStep::Options{.clean_text = flag("clean_text"),
                          .handle_chinese_chars = flag("handle_chinese_chars"),
                          .strip_accents = decides ? flag("strip_accents") : lowercase,
                          .lowercase = lowercase}));
  } else {
    check(false, type);
  }
}

}  // namespace trireme::data
