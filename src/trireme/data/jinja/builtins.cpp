#include "trireme/data/jinja/builtins.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

namespace {

constexpr int64_t kMaxRange = 100'000;

[[noreturn]] void not_covered(const char* kind, const std::string& name) {
  fail("the {} '{}' is not covered", kind, name);
}

int64_t or_default(const Value& value, int64_t fallback) {
  return value.is_undefined() || value.is_none() ? fallback : value.integer();
}

bool flag(const Value& value) {
  return value.truth();
}

/// value.a.b for attribute "a.b"; numbers are indices.
Value dotted(const Value& value, const Value& path) {
  if (path.is_int()) return get_item(value, path);
  if (!path.is_text()) fail("an attribute is named by a str, not {}", path.type_name());
  Value at = value;
  size_t begin = 0;
  while (true) {
    const size_t dot = std::min(path.bytes().find('.', begin), path.bytes().size());
    const std::string name = path.bytes().substr(begin, dot - begin);
    const bool index = !name.empty() && name.size() < 10 &&
                       name.find_first_not_of("0123456789") == std::string::npos;
    at = index ? get_item(at, int64_t{std::stol(name)}) : get_item(at, name);
    if (dot == path.bytes().size()) return at;
    begin = dot + 1;
  }
}

/// Compares as sort and unique do: letters of either case are the same unless asked otherwise.
Value folded(const Value& value, bool case_sensitive) {
  return value.is_text() && !case_sensitive ? Value(upper_or_lower(value.text(), false)) : value;
}

Value sorted(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : elements(value)) {
    keyed.emplace_back(
        folded(a[2].is_undefined() || a[2].is_none() ? item : dotted(item, a[2]), flag(a[1])),
        item);
  }
  const bool reverse = flag(a[0]);
  std::stable_sort(keyed.begin(), keyed.end(), [reverse](const auto& x, const auto& y) {
    return reverse ? compare(y.first, x.first) < 0 : compare(x.first, y.first) < 0;
  });
  std::vector<Value> items;
  for (auto& [key, item] : keyed) items.push_back(std::move(item));
  return Value::list(std::move(items));
}

Value dict_sorted(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  if (!value.is_dict()) fail("dictsort of {}", value.type_name());
  const bool by_value = a[1].is_text() && a[1].bytes() == "value";
  auto items = value.mapping().items;
  const auto key = [&](const auto& item) {
    return folded(by_value ? item.second : Value(item.first), flag(a[0]));
  };
  const bool reverse = flag(a[2]);
  std::stable_sort(items.begin(), items.end(), [&](const auto& x, const auto& y) {
    return reverse ? compare(key(y), key(x)) < 0 : compare(key(x), key(y)) < 0;
  });
  std::vector<Value> pairs;
  for (auto& [name, item] : items) pairs.push_back(Value::list({name, item}, true));
  return Value::list(std::move(pairs));
}

Value items_of(const Value& value) {
  if (value.is_undefined()) return Value::list({});
  if (!value.is_dict()) fail("items of {}", value.type_name());
  std::vector<Value> pairs;
  for (const auto& [name, item] : value.mapping().items)
    pairs.push_back(Value::list({name, item}, true));
  return Value::list(std::move(pairs));
}

Value joined(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("join", {"d", "attribute"});
  Text out;
  bool first = true;
  for (const Value& item : elements(value)) {
    if (!first) out.append(to_text(a[0]));
    first = false;
    out.append(to_text(a[1].is_undefined() ? item : dotted(item, a[1])));
    if (out.size() > kMaxTextBytes) fail("a text of more than {} bytes", kMaxTextBytes);
  }
  return out;
}

/// The arguments behind the first `skip` ones.
Arguments rest_of(const Arguments& arguments, size_t skip) {
  Arguments rest = arguments;
  rest.positional.erase(
      rest.positional.begin(),
      rest.positional.begin() + static_cast<ptrdiff_t>(std::min(skip, rest.positional.size())));
  return rest;
}

std::string first_name(const Arguments& arguments, size_t at, const std::string& filter) {
  if (arguments.positional.size() <= at || !arguments.positional[at].is_text())
    fail("the filter '{}' without a name is not covered", filter);
  return arguments.positional[at].bytes();
}

