#!/usr/bin/env python3
"""Compares build/trireme's tokenizers with the `tokenizers` library: ids and offsets of every file of the default corpus
(Python sources of this machine) and of adversarial texts, vocabularies and merges of training, and what transformers loads.

Usage: tokenizers.py [PROGRAM] [--quick]. Needs the packages tokenizers and transformers; installs nothing.
The last line is "N passed, M failed".
"""

import sys

sys.path = [p for p in sys.path if not p.endswith("tests/parity")]  # this file's name is the package's name

import argparse
import json
import pathlib
import random
import subprocess
import sysconfig
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
# Not one of the three: runs through the regular-expression engine.
CUSTOM = r"[A-Za-z]+|\p{N}{1,2}|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+|\p{L}"

passed = failed = 0


def check(name, good, detail=""):
    global passed, failed
    if good:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {name} {detail}")


def corpus_files():
    folders = [pathlib.Path(sysconfig.get_paths()["stdlib"])]
    folders += sorted((ROOT / ".deps").glob("venv/lib/python3*/site-packages/torch"))
    files = sorted({f for folder in folders for f in folder.rglob("*.py") if f.is_file()})
    return files


def adversarial_texts():
    rng = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    texts = [
        "", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r\n\r\n  x", " \u00a0 \u3000x", "\u180e", "a\u180eb", "\x85x",
        "a", "a b", " a", "a ", "a  ", "a  b", "a   b\n\n  c\n", "don't DON'T don\u2019t we'll WE'LL i'\u017f 'S's 'Re 'vE'LL'd",
        "'' ''s 's's '", "x=1234567890;y=12 345 6", "\u0661\u0662\u0663\u0664\u0665 \u00bd\u00b2\u2167", "!!!\n\n???\r\n  ...", "  !a !!b",
        "emoji \U0001F600\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466 \U0001F1E9\U0001F1EA\U0001F3F3\ufe0f\u200d\U0001F308",
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab\u1100\u1173\u11af\u11a7 \uac00\u11a8\uac00\u11a7",
        "e\u0301 e\u0323\u0301 e\u0301\u0323 a\u0308\u0304 \u0041\u030a \u212b \u00c5", "\u0301\u0301x", "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324a\u0320l\u0321g\u0322o",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0915\u093c \u0958 \u09af\u09bc", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \ufb2c \u0627\u0644\u0633\u0644\u0627\u0645", "\ufb01\u01c4 \ufffd \ufeffbom \u0000nul",
        "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|", "<|endoftext|><|endoftext|>", "<|pad|>  <|pad|> x <|pad|>\n\n",
        "  <mask>  \n<mask>x x<mask> <mask>", "word <w> a<w> <w>b <w>", "caf\u00e9 cafe\u0301 normcafe\u0301tok", "tool_call tool_calls tool",
        "\U00010900\U0001D400\U000E0001\U0010FFFF\uffff\ue000", "a" * 5000, " " * 5000, "\n" * 3000 + " " * 3000, "ab" * 3000 + " ",
        "\u00e9" * 2000, "\U0001F600" * 1500, "1" * 1000, "." * 1000 + "\n" * 1000, "'" * 300 + "s" * 3, "x" + " " * 200 + "y" + "\t" * 50 + "z",
    ]
    for _ in range(300):  # any code point
        texts.append("".join(chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
                             for _ in range(rng.randrange(1, 60))))
    marks = [c for c in range(0x300, 0x370)] + [0x323, 0x327, 0x328, 0x93C, 0x3099, 0x309A, 0x1161, 0x11A8, 0x11A7, 0x345, 0x5B8, 0x64B, 0x653]
    bases = [ord(c) for c in "aeiouAEIOUnsyzx 1!\n"] + [0x3B1, 0x3C9, 0x415, 0x1100, 0xAC00, 0xAC01, 0x304B, 0x30CF, 0x928, 0x627, 0x212B, 0x1E9B, 0xFB2C, 0x2126]
    for _ in range(400):  # combining marks in every order
        texts.append("".join(chr(rng.choice(rng.choice([marks, bases]))) for _ in range(rng.randrange(1, 40))))
    pieces = ["'s", "'T", " ", "  ", "\n", "\r\n", "\t", "a", "Zx", "\u00e9", "\u4e2d", "7", "42", "1000", ".", "--", "_", "<|endoftext|>", "<mask>",
              "<w>", "tool_call", "\u00a0", "\u2003", "\u0301", "\U0001F600", "\u200d", "cafe\u0301tok", "<|pad|>", "\u017f", "'"]
    for _ in range(800):
        texts.append("".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40))))
    for _ in range(20):
        texts.append("".join(rng.choice(letters + "   \n.,()_'") for _ in range(20000)))
    return texts


