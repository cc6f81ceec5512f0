#include "trireme/data/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

void Extent::add(const Extent& inside) {
  depth = std::max(depth, 1 + inside.depth);
  values += inside.values;
  if (depth > kMaxDepth) fail("values are nested more than {} deep", kMaxDepth);
  if (values > kMaxItems) fail("a list or dict of more than {} values", kMaxItems);
}

std::vector<Value> Arguments::bind(const std::string& function,
                                   const std::vector<const char*>& names) const {
  if (positional.size() > names.size()) {
    fail("{}() with {} arguments is not covered (at most {})", function, positional.size(),
         names.size());
  }
  std::vector<Value> result(positional);
  result.resize(names.size());
  for (const auto& [name, value] : named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) fail("{}() with the argument {} is not covered", function, name);
    Value& place = result[static_cast<size_t>(found - names.begin())];
    if (!place.is_undefined()) fail("{}() gets {} twice", function, name);
    place = value;
  }
  return result;
}

const Value* Mapping::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Mapping::set(const std::string& key, Value value) {
  for (auto& [name, old] : items) {
    if (name != key) continue;
    old = std::move(value);
    return;
  }
  items.emplace_back(key, std::move(value));
}

Value Value::list(std::vector<Value> items, bool tuple) {
  Sequence sequence{std::move(items), tuple, {}};
  for (const Value& item : sequence.items) sequence.extent.add(item.extent());
  Value value;
  value.data_ = std::make_shared<const Sequence>(std::move(sequence));
  return value;
}

Value Value::dict(std::vector<std::pair<std::string, Value>> items) {
  auto mapping = std::make_shared<Mapping>();
  for (auto& [key, value] : items) {
    mapping->extent.add(value.extent());
    mapping->set(key, std::move(value));
  }
  return mapping;
}

Value Value::from_json(const OrderedJson& json, std::optional<int32_t> source) {
  switch (json.type()) {
    case OrderedJson::value_t::boolean:
      return json.get<bool>();
    case OrderedJson::value_t::number_integer:
      return json.get<int64_t>();
    case OrderedJson::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) fail("the number {} is too large", json.dump());
      return json.get<int64_t>();
    case OrderedJson::value_t::number_float:
      return json.get<double>();
    case OrderedJson::value_t::string:
      return source ? Text(json.get<std::string>(), *source) : Text(json.get<std::string>());
    case OrderedJson::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(from_json(item, source));
      return list(std::move(items));
    }
    case OrderedJson::value_t::object: {
      std::vector<std::pair<std::string, Value>> items;
      for (const auto& [key, value] : json.items())
        items.emplace_back(key, from_json(value, source));
      return dict(std::move(items));
    }
    default:
      return None{};
  }
}

int64_t Value::integer() const {
  if (is_bool()) return std::get<bool>(data_) ? 1 : 0;
  if (!is_int()) fail("a whole number is wanted, not {}", type_name());
  return std::get<int64_t>(data_);
}

double Value::number() const {
  if (is_float()) return std::get<double>(data_);
  if (!is_number()) fail("a number is wanted, not {}", type_name());
  return static_cast<double>(integer());
}

Extent Value::extent() const {
  if (is_list()) return std::get<std::shared_ptr<const Sequence>>(data_)->extent;
  return is_dict() ? mapping().extent : Extent{};
}

const void* Value::identity() const {
  return is_mapping() ? static_cast<const void*>(&mapping())
                      : (is_function() ? static_cast<const void*>(&function()) : nullptr);
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_float()) return std::get<double>(data_) != 0;
  if (is_number()) return integer() != 0;
  if (is_text()) return !text().empty();
  if (is_list()) return !items().empty();
  if (is_dict()) return !mapping().items.empty();
  return true;
}

