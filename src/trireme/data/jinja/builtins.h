// Filters, tests, methods and functions of templates. Private to this folder. All are pure and throw
// a Problem that names what is not covered.
#pragma once

#include <cstdint>
#include <string>

#include "trireme/data/jinja/value.h"

namespace trireme::data::jinja {

Value call_filter(const std::string& name, const Value& value, const Arguments& arguments);
bool call_test(const std::string& name, const Value& value, const Arguments& arguments);
/// object.name(arguments) of a str, list or dict.
Value call_method(const Value& object, const std::string& name, const Arguments& arguments);

/// object.name and object[key]; undefined where there is none.
Value get_attribute(const Value& object, const std::string& name);
Value get_item(const Value& object, const Value& key);
/// object[start:stop:step]; none or undefined for what is left out.
Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step);

/// a + b, a // b ...
Value binary(const std::string& name, const Value& a, const Value& b);

/// range(arguments).
Value make_range(const Arguments& arguments);
/// strftime of local time `now`.
Value format_time(int64_t now, const Arguments& arguments);

/// Methods of str that filters share with it.
Text strip(const Text& text, const Value& characters, bool left, bool right);
Text replace_all(const Text& text, const std::string& from, const Text& to, int64_t count);
Text capitalized(const Text& text);
Text upper_or_lower(const Text& text, bool upper);
std::vector<Value> split_lines(const Text& text);
Value call_text_method(const Text& text, const std::string& name, const Arguments& arguments);

}  // namespace trireme::data::jinja
