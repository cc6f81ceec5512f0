#!/usr/bin/env python3
"""Chat templates: build/tests/chat_probe against transformers and Jinja themselves.

1. The templates of tests/chat/templates, over conversations of every kind: the same text, or both refuse.
2. Random small templates over every construct that is covered: the same text as Jinja's, as transformers sets it up.
3. Ids and masks: the ids of apply_chat_template; the mask of {% generation %} blocks, and for other templates one found
   by searching the rendered text for what the assistant says.
The last line is "N passed, M failed".
"""

import argparse
import copy
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import warnings

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = ROOT / "build/tests/chat_probe"
TEMPLATES = ROOT / "tests/chat/templates"
TOKENIZERS = ROOT / "tests/goldens/tokenizers"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a <city> & its 'surroundings' – °C.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The \"city\""},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "array", "items": {"type": "integer"}},
                "detail": {"type": ["string", "null"]},
            },
            "required": ["city"],
        },
    },
}


def conversations():
    user = {"role": "user", "content": "  What is 2 + 2? \n"}
    answer = {"role": "assistant", "content": "\n Four. \n"}
    system = {"role": "system", "content": "You are brief."}
    more = [{"role": "user", "content": "Und auf Deutsch? 日本語も 🦜"}, {"role": "assistant", "content": "Vier. 四"}]
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "abcdefghi", "type": "function",
                        "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": [1, 2.5], "x": True, "y": None}}}],
    }
    text_call = json.loads(json.dumps(call))
    text_call["tool_calls"][0]["function"]["arguments"] = '{"city": "Köln"}'
    result = {"role": "tool", "content": '{"celsius": 21}', "tool_call_id": "abcdefghi"}
    think = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour."}
    reason = {"role": "assistant", "content": "Four.", "reasoning_content": "\nTwo and two.\n", "thinking": "hm"}
    parts = {"role": "user", "content": [{"type": "text", "text": " part one "}, {"type": "image"}, {"type": "text", "text": "part two"}]}
    yield "one turn", [user, answer], None, {}
    yield "system", [system, user, answer, *more], None, {}
    yield "two turns", [user, answer, *more], None, {}
    yield "two answers", [user, answer, answer], None, {}
    yield "question only", [user], None, {}
    yield "system only", [system], None, {}
    yield "empty answer", [user, {"role": "assistant", "content": ""}], None, {}
    yield "tool", [system, user, call, result, answer], [TOOL], {}
    yield "tool, text arguments", [user, text_call, result, result, answer], [TOOL, TOOL], {}
    yield "tool without list", [user, call, result, answer], None, {}
    yield "tools in the system's turn", [system, user, answer], [TOOL], {"tools_in_user_message": False}
    yield "builtin tools", [system, user, answer], None, {"builtin_tools": ["brave_search", "code_interpreter"]}
    yield "thinking", [user, think, more[0], think], None, {}
    yield "reasoning", [user, reason, more[0], reason], None, {"enable_thinking": False}
    yield "parts", [system, parts, answer], None, {}
    yield "unknown role", [user, {"role": "critic", "content": "no"}], None, {}
    yield "date", [user, answer], None, {"date_string": "01 Jan 2020", "reasoning_effort": "high"}
    yield "mark-up", [{"role": "user", "content": "{{ bos_token }} {% if %} <|im_end|> </s> \\n \"q\" 'q'"},
                      {"role": "assistant", "content": "a</think>b\t{# #}"}], None, {}