/// select, reject, selectattr and rejectattr.
Value selected(const std::string& name, const Value& value, const Arguments& arguments) {
  const bool by_attribute = name.ends_with("attr");
  const bool keep = name.starts_with("select");
  const size_t at = by_attribute ? 1 : 0;
  if (by_attribute) first_name(arguments, 0, name);
  const bool has_test = arguments.positional.size() > at;
  const std::string test = has_test ? first_name(arguments, at, name) : "";
  const Arguments rest = rest_of(arguments, at + 1);
  std::vector<Value> items;
  if (!value.truth()) return Value::list({});  // even of what has no elements
  for (const Value& item : elements(value)) {
    const Value tested = by_attribute ? dotted(item, arguments.positional[0]) : item;
    if ((has_test ? call_test(test, tested, rest) : tested.truth()) == keep) items.push_back(item);
  }
  return Value::list(std::move(items));
}

Value mapped(const Value& value, const Arguments& arguments) {
  std::vector<Value> items;
  const bool by_attribute = arguments.positional.empty();
  const auto a =
      by_attribute ? arguments.bind("map", {"attribute", "default"}) : std::vector<Value>();
  if (by_attribute && a[0].is_undefined()) fail("the filter 'map' without a name is not covered");
  const std::string filter = by_attribute ? "" : first_name(arguments, 0, "map");
  const Arguments rest = rest_of(arguments, 1);
  if (!value.truth()) return Value::list({});
  for (const Value& item : elements(value)) {
    if (by_attribute) {
      const Value found = dotted(item, a[0]);
      items.push_back(found.is_undefined() && !a[1].is_undefined() ? a[1] : found);
    } else {
      items.push_back(call_filter(filter, item, rest));
    }
  }
  return Value::list(std::move(items));
}

Value unique(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> seen;
  std::vector<Value> items;
  for (const Value& item : elements(value)) {
    const Value key = folded(a[1].is_undefined() ? item : dotted(item, a[1]), flag(a[0]));
    if (key.is_mapping() || (key.is_list() && !key.is_tuple()))
      fail("the filter 'unique' over values of type {}", key.type_name());
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& v) { return equal(v, key); }))
      continue;
    if (seen.size() >= 10'000) fail("the filter 'unique' over more than 10000 values");
    seen.push_back(key);
    items.push_back(item);
  }
  return Value::list(std::move(items));
}

Value extreme(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind(name, {"case_sensitive", "attribute"});
  Value best;
  Value best_key;
  for (const Value& item : elements(value)) {
    const Value key = folded(a[1].is_undefined() ? item : dotted(item, a[1]), flag(a[0]));
    const bool better = best_key.is_undefined() ||
                        (name == "min" ? compare(key, best_key) < 0 : compare(key, best_key) > 0);
    if (!better) continue;
    best = item;
    best_key = key;
  }
  return best;
}

Value indented(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("indent", {"width", "first", "blank"});
  const std::string space =
      a[0].is_text()
          ? a[0].bytes()
          : std::string(static_cast<size_t>(std::clamp<int64_t>(or_default(a[0], 4), 0, 1000)),
                        ' ');
  if (!value.is_text()) fail("indent of {}", value.type_name());
  Text text = value.text();
  text.append("\n");  // a newline at the end of the text stays
  const auto lines = split_lines(text);
  Text out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n");
    const bool shifted = i == 0 ? flag(a[1]) : (flag(a[2]) || !lines[i].text().empty());
    if (shifted) out.append(space);
    out.append(lines[i].text());
    if (out.size() > kMaxTextBytes) fail("a text of more than {} bytes", kMaxTextBytes);
  }
  return out;
}

Value as_integer(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("int", {"default"});
  const int64_t fallback = or_default(a[0], 0);
  if (value.is_bool() || value.is_int()) return value.integer();
  if (value.is_float()) {
    const double number = std::trunc(value.number());
    return std::fabs(number) < 9e18 ? static_cast<int64_t>(number) : fallback;
  }
  if (value.is_undefined()) fail("'{}' is undefined", value.undefined_name());
  if (!value.is_text()) return fallback;
  const Text text = strip(value.text(), {}, true, true);
  const std::string digits = text.bytes().starts_with('-') || text.bytes().starts_with('+')
                                 ? text.bytes().substr(1)
                                 : text.bytes();
  if (digits.empty() || digits.size() > 18 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    if (digits.find_first_of(".eE_") != std::string::npos)
      fail("the filter 'int' of \"{}\" is not covered", text.bytes());
    return fallback;
  }
  const int64_t number = std::stoll(digits);
  return text.bytes()[0] == '-' ? -number : number;
}

