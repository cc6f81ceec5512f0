// What a template computes with: Python's values as far as templates see them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "trireme/base/json.h"
#include "trireme/data/jinja/text.h"

namespace trireme::data::jinja {

/// Thrown where a template cannot go on; the renderer adds the line. Never leaves this folder.
struct Problem {
  std::string what;
  bool raised = false;  ///< by the template's own raise_exception()
};
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Problem{fmt::format(format, std::forward<Args>(args)...)};
}

class Value;

/// Arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The arguments by parameter, undefined where not given. A Problem for one too many or an unknown
  /// name.
  std::vector<Value> bind(const std::string& function, const std::vector<const char*>& names) const;
};

/// How deep and how large a value with values inside is: both are bounded.
struct Extent {
  int depth = 0;
  size_t values = 1;
  /// Takes in one more; a Problem if that is too much.
  void add(const Extent& inside);
};

struct Sequence {
  std::vector<Value> items;
  bool tuple = false;
  Extent extent;
};

/// A dict with keys of text in the order of insertion, or a namespace().
struct Mapping {
  std::vector<std::pair<std::string, Value>> items;
  bool is_namespace = false;
  Extent extent;
  const Value* find(std::string_view key) const;
  void set(const std::string& key, Value value);
};

struct Function {
  std::string name;
  std::function<Value(const Arguments&)> call;
};

/// Thread-safety: that of a value; what it shares is not changed, but for namespaces.
class Value {
 public:
  struct Undefined {
    std::string name;
  };
  struct None {};

  Value() : Value(Undefined{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}  // NOLINT: values convert freely
  Value(None none) : data_(none) {}                            // NOLINT
  Value(bool value) : data_(value) {}                          // NOLINT
  Value(int64_t value) : data_(value) {}                       // NOLINT
  Value(double value) : data_(value) {}                        // NOLINT
  Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}       // NOLINT
  Value(std::string text) : Value(Text(std::move(text))) {}                        // NOLINT
  Value(const char* text) : Value(std::string(text)) {}                            // NOLINT
  Value(std::shared_ptr<const Function> function) : data_(std::move(function)) {}  // NOLINT
  Value(std::shared_ptr<Mapping> mapping) : data_(std::move(mapping)) {}           // NOLINT
  static Value list(std::vector<Value> items, bool tuple = false);
  static Value dict(std::vector<std::pair<std::string, Value>> items);
  /// The text of every string in `json` is marked with `source` if there is one.
  static Value from_json(const OrderedJson& json, std::optional<int32_t> source = {});

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_text() const { return std::holds_alternative<std::shared_ptr<const Text>>(data_); }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const Sequence>>(data_); }
  bool is_mapping() const { return std::holds_alternative<std::shared_ptr<Mapping>>(data_); }
  bool is_namespace() const { return is_mapping() && mapping().is_namespace; }
  bool is_dict() const { return is_mapping() && !mapping().is_namespace; }
  bool is_function() const {
    return std::holds_alternative<std::shared_ptr<const Function>>(data_);
  }

  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }
  const Text& text() const { return *std::get<std::shared_ptr<const Text>>(data_); }
  const std::string& bytes() const { return text().bytes(); }
  const std::vector<Value>& items() const {
    return std::get<std::shared_ptr<const Sequence>>(data_)->items;
  }
  bool is_tuple() const {
    return is_list() && std::get<std::shared_ptr<const Sequence>>(data_)->tuple;
  }
  Mapping& mapping() const { return *std::get<std::shared_ptr<Mapping>>(data_); }
  const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }
  int64_t integer() const;  ///< of a bool or an int
  double number() const;    ///< of a bool, an int or a float
  Extent extent() const;    ///< of lists and dicts
  const void* identity() const;

  bool truth() const;
  const char* type_name() const;  ///< "str", "list", ... as Python says it

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const Sequence>, std::shared_ptr<Mapping>,
               std::shared_ptr<const Function>>
      data_;
};

bool equal(const Value& a, const Value& b);
/// Below, equal or above as -1, 0, 1; a Problem for values that have no order.
int compare(const Value& a, const Value& b);
/// `item in container`.
bool contains(const Value& container, const Value& item);
/// What a loop goes over: elements, keys, or the characters of a text.
std::vector<Value> elements(const Value& value);
int64_t length(const Value& value);

/// str(value): what {{ value }} prints.
Text to_text(const Value& value);
/// repr(value).
Text to_repr(const Value& value);
struct JsonStyle {
  int indent = -1;  ///< -1: on one line
  std::string item_separator;
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ascii = false;
};
/// json.dumps(value).
Text to_json_text(const Value& value, const JsonStyle& style);

/// Byte positions of the characters of UTF-8 text, its size last.
std::vector<size_t> character_starts(std::string_view text);
bool is_python_space(uint32_t code_point);

/// Texts and lists of a template stay below these: a template is a program that someone else wrote.
inline constexpr size_t kMaxTextBytes = size_t{1} << 24;
inline constexpr size_t kMaxItems = 1 << 20;
inline constexpr int kMaxDepth = 100;

}  // namespace trireme::data::jinja