class Probe:
    def __init__(self):
        self.process = subprocess.Popen([PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **request):
        self.process.stdin.write(json.dumps({"special_tokens": SPECIAL, "now": int(time.time()), **request}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"chat_probe ended at {json.dumps(request)}")
        return json.loads(line)


class Score:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, good, name, *details):
        if good:
            self.passed += 1
            return
        self.failed += 1
        if self.failed < 30:
            print(f"FAILED {name}", *details, sep="\n    ")


def reference(template, messages, tools, variables, prompt):
    """The text, or an exception."""
    try:
        compiled = _compile_jinja_template(template)
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
        # A copy: Jinja's filter `indent` adds a newline to a list in place.
        return compiled.render(**copy.deepcopy({**SPECIAL, **given, **variables}))
    except Exception as error:  # whatever a template can throw
        return error


def render_published(probe, score):
    for path in sorted(TEMPLATES.glob("*.jinja")):
        template = path.read_text()
        for name, messages, tools, variables in conversations():
            for prompt in (False, True):
                want = reference(template, messages, tools, variables, prompt)
                got = probe(template=template, messages=messages, tools=tools, variables=variables, add_generation_prompt=prompt)
                label = f"{path.stem}: {name}, prompt {prompt}"
                if isinstance(want, Exception):
                    score.check("error" in got, label, f"wanted: {want!r}", f"got:    {got}")
                else:
                    score.check(got.get("text") == want, label, f"wanted: {want!r}", f"got:    {got}")


class RandomTemplate:
    """Templates over a few variables, from a grammar of what is covered. Many of them fail in both; that has to agree too."""

    NAMES = ["messages", "name", "number", "items", "d", "missing", "flag", "ns.a", "x", "z"]
    FILTERS = ["trim", "upper", "lower", "title", "capitalize", "length", "list", "first", "last", "string", "tojson", "join(', ')",
               "tojson(indent=2)", "default('n/a')", "replace('a', 'bb')", "reverse | list", "int", "items | list", "map('string') | list",
               "map(attribute='role') | list", "select('string') | list", "selectattr('role', 'equalto', 'user') | list", "sort",
               "unique | list", "dictsort", "indent(2, true)", "abs", "sum", "min", "max", "rejectattr('role', 'equalto', 'user') | list",
               "count", "tojson(separators=(',', ':'))", "default(none, true)", "trim('x ')", "map('upper') | join", "reject('none') | list"]
    TESTS = ["defined", "undefined", "none", "string", "number", "mapping", "iterable", "sequence", "boolean", "true", "false",
             "not none", "not string", "odd", "even", "equalto 'a'", "in ['a', 1]", "integer", "float", "divisibleby 2"]
    METHODS = [".strip()", ".split()", ".split(',')", ".split('a', 1)", ".startswith('a')", ".endswith(('a', 'b'))", ".upper()", ".items()",
               ".keys() | list", ".get('role')", ".get('nope', 3)", ".lstrip('\\n')", ".rstrip()", ".replace('a', '')", ".title()", ".find('e')",
               ".count('a')", ".isdigit()", ".rsplit(' ', 1)", ".splitlines()", ".index('a')", ".values() | list", ".isalpha()", ".join(['1', '2'])",
               ".removeprefix('a')", ".capitalize()"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, values):
        return self.random.choice(values)

    def expression(self, depth=0):
        r = self.random
        if depth > 3 or r.random() < 0.25:
            return self.pick(["'a'", "'b,a '", "\"it's\\n\"", "1", "-2", "3.5", "true", "none", "[]", "{'a': 1}", "[1, 2, 3]", "('a', 'b')",
                              "'日本 x'", "''", "0", "1e20", "'x' 'y'", *self.NAMES])
        e = lambda: self.expression(depth + 1)  # noqa: E731
        return self.pick([
            lambda: f"{e()} {self.pick(['+', '-', '*', '/', '//', '%', '~', '~', '+', '**'])} {e()}",
            lambda: f"({e()})",
            lambda: f"{e()} {self.pick(['==', '!=', '<', '>', '<=', '>=', 'in', 'not in'])} {e()}",
            lambda: f"{e()} {self.pick(['and', 'or'])} {e()}",
            lambda: f"(not {e()})",
            lambda: f"{e()} if {e()} else {e()}",
            lambda: f"{e()} if {e()}",
            lambda: f"({e()}) | {self.pick(self.FILTERS)}",
            lambda: f"{self.pick(self.NAMES)} | {self.pick(self.FILTERS)}",
            lambda: f"{e()} is {self.pick(self.TESTS)}",
            lambda: f"({e()}){self.pick(self.METHODS)}",
            lambda: f"{self.pick(self.NAMES)}{self.pick(self.METHODS)}",
            lambda: f"({e()})[{self.pick(['0', '-1', '5', ':2', '1:', '::-1', '-2:', chr(39) + 'role' + chr(39), '1:-1', '::2'])}]",
            lambda: f"messages[{self.pick(['0', '1', '-1'])}].{self.pick(['role', 'content', 'nope'])}",
            lambda: f"[{e()}, {e()}]",
            lambda: f"{{'k': {e()}, 'role': {e()}}}",
            lambda: f"range({self.pick(['3', '1, 4', '5, 0, -2'])}) | list",
            lambda: f"-{self.pick(['number', '2', '(1 + 2)'])}",
            lambda: f"{self.pick(['loop.index', 'loop.last', 'loop.first', 'loop.length', 'loop.previtem', 'loop.revindex0'])}",
            lambda: "m('p')",
        ])()

    def tag(self, inside):
        return self.pick(["{%", "{%-", "{%", "{%+"]) + f" {inside} " + self.pick(["%}", "-%}", "%}", "+%}"])

    def statements(self, depth=0):
        return "".join(self.statement(depth) for _ in range(self.random.randint(1, 4)))

    def statement(self, depth):
        body = lambda: self.statements(depth + 1) if depth < 3 else "z"  # noqa: E731
        t, e = self.tag, self.expression
        return self.pick([
            lambda: self.pick(["text", "\n", "  \n  ", " a\n", "\n\n  b ", "{ % }", "\t"]),
            lambda: self.pick(["{{", "{{-"]) + f" {e()} " + self.pick(["}}", "-}}"]),
            lambda: self.pick(["{{", "{{-"]) + f" {e()} " + self.pick(["}}", "-}}"]),
            lambda: self.pick(["{#", "{#-"]) + " note " + self.pick(["#}", "-#}"]),
            lambda: t(f"if {e()}") + body() + self.pick(["", t("else") + body(), t(f"elif {e()}") + body()]) + t("endif"),
            lambda: t(f"for x in {self.pick(['messages', 'items', e(), 'd', 'name'])}") + body() + self.pick(["", t("else") + body()]) + t("endfor"),
            lambda: t("for k, v in d.items()") + body() + "{{ k }}={{ v }}" + t("endfor"),
            lambda: t(f"for x in items if {e()}") + body() + self.pick(["", t("break"), t("if loop.first") + t("continue") + t("endif")]) + "." + t("endfor"),
            lambda: t(f"set {self.pick(['x', 'y', 'z', 'ns.a'])} = {e()}"),
            lambda: t("set y") + body() + t("endset") + "{{ y }}",
            lambda: t("set y | trim | upper") + body() + t("endset") + "{{ y }}",
        ])()

    def template(self):
        macro = "{% macro m(a, b='dflt') %}<{{ a }}{{ b }}{{ name }}>{% endmacro %}" if self.random.random() < 0.5 else ""
        return "{% set ns = namespace(a=1) %}" + macro + self.statements() + self.pick(["", "\n", "\n\n"])


VARIABLES = {"name": "a banana, \n x", "number": 7, "items": ["b", "a", "", "c c"], "d": {"role": "user", "a": 1, "list": [1, "two", None]}, "flag": True}
MESSAGES = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes\n"}, {"role": "user", "content": "?"}]


def render_random(probe, score, count):
    refused = printed = 0
    for seed in range(count):
        template = RandomTemplate(seed).template()
        want = reference(template, MESSAGES, None, VARIABLES, False)
        got = probe(template=template, messages=MESSAGES, variables=VARIABLES)
        label = f"random {seed}: {template!r}"
        if isinstance(want, Exception):
            score.check("error" in got, label, f"wanted: {want!r}", f"got:    {got}")
        elif "not covered" in got.get("error", ""):
            refused += 1
        else:
            printed += 1
            score.check(got.get("text") == want, label, f"wanted: {want!r}", f"got:    {got}")
    print(f"{count} random templates: {printed} printed alike, {refused} refused by name")
    score.check(printed > count // 5 and refused < printed // 4, "random templates that print")


def expected_mask(tokenizer, text, messages):
    """Tokens of what the assistant says, and those up to the special token behind it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids)
    mask = [0] * len(encoded["input_ids"])
    at = 0
    places = []
    for message in messages:
        content = message["content"].strip()
        begin = text.index(content, at)
        at = begin + len(content)
        places.append((message["role"], begin, at))
    for i, (role, begin, end) in enumerate(places):
        if role != "assistant":
            continue
        inside = [t for t, (b, e) in enumerate(encoded["offset_mapping"]) if b < end and e > begin]
        for t in inside:
            mask[t] = 1
        limit = places[i + 1][1] if i + 1 < len(places) else len(text)
        t = inside[-1] + 1
        while t < len(mask) and encoded["input_ids"][t] not in special and encoded["offset_mapping"][t][1] <= limit:
            t += 1
        if t < len(mask) and encoded["input_ids"][t] in special and encoded["offset_mapping"][t][1] <= limit:
            for u in range(inside[-1] + 1, t + 1):
                mask[u] = 1
    return mask


def encode(probe, score, folder):
    long = [{"role": r, "content": f"{r} says number {i}: naïve 🦜, 1 234!"} for i in range(6) for r in ("user", "assistant")]
    tight = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"},
             {"role": "assistant", "content": "<tag>a2</tag>"}]
    families = {"qwen2": ["chatml", "chatml_generation", "qwen2_5"], "mistral": ["mistral", "mistral_v3"], "tekken": ["mistral_v3"],
                "llama2": ["llama2", "olmo2"], "llama3": ["llama3", "llama3_1"], "gemma": ["gemma", "gemma3"],
                "deepseek3": ["deepseek_v3"], "phi3": ["phi3"], "glm4": ["glm4"], "gpt-oss": ["gpt_oss"], "olmo2": ["olmo2"]}
    for family, names in families.items():
        path = folder / family
        path.mkdir()
        (path / "tokenizer.json").write_text((TOKENIZERS / f"{family}.tokenizer.json").read_text())
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), **SPECIAL)
        added = [t["content"] for t in json.loads((path / "tokenizer.json").read_text())["added_tokens"] if t["special"]]
        # Only what the file itself calls special: the library would add what it is told of.
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"),
                                            extra_special_tokens=added)
        for name in names:
            template = (TEMPLATES / f"{name}.jinja").read_text()
            for label, messages in (("long", long), ("tight", tight)):
                got = probe(template=template, messages=messages, tokenizer=str(path))
                label = f"{family} with {name}: {label}"
                text = reference(template, messages, None, {}, False)
                if "error" in got:
                    score.check(False, label, got["error"])
                    continue
                if "{%- generation" in template:
                    out = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
                    ids, mask = out["input_ids"], out["assistant_masks"]
                else:
                    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                    mask = expected_mask(tokenizer, text, messages)
                score.check(got["ids"] == ids, label + " (ids)", f"wanted: {ids}", f"got:    {got['ids']}")
                score.check(got["predicted"] == mask, label + " (mask)", f"wanted: {mask}", f"got:    {got['predicted']}")
                score.check(0 < sum(mask) < len(mask), label + " (a mask that says something)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--random", type=int, default=20000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # about random templates
    probe, score = Probe(), Score()
    render_published(probe, score)
    render_random(probe, score, arguments.random)
    with tempfile.TemporaryDirectory() as folder:
        encode(probe, score, pathlib.Path(folder))
    print(f"{score.passed} passed, {score.failed} failed")
    sys.exit(score.failed > 0)


if __name__ == "__main__":
    main()