const char* Value::type_name() const {
  static const char* const kNames[] = {"undefined", "None", "bool", "int",     "float",
                                       "str",       "list", "dict", "function"};
  if (is_namespace()) return "namespace";
  return is_tuple() ? "tuple" : kNames[data_.index()];
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return a.number() == b.number();
    return a.integer() == b.integer();
  }
  if (a.is_text() && b.is_text()) return a.bytes() == b.bytes();
  if (a.is_list() && b.is_list()) {
    return a.is_tuple() == b.is_tuple() && a.items().size() == b.items().size() &&
           std::equal(a.items().begin(), a.items().end(), b.items().begin(), equal);
  }
  if (a.is_dict() && b.is_dict()) {
    const auto& ours = a.mapping().items;
    return ours.size() == b.mapping().items.size() &&
           std::all_of(ours.begin(), ours.end(), [&](const auto& item) {
             const Value* other = b.mapping().find(item.first);
             return other != nullptr && equal(item.second, *other);
           });
  }
  if (a.is_none() || a.is_undefined())
    return a.is_none() == b.is_none() && a.is_undefined() == b.is_undefined();
  return a.identity() != nullptr && a.identity() == b.identity();
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (!a.is_float() && !b.is_float())
      return a.integer() < b.integer() ? -1 : (a.integer() > b.integer() ? 1 : 0);
    return a.number() < b.number() ? -1 : (a.number() > b.number() ? 1 : 0);
  }
  if (a.is_text() && b.is_text()) {
    // UTF-8 bytes are in the order of code points.
    const int order = a.bytes().compare(b.bytes());
    return order < 0 ? -1 : (order > 0 ? 1 : 0);
  }
  if (a.is_list() && b.is_list()) {
    for (size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i) {
      if (!equal(a.items()[i], b.items()[i])) return compare(a.items()[i], b.items()[i]);
    }
    return a.items().size() < b.items().size() ? -1 : (a.items().size() > b.items().size() ? 1 : 0);
  }
  fail("{} and {} have no order", a.type_name(), b.type_name());
}

namespace {

bool hashable(const Value& value) {
  if (value.is_dict()) return false;
  return !value.is_list() ||
         (value.is_tuple() && std::all_of(value.items().begin(), value.items().end(), hashable));
}

}  // namespace

bool contains(const Value& container, const Value& item) {
  if (container.is_text()) {
    if (!item.is_text()) fail("'in' of a str wants a str, not {}", item.type_name());
    return container.bytes().find(item.bytes()) != std::string::npos;
  }
  if (container.is_dict()) {
    if (!hashable(item)) fail("'in' of a dict wants a key, not {}", item.type_name());
    return item.is_text() && container.mapping().find(item.bytes()) != nullptr;
  }
  if (container.is_undefined()) return false;
  const auto items = elements(container);
  return std::any_of(items.begin(), items.end(), [&](const Value& v) { return equal(v, item); });
}

std::vector<Value> elements(const Value& value) {
  if (value.is_list()) return value.items();
  std::vector<Value> result;
  if (value.is_undefined()) return result;
  if (value.is_dict()) {
    for (const auto& [key, item] : value.mapping().items) result.emplace_back(key);
    return result;
  }
  if (!value.is_text()) fail("{} has no elements to go over", value.type_name());
  const auto starts = character_starts(value.bytes());
  if (starts.size() > kMaxItems) fail("a list of more than {} elements", kMaxItems);
  for (size_t i = 0; i + 1 < starts.size(); ++i)
    result.emplace_back(value.text().slice(starts[i], starts[i + 1]));
  return result;
}

int64_t length(const Value& value) {
  if (value.is_text()) return count_characters(value.bytes());
  if (value.is_list()) return static_cast<int64_t>(value.items().size());
  if (value.is_dict()) return static_cast<int64_t>(value.mapping().items.size());
  if (value.is_undefined()) return 0;
  fail("{} has no length", value.type_name());
}

std::vector<size_t> character_starts(std::string_view text) {
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) starts.push_back(i);
  }
  starts.push_back(text.size());
  return starts;
}

bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

}  // namespace trireme::data::jinja
