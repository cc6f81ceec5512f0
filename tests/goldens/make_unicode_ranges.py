#!/usr/bin/env python3
"""Writes src/trireme/data/tokenizer_unicode_ranges.inc: character classes as the `tokenizers` library sees them.

Ids are equal to that library's only if both agree on what a letter, a number and a combining mark is, and its regex
engine knows a newer Unicode than PCRE2 of the distributions, its NFC an older one than utf8proc. So it is asked about
every code point. Needs the `tokenizers` package and libutf8proc.
"""

import ctypes
import pathlib
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(1, 0x110000) if not 0xD800 <= c <= 0xDFFF]


def ranges(points):
    result = []
    for point in points:
        if result and result[-1][1] == point - 1:
            result[-1][1] = point
        else:
            result.append([point, point])
    return result


def matching(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [c for c in CODE_POINTS if not split.pre_tokenize_str(chr(c))]


def load_utf8proc_nfc():
    library = ctypes.CDLL("libutf8proc.so.2")
    library.utf8proc_NFC.restype = ctypes.c_void_p
    library.utf8proc_NFC.argtypes = [ctypes.c_char_p]

    def nfc(text):
        return ctypes.string_at(library.utf8proc_NFC(text.encode())).decode()

    return nfc


def late_marks():
    """Code points that utf8proc composes or orders and the library's NFC leaves alone."""
    ours, theirs = load_utf8proc_nfc(), normalizers.NFC().normalize_str
    decompose = normalizers.NFD().normalize_str
    late = []
    for c in CODE_POINTS:
        x = chr(c)
        probes = ["e" + x + "\u0301", "e" + x + "\u0327\u0301", "\u0301" + x + "\u0327"]
        if c != 0x11A7 and any(ours(p) != theirs(p) for p in probes):
            late.append(c)
        elif theirs(decompose(x)) != ours(decompose(x)):
            raise SystemExit(f"U+{c:04X} composes differently: extend the table's meaning")
    return late


def main():
    target = pathlib.Path(__file__).resolve().parents[2] / "src/trireme/data/tokenizer_unicode_ranges.inc"
    if unicodedata.unidata_version != "14.0.0":
        raise SystemExit("run with Python 3.11, which knows Unicode 14 as PCRE2 10.42 does")
    letters, numbers = matching(r"\p{L}"), matching(r"\p{N}")
    tables = {
        "kLetterRanges": letters,
        "kNumberRanges": numbers,
        "kLateLetterRanges": [c for c in letters if unicodedata.category(chr(c))[0] != "L"],
        "kLateNumberRanges": [c for c in numbers if unicodedata.category(chr(c))[0] != "N"],
        "kSpaceRanges": matching(r"\s"),
        "kLateMarkRanges": late_marks(),
    }
    lines = ["// Made by tests/goldens/make_unicode_ranges.py; not edited by hand. Inclusive ranges of code points."]
    for name, points in tables.items():
        lines.append(f"inline constexpr CodePointRange {name}[] = {{")
        row = "   "
        for first, last in ranges(points):
            item = f" {{0x{first:x}, 0x{last:x}}},"
            if len(row) + len(item) > 115:
                lines.append(row)
                row = "   "
            row += item
        lines += [row, "};"]
    target.write_text("\n".join(lines) + "\n")
    print(f"{target}: " + ", ".join(f"{k} {len(v)}" for k, v in tables.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
