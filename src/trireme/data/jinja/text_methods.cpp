// Methods of str.
#include <utf8proc.h>

#include <algorithm>

#include "trireme/data/jinja/builtins.h"
#include "trireme/data/tokenizer_unicode.h"

namespace trireme::data::jinja {

namespace {

void check_size(size_t size) {
  if (size > kMaxTextBytes) fail("a text of more than {} bytes", kMaxTextBytes);
}

const std::string& text_of(const Value& value, const std::string& function) {
  if (!value.is_text()) fail("{}() wants a str, not {}", function, value.type_name());
  return value.bytes();
}

int64_t count_of(const Value& value) {
  return value.is_undefined() ? -1 : value.integer();
}

std::vector<Value> split(const Text& text, const Value& separator, int64_t limit, bool from_right) {
  const std::string& bytes = text.bytes();
  std::vector<std::pair<size_t, size_t>> parts;
  if (separator.is_undefined() || separator.is_none()) {
    if (from_right && limit >= 0) fail("rsplit() at white space with a limit is not covered");
    size_t at = 0;
    while (true) {
      size_t next = at;
      while (at < bytes.size() && is_python_space(next_code_point(bytes, next))) at = next;
      if (at >= bytes.size()) break;
      size_t end = at;
      if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
        end = at + strip(text.slice(at, bytes.size()), {}, false, true).size();
        parts.emplace_back(at, end);
        break;
      }
      for (next = end; end < bytes.size() && !is_python_space(next_code_point(bytes, next));)
        end = next;
      parts.emplace_back(at, end);
      at = end;
    }
  } else {
    const std::string& between = text_of(separator, "split");
    if (between.empty()) fail("split() at an empty text");
    std::vector<size_t> cuts;
    for (size_t at = bytes.find(between); at != std::string::npos;
         at = bytes.find(between, at + between.size()))
      cuts.push_back(at);
    if (from_right && between.size() > 1) {
      // Occurrences that overlap are found from the other end.
      cuts.clear();
      for (size_t end = bytes.size(); end >= between.size();) {
        const size_t at = bytes.rfind(between, end - between.size());
        if (at == std::string::npos) break;
        cuts.insert(cuts.begin(), at);
        end = at;
      }
    }
    if (limit >= 0 && cuts.size() > static_cast<size_t>(limit)) {
      const auto excess = static_cast<ptrdiff_t>(cuts.size()) - limit;
      if (from_right) {
        cuts.erase(cuts.begin(), cuts.begin() + excess);
      } else {
        cuts.resize(static_cast<size_t>(limit));
      }
    }
    size_t begin = 0;
    for (const size_t cut : cuts) {
      parts.emplace_back(begin, cut);
      begin = cut + between.size();
    }
    parts.emplace_back(begin, bytes.size());
  }
  if (parts.size() > kMaxItems) fail("split() into more than {} parts", kMaxItems);
  std::vector<Value> result;
  for (const auto& [begin, end] : parts) result.emplace_back(text.slice(begin, end));
  return result;
}

bool begins_or_ends(const std::string& text, const Value& with, bool begins) {
  if (with.is_tuple()) {
    return std::any_of(with.items().begin(), with.items().end(),
                       [&](const Value& one) { return begins_or_ends(text, one, begins); });
  }
  const std::string& part = text_of(with, begins ? "startswith" : "endswith");
  return begins ? text.starts_with(part) : text.ends_with(part);
}

int64_t find(const std::string& text, const std::string& part, bool last) {
  const size_t at = last ? text.rfind(part) : text.find(part);
  return at == std::string::npos ? -1 : count_characters(std::string_view(text).substr(0, at));
}

Text titled(const Text& text) {
  std::string out;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text.bytes(), at);
    const auto code = static_cast<utf8proc_int32_t>(c);
    append_utf8(static_cast<uint32_t>(inside ? utf8proc_tolower(code) : utf8proc_totitle(code)),
                out);
    inside = utf8proc_tolower(code) != utf8proc_toupper(code);
  }
  return text.rewritten(std::move(out));
}

bool all_of_class(const std::string& text, uint8_t classes) {
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text, at);
    const bool digit =
        (classes & kNumberChar) != 0 &&
        (c < 0x80 ? c >= '0' && c <= '9'
                  : utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND);
    const bool letter =
        (classes & kLetterChar) != 0 && CharClassTable::instance()[c] == kLetterChar;
    const bool space = (classes & kSpaceChar) != 0 && is_python_space(c);
    if (!digit && !letter && !space) return false;
  }
  return !text.empty();
}

}  // namespace

