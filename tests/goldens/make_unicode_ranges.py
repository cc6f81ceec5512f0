#!/usr/bin/env python3
"""Writes src/trireme/data/tokenizer_unicode_ranges.inc and unicode_sets.inc: character classes as the `tokenizers` library sees them.

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


def load_utf8proc(form):
    function = getattr(ctypes.CDLL("libutf8proc.so.2"), f"utf8proc_{form}")
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p]
    return lambda text: ctypes.string_at(function(text.encode())).decode()


def late_marks():
    """Code points that utf8proc composes or orders and the library's NFC leaves alone."""
    ours, theirs = load_utf8proc("NFC"), normalizers.NFC().normalize_str
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


# General categories whose members beyond Unicode 14 are listed; Mn as a whole, for it lost a member. Scripts as wholes: PCRE2
# reads their names as Script_Extensions.
LATE_PROPERTIES = ["Lu", "Ll", "Lm", "Lo", "M", "Mc", "Nd", "No", "P", "Pd", "Po", "S", "Sm", "So", "Cf"]
WHOLE_PROPERTIES = ["Mn", "Han", "Hiragana", "Katakana", "Hangul", "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Thai", "Devanagari"]


def removed_by(normalizer):
    return [c for c in CODE_POINTS if normalizer.normalize_str("a" + chr(c) + "b") == "ab"]


def lower_case_runs():
    """Code points, their distance to the lower case and the step between them; U+0130 alone becomes two characters."""
    lower = normalizers.Lowercase().normalize_str
    runs = []
    for c in CODE_POINTS:
        mapped = lower(chr(c))
        if mapped == chr(c) or c == 0x130:
            continue
        if len(mapped) != 1:
            raise SystemExit(f"U+{c:04X} has a longer lower case: extend the table's meaning")
        delta = ord(mapped) - c
        if runs and runs[-1][3] == delta and c - runs[-1][1] in (1, 2) and runs[-1][2] in (0, c - runs[-1][1]):
            runs[-1][1:3] = c, c - runs[-1][1]
        else:
            runs.append([c, c, 0, delta])
    return [(first, last, max(step, 1), delta) for first, last, step, delta in runs]


def sets():
    bert = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    nfd = normalizers.NFD().normalize_str
    accents = normalizers.BertNormalizer(**bert | {"strip_accents": True}).normalize_str
    whitespace = pre_tokenizers.Whitespace().pre_tokenize_str
    digits = pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str
    punctuation = pre_tokenizers.Punctuation("removed").pre_tokenize_str
    utf8proc = load_utf8proc("NFKD")
    nfkd = normalizers.NFKD().normalize_str
    settled = [c for c in CODE_POINTS if utf8proc(chr(c)) != nfkd(chr(c))]
    if any(nfkd(chr(c)) != chr(c) for c in settled):
        raise SystemExit("a decomposition differs: extend the table's meaning")
    tables = {
        "kWordRanges": [c for c in CODE_POINTS if [p for p, _ in whitespace("a" + chr(c))] == ["a" + chr(c)]],
        "kNumericRanges": [c for c in CODE_POINTS if len(digits("a" + chr(c) + "b")) == 3],
        "kPunctuationRanges": [c for c in CODE_POINTS if not punctuation(chr(c))],
        "kControlRanges": removed_by(normalizers.BertNormalizer(**bert | {"clean_text": True})),
        "kNonspacingRanges": [c for c in CODE_POINTS if nfd(chr(c)) == chr(c) and accents(chr(c)) == ""],
        "kCombiningRanges": removed_by(normalizers.StripAccents()),
        "kNotDecomposedRanges": settled,
    }
    for name in LATE_PROPERTIES + WHOLE_PROPERTIES:
        points = matching(r"\p{%s}" % name)
        if name in LATE_PROPERTIES:
            known = {c for c in CODE_POINTS if unicodedata.category(chr(c)).startswith(name)}
            if known - set(points):
                raise SystemExit(f"{name} lost members: list it as a whole")
            points = [c for c in points if c not in known]
        tables[f"kProperty{name}"] = points
    lines = ["// Made by tests/goldens/make_unicode_ranges.py; not edited by hand. Inclusive ranges of code points."]
    for name, points in tables.items():
        lines += table(f"inline constexpr CodePointRange {name}[] = {{", [f"{{0x{a:x}, 0x{b:x}}}" for a, b in ranges(points)])
    runs = [f"{{0x{a:x}, 0x{b:x}, {step}, {delta}}}" for a, b, step, delta in lower_case_runs()]
    lines += ["// First, last, step, distance to the lower case."] + table("inline constexpr LowerCaseRun kLowerCaseRuns[] = {", runs)
    lines += table("inline constexpr Property kProperties[] = {", [
        f'{{"{name}", {str(name in WHOLE_PROPERTIES).lower()}, kProperty{name}}}' for name in LATE_PROPERTIES + WHOLE_PROPERTIES])
    return lines


def table(head, items):
    lines, row = [head], "   "
    for item in items:
        if len(row) + len(item) + 2 > 160:
            lines.append(row)
            row = "   "
        row += f" {item},"
    return lines + [row, "};"]


def main():
    other = pathlib.Path(__file__).resolve().parents[2] / "src/trireme/data/unicode_sets.inc"
    other.write_text("\n".join(sets()) + "\n")
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
