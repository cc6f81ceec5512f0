#include "trireme/data/jinja/template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "trireme/base/error.h"

namespace trireme::data::jinja {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::pair<std::string, Value>> variables() {
  const OrderedJson messages = OrderedJson::parse(
      R"([{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes"}])");
  return {{"messages", Value::from_json(messages)},
          {"d", Value::from_json(OrderedJson::parse(R"({"b": 1, "a": [1, 2.5, "x"]})"))},
          {"name", "Straße 🦜"}};
}

std::string render(const std::string& source) {
  return Template(source, "t").render(variables(), 0).bytes();
}

std::string error_of(const std::string& source) {
  try {
    render(source);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    return error.what();
  }
  return "";
}

struct Case {
  const char* source;
  const char* want;
};

// Wanted by Jinja 3.1's documentation and Python's; the same cases run against both live in
// tests/parity/chat_templates.py.
TEST(Template, Prints) {
  const Case cases[] = {
      {"a{{ 1 + 2 * 3 }}b", "a7b"},
      {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 4 / 2 }}",
       "3 -4 2 3.5 1024 2.0"},
      {"{{ 'a' 'b' ~ 1 ~ none ~ true }}", "ab1NoneTrue"},
      {"{{ missing }}{{ d.nope }}{{ messages[9] }}", ""},
      {"{{ not missing }} {{ missing is defined }} {{ d.a is defined }}", "True False True"},
      {"{{ d }}", "{'b': 1, 'a': [1, 2.5, 'x']}"},
      {"{{ d | tojson }}", R"({"b": 1, "a": [1, 2.5, "x"]})"},
      {"{{ d | tojson(indent=2) }}",
       "{\n  \"b\": 1,\n  \"a\": [\n    1,\n    2.5,\n    \"x\"\n  ]\n}"},
      {"{{ \"it's\" ~ ['it\\'s', 'a\"b', 'a\\n'] }}", R"(it's["it's", 'a"b', 'a\n'])"},
      {"{{ name | length }} {{ name[-1] }} {{ name[::-1] }} {{ name[4:6] }}", "8 🦜 🦜 eßartS ße"},
      {"{{ 1 if false }}{{ 1 if false else 2 }}{{ [] or 'x' }}{{ 0 and 1 }}", "2x0"},
      {"{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' in 'cat' }} {{ 'z' not in ['a'] }}",
       "True False True True"},
      {"{{ 'a,b,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1)[1] }}",
       "['a', 'b', 'c'] ['a', 'b'] b,c"},
      {"{{ 'xxaxx'.strip('x') }}{{ '\\n a\\n'.lstrip('\\n') }}|", "a a\n|"},
      {"{{ ('a', 'b') }} {{ ('a',) }} {{ 'ab'.startswith(('x', 'a')) }}", "('a', 'b') ('a',) True"},
      {"{% for m in messages %}{{ loop.index }}{{ m.role }}{{ ',' if not loop.last }}{% endfor %}",
       "1user,2assistant"},
      {"{% for k, v in d.items() if k != 'b' %}{{ k }}={{ v | length }}{% endfor %}", "a=3"},
      {"{% for x in [] %}a{% else %}none{% endfor %}", "none"},
      {"{% for x in range(5) %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 3 %}{% break %}"
       "{% endif %}{{ x }}{% endfor %}",
       "02"},
      // What a loop sets is gone behind it, unless it is set in a namespace.
      {"{% set x = 1 %}{% for i in [2, 3] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "341"},
      {"{% set n = namespace(x=1) %}{% for i in [2, 3] %}{% set n.x = n.x + i %}{% endfor %}{{ n.x "
       "}}",
       "6"},
      {"{% set x %} a {% endset %}[{{ x }}]{% set y | trim | upper %} b {% endset %}{{ y }}",
       "[ a ]B"},
      {"{% macro m(a, b='!') %}<{{ a }}{{ b }}>{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}",
       "<1!><12>"},
      {"{% if 0 %}a{% elif '' %}b{% else %}c{% endif %}", "c"},
      {"{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}",
       " Hi "},
      {"{{ [3, 1, 2] | sort | first }}{{ 'abc' | reverse }}{{ none | default('n', true) }}",
       "1cban"},
      {"{{ -1 | abs }}{{ 'a b' | title }}{{ 'abC' | capitalize }}", "1A BAbc"},
      {"{{ strftime_now('%Y-%m') }}", "1970-01"},
      {"{{ 3.5 is even }} {{ 3.5 is odd }} {{ 4 is even }}", "False False True"},
      {"{{ (1, 'a') in d }} {{ none in d }} {{ 'a' % missing }}", "False False a"},
      // A loop that ends before does not ask its condition.
      {"{% for x in [1, 0] if 4 // x %}{{ x }}{% break %}{% endfor %}", "1"},
  };
  for (const Case& c : cases) EXPECT_EQ(render(c.source), c.want) << c.source;
}

