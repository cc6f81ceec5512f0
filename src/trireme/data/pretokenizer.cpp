#include "trireme/data/pretokenizer.h"

#include <array>

#include "trireme/base/error.h"
#include "trireme/data/pretokenizer_steps.h"
#include "trireme/data/tokenizer_unicode.h"
#include "trireme/data/unicode_sets.h"

namespace trireme::data {
namespace {

constexpr char kStepHint[] =
    "supported are BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, Metaspace, "
    "Punctuation, "
    "Split, Whitespace, WhitespaceSplit and Sequences of them";

using Cut = PretokenizerStep::Cut;

/// Reads the options of one step; every refusal names the step.
class StepReader {
 public:
  StepReader(const Json& json, std::string type, const std::string& origin)
      : json_(json), type_(std::move(type)), origin_(origin) {}

  void check(bool condition, std::string_view what) const {
    TRIREME_USER_CHECK(condition, kData, kStepHint, "{}: pre_tokenizer {} is not supported",
                       origin_, what);
  }

  bool flag(const char* key, bool fallback) const {
    if (!json_.contains(key) || json_[key].is_null()) return fallback;
    check(json_[key].is_boolean(), fmt::format("{} with {} = {}", type_, key, excerpt(json_[key])));
    return json_[key].get<bool>();
  }

  std::string text(const char* key, const std::string& fallback) const {
    if (!json_.contains(key)) return fallback;
    check(json_[key].is_string(), fmt::format("{} with {} = {}", type_, key, excerpt(json_[key])));
    return json_[key].get<std::string>();
  }

  SplitBehavior behavior(const std::string& fallback) const {
    const std::string name = text("behavior", fallback);
    const auto behavior = split_behavior_by_name(name);
    check(behavior.has_value(), fmt::format("{} with behavior {}", type_, name));
    return *behavior;
  }

  /// One character.
  std::string character(const char* key) const {
    const std::string value = text(key, "");
    check(!value.empty() && count_characters(value) == 1,
          fmt::format("{} with {} = '{}'", type_, key, value));
    return value;
  }

  static std::string excerpt(const Json& value) {
    return value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 200);
  }

 private:
  const Json& json_;
  std::string type_;
  const std::string& origin_;
};

std::unique_ptr<PretokenizerStep> read_split(const Json& json, const StepReader& reader,
                                             const std::string& origin) {
  reader.check(
      json.contains("pattern") && json["pattern"].is_object() && json["pattern"].size() == 1,
      "Split without a pattern");
  const std::string kind = json["pattern"].begin().key();
  const Json& value = json["pattern"].begin().value();
  reader.check((kind == "Regex" || kind == "String") && value.is_string(),
               "Split with pattern " + StepReader::excerpt(json["pattern"]));
  const std::string pattern = value.get<std::string>();
  const SplitBehavior behavior = reader.behavior("");
  const bool invert = reader.flag("invert", false);
  if (kind == "String" && !pattern.empty())
    return std::make_unique<StringSplit>(pattern, behavior, invert);
  return std::make_unique<RegexSplit>(pattern, behavior, invert, origin);
}

std::unique_ptr<PretokenizerStep> read_metaspace(const Json& json, const StepReader& reader) {
  using Prepend = MetaspaceStep::Prepend;
  const std::string scheme = reader.text("prepend_scheme", "always");
  reader.check(scheme == "first" || scheme == "never" || scheme == "always",
               "Metaspace with prepend_scheme " + scheme);
  Prepend prepend = scheme == "first"   ? Prepend::kFirst
                    : scheme == "never" ? Prepend::kNever
                                        : Prepend::kAlways;
  if (!reader.flag("add_prefix_space", true)) {
    reader.check(!json.contains("prepend_scheme") || prepend == Prepend::kNever,
                 "Metaspace with add_prefix_space = false and prepend_scheme " + scheme);
    prepend = Prepend::kNever;
  }
  return std::make_unique<MetaspaceStep>(reader.character("replacement"), prepend,
                                         reader.flag("split", true));
}

}  // namespace

