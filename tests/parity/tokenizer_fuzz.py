#!/usr/bin/env python3
"""Random tokenizers on random text: build/tests/tokenizer_probe against the `tokenizers` library.

Usage: tokenizer_fuzz.py [--seed N] [--count N] [--keep FOLDER]. The first seed is PARITY_SEED, or another one each time. Each of
the `count` tokenizers is trained by the library, then gets random normalizers, pre-tokenizers, model options, post-processors,
decoders and added tokens. Ids, offsets, decoded text and the written file must be equal. The last line is "N passed, M failed"; a
failure names its seed, with which --count 1 repeats it.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import time

os.environ["RUST_BACKTRACE"] = "0"  # the library panics at times, which is counted as no answer

from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/goldens"), str(ROOT / "tests/tokenizers")]
from make_tokenizer_goldens import TRAINING  # noqa: E402
from tokenizer_cases import ALPHABET, BYTES, DEEPSEEK3, LLAMA3, O200K, QWEN2, TEKKEN, adversarial_texts, decoded, invalid_bytes  # noqa: E402
from tokenizer_probe import Probe  # noqa: E402

SCRIPTS = [(0x41, 0x7B), (0x20, 0x30), (0xC0, 0x17F), (0x370, 0x400), (0x400, 0x460), (0x5D0, 0x5EB), (0x620, 0x650), (0x904, 0x94E),
           (0xE01, 0xE3B), (0x1100, 0x1113), (0x3041, 0x3097), (0x30A1, 0x30F7), (0x4E00, 0x4E60), (0xAC00, 0xAC80), (0x300, 0x330),
           (0x1F600, 0x1F620), (0xFB00, 0xFB07), (0x2460, 0x2474), (0x2000, 0x2030), (0x100, 0x300), (0xFF01, 0xFF5F), (0x1E00, 0x1EFF)]
MARKS = ["\u2581", "\u2581\u2581", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u00ad", "\u200b", "\ufffd", "\u0130", "\u01c5", "\u00df",
         "``", "''", "<s>", "</s>", "<unk>", "[MASK]", "<0x41>", "##", "_", "-", "--", "1", "42", "\u0663", "\u00bd", "don't", "n't", "Hello", "THE",
         "the", " the", "caf\u00e9", "cafe\u0301", "\ufb01", "\u2126", "\u1e69", "tok", "xx", "\x00", "\x07", "\x85", "a", "\u4e2d\u6587"]


def random_text(rng):
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choice(MARKS) for _ in range(rng.randrange(1, 25)))
    if kind < 0.5:
        return " ".join("".join(chr(rng.randrange(*rng.choice(SCRIPTS))) for _ in range(rng.randrange(1, 8))) for _ in range(rng.randrange(1, 12)))
    if kind < 0.75:
        text = rng.choice(TRAINING)
        begin = rng.randrange(len(text))
        return text[begin:begin + rng.randrange(1, 120)]
    return "".join(rng.choice([rng.choice(MARKS), chr(rng.randrange(*rng.choice(SCRIPTS)))]) for _ in range(rng.randrange(1, 40)))


def pattern(rng, empties):
    regexes = [LLAMA3, QWEN2, O200K, TEKKEN, DEEPSEEK3, r"\p{N}{1,3}", r"\s+", r"[aeiou]+", r" ?\p{L}+", r"\p{Lu}|\p{P}", r"[^\s]+", r"\p{M}", r"a|the|\d",
               r"[\u4e00-\u9fa5]+", r"\p{Han}", r" {2,}", r"\s(?=\S)", r"\p{S}+|\p{Sc}", r"\p{Ll}+(?!\p{N})", r"[\p{Lm}\p{Mn}\p{Cf}]", r"\p{Nd}", "\u2581"]
    strings = [" ", "\u2581", "a", "the", "-", "--", "  ", "e", "\n", "``", "\u0301", "."]
    if empties:
        regexes += [r"x*", r"\s*", r"(?=a)", r"a??"]
    return {"Regex": rng.choice(regexes)} if rng.random() < 0.5 else {"String": rng.choice(strings)}


def normalizer(rng, depth=0):
    kind = rng.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Prepend", "Replace", "BertNormalizer"] + ["Sequence"] * 4 * (depth == 0))
    flag = lambda: rng.random() < 0.5  # noqa: E731
    if kind == "Strip":
        return {"type": kind, "strip_left": flag(), "strip_right": flag()}
    if kind == "Prepend":
        return {"type": kind, "prepend": rng.choice(["\u2581", " ", "ab", "\u00e9x"])}
    if kind == "Replace":
        return {"type": kind, "pattern": pattern(rng, False), "content": rng.choice(["\u2581", " ", "", "xy", "\u00e9", "e"])}
    if kind == "BertNormalizer":
        return {"type": kind, "clean_text": flag(), "handle_chinese_chars": flag(), "strip_accents": rng.choice([None, True, False]), "lowercase": flag()}
    if kind == "Sequence":
        return {"type": kind, "normalizers": [normalizer(rng, 1) for _ in range(rng.randrange(0, 4))]}
    return {"type": kind}


BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def metaspace(rng):
    return {"type": "Metaspace", "replacement": rng.choice("\u2581\u2581\u2581_"), "prepend_scheme": rng.choice(["first", "always", "never"]), "split": rng.random() < 0.6}


def pre_tokenizer(rng, depth=0):
    kind = rng.choice(["Split", "Split", "Metaspace", "Metaspace", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "BertPreTokenizer",
                       "CharDelimiterSplit"] + ["Sequence"] * 5 * (depth == 0))
    if kind == "Split":
        return {"type": kind, "pattern": pattern(rng, True), "behavior": rng.choice(BEHAVIORS), "invert": rng.random() < 0.3}
    if kind == "Metaspace":
        return metaspace(rng)
    if kind == "Digits":
        return {"type": kind, "individual_digits": rng.random() < 0.5}
    if kind == "Punctuation":
        return {"type": kind, "behavior": rng.choice(BEHAVIORS)}
    if kind == "CharDelimiterSplit":
        return {"type": kind, "delimiter": rng.choice(" -e\u2581")}
    if kind == "Sequence":
        return {"type": kind, "pretokenizers": [pre_tokenizer(rng, 1) for _ in range(rng.randrange(0, 4))]}
    return {"type": kind}


def byte_level(rng):
    steps = [pre_tokenizer(rng, 1) for _ in range(rng.randrange(0, 3))]
    last = {"type": "ByteLevel", "add_prefix_space": rng.random() < 0.3, "trim_offsets": True, "use_regex": rng.random() < 0.5}
    return {"type": "Sequence", "pretokenizers": [*steps, last]} if steps else last


def decoder(rng, depth=0):
    kind = rng.choice(["ByteLevel", "Metaspace", "ByteFallback", "Fuse", "Replace", "Strip", "WordPiece"] + ["Sequence"] * 5 * (depth == 0))
    if kind == "ByteLevel":
        return {"type": kind, "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if kind == "Metaspace":
        return metaspace(rng)
    if kind == "Replace":
        return {"type": kind, "pattern": pattern(rng, False), "content": rng.choice([" ", "", "\u2581", "q"])}
    if kind == "Strip":
        return {"type": kind, "content": rng.choice(" \u2581a"), "start": rng.randrange(3), "stop": 0}
    if kind == "WordPiece":
        return {"type": kind, "prefix": rng.choice(["##", "a", "\u2581"]), "cleanup": rng.random() < 0.7}
    if kind == "Sequence":
        return {"type": kind, "decoders": [decoder(rng, 1) for _ in range(rng.randrange(0, 5))]}
    return {"type": kind}


def model(rng):
    """The library's JSON of a tokenizer whose model is trained, and whether it works on bytes."""
    texts = rng.sample(TRAINING, 6) + [random_text(rng) for _ in range(20)]
    size = rng.randrange(60, 500)
    kind = rng.choice(["bytes", "bpe", "bpe", "bpe", "unigram", "unigram", "wordpiece"])
    special = ["<unk>", "<s>", "</s>"]
    some_bytes = BYTES if rng.random() < 0.5 else rng.sample(BYTES, 200)
    with_bytes = rng.random() < 0.6
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE(ignore_merges=rng.random() < 0.3))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=256 + size, special_tokens=["<s>", "</s>"], initial_alphabet=ALPHABET, show_progress=False)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        split = rng.choice([pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit(), None, pre_tokenizers.Split("a", "merged_with_next")])
        if split:
            tokenizer.pre_tokenizer = split
        trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special + with_bytes * some_bytes, limit_alphabet=rng.choice([30, 60, 200]),
                                      max_token_length=rng.choice([None, 5]), show_progress=False)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = rng.choice([pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()])
        trainer = trainers.UnigramTrainer(vocab_size=size + 700, special_tokens=special + with_bytes * some_bytes, unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=rng.choice([5, 20, 100])))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, limit_alphabet=rng.choice([30, 100]),
                                            continuing_subword_prefix=rng.choice(["##", "##", "@"]), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    if kind == "bpe":
        data["model"] |= {"unk_token": rng.choice([None, "<unk>", "<unk>", "a" if "a" in data["model"]["vocab"] else None]), "fuse_unk": rng.random() < 0.5,
                          "byte_fallback": rng.random() < 0.7, "ignore_merges": rng.random() < 0.3}
    if kind == "unigram":
        data["model"] |= {"byte_fallback": rng.random() < 0.6, "unk_id": rng.choice([0, 0, 0, 5])}
        # Scores that are worth the same, and some of many digits.
        if rng.random() < 0.5:
            data["model"]["vocab"] = [[t, -float(rng.randrange(1, 6)) if rng.random() < 0.8 else -rng.random() * 10 ** rng.randrange(-7, 3)] for t, _ in data["model"]["vocab"]]
    return data, kind == "bytes"