// trim_blocks and lstrip_blocks are on; one newline at the end of the file goes.
TEST(Template, ControlsWhiteSpace) {
  const Case cases[] = {
      {"a\n  {% if 1 %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
      {"a\n  {%+ if 1 %}b{% endif +%}\nc", "a\n  b\nc"},
      {"a \n {%- if 1 -%} \n b {%- endif %} c", "ab c"},
      {"a {{- 1 -}} \n b", "a1b"},
      {"a\n  {{ 1 }}\n\n", "a\n  1\n"},
      {"a\n  {# note #}\nb{#- x -#}  c", "a\nbc"},
      {"a\r\nb\rc{% if 1 %}\r\nd{% endif %}", "a\nb\ncd"},
      {"x {% if 1 %}\ny{% endif %}", "x y"},
  };
  for (const Case& c : cases) EXPECT_EQ(render(c.source), c.want) << c.source;
}

TEST(Template, NamesWhatIsNotCovered) {
  const Case cases[] = {
      {"\n{% include 'x' %}", "line 2: the statement {% include %} is not covered"},
      {"{% raw %}", "{% raw %}"},
      {"{{ x | shuffle }}", "line 1: the filter 'shuffle' is not covered"},
      {"{{ 1 is prime }}", "the test 'prime' is not covered"},
      {"{{ 'a'.zfill(3) }}", "the method .zfill() of a str is not covered"},
      {"{{ lipsum() }}", "the function lipsum() is not covered"},
      {"{{ 'a' | trim(1, 2) }}", "trim() with 2 arguments is not covered"},
      {"{{ f(*x) }}", "unpacked arguments"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
      {"{% for x in y %}", "{% endfor %} is missing"},
      {"{{ 'a }}", "a string is not closed"},
      {"{{ a", "a tag is not closed"},
      {"{# a", "comment"},
      {"{{ 1 ", "not closed"},
      {"{{ (1 }}", "closes nothing"},
      {"{{ a ? b }}", "'?' has no meaning"},
      {"{{ missing.x }}", "'missing' is undefined"},
      {"{{ missing + 1 }}", "'missing' is undefined"},
      {"{{ missing | int }}", "'missing' is undefined"},
      {"{{ missing | float }}", "'missing' is undefined"},
      {"{{ [1] in d }}", "'in' of a dict wants a key"},
      {"{{ (1, [2]) in d }}", "'in' of a dict wants a key"},
      {"{% for x in [1, 0] if 4 // x %}{{ x }}{% endfor %}", "division by zero"},
      {"{{ 1 + 'a' }}", "int + str"},
      {"{{ 1 / 0 }}", "division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "beyond 64 bits"},
      {"{% set d.b = 1 %}", "d.b can be set in a namespace() only"},
      {"{{ raise_exception('roles must ' ~ 'alternate') }}",
       "t refuses the conversation: roles must alternate"},
  };
  for (const Case& c : cases) EXPECT_THAT(error_of(c.source), HasSubstr(c.want)) << c.source;
}

// A template is a program that someone else wrote.
TEST(Template, IsBounded) {
  EXPECT_THAT(error_of("{{ 'x' * 1000000000 }}"), HasSubstr("too long"));
  EXPECT_THAT(
      error_of("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
      HasSubstr("does not come to an end"));
  EXPECT_THAT(error_of("{{ range(1000000000) }}"), HasSubstr("range()"));
  EXPECT_THAT(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
              HasSubstr("inside each other"));
  EXPECT_THAT(error_of("{% set n = namespace(x=[]) %}{% for i in range(200) %}{% set n.x = [n.x] %}"
                       "{% endfor %}"),
              HasSubstr("nested"));
  EXPECT_THAT(error_of("{{ " + std::string(10000, '(') + "1" + std::string(10000, ')') + " }}"),
              HasSubstr("inside each other"));
  std::string sum = "{{ 1";
  for (int i = 0; i < 10000; ++i) sum += " + 1";
  EXPECT_THAT(error_of(sum + " }}"), HasSubstr("levels"));
  // A namespace that holds itself is let go of all the same (the leak sanitizer sees to it).
  EXPECT_EQ(render("{% set n = namespace() %}{% set n.n = n %}{{ n.n is defined }}"), "True");
}

TEST(Template, RemembersWhereTextComesFrom) {
  const auto runs_of = [](const std::string& source) {
    return Template(source, "t")
        .render({{"a", Text(" one two ", 1)},
                 {"b", Text("zwei", 2)},
                 {"l", Value::list({Text("x", 3)})}},
                0)
        .runs();
  };
  using Run = Text::Run;
  EXPECT_THAT(runs_of("<{{ a | trim }}>{{ b }}"), ElementsAre(Run{1, 8, 1}, Run{9, 13, 2}));
  EXPECT_THAT(runs_of("{{ a.split()[-1] ~ '-' ~ b[1:3] }}"),
              ElementsAre(Run{0, 3, 1}, Run{4, 6, 2}));
  EXPECT_THAT(runs_of("{{ a.replace(' ', '__').strip('_') }}"),
              ElementsAre(Run{0, 3, 1}, Run{5, 8, 1}));
  EXPECT_THAT(runs_of("{{ b | upper }}{{ l | tojson }}"), ElementsAre(Run{0, 4, 2}, Run{5, 8, 3}));
  EXPECT_THAT(runs_of("{{ [b, 'x', a] | join('+') }}"), ElementsAre(Run{0, 4, 2}, Run{7, 16, 1}));
  EXPECT_THAT(runs_of("{% generation %}{{ b }}!{% endgeneration %}{{ b }}"),
              ElementsAre(Run{0, 5, kGenerated}, Run{5, 9, 2}));
}

}  // namespace
}  // namespace trireme::data::jinja
