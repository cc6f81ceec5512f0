#!/usr/bin/env python3
"""Every family's tokenizer on a mix of text: build/tests/tokenizer_probe against the `tokenizers` library.

Usage: tokenizer_families.py [--megabytes N] [--quick] [--offsets-only] [--everything] [--only NAME ...]. The library trains a tokenizer with each family's real
component settings on a sample of the mix; then ids of all of it are compared, and offsets and decoded text of an eighth, another one
for the next family. The last line is "N passed, M failed".
"""

import argparse
import array
import collections
import itertools
import pathlib
import random
import sys
import tempfile
import time

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/goldens"), str(ROOT / "tests/tokenizers")]
from text_mix import mixed_texts, training_texts  # noqa: E402
from tokenizer_cases import decoded, families, variants  # noqa: E402
from tokenizer_probe import Probe  # noqa: E402


def batches(texts, size=3_000_000):
    batch, total = [], 0
    for text in texts:
        batch.append(text)
        total += len(text[1])
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def first_difference(got, want):
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    return f"at {at}: {got[at:at + 6]} for {want[at:at + 6]}"


def results(probe, batch, folder, offsets):
    """What the probe gives for each text: ids, or ids, offsets and decoded text."""
    (folder / "texts").write_bytes(b"".join(data for _, data in batch))
    answer = probe.ask(ids=str(folder / "texts"), lengths=[len(data) for _, data in batch], repeat=0, write=str(folder / "ids"), offsets=offsets)
    if "error" in answer:
        raise SystemExit(answer["error"])
    numbers = array.array("i", (folder / "ids").read_bytes())
    at = 0
    for _ in batch:
        count = numbers[at]
        ids = numbers[at + 1:at + 1 + count].tolist()
        at += 1 + count
        if not offsets:
            yield ids
            continue
        ranges = numbers[at:at + 2 * count].tolist()
        at += 2 * count
        size = numbers[at]
        text = numbers[at + 1:at + 1 + (size + 3) // 4].tobytes()[:size].decode()
        at += 1 + (size + 3) // 4
        yield ids, ranges, text


def compare(name, peer, probe, texts, part, folder):
    """Failures, and bytes whose ids, and whose offsets and decoded text, were compared."""
    failures = []
    # Read back: the library rounds a Unigram's scores where it reads them.
    peer.save(str(folder / "tokenizer.json"))
    peer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = probe.ask(path=str(folder / "tokenizer.json"))
    if "error" in loaded:
        return [f"{name}: {loaded['error']}"], 0, 0
    for batch in batches(texts):
        wanted = peer.encode_batch_fast([decoded(data) for _, data in batch], add_special_tokens=False)
        for (kind, data), got, want in zip(batch, results(probe, batch, folder, False), wanted):
            if got != want.ids:
                failures.append(f"{name}: ids of {kind} {data[:60]!r} {first_difference(got, want.ids)}")
    for batch in batches(part):
        wanted = peer.encode_batch([decoded(data) for _, data in batch], add_special_tokens=False)
        shown = peer.decode_batch([want.ids for want in wanted])
        for (kind, data), (ids, ranges, text), want, wanted_text in zip(batch, results(probe, batch, folder, True), wanted, shown):
            offsets = [x for pair in want.offsets for x in pair]
            if ids != want.ids or ranges != offsets:
                failures.append(f"{name}: offsets of {kind} {data[:60]!r} {first_difference(ranges, offsets)}")
            elif text != wanted_text:
                failures.append(f"{name}: decoded text of {kind} {data[:60]!r}")
    return failures, sum(len(d) for _, d in texts), sum(len(d) for _, d in part)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=104)
    parser.add_argument("--quick", action="store_true", help="4 MB")
    parser.add_argument("--offsets-only", action="store_true", help="no ids of the rest")
    parser.add_argument("--everything", action="store_true", help="offsets and decoded text of all of it")
    parser.add_argument("--only", nargs="*", help="families by name")
    arguments = parser.parse_args()
    texts = list(mixed_texts(4 if arguments.quick else arguments.megabytes))
    kinds = collections.Counter()
    for kind, data in texts:
        kinds[kind] += len(data)
    print(f"{len(texts)} texts, {sum(kinds.values()) / 1e6:.1f} MB: " + ", ".join(f"{k} {v / 1e6:.1f}" for k, v in kinds.items()), flush=True)
    rng = random.Random(31)
    rng.shuffle(texts)
    training = training_texts(texts, rng, 0.5 if arguments.quick else 2)
    probe = Probe()
    passed = failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        known = {"gpt2", "llama3", "qwen2"}
        peers = itertools.chain(((n, p) for n, p in variants(training, 6000) if n in known), families(training, 6000))
        for i, (name, peer) in enumerate(peers):
            if arguments.only and name not in arguments.only:
                continue
            start = time.monotonic()
            whole = [] if arguments.offsets_only else texts
            part = texts if arguments.everything else texts[i % 8::8]
            failures, compared, mapped = compare(name, peer, probe, whole, part, pathlib.Path(scratch))
            failed += len(failures)
            passed += not failures
            for failure in failures[:20]:
                print(f"FAILED {failure}", flush=True)
            print(f"{name}: {'DIFFERENT' if failures else 'equal'}: ids of {compared / 1e6:.1f} MB, offsets and decoded text of {mapped / 1e6:.1f} MB, "
                  f"{time.monotonic() - start:.0f} s", flush=True)
    probe.close()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