Value json_text(const Value& value, const Arguments& arguments) {
  const auto a = arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = flag(a[0]);
  style.indent = static_cast<int>(std::min<int64_t>(or_default(a[1], -1), 100));
  style.item_separator = style.indent >= 0 ? "," : ", ";
  if (a[2].is_list()) {
    if (a[2].items().size() != 2 || !a[2].items()[0].is_text() || !a[2].items()[1].is_text())
      fail("tojson wants two separators");
    style.item_separator = a[2].items()[0].bytes();
    style.key_separator = a[2].items()[1].bytes();
  }
  style.sort_keys = flag(a[3]);
  return to_json_text(value, style);
}

/// Jinja's own title case: words begin behind spaces, hyphens and brackets.
Text titled_words(const Text& text) {
  Text out;
  size_t begin = 0;
  static constexpr std::string_view kBetween = "-({[<";
  for (size_t at = 0; at <= text.size();) {
    const size_t end = at;
    bool between = at == text.size();
    if (at < text.size()) {
      const uint32_t c = next_code_point(text.bytes(), at);
      between = is_python_space(c) ||
                (c < 0x80 && kBetween.find(static_cast<char>(c)) != std::string_view::npos);
    } else {
      ++at;
    }
    if (!between) continue;
    out.append(capitalized(text.slice(begin, end)));
    begin = std::min(at, text.size());
    out.append(text.slice(end, begin));
  }
  return out;
}

bool is_one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Value get_attribute(const Value& object, const std::string& name) {
  if (object.is_undefined())
    fail("'{}' is undefined, so it has no '{}'", object.undefined_name(), name);
  if (!object.is_mapping()) return Value::Undefined{name};
  if (object.is_dict() && is_one_of(name, {"items", "keys", "values", "get", "copy", "pop",
                                           "update", "clear", "setdefault", "popitem", "fromkeys"}))
    fail("the method .{} of a dict is not called", name);
  const Value* found = object.mapping().find(name);
  return found != nullptr ? *found : Value(Value::Undefined{name});
}

Value get_item(const Value& object, const Value& key) {
  if (object.is_undefined())
    fail("'{}' is undefined, so it has no element {}", object.undefined_name(),
         to_repr(key).bytes());
  if (object.is_mapping()) {
    if (!key.is_text()) return Value::Undefined{to_repr(key).bytes()};
    const Value* found = object.mapping().find(key.bytes());
    return found != nullptr ? *found : Value(Value::Undefined{key.bytes()});
  }
  if (key.is_undefined()) fail("'{}' is undefined", key.undefined_name());
  if (!object.is_list() && !object.is_text()) return Value::Undefined{to_repr(key).bytes()};
  if (!key.is_int() && !key.is_bool()) return Value::Undefined{to_repr(key).bytes()};
  const int64_t count = length(object);
  const int64_t at = key.integer() < 0 ? key.integer() + count : key.integer();
  if (at < 0 || at >= count) return Value::Undefined{to_repr(key).bytes()};
  if (object.is_list()) return object.items()[static_cast<size_t>(at)];
  const auto starts = character_starts(object.bytes());
  return object.text().slice(starts[static_cast<size_t>(at)], starts[static_cast<size_t>(at) + 1]);
}

Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is_undefined()) fail("'{}' is undefined", object.undefined_name());
  if (!object.is_list() && !object.is_text())
    fail("a slice of {} is not covered", object.type_name());
  const int64_t by = or_default(step, 1);
  if (by == 0) fail("a slice with a step of 0");
  const int64_t count = length(object);
  const auto bound = [&](const Value& value, int64_t fallback) {
    if (value.is_undefined() || value.is_none()) return fallback;
    int64_t at = value.integer();
    if (at < 0) at += count;
    return by > 0 ? std::clamp<int64_t>(at, 0, count) : std::clamp<int64_t>(at, -1, count - 1);
  };
  const int64_t first = bound(start, by > 0 ? 0 : count - 1);
  const int64_t last = bound(stop, by > 0 ? count : -1);
  if (object.is_text() && by == 1) {
    const auto starts = character_starts(object.bytes());
    return first < last ? object.text().slice(starts[static_cast<size_t>(first)],
                                              starts[static_cast<size_t>(last)])
                        : Text();
  }
  const std::vector<Value> all = elements(object);
  std::vector<Value> items;
  // A step so large that it leaves the list is as good as any that does.
  const int64_t stride = std::clamp<int64_t>(by, -count - 1, count + 1);
  for (int64_t at = first; by > 0 ? at < last : at > last; at += stride)
    items.push_back(all[static_cast<size_t>(at)]);
  if (object.is_list()) return Value::list(std::move(items), object.is_tuple());
  Text out;
  for (const Value& item : items) out.append(item.text());
  return out;
}

