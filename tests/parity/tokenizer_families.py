#!/usr/bin/env python3
"""Every family's tokenizer on a mix of text: build/tests/tokenizer_probe against the `tokenizers` library.

Usage: tokenizer_families.py [--megabytes N] [--quick] [--only NAME ...]. The library trains a tokenizer with each family's real
component settings on a sample of the mix; then ids of all of it are compared, and offsets and decoded text of a part. The last line
is "N passed, M failed".
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
sys.path[:0] = [str(ROOT / "tests/goldens"), str(ROOT / "tests/parity")]
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


def compare(name, peer, probe, texts, folder, step):
    """Failures, and bytes whose ids, and whose offsets, were compared."""
    failures = []
    # Read back: the library rounds a Unigram's scores where it reads them.
    peer.save(str(folder / "tokenizer.json"))
    peer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = probe.ask(path=str(folder / "tokenizer.json"))
    if "error" in loaded:
        return [f"{name}: {loaded['error']}"], 0, 0
    compared = mapped = 0
    for batch in batches(texts):
        (folder / "texts").write_bytes(b"".join(data for _, data in batch))
        answer = probe.ask(ids=str(folder / "texts"), lengths=[len(data) for _, data in batch], write=str(folder / "ids"))
        if "error" in answer:
            failures.append(f"{name}: {answer['error']}")
            continue
        ids = array.array("i", (folder / "ids").read_bytes())
        wanted = peer.encode_batch_fast([decoded(data) for _, data in batch], add_special_tokens=False)
        at = 0
        for (kind, data), want in zip(batch, wanted):
            got = ids[at + 1:at + 1 + ids[at]].tolist()
            at += 1 + len(got)
            compared += len(data)
            if got != want.ids:
                failures.append(f"{name}: ids of {kind} {data[:60]!r} {first_difference(got, want.ids)}")
    part = [data for _, data in texts[::step] if len(data) <= 20_000]
    for begin in range(0, len(part), 100):
        group = part[begin:begin + 100]
        sequences = []
        for data, got in zip(group, probe.ask(encode=[data.hex() for data in group])):
            if "error" in got:
                failures.append(f"{name}: {data[:60]!r}: {got['error']}")
                continue
            want = peer.encode(decoded(data))
            offsets = [x for pair in want.offsets for x in pair]
            mapped += len(data)
            sequences.append(want.ids)
            if got["ids"] != want.ids or got["offsets"] != offsets:
                failures.append(f"{name}: offsets of {data[:60]!r} {first_difference(got['offsets'], offsets)}")
        for ids, got in zip(sequences, probe.ask(decode=sequences)):
            for skip, text in zip((True, False), got):
                if text != peer.decode(ids, skip_special_tokens=skip):
                    failures.append(f"{name}: decoded text of {ids[:10]} {skip}")
    return failures, compared, mapped


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=104)
    parser.add_argument("--quick", action="store_true", help="4 MB")
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
        for name, peer in peers:
            if arguments.only and name not in arguments.only:
                continue
            start = time.monotonic()
            failures, compared, mapped = compare(name, peer, probe, texts, pathlib.Path(scratch), 40)
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
