// Reads a Hugging Face config.json key by key and accounts for every key.
//
// A family asks for the keys it covers; finish() refuses whatever nobody asked for and is not known
// to carry no meaning for training, so that an option is never silently ignored.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "trireme/base/json.h"

namespace trireme::model {

/// Thread-safety: one thread at a time. Ownership: owns a copy of the object.
/// Every getter throws Error{kConfig} naming `origin` and the key when a value has the wrong type
/// or is out of range. A null value counts as absent, as in transformers.
class ConfigReader {
 public:
  /// `path` is the object's place inside the file ("" or "rope_scaling").
  ConfigReader(Json object, std::string origin, std::string path = "");

  bool has(const std::string& key) const;  ///< present and not null; does not mark the key as used
  /// Present, even if null: a family's default may differ from "none".
  bool written(const std::string& key) const { return object_.contains(key); }
  int64_t positive(const std::string& key);
  int64_t positive(const std::string& key, int64_t default_value);
  int64_t not_negative(const std::string& key, int64_t default_value);
  int64_t layers(const std::string& key);  ///< required; a number of layers that can be meant
  double number(const std::string& key, double default_value);  ///< finite
  double positive_number(const std::string& key);               ///< finite, > 0
  double positive_number(const std::string& key, double default_value);
  bool flag(const std::string& key, bool default_value);
  std::string text(const std::string& key, const std::string& default_value);
  std::vector<double> numbers(const std::string& key);  ///< list of finite numbers; empty if absent
  std::vector<std::string> texts(const std::string& key);  ///< list of strings; empty if absent
  /// An id or a list of ids; empty if absent. Negative ones mean none and are left out.
  std::vector<int> token_ids(const std::string& key);
  /// A nested object, or nothing; its reader must be finished by the caller.
  std::optional<ConfigReader> object(const std::string& key);

  /// These keys carry no meaning for training, whatever their value.
  void ignore(const std::vector<std::string>& keys);
  /// This key must be absent, null or equal to `value`; `meaning` says what another value would ask
  /// for.
  void require(const std::string& key, const Json& value, const std::string& meaning);
  /// Refuses every key that was neither read nor ignored.
  void finish() const;

  [[noreturn]] void fail(const std::string& key, const std::string& problem,
                         const std::string& hint) const;
  const std::string& origin() const { return origin_; }
  const Json& json() const { return object_; }

 private:
  const Json* find(const std::string& key);
  std::string shown(const std::string& key) const;

  Json object_;
  std::string origin_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace trireme::model