Value call_method(const Value& object, const std::string& name, const Arguments& arguments) {
  if (object.is_text()) return call_text_method(object.text(), name, arguments);
  if (object.is_undefined())
    fail("'{}' is undefined, so it has no '{}'", object.undefined_name(), name);
  if (object.is_dict()) {
    if (name == "items" || name == "keys" || name == "values") {
      arguments.bind(name, {});
      if (name == "items") return items_of(object);
      std::vector<Value> items;
      for (const auto& [key, value] : object.mapping().items)
        items.push_back(name == "keys" ? Value(key) : value);
      return Value::list(std::move(items));
    }
    if (name == "get") {
      const auto a = arguments.bind(name, {"key", "default"});
      const Value* found = a[0].is_text() ? object.mapping().find(a[0].bytes()) : nullptr;
      return found != nullptr ? *found : (a[1].is_undefined() ? Value(Value::None{}) : a[1]);
    }
  }
  if (object.is_list() && (name == "index" || name == "count")) {
    const auto a = arguments.bind(name, {"value"});
    int64_t count = 0;
    for (size_t i = 0; i < object.items().size(); ++i) {
      if (!equal(object.items()[i], a[0])) continue;
      if (name == "index") return static_cast<int64_t>(i);
      ++count;
    }
    if (name == "index") fail("index(): the value is not in the list");
    return count;
  }
  fail("the method .{}() of a {} is not covered", name, object.type_name());
}

Value call_filter(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto bind = [&](const std::vector<const char*>& names) {
    return arguments.bind(name, names);
  };
  if (name == "trim") return strip(to_text(value), bind({"chars"})[0], true, true);
  if (name == "tojson") return json_text(value, arguments);
  if (name == "default" || name == "d") {
    const auto a = bind({"default_value", "boolean"});
    const Value fallback = a[0].is_undefined() ? Value("") : a[0];
    return value.is_undefined() || (flag(a[1]) && !value.truth()) ? fallback : value;
  }
  if (name == "join") return joined(value, arguments);
  if (name == "map") return mapped(value, arguments);
  if (is_one_of(name, {"select", "reject", "selectattr", "rejectattr"}))
    return selected(name, value, arguments);
  if (name == "sort") return sorted(value, arguments);
  if (name == "dictsort") return dict_sorted(value, arguments);
  if (name == "unique") return unique(value, arguments);
  if (name == "min" || name == "max") return extreme(name, value, arguments);
  if (name == "indent") return indented(value, arguments);
  if (name == "int") return as_integer(value, arguments);
  if (name == "replace") {
    const auto a = bind({"old", "new", "count"});
    if (a[1].is_undefined()) fail("the filter 'replace' wants what to put in place");
    return replace_all(to_text(value), to_text(a[0]).bytes(), to_text(a[1]), or_default(a[2], -1));
  }
  if (name == "sum") {
    const auto a = bind({"attribute", "start"});
    Value total = a[1].is_undefined() ? Value(int64_t{0}) : a[1];
    for (const Value& item : elements(value))
      total = binary("+", total, a[0].is_undefined() ? item : dotted(item, a[0]));
    return total;
  }
  if (name == "round") {
    const auto a = bind({"precision", "method"});
    if (!a[1].is_undefined() || or_default(a[0], 0) != 0)
      fail("the filter 'round' with arguments is not covered");
    return std::nearbyint(value.number());
  }
  if (!is_one_of(name, {"length", "count", "upper", "lower", "capitalize", "title", "string",
                        "safe", "list", "items", "first", "last", "reverse", "abs", "float"}))
    not_covered("filter", name);
  bind({});
  if (name == "length" || name == "count") return length(value);
  if (name == "upper" || name == "lower") return upper_or_lower(to_text(value), name == "upper");
  if (name == "capitalize") return capitalized(to_text(value));
  if (name == "title") return titled_words(to_text(value));
  if (name == "string" || name == "safe") return to_text(value);
  if (name == "list") return Value::list(elements(value));
  if (name == "items") return items_of(value);
  if (name == "first" || name == "last") {
    const auto items = elements(value);
    if (items.empty()) return Value::Undefined{name};
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    if (value.is_text()) return get_slice(value, {}, {}, int64_t{-1});
    auto items = elements(value);
    std::reverse(items.begin(), items.end());
    return Value::list(std::move(items));
  }
  if (name == "abs") {
    if (value.is_float()) return std::fabs(value.number());
    return value.integer() < 0 ? binary("-", int64_t{0}, value) : Value(value.integer());
  }
  if (value.is_undefined()) fail("'{}' is undefined", value.undefined_name());
  if (!value.is_number()) fail("the filter 'float' of {} is not covered", value.type_name());
  return value.number();
}