def invalid_bytes():
    rng = random.Random(11)
    cases = [b"\xff", b"\xc3", b"a\xc3 b", b"\xe2\x82 x", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
             b"\xe2\x28\xa1", b"ok \x80\x81 \xfe\xff ok", b"\xf0\x80\x80\x80", b"\xe0\x80\xaf", b"\xc3\xa9\xc3", b"\xf0\x9f\x98\x80\xf0\x9f"]
    for _ in range(200):
        cases.append(bytes(rng.choice([rng.randrange(256), rng.randrange(0x20, 0x7F), 0xE2, 0x82, 0xF0, 0x9F]) for _ in range(rng.randrange(1, 80))))
    return cases


ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def train_peer(kind, texts, vocab_size, pattern=None):
    """The library's tokenizer of one of the three families, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        special = ["<|endoftext|>"]
    else:
        regex = pattern or (LLAMA3 if kind == "llama3" else QWEN2)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(regex), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
        special = ["<|begin_of_text|>", "<|end_of_text|>"] if kind == "llama3" else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        if kind == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=ALPHABET, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def variants(texts):
    """Name and tokenizer: the three families as people use them, and the options beside."""
    gpt2 = train_peer("gpt2", texts, 4000)
    yield "gpt2", gpt2
    llama3 = train_peer("llama3", texts, 4000)
    bos = llama3.token_to_id("<|begin_of_text|>")
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", bos)]),
    ])
    yield "llama3", llama3
    qwen2 = train_peer("qwen2", texts, 4000)
    qwen2.add_tokens([AddedToken("tool_call", normalized=True), AddedToken("normcaf\u00e9tok", normalized=True)])
    yield "qwen2", qwen2
    added = Tokenizer.from_str(gpt2.to_str())
    added.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    added.post_processor = processors.ByteLevel(trim_offsets=True)
    added.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True), AddedToken("<|pad|>", rstrip=True, special=True)])
    added.add_tokens([AddedToken("<w>", single_word=True), AddedToken("tool_call"), AddedToken("tool_calls"), AddedToken("caf\u00e9"),
                      AddedToken("a b", normalized=False)])
    yield "added", added
    trimmed = Tokenizer.from_str(qwen2.to_str())
    trimmed.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    trimmed.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trimmed.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=True, special=True)])
    yield "digits", trimmed
    custom = train_peer("llama3", texts, 3000, CUSTOM)
    yield "custom", custom
    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    small.decoder = decoders.ByteLevel()
    small.train_from_iterator(["abc abd abc"], trainers.BpeTrainer(vocab_size=20, show_progress=False))
    yield "few-bytes", small


def run(program, *arguments):
    result = subprocess.run([program, *map(str, arguments)], capture_output=True)
    if result.returncode != 0:
        raise SystemExit(f"{arguments}: {result.returncode}: {result.stderr.decode()}")
    return result.stdout


def encode(program, tokenizer, files, *flags):
    out = json.loads(run(program, "tokenize", "encode", "--json", "--tokenizer", tokenizer, *flags, *files))
    return out if isinstance(out, list) else [out]


def compare(name, got, want, with_offsets=True):
    same = got["ids"] == want.ids
    detail = ""
    if not same:
        at = next((i for i, (a, b) in enumerate(zip(got["ids"], want.ids)) if a != b), min(len(got["ids"]), len(want.ids)))
        detail = f"ids differ at {at}: {got['ids'][at:at + 5]} for {want.ids[at:at + 5]} {want.tokens[at:at + 5]}"
    elif with_offsets:
        offsets = [list(o) for o in want.offsets]
        same = got["offsets"] == offsets
        if not same:
            at = next(i for i, (a, b) in enumerate(zip(got["offsets"], offsets)) if a != b)
            detail = f"offsets differ at {at}: {got['offsets'][at:at + 5]} for {offsets[at:at + 5]} {want.tokens[at:at + 5]}"
    check(name, same, detail)


def decoded(data):
    return data.decode("utf-8", errors="replace")


def check_variant(program, folder, name, peer, files, texts):
    path = folder / f"{name}.json"
    peer.save(str(path))
    # Every file of the corpus, in one run each 200.
    for begin in range(0, len(files), 200):
        group = files[begin:begin + 200]
        results = encode(program, path, group)
        wanted = peer.encode_batch([decoded(f.read_bytes()) for f in group])
        check(f"{name}: number of objects", len(results) == len(group))
        for file, got, want in zip(group, results, wanted):
            compare(f"{name}: {file}", got, want)
    # Adversarial texts: a file each, in few runs.
    cases = [t.encode("utf-8", errors="surrogatepass") for t in texts] + invalid_bytes()
    cases = [c for c in cases]
    paths = []
    for i, case in enumerate(cases):
        paths.append(folder / f"case-{i}.txt")
        paths[-1].write_bytes(case)
    for flags, specials in (([], True), (["--no-special"], False)):
        for begin in range(0, len(paths), 500):
            group = paths[begin:begin + 500]
            for file, got in zip(group, encode(program, path, group, *flags)):
                text = decoded(file.read_bytes())
                compare(f"{name} {flags}: {text[:60]!r}", got, peer.encode(text, add_special_tokens=specials))
    # --plain: special tokens are text.
    peer.encode_special_tokens = True
    for file, got in zip(paths[:80], encode(program, path, paths[:80], "--plain")):
        text = decoded(file.read_bytes())
        compare(f"{name} --plain: {text[:60]!r}", got, peer.encode(text))
    peer.encode_special_tokens = False
    # Lines.
    lines = [t.replace("\n", " ") for t in texts if t] + ["last"]
    line_file = folder / "lines.txt"
    line_file.write_bytes("\n".join(lines).encode())
    results = encode(program, path, [line_file], "--lines")
    check(f"{name}: number of lines", len(results) == len(lines), f"{len(results)} for {len(lines)}")
    for line, got in zip(lines, results):
        compare(f"{name} --lines: {line[:60]!r}", got, peer.encode(line))
    # Decoding, of texts and of ids without sense.
    rng = random.Random(3)
    sequences = [peer.encode(t).ids for t in texts[:200]]
    sequences += [[rng.randrange(peer.get_vocab_size()) for _ in range(rng.randrange(1, 40))] for _ in range(300)]
    sequences = [s for s in sequences if s]
    id_file = folder / "ids.json"
    id_file.write_text("\n".join(json.dumps(s) for s in sequences))
    for flags, skip in (([], True), (["--keep-special"], False)):
        out = json.loads(run(program, "tokenize", "decode", "--json", "--tokenizer", path, id_file, *flags))["texts"]
        for ids, got in zip(sequences, out):
            want = peer.decode(ids, skip_special_tokens=skip)
            check(f"{name}: decode {flags} {ids[:10]}", got == want, f"{got[:80]!r} for {want[:80]!r}")


def check_long(program, folder, name, peer):
    path = folder / f"{name}.json"
    rng = random.Random(5)
    word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz\u00e9\u4e2d") for _ in range(1000))
    long_texts = {
        "10 MB of one letter": "a" * 10_000_000,
        "10 MB without a space": word * 10_000,
        "10 MB of spaces": " " * 10_000_000,
        "10 MB of dots": "." * 10_000_000,
    }
    for title, text in long_texts.items():
        file = folder / "long.txt"
        file.write_text(text)
        compare(f"{name}: {title}", encode(program, path, [file])[0], peer.encode(text))


def check_training(program, folder, files):
    texts = [decoded(f.read_bytes()) for f in files]
    for pattern, kind in (("gpt2", "gpt2"), ("llama3", "llama3"), ("qwen2", "qwen2")):
        special = {"gpt2": ["<|endoftext|>"], "llama3": ["<|begin_of_text|>", "<|end_of_text|>"],
                   "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}[kind]
        peer = train_peer(kind, texts, 6000)
        for threads in (1, 3):
            out = folder / f"trained-{pattern}.json"
            run(program, "tokenize", "train", "--quiet", *files, "--out", out, "--vocab-size", 6000, "--pattern", pattern,
                "--special", ",".join(special), "--threads", threads)
            ours = json.loads(out.read_text())["model"]
            theirs = json.loads(peer.to_str())["model"]
            check(f"training {pattern}, {threads} threads: vocabulary", ours["vocab"] == theirs["vocab"])
            check(f"training {pattern}, {threads} threads: merges", ours["merges"] == theirs["merges"])
        loaded = Tokenizer.from_file(str(out))
        for text in texts[:20]:
            check(f"training {pattern}: the library loads what we write", loaded.encode(text).ids == peer.encode(text).ids)


def check_transformers(program, folder):
    """transformers loads our tokenizer.json, also that of bytes, as it is."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "trained-gpt2.json"))
    text = "def f(x):\n    return x  # na\u00efve \U0001F600\n"
    file = folder / "transformers.txt"
    file.write_text(text)
    got = encode(program, folder / "trained-gpt2.json", [file])[0]["ids"]
    check("transformers: ids", tokenizer(text)["input_ids"] == got)
    check("transformers: decode", tokenizer.decode(got) == text)