def random_tokenizer(rng):
    data, on_bytes = model(rng)
    data["normalizer"] = normalizer(rng) if rng.random() < 0.6 else None
    data["pre_tokenizer"] = byte_level(rng) if on_bytes else pre_tokenizer(rng) if rng.random() < 0.8 else None
    data["decoder"] = decoder(rng) if rng.random() < 0.9 else None
    ids = {"<s>": 1, "</s>": 2}
    if isinstance(data["model"]["vocab"], dict):
        ids = {t: data["model"]["vocab"][t] for t in ids}
    steps = []
    trim = {"add_prefix_space": rng.random() < 0.5, "trim_offsets": rng.random() < 0.7}
    if rng.random() < 0.5:
        steps.append({"type": "ByteLevel", **trim, "use_regex": True})
    if rng.random() < 0.5:
        around = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
        steps.append({"type": "TemplateProcessing", "single": around[rng.randrange(2):rng.choice([2, 3])], "pair": around + [{"Sequence": {"id": "B", "type_id": 1}}],
                      "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()}})
    elif rng.random() < 0.3:
        steps.append({"type": "BertProcessing", "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]]})
    elif rng.random() < 0.3:
        steps.append({"type": "RobertaProcessing", "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]], **trim})
    data["post_processor"] = None if not steps else steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}
    next_id = len(data["model"]["vocab"])
    for content in rng.sample(MARKS + ["Hello man", " a", "b ", "\u00c9", "<table>"], rng.randrange(0, 6)):
        known = [t for t in data["added_tokens"] if t["content"] == content]
        vocab = data["model"]["vocab"]
        found = vocab.get(content) if isinstance(vocab, dict) else next((i for i in range(len(vocab) - 1, -1, -1) if vocab[i][0] == content), None)
        if known:
            continue
        flags = {f: rng.random() < 0.3 for f in ("single_word", "lstrip", "rstrip")} | {f: rng.random() < 0.5 for f in ("normalized", "special")}
        data["added_tokens"].append({"id": next_id if found is None else found, "content": content, **flags})
        next_id += found is None
    data["added_tokens"].sort(key=lambda t: t["id"])
    return data


def as_rust_reads(data):
    """None if the library does not read it."""
    try:
        return Tokenizer.from_str(json.dumps(data))
    except BaseException as error:  # its panics are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def compare(probe, data, peer, rng, texts):
    """What differs, or None."""
    text = json.dumps(data)
    loaded = probe.ask(load=text)
    if "error" in loaded:
        # Added tokens that the normalizer makes nothing of, or the same of two, have no meaning that could be kept.
        return None if "nothing is left of" in loaded["error"] else f"refused: {loaded['error']}"
    cases = rng.sample(texts, 12) + [random_text(rng) for _ in range(40)]
    answers = probe.ask(encode=[c.encode().hex() if isinstance(c, str) else c.hex() for c in cases])
    sequences = [[rng.randrange(peer.get_vocab_size()) for _ in range(rng.randrange(1, 30))] for _ in range(20)]
    for case, got in zip(cases, answers):
        case = decoded(case) if isinstance(case, bytes) else case
        try:
            peer.encode_special_tokens = False
            want = peer.encode(case)
            peer.encode_special_tokens = True
            plain = peer.encode(case, add_special_tokens=False).ids
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # A panic is a defect of the library's: there is nothing to compare with.
            if "error" not in got and isinstance(error, Exception):
                return f"{case!r}: the library fails: {error}"
            continue
        if "error" in got:
            return f"{case!r}: {got['error']}"
        if got["ids"] != want.ids:
            return f"{case!r}: ids {got['ids']} for {want.ids} {want.tokens}"
        offsets = [x for pair in want.offsets for x in pair]
        if got["offsets"] != offsets:
            return f"{case!r}: offsets {got['offsets']} for {offsets} {want.tokens}"
        if got["plain"] != plain:
            return f"{case!r}: plain {got['plain']} for {plain}"
        sequences.append(want.ids)
    peer.encode_special_tokens = False
    for ids, got in zip(sequences, probe.ask(decode=sequences)):
        for skip, shown in zip((True, False), got):
            try:
                want = peer.decode(ids, skip_special_tokens=skip)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                continue
            if shown != want:
                return f"decode {ids} {skip}: {shown!r} for {want!r}"
    written = probe.ask(json=True)["json"]
    wanted = peer.to_str(pretty=True)
    if data["model"]["type"] == "Unigram":  # the library rounds scores where it reads them
        written_lines, wanted_lines = ([line for line in t.split("\n") if not line.startswith(" " * 8 + "-")] for t in (written, wanted))
        same = written_lines == wanted_lines
    else:
        same = written == wanted
    if not same:
        return f"written otherwise: {written[:2000]}"
    if probe.ask(load=written).get("error") or probe.ask(json=True)["json"] != written:
        return "what is written reads otherwise"
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(os.environ.get("PARITY_SEED", time.time_ns() % 1_000_000)))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--keep", help="folder for the files of failures")
    arguments = parser.parse_args()
    probe = Probe()
    texts = [t for t in adversarial_texts() if len(t) <= 400] + invalid_bytes()
    passed = failed = unread = split = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        rng = random.Random(seed)
        data = random_tokenizer(rng)
        peer = as_rust_reads(data)
        if peer is None:
            unread += 1
            continue
        difference = compare(probe, data, peer, rng, texts)
        if difference is None:
            passed += 1
            split += probe.ask(load=json.dumps(data)).get("splittable", False)
            continue
        failed += 1
        print(f"FAILED seed {seed}: {difference[:1500]}", flush=True)
        summary = {k: data[k] for k in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens")}
        print("   ", json.dumps(summary | {"model": {k: v for k, v in data["model"].items() if k not in ("vocab", "merges")}}, ensure_ascii=True)[:2500], flush=True)
        if arguments.keep:
            (pathlib.Path(arguments.keep) / f"seed-{seed}.json").write_text(json.dumps(data))
    probe.close()
    print(f"{arguments.count} tokenizers from seed {arguments.seed}: the library does not read {unread}; {split} of the others split text")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
