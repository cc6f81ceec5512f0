#include "trireme/model/config_reader.h"

#include <cmath>

#include "trireme/base/error.h"
#include "trireme/base/suggest.h"

namespace trireme::model {

namespace {
// Larger sizes cannot be meant and would overflow products of sizes.
constexpr int64_t kLargestSize = int64_t{1} << 31;
constexpr int64_t kMostLayers = 4096;
}  // namespace

ConfigReader::ConfigReader(Json object, std::string origin, std::string path)
    : object_(std::move(object)), origin_(std::move(origin)), path_(std::move(path)) {
  TRIREME_USER_CHECK(object_.is_object(), kConfig, "give a Hugging Face config.json",
                     "{}: {} is not a JSON object", origin_,
                     path_.empty() ? "the file" : "\"" + path_ + "\"");
}

std::string ConfigReader::shown(const std::string& key) const {
  return path_.empty() ? key : path_ + "." + key;
}

void ConfigReader::fail(const std::string& key, const std::string& problem,
                        const std::string& hint) const {
  throw Error(ErrorCode::kConfig, fmt::format("{}: \"{}\" {}", origin_, shown(key), problem), hint);
}

bool ConfigReader::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

const Json* ConfigReader::find(const std::string& key) {
  known_.insert(key);
  return has(key) ? &object_.at(key) : nullptr;
}

int64_t ConfigReader::positive(const std::string& key) {
  if (!has(key)) fail(key, "is missing", "add it; transformers writes it into every config.json");
  return positive(key, 0);
}

int64_t ConfigReader::not_negative(const std::string& key, int64_t default_value) {
  const bool zero = has(key) && object_.at(key) == 0;
  return zero ? (known_.insert(key), 0) : positive(key, default_value);
}

int64_t ConfigReader::positive(const std::string& key, int64_t default_value) {
  const Json* value = find(key);
  if (value == nullptr) return default_value;
  if (!value->is_number_integer()) {
    fail(key, fmt::format("is {}, not a whole number", value->dump()), "write a positive number");
  }
  // Unsigned values above int64's range wrap to negative ones and are refused with them.
  const auto number = value->get<int64_t>();
  if (number <= 0 || number > kLargestSize) {
    fail(key, fmt::format("is {}, out of range", value->dump()), "write a positive number");
  }
  return number;
}

int64_t ConfigReader::layers(const std::string& key) {
  const int64_t count = positive(key);
  if (count > kMostLayers) {
    fail(key, fmt::format("is {}, more than {} layers", count, kMostLayers), "write fewer layers");
  }
  return count;
}

double ConfigReader::number(const std::string& key, double default_value) {
  const Json* value = find(key);
  if (value == nullptr) return default_value;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    fail(key, fmt::format("is {}, not a finite number", value->dump()), "write a number");
  }
  return value->get<double>();
}

double ConfigReader::positive_number(const std::string& key) {
  if (!has(key)) fail(key, "is missing", "add it");
  return positive_number(key, 0.0);
}

double ConfigReader::positive_number(const std::string& key, double default_value) {
  const double value = number(key, default_value);
  if (has(key) && value <= 0) {
    fail(key, fmt::format("is {}, out of range", value), "write a number above zero");
  }
  return value;
}

bool ConfigReader::flag(const std::string& key, bool default_value) {
  const Json* value = find(key);
  if (value == nullptr) return default_value;
  if (!value->is_boolean()) {
    fail(key, fmt::format("is {}, not true or false", value->dump()), "write true or false");
  }
  return value->get<bool>();
}

std::string ConfigReader::text(const std::string& key, const std::string& default_value) {
  const Json* value = find(key);
  if (value == nullptr) return default_value;
  if (!value->is_string()) {
    fail(key, fmt::format("is {}, not a string", value->dump()), "write a string");
  }
  return value->get<std::string>();
}

std::vector<double> ConfigReader::numbers(const std::string& key) {
  const Json* value = find(key);
  std::vector<double> result;
  if (value == nullptr) return result;
  if (!value->is_array()) {
    fail(key, fmt::format("is {}, not a list", value->dump()), "write a list of numbers");
  }
  for (const Json& item : *value) {
    if (!item.is_number() || !std::isfinite(item.get<double>())) {
      fail(key, fmt::format("holds {}, not a finite number", item.dump()),
           "write a list of numbers");
    }
    result.push_back(item.get<double>());
  }
  return result;
}

std::vector<std::string> ConfigReader::texts(const std::string& key) {
  const Json* value = find(key);
  std::vector<std::string> result;
  if (value == nullptr) return result;
  if (!value->is_array()) {
    fail(key, fmt::format("is {}, not a list", value->dump()), "write a list of strings");
  }
  for (const Json& item : *value) {
    if (!item.is_string()) {
      fail(key, fmt::format("holds {}, not a string", item.dump()), "write a list of strings");
    }
    result.push_back(item.get<std::string>());
  }
  return result;
}

std::vector<int> ConfigReader::token_ids(const std::string& key) {
  const Json* value = find(key);
  std::vector<int> ids;
  if (value == nullptr) return ids;
  const Json list = value->is_array() && !value->empty() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < -1 || id.get<int64_t>() > INT32_MAX) {
      fail(key, fmt::format("is {}, not a token id or a list of them", value->dump()),
           "write the id of a token, or null");
    }
    if (id.get<int>() >= 0) ids.push_back(id.get<int>());
  }
  return ids;
}

std::optional<ConfigReader> ConfigReader::object(const std::string& key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return ConfigReader(*value, origin_, shown(key));
}

void ConfigReader::ignore(const std::vector<std::string>& keys) {
  known_.insert(keys.begin(), keys.end());
}

void ConfigReader::require(const std::string& key, const Json& value, const std::string& meaning) {
  const Json* given = find(key);
  if (given != nullptr && *given != value) {
    fail(key, fmt::format("is {}: {} is not covered", given->dump(), meaning),
         fmt::format("set it to {} or leave it out, if that is the model you mean", value.dump()));
  }
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (known_.contains(key)) continue;
    const std::vector<std::string> candidates(known_.begin(), known_.end());
    const std::string nearest = nearest_name(key, candidates);
    fail(key, "is not a key that this model family is known to have",
         nearest.empty() ? "remove it if it carries no meaning for training"
                         : fmt::format("did you mean \"{}\"?", nearest));
  }
}

}  // namespace trireme::model