Pretokenizer::Pretokenizer(const Json& json, const std::string& origin) {
  if (!json.is_null()) add_step(json, origin);
  // Text may be cut if some step ends a piece there anyway and none before it minds.
  for (const auto& step : steps_) {
    const Cut cut = step->cut();
    if (cut == Cut::kChanges) {
      splittable_ = false;
      break;
    }
    splittable_ = cut == Cut::kIsPiece;
    if (splittable_) break;
  }
  // A part of a text begins with a space, which the first step sees; what later ones see there may be another character.
  for (size_t i = 1; i < steps_.size(); ++i) splittable_ = splittable_ && !steps_[i]->minds_start();
  for (const auto& step : steps_) {
    const auto* split = dynamic_cast<const StringSplit*>(step.get());
    const auto* metaspace = dynamic_cast<const MetaspaceStep*>(step.get());
    // Splitting at spaces does nothing where a normalizer has replaced them all.
    keeps_whole_ = keeps_whole_ && ((split != nullptr && split->pattern() == " ") ||
                                    (metaspace != nullptr && steps_.size() == 1));
  }
  if (steps_.empty() || steps_.size() > 2) return;
  prefixes_ = dynamic_cast<const PrefixSpace*>(steps_[0].get()) != nullptr;
  const auto* split = dynamic_cast<const RegexSplit*>(steps_.back().get());
  if (split != nullptr && prefixes_ == (steps_.size() == 2)) known_pattern_ = split->known();
}

Pretokenizer::~Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;

void Pretokenizer::add_step(const Json& json, const std::string& origin) {
  const bool has_type = json.is_object() && json.contains("type") && json["type"].is_string();
  const std::string type = has_type ? json["type"].get<std::string>() : StepReader::excerpt(json);
  const StepReader reader(json, type, origin);
  reader.check(has_type, type);
  if (type == "Sequence") {
    reader.check(json.contains("pretokenizers") && json["pretokenizers"].is_array(),
                 "Sequence without a list");
    for (const Json& step : json["pretokenizers"]) add_step(step, origin);
    return;
  }
  reader.check(!is_byte_level_, type + " after ByteLevel");
  const auto add = [&](auto step) { steps_.push_back(std::move(step)); };
  const auto is_space = [](uint32_t c, uint32_t) { return is_white_space(c); };
  const auto is_punctuation = [](uint32_t c, uint32_t) {
    return punctuation_characters().contains(c);
  };
  if (type == "ByteLevel") {
    is_byte_level_ = true;
    if (reader.flag("add_prefix_space", true)) add(std::make_unique<PrefixSpace>());
    if (reader.flag("use_regex", true)) {
      add(std::make_unique<RegexSplit>(std::string(pattern_text(KnownPattern::kGpt2)),
                                       SplitBehavior::kIsolated, false, origin));
    }
  } else if (type == "Split") {
    add(read_split(json, reader, origin));
  } else if (type == "Metaspace") {
    add(read_metaspace(json, reader));
    replacement_ = reader.character("replacement");
    asks_for_source_ = asks_for_source_ || reader.text("prepend_scheme", "always") == "first";
  } else if (type == "Digits") {
    const auto is_digit = [](uint32_t c, uint32_t) { return numeric_characters().contains(c); };
    add(std::make_unique<CharacterSplit>(is_digit,
                                         reader.flag("individual_digits", false)
                                             ? SplitBehavior::kIsolated
                                             : SplitBehavior::kContiguous,
                                         Cut::kKeeps));
  } else if (type == "Whitespace") {
    add(std::make_unique<WhitespaceStep>());
  } else if (type == "WhitespaceSplit") {
    add(std::make_unique<CharacterSplit>(is_space, SplitBehavior::kRemoved, Cut::kIsPiece));
  } else if (type == "Punctuation") {
    add(std::make_unique<CharacterSplit>(is_punctuation, reader.behavior("Isolated"),
                                         Cut::kChanges));
  } else if (type == "BertPreTokenizer") {
    add(std::make_unique<CharacterSplit>(is_space, SplitBehavior::kRemoved, Cut::kIsPiece));
    add(std::make_unique<CharacterSplit>(is_punctuation, SplitBehavior::kIsolated, Cut::kKeeps));
  } else if (type == "CharDelimiterSplit") {
    const std::string delimiter = reader.character("delimiter");
    size_t at = 0;
    add(std::make_unique<CharacterSplit>(
        [](uint32_t c, uint32_t wanted) { return c == wanted; }, SplitBehavior::kRemoved,
        delimiter == " " ? Cut::kIsPiece : Cut::kChanges, next_code_point(delimiter, at)));
  } else {
    reader.check(false, type);
  }
}

void Pretokenizer::split(AlignedText& text, std::vector<TextPiece>& pieces) const {
  pieces.clear();
  if (text.text().empty()) return;
  pieces.push_back({0, text.text().size()});
  for (const auto& step : steps_) step->apply(text, pieces);
}

}  // namespace trireme::data
