// Renders Jinja templates as far as chat templates use the language.
//
// Covered: text, {{ }}, if, for (with else, filter, unpacking, break, continue), set (also blocks and
// attributes of a namespace), macro, generation, every operator, slices, the filters, tests, methods
// and functions of builtins.cpp, white space control as transformers sets it (trim_blocks,
// lstrip_blocks). Everything else is refused by name. Semantics: Jinja 3.1's documentation, and
// Python's for the values; checked against both by tests/parity/chat_templates.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trireme/data/jinja/value.h"

namespace trireme::data::jinja {

struct ParsedTemplate;

/// Source of what {% generation %} blocks print.
inline constexpr int32_t kGenerated = -1;

/// A parsed template. Thread-safety: render() from any number of threads.
class Template {
 public:
  /// Error{kData} that begins with `origin`, with the line, and names what is not covered.
  Template(std::string_view source, std::string origin);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  /// True if a {% generation %} block marks what the model writes.
  bool has_generation() const;

  /// What the template prints for `variables`. `now` (seconds since 1970) is the time that
  /// strftime_now() tells. Bounded in time and memory. Error{kData}: the template refuses its input,
  /// or does with it what is not covered.
  Text render(std::vector<std::pair<std::string, Value>> variables, int64_t now) const;

 private:
  std::string origin_;
  std::unique_ptr<const ParsedTemplate> parsed_;
};

}  // namespace trireme::data::jinja
