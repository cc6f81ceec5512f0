#!/usr/bin/env python3
"""Writes conversations to learn from: make_conversations.py FILE.jsonl [COUNT]. The same ones every time."""

import json
import pathlib
import random
import sys


def conversation(rng):
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": "Answer with the result alone."})
    for _ in range(rng.randint(1, 3)):
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        sign, result = rng.choice([("+", a + b), ("-", a - b)])
        messages.append({"role": "user", "content": f"What is {a} {sign} {b}?"})
        messages.append({"role": "assistant", "content": str(result)})
    return messages


def main():
    path = pathlib.Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    rng = random.Random(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for _ in range(count):
            file.write(json.dumps({"messages": conversation(rng)}) + "\n")


main()
