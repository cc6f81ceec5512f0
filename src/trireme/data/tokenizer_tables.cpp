#include "trireme/data/tokenizer_tables.h"

#include <cmath>

namespace trireme::data {
namespace {

/// Deeper nesting is for the ordinary reader to refuse.
constexpr size_t kMaxDepth = 64;

/// Takes the parser's events; false from any of them ends the attempt.
class TableReader {
 public:
  explicit TableReader(int64_t largest_id) : largest_id_(largest_id) {}
  TokenizerTables& tables() { return tables_; }

  bool null() { return where_ == Where::kDocument && add(nullptr); }
  bool boolean(bool value) { return where_ == Where::kDocument && add(value); }
  bool number_integer(int64_t value) { return number(value, static_cast<double>(value)); }
  bool number_unsigned(uint64_t value) {
    if (where_ != Where::kIds) return number(value, static_cast<double>(value));
    if (value > static_cast<uint64_t>(largest_id_)) return false;
    tables_.vocab.emplace_back(std::move(token_), static_cast<int32_t>(value));
    return true;
  }
  bool number_float(double value, const std::string&) { return number(value, value); }
  bool binary(Json::binary_t&) { return false; }

  bool string(std::string& value) {
    switch (where_) {
      case Where::kDocument:
        return add(std::move(value));
      case Where::kIds:
        return false;
      case Where::kScores:
        if (!in_entry_ || parts_++ != 0) return false;
        token_ = std::move(value);
        return true;
      case Where::kMerges:
        break;
    }
    if (!in_entry_) {
      const size_t space = value.find(' ');
      if (space == std::string::npos || value.find(' ', space + 1) != std::string::npos)
        return false;
      tables_.merges.emplace_back(value.substr(0, space), value.substr(space + 1));
      return true;
    }
    if (parts_ == 0) {
      token_ = std::move(value);
    } else if (parts_ == 1) {
      tables_.merges.emplace_back(std::move(token_), std::move(value));
    }
    return ++parts_ <= 2;
  }

  bool start_object(size_t) {
    if (where_ != Where::kDocument) return false;
    if (is_in_model() && key_ == "vocab") {
      if (tables_.kind != TokenizerTables::Vocabulary::kNone) return false;
      tables_.kind = TokenizerTables::Vocabulary::kIds;
      where_ = Where::kIds;
      return true;
    }
    return open(Json::object());
  }
  bool key(std::string& value) {
    (where_ == Where::kIds ? token_ : key_) = std::move(value);
    return true;
  }
  bool end_object() {
    if (where_ == Where::kIds) {
      where_ = Where::kDocument;
    } else {
      stack_.pop_back();
    }
    return true;
  }

  bool start_array(size_t) {
    if (where_ == Where::kIds || in_entry_) return false;
    if (where_ != Where::kDocument) {
      in_entry_ = true;
      parts_ = 0;
      return true;
    }
    if (is_in_model() && key_ == "merges") {
      if (tables_.has_merges) return false;
      tables_.has_merges = true;
      where_ = Where::kMerges;
      return true;
    }
    if (is_in_model() && key_ == "vocab") {
      if (tables_.kind != TokenizerTables::Vocabulary::kNone) return false;
      tables_.kind = TokenizerTables::Vocabulary::kScores;
      where_ = Where::kScores;
      return true;
    }
    return open(Json::array());
  }
  bool end_array() {
    if (where_ == Where::kDocument) {
      stack_.pop_back();
      return true;
    }
    if (in_entry_) {
      in_entry_ = false;
      return parts_ == 2;
    }
    where_ = Where::kDocument;
    return true;
  }

  bool parse_error(size_t, const std::string&, const Json::exception&) { return false; }

 private:
  enum class Where { kDocument, kIds, kScores, kMerges };

  bool is_in_model() const { return stack_.size() == 2 && stack_[1] == model_; }

  template <typename Number>
  bool number(Number value, double score) {
    if (where_ == Where::kDocument) return add(value);
    if (where_ != Where::kScores || !in_entry_ || parts_++ != 1 || !std::isfinite(score))
      return false;
    if (static_cast<int64_t>(tables_.vocab.size()) > largest_id_) return false;
    tables_.vocab.emplace_back(std::move(token_), static_cast<int32_t>(tables_.vocab.size()));
    tables_.scores.push_back(score);
    return true;
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }
  bool open(Json value) {
    const bool is_model = stack_.size() == 1 && stack_[0]->is_object() && key_ == "model";
    // Twice the same key: the ordinary reader knows which one counts.
    if (is_model && model_ != nullptr) return false;
    stack_.push_back(place(std::move(value)));
    if (is_model) model_ = stack_.back();
    return stack_.size() <= kMaxDepth;
  }
  Json* place(Json value) {
    if (stack_.empty()) {
      tables_.document = std::move(value);
      return &tables_.document;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    Json& member = parent[key_];
    member = std::move(value);
    return &member;
  }

  int64_t largest_id_;
  TokenizerTables tables_;
  Where where_ = Where::kDocument;
  std::vector<Json*> stack_;  ///< open objects and arrays of the document
  Json* model_ = nullptr;
  std::string key_;
  std::string token_;
  bool in_entry_ = false;
  int parts_ = 0;  ///< of the entry
};

}  // namespace

std::optional<TokenizerTables> read_tokenizer_tables(std::string_view text, int64_t largest_id) {
  TableReader reader(largest_id);
  if (!Json::sax_parse(text.begin(), text.end(), &reader)) return std::nullopt;
  return std::move(reader.tables());
}

}  // namespace trireme::data
