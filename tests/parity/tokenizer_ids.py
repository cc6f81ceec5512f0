#!/usr/bin/env python3
"""Compares build/trireme's tokenizers with the `tokenizers` library: ids and offsets of every file of the default corpus
(Python sources of this machine) and of adversarial texts, vocabularies and merges of training, and what transformers loads.

Usage: tokenizer_ids.py [PROGRAM] [--quick]. Needs the packages tokenizers and transformers; installs nothing.
The last line is "N passed, M failed".
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import sysconfig
import tempfile

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/goldens"))
from tokenizer_cases import adversarial_texts, decoded, invalid_bytes, train_peer, variants  # noqa: E402

passed = failed = 0


def check(name, good, detail=""):
    global passed, failed
    if good:
        passed += 1
    else:
        failed += 1
        print(f"FAILED {name} {detail}")


def corpus_files():
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = {f for f in library.rglob("*.py") if not {"site-packages", "dist-packages"} & set(f.parts)}
    for folder in (ROOT / ".deps").glob("venv/lib/python3*/site-packages/torch"):
        files |= set(folder.rglob("*.py"))
    return sorted(f for f in files if f.is_file())


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


def check_variant(program, folder, name, peer, files, texts):
    path = folder / f"{name}.json"
    peer.save(str(path))
    # Ids of every file of the corpus; offsets too (as JSON, which takes long to read) of some.
    for begin in range(0, len(files), 200):
        group = files[begin:begin + 200]
        lines = run(program, "tokenize", "encode", "--tokenizer", path, *group).decode().splitlines()
        check(f"{name}: number of results", len(lines) == len(group))
        wanted = peer.encode_batch([decoded(f.read_bytes()) for f in group])
        for file, line, want in zip(group, lines, wanted):
            compare(f"{name}: {file}", {"ids": [int(i) for i in line.split()]}, want, with_offsets=False)
        for file, want, got in zip(group[::12], wanted[::12], encode(program, path, group[::12])):
            compare(f"{name}: {file}", got, want)
    # Adversarial texts: a file each, in few runs.
    cases = [t.encode() for t in texts] + invalid_bytes()
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
        if name != "gpt2" and title != "10 MB without a space":
            continue  # the library takes ten seconds for each
        file = folder / "long.txt"
        file.write_text(text)
        ids = [int(i) for i in run(program, "tokenize", "encode", "--tokenizer", path, file).split()]
        compare(f"{name}: {title}", {"ids": ids}, peer.encode(text), with_offsets=False)


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
    parser.add_argument("program", nargs="?", default=os.environ.get("TRIREME", str(ROOT / "build/trireme")))
    parser.add_argument("--quick", action="store_true", help="every tenth file of the corpus, no 10 MB texts")
    arguments = parser.parse_args()
    program = arguments.program
    files = corpus_files()
    if arguments.quick:
        files = files[::10]
    print(f"{len(files)} files of the corpus", flush=True)
    training_files = files[:: max(1, len(files) // 300)]
    training = [decoded(f.read_bytes()) for f in training_files]
    training += ["\u4f60\u597d \u4e16\u754c caf\u00e9 na\u00efve \U0001F600 \ud55c\uad6d\uc5b4 \u041f\u0440\u0438\u0432\u0435\u0442 " * 20]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        check_training(program, folder, training_files)
        check_transformers(program, folder)
        check_byte_tokenizer(program, folder)
        texts = adversarial_texts()
        for variant, peer in variants(training, 4000):
            before = failed
            check_variant(program, folder, variant, peer, files if variant in ("gpt2", "llama3", "qwen2") else files[::20], texts)
            if variant in ("gpt2", "llama3", "qwen2") and not arguments.quick:
                check_long(program, folder, variant, peer)
            print(f"{variant}: {'equal' if failed == before else 'DIFFERENT'}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
