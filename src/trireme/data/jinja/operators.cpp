// Arithmetic of templates, as Python has it.
#include <algorithm>
#include <cmath>

#include "trireme/data/jinja/builtins.h"

namespace trireme::data::jinja {

namespace {

Value floor_divide(int64_t a, int64_t b, bool remainder) {
  if (b == 0) fail("division by zero");
  if (b == -1) return remainder ? Value(int64_t{0}) : binary("-", int64_t{0}, a);
  int64_t quotient = a / b;
  int64_t rest = a % b;
  if (rest != 0 && (rest < 0) != (b < 0)) {
    rest += b;
    --quotient;
  }
  return remainder ? rest : quotient;
}

Value integer_binary(const std::string& name, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (name == "+") overflow = __builtin_add_overflow(a, b, &result);
  if (name == "-") overflow = __builtin_sub_overflow(a, b, &result);
  if (name == "*") overflow = __builtin_mul_overflow(a, b, &result);
  if (name == "//" || name == "%") return floor_divide(a, b, name == "%");
  if (name == "/") {
    if (b == 0) fail("division by zero");
    return static_cast<double>(a) / static_cast<double>(b);
  }
  if (name == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    result = 1;
    for (int64_t i = 0; i < b && !overflow && i < 64; ++i)
      overflow = __builtin_mul_overflow(result, a, &result);
    if (b >= 64 && a != 0 && a != 1 && a != -1) overflow = true;
    if (b >= 64 && a == -1) result = b % 2 == 0 ? 1 : -1;
  }
  if (overflow) fail("a number beyond 64 bits");
  return result;
}

Value float_binary(const std::string& name, double a, double b) {
  if (name == "+") return a + b;
  if (name == "-") return a - b;
  if (name == "*") return a * b;
  if (name == "**") return std::pow(a, b);
  if (b == 0) fail("division by zero");
  if (name == "/") return a / b;
  const double quotient = std::floor(a / b);
  return name == "//" ? quotient : a - quotient * b;
}

Value repeated(const Value& value, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const size_t size = value.is_text() ? value.text().size() : value.items().size();
  const size_t limit = value.is_text() ? kMaxTextBytes : kMaxItems;
  if (size > 0 && static_cast<size_t>(count) > limit / size)
    fail("a text or list repeated {} times is too long", count);
  if (value.is_text()) {
    Text out;
    if (size > 0)
      for (int64_t i = 0; i < count; ++i) out.append(value.text());
    return out;
  }
  std::vector<Value> items;
  for (int64_t i = 0; size > 0 && i < count; ++i)
    items.insert(items.end(), value.items().begin(), value.items().end());
  return Value::list(std::move(items), value.is_tuple());
}

}  // namespace

Value binary(const std::string& name, const Value& a, const Value& b) {
  if (name == "~") {
    Text out = to_text(a);
    out.append(to_text(b));
    if (out.size() > kMaxTextBytes) fail("a text of more than {} bytes", kMaxTextBytes);
    return out;
  }
  // Python takes what is undefined for a mapping with nothing to fill in.
  if (name == "%" && a.is_text() && b.is_undefined() && a.bytes().find('%') == std::string::npos)
    return a;
  for (const Value* value : {&a, &b})
    if (value->is_undefined()) fail("'{}' is undefined", value->undefined_name());
  if (a.is_number() && b.is_number()) {
    if (a.is_float() || b.is_float()) return float_binary(name, a.number(), b.number());
    return integer_binary(name, a.integer(), b.integer());
  }
  if (name == "+" && a.is_text() && b.is_text()) return binary("~", a, b);
  if (name == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    std::vector<Value> items = a.items();
    items.insert(items.end(), b.items().begin(), b.items().end());
    return Value::list(std::move(items), a.is_tuple());
  }
  if (name == "*" && (a.is_text() || a.is_list()) && (b.is_int() || b.is_bool()))
    return repeated(a, b.integer());
  if (name == "*" && (b.is_text() || b.is_list()) && (a.is_int() || a.is_bool()))
    return repeated(b, a.integer());
  fail("{} {} {} is not covered", a.type_name(), name, b.type_name());
}

}  // namespace trireme::data::jinja