bool call_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto one = [&] { return arguments.bind(name, {"value"})[0]; };
  if (is_one_of(name, {"eq", "equalto", "=="})) return equal(value, one());
  if (is_one_of(name, {"ne", "!="})) return !equal(value, one());
  if (name == "in") return contains(one(), value);
  if (is_one_of(name, {"lt", "lessthan", "<"})) return compare(value, one()) < 0;
  if (is_one_of(name, {"le", "<="})) return compare(value, one()) <= 0;
  if (is_one_of(name, {"gt", "greaterthan", ">"})) return compare(value, one()) > 0;
  if (is_one_of(name, {"ge", ">="})) return compare(value, one()) >= 0;
  if (name == "divisibleby") return binary("%", value, one()).integer() == 0;
  if (!is_one_of(name, {"defined", "undefined", "none", "string", "boolean", "true", "false",
                        "integer", "float", "number", "mapping", "sequence", "iterable", "callable",
                        "odd", "even", "upper", "lower"}))
    not_covered("test", name);
  arguments.bind(name, {});
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.is_text();
  if (name == "boolean") return value.is_bool();
  if (name == "true") return value.is_bool() && value.truth();
  if (name == "false") return value.is_bool() && !value.truth();
  if (name == "integer") return value.is_int();
  if (name == "float") return value.is_float();
  if (name == "number") return value.is_number();
  if (name == "mapping") return value.is_dict();
  if (name == "sequence" || name == "iterable")
    return value.is_text() || value.is_list() || value.is_dict() || value.is_undefined();
  if (name == "callable") return value.is_function();
  if (name == "odd" || name == "even")
    return binary("%", value, int64_t{2}).number() == (name == "odd" ? 1 : 0);
  return call_text_method(to_text(value), "is" + name, {}).truth();
}

Value make_range(const Arguments& arguments) {
  const auto a = arguments.bind("range", {"start", "stop", "step"});
  const bool one = a[1].is_undefined();
  const int64_t start = one ? 0 : a[0].integer();
  const int64_t stop = one ? a[0].integer() : a[1].integer();
  const int64_t step = or_default(a[2], 1);
  if (step == 0) fail("range() with a step of 0");
  std::vector<Value> items;
  int64_t at = start;
  while (step > 0 ? at < stop : at > stop) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange)
      fail("range() of more than {} numbers", kMaxRange);
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return Value::list(std::move(items));
}

Value format_time(int64_t now, const Arguments& arguments) {
  const auto a = arguments.bind("strftime_now", {"format"});
  if (!a[0].is_text()) fail("strftime_now() wants a format");
  const std::string& format = a[0].bytes();
  if (format.size() > 100) fail("the format of strftime_now() is too long");
  if (format.empty()) return "";
  const auto seconds = static_cast<time_t>(now);
  std::tm time{};
  localtime_r(&seconds, &time);
  char buffer[4096];
  const size_t size = std::strftime(buffer, sizeof(buffer), format.c_str(), &time);
  if (size == 0) fail("strftime_now(\"{}\") is not covered", format);
  return replace_invalid_utf8(std::string_view(buffer, size));
}

}  // namespace trireme::data::jinja