def check_byte_tokenizer(program, folder):
    for case in invalid_bytes() + [t.encode() for t in adversarial_texts()[:80] if "<|endoftext|>" not in t]:
        file = folder / "bytes.txt"
        file.write_bytes(case)
        got = encode(program, "bytes", [file])[0]
        check(f"bytes: {case[:40]!r}", got["ids"] == list(case))
        text = decoded(case)
        check(f"bytes: offsets of {case[:40]!r}", (max((o[1] for o in got["offsets"]), default=0)) == len(text), f"{len(text)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?", default=str(ROOT / "build/trireme"))
    parser.add_argument("--quick", action="store_true", help="every tenth file of the corpus, no 10 MB texts")
    arguments = parser.parse_args()
    program = arguments.program
    files = corpus_files()
    if arguments.quick:
        files = files[::10]
    print(f"{len(files)} files of the corpus")
    training_files = files[:: max(1, len(files) // 300)]
    training = [decoded(f.read_bytes()) for f in training_files]
    training += ["\u4f60\u597d \u4e16\u754c caf\u00e9 na\u00efve \U0001F600 \ud55c\uad6d\uc5b4 \u041f\u0440\u0438\u0432\u0435\u0442 " * 20]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        check_training(program, folder, training_files)
        check_transformers(program, folder)
        check_byte_tokenizer(program, folder)
        texts = adversarial_texts()
        for variant, peer in variants(training):
            before = failed
            check_variant(program, folder, variant, peer, files if variant in ("gpt2", "llama3", "qwen2") else files[::20], texts)
            if variant in ("gpt2", "llama3", "qwen2") and not arguments.quick:
                check_long(program, folder, variant, peer)
            print(f"{variant}: {'equal' if failed == before else 'DIFFERENT'}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