Text strip(const Text& text, const Value& characters, bool left, bool right) {
  std::vector<uint32_t> set;
  const bool spaces = characters.is_undefined() || characters.is_none();
  if (!spaces) {
    const std::string& given = text_of(characters, "strip");
    for (size_t at = 0; at < given.size();) set.push_back(next_code_point(given, at));
  }
  const auto goes = [&](uint32_t c) {
    return spaces ? is_python_space(c) : std::find(set.begin(), set.end(), c) != set.end();
  };
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  size_t end = bytes.size();
  while (left && begin < end) {
    size_t next = begin;
    if (!goes(next_code_point(bytes, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(bytes[last]) & 0xC0) == 0x80) --last;
    size_t at = last;
    if (!goes(next_code_point(bytes, at))) break;
    end = last;
  }
  return text.slice(begin, end);
}

Text replace_all(const Text& text, const std::string& from, const Text& to, int64_t count) {
  if (from.empty()) fail("replacing an empty text is not covered");
  Text out;
  size_t begin = 0;
  for (size_t at = text.bytes().find(from); at != std::string::npos && count != 0;
       at = text.bytes().find(from, begin), --count) {
    out.append(text.slice(begin, at));
    out.append(to);
    check_size(out.size());
    begin = at + from.size();
  }
  out.append(text.slice(begin, text.size()));
  check_size(out.size());
  return out;
}

Text upper_or_lower(const Text& text, bool upper) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next_code_point(text.bytes(), at);
    // One character may become several: few do, and no template means them.
    if (upper && (c == 0xDF || c == 0x149 || (c >= 0xFB00 && c <= 0xFB17)))
      fail("the upper case of U+{:04X} is not covered", c);
    const auto code = static_cast<utf8proc_int32_t>(c);
    append_utf8(static_cast<uint32_t>(upper ? utf8proc_toupper(code) : utf8proc_tolower(code)),
                out);
  }
  return text.rewritten(std::move(out));
}

Text capitalized(const Text& text) {
  if (text.empty()) return text;
  size_t first = 0;
  next_code_point(text.bytes(), first);
  Text out = upper_or_lower(text.slice(0, first), true);
  out.append(upper_or_lower(text.slice(first, text.size()), false));
  return out;
}

std::vector<Value> split_lines(const Text& text) {
  std::vector<Value> lines;
  const std::string& bytes = text.bytes();
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = at;
    const uint32_t c = next_code_point(bytes, at);
    const bool breaks = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                        c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == '\r' && at < bytes.size() && bytes[at] == '\n') ++at;
    lines.emplace_back(text.slice(begin, end));
    begin = at;
  }
  if (begin < bytes.size()) lines.emplace_back(text.slice(begin, bytes.size()));
  if (lines.size() > kMaxItems) fail("more than {} lines", kMaxItems);
  return lines;
}

Value call_text_method(const Text& text, const std::string& name, const Arguments& arguments) {
  const std::string& bytes = text.bytes();
  const auto bind = [&](const std::vector<const char*>& names) {
    return arguments.bind(name, names);
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return strip(text, bind({"chars"})[0], name != "rstrip", name != "lstrip");
  if (name == "split" || name == "rsplit") {
    const auto a = bind({"sep", "maxsplit"});
    return Value::list(split(text, a[0], count_of(a[1]), name == "rsplit"));
  }
  if (name == "startswith" || name == "endswith")
    return begins_or_ends(bytes, bind({"prefix"})[0], name == "startswith");
  if (name == "replace") {
    const auto a = bind({"old", "new", "count"});
    text_of(a[1], name);
    return replace_all(text, text_of(a[0], name), a[1].text(), count_of(a[2]));
  }
  if (name == "find" || name == "rfind" || name == "index") {
    const int64_t at = find(bytes, text_of(bind({"sub"})[0], name), name == "rfind");
    if (at < 0 && name == "index") fail("index(): the part is not in the text");
    return at;
  }
  if (name == "count") {
    const auto a = bind({"sub"});
    const std::string& part = text_of(a[0], name);
    if (part.empty()) fail("count() of an empty text is not covered");
    int64_t count = 0;
    for (size_t at = bytes.find(part); at != std::string::npos;
         at = bytes.find(part, at + part.size()))
      ++count;
    return count;
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const auto a = bind({"part"});
    const std::string& part = text_of(a[0], name);
    if (name == "removeprefix")
      return bytes.starts_with(part) ? text.slice(part.size(), text.size()) : text;
    return bytes.ends_with(part) ? text.slice(0, text.size() - part.size()) : text;
  }
  if (name == "join") {
    const auto a = bind({"iterable"});
    Text out;
    bool first = true;
    for (const Value& item : elements(a[0])) {
      text_of(item, name);
      if (!first) out.append(text);
      first = false;
      out.append(item.text());
      check_size(out.size());
    }
    return out;
  }
  static constexpr std::string_view kWithoutArguments[] = {
      "upper",     "lower",   "capitalize", "title",   "splitlines", "isdigit", "isnumeric",
      "isdecimal", "isalpha", "isalnum",    "isspace", "isupper",    "islower"};
  if (std::find(std::begin(kWithoutArguments), std::end(kWithoutArguments), name) ==
      std::end(kWithoutArguments))
    fail("the method .{}() of a str is not covered", name);
  bind({});
  if (name == "upper" || name == "lower") return upper_or_lower(text, name == "upper");
  if (name == "capitalize") return capitalized(text);
  if (name == "title") return titled(text);
  if (name == "splitlines") return Value::list(split_lines(text));
  if (name == "isdigit" || name == "isnumeric" || name == "isdecimal")
    return all_of_class(bytes, kNumberChar);
  if (name == "isalpha") return all_of_class(bytes, kLetterChar);
  if (name == "isalnum") return all_of_class(bytes, kLetterChar | kNumberChar);
  if (name == "isspace") return all_of_class(bytes, kSpaceChar);
  const bool upper = name == "isupper";
  return upper_or_lower(text, upper).bytes() == bytes &&
         upper_or_lower(text, !upper).bytes() != bytes;
}

}  // namespace trireme::data::jinja
