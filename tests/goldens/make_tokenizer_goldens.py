#!/usr/bin/env python3
"""Writes tests/goldens/tokenizers/: small tokenizers trained by the `tokenizers` library, and its ids and offsets of texts.

<name>.tokenizer.json is a tokenizer; <name>.cases.json is a list of {hex, ids, offsets, plain, decoded}: the text's bytes; ids
and offsets with the post-processor's tokens; ids where special tokens are text; what the ids decode to.
training.json is {texts, vocab, merges} per pattern. Needs the `tokenizers` package.
"""

import json
import pathlib
import random

from tokenizer_cases import adversarial_texts, decoded, families, invalid_bytes, train_peer, variants

OLDER = {"gpt2", "llama3", "qwen2", "added", "digits", "custom", "few-bytes"}
TRAINING = [
    "def tokenize(self, text):\n    \"\"\"Don't cut words; they're whole.\"\"\"\n    return [t for t in text.split() if t]\n\n",
    "The quick brown fox jumps over the lazy dog. It wasn't 1999, it was 2024!  We'll see...\n\nThe fox, the dog; the end.\n",
    "class Tokenizer:\n    def __init__(self, vocab_size=1000):\n        self.vocab_size = vocab_size\n        self.tokens = {}\n",
    "\u4f60\u597d\u4e16\u754c \u4f60\u597d \u4e16\u754c caf\u00e9 caf\u00e9s cafe\u0301 na\u00efve \U0001F600\U0001F600 \ud55c\uad6d\uc5b4 \ud55c\uad6d \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u041f\u0440\u0438\u0432\u0435\u0442\n",
    "x = 12345 + 67890\ny = x * 100\nfor i in range(100):\n\tprint(i, x, y)\n",
] * 2


def main():
    folder = pathlib.Path(__file__).resolve().parent / "tokenizers"
    folder.mkdir(exist_ok=True)
    rng = random.Random(23)
    texts = adversarial_texts()
    # All hand-written cases (long ones cut short) and a sample of the random ones.
    written = [t for t in texts[:60] if len(t) <= 300]
    sampled = rng.sample([t for t in texts[60:] if len(t) <= 300], 60)
    cases = [t.encode() for t in written + sampled + TRAINING[:5]] + invalid_bytes()[:40]
    for name, peer in [*variants(TRAINING, 440), *families(TRAINING, 560)]:
        path = folder / f"{name}.tokenizer.json"
        path.write_text(json.dumps(json.loads(peer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
        rows = []
        # The older ones keep the cases that they always had.
        for case in cases if name in OLDER else cases[::2]:
            text = decoded(case)
            peer.encode_special_tokens = False
            encoding = peer.encode(text)
            peer.encode_special_tokens = True
            plain = peer.encode(text, add_special_tokens=False).ids
            row = {"hex": case.hex(), "ids": encoding.ids, "offsets": [x for pair in encoding.offsets for x in pair]}
            row |= {"plain": plain, "decoded": peer.decode(encoding.ids, skip_special_tokens=True)}
            rows.append(json.dumps(row, separators=(",", ":")))
        (folder / f"{name}.cases.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
    training = {"texts": TRAINING}
    for kind in ("gpt2", "llama3", "qwen2"):
        model = json.loads(train_peer(kind, TRAINING, 440).to_str())["model"]
        training[kind] = {"vocab": sorted(model["vocab"], key=model["vocab"].get), "merges": model["merges"]}
    (folder / "training.json").write_text(json.dumps(training, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
