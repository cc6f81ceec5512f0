#!/usr/bin/env python3
"""Writes tests/goldens/chat.json: what transformers makes of conversations with the templates of tests/chat/templates.

Run with the peers' Python (scripts/setup peers) from anywhere.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/parity"))
from chat_templates import SPECIAL, TEMPLATES, conversations, reference  # noqa: E402

NOT_TODAY = {"date_string": "26 Jul 2024"}  # gpt_oss and llama3_1 else print the date


def main():
    cases = []
    for path in sorted(TEMPLATES.glob("*.jinja")):
        template = path.read_text()
        if 'strftime_now("%Y' in template:
            continue
        for name, messages, tools, variables in conversations():
            variables = {**NOT_TODAY, **variables}
            want = reference(template, messages, tools, variables, name == "question only")
            cases.append({"template": path.name, "name": name, "messages": messages, "tools": tools, "variables": variables,
                          "prompt": name == "question only", "text": None if isinstance(want, Exception) else want})
    (ROOT / "tests/goldens/chat.json").write_text(
        json.dumps({"special_tokens": SPECIAL, "cases": cases}, ensure_ascii=False, indent=0) + "\n")


main()
