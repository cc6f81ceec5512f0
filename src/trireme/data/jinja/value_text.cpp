// How values look: str(), repr() and json.dumps().
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "trireme/data/jinja/value.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

namespace {

/// repr() of a float: the shortest digits that read back the same.
std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[400];
  const double size = std::fabs(value);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(buffer, end.ptr);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

bool is_printable(uint32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

std::string quoted_python(const std::string& text) {
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  std::string result(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = next_code_point(text, at);
    if (c == static_cast<uint32_t>(quote) || c == '\\') {
      result += '\\';
      result += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      result += c == '\n' ? "\\n" : (c == '\r' ? "\\r" : "\\t");
    } else if (is_printable(c)) {
      result.append(text, begin, at - begin);
    } else if (c < 0x100) {
      result += fmt::format("\\x{:02x}", c);
    } else {
      result += c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c);
    }
  }
  return result + quote;
}

std::string quoted_json(const std::string& text, bool ascii) {
  return OrderedJson(text).dump(-1, ' ', ascii);
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  void write(const Value& value, int level) {
    if (out.size() > kMaxTextBytes) fail("tojson makes more than {} bytes", kMaxTextBytes);
    if (value.is_list()) {
      write_items('[', value.items().size(), ']', level,
                  [&](size_t i) { write(value.items()[i], level + 1); });
    } else if (value.is_dict()) {
      auto items = value.mapping().items;
      if (style_.sort_keys)
        std::sort(items.begin(), items.end(),
                  [](const auto& a, const auto& b) { return a.first < b.first; });
      write_items('{', items.size(), '}', level, [&](size_t i) {
        out.append(quoted_json(items[i].first, style_.ascii));
        out.append(style_.key_separator);
        write(items[i].second, level + 1);
      });
    } else if (value.is_text()) {
      out.append(value.text().rewritten(quoted_json(value.bytes(), style_.ascii)));
    } else if (value.is_none()) {
      out.append("null");
    } else if (value.is_bool()) {
      out.append(value.truth() ? "true" : "false");
    } else if (value.is_int()) {
      out.append(std::to_string(value.integer()));
    } else if (value.is_float()) {
      const double number = value.number();
      out.append(std::isnan(number) ? "NaN"
                                    : (std::isinf(number) ? (number > 0 ? "Infinity" : "-Infinity")
                                                          : float_text(number)));
    } else {
      fail("tojson of {} is not possible", value.type_name());
    }
  }

  Text out;

 private:
  template <typename Write>
  void write_items(char open, size_t count, char close, int level, Write write_item) {
    out.append(std::string_view(&open, 1));
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) out.append(style_.item_separator);
      new_line(level + 1);
      write_item(i);
    }
    if (count > 0) new_line(level);
    out.append(std::string_view(&close, 1));
  }
  void new_line(int level) {
    if (style_.indent < 0) return;
    out.append("\n" + std::string(static_cast<size_t>(style_.indent * level), ' '));
  }
  const JsonStyle& style_;
};

}  // namespace

Text to_text(const Value& value) {
  if (value.is_text()) return value.text();
  if (value.is_undefined()) return Text();
  return to_repr(value);
}

Text to_repr(const Value& value) {
  if (value.is_text()) return value.text().rewritten(quoted_python(value.bytes()));
  if (value.is_none()) return Text("None");
  if (value.is_bool()) return Text(value.truth() ? "True" : "False");
  if (value.is_int()) return Text(std::to_string(value.integer()));
  if (value.is_float()) return Text(float_text(value.number()));
  if (value.is_undefined()) return Text("Undefined");
  if (!value.is_list() && !value.is_dict()) fail("printing a {} is not covered", value.type_name());
  const bool tuple = value.is_tuple();
  Text out(std::string(value.is_dict() ? "{" : (tuple ? "(" : "[")));
  const auto check = [&out] {
    if (out.size() > kMaxTextBytes) fail("a text of more than {} bytes", kMaxTextBytes);
  };
  bool first = true;
  const auto separate = [&] {
    if (!first) out.append(", ");
    first = false;
    check();
  };
  if (value.is_dict()) {
    for (const auto& [key, item] : value.mapping().items) {
      separate();
      out.append(quoted_python(key) + ": ");
      out.append(to_repr(item));
    }
  } else {
    for (const Value& item : value.items()) {
      separate();
      out.append(to_repr(item));
    }
    if (tuple && value.items().size() == 1) out.append(",");
  }
  out.append(value.is_dict() ? "}" : (tuple ? ")" : "]"));
  return out;
}

Text to_json_text(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace trireme::data::jinja
