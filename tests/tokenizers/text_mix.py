"""A mix of text of at least so many megabytes out of what the machine has: code, prose, mark-up, ten scripts, adversarial cases."""

import gzip
import pathlib
import random
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/goldens"))
from tokenizer_cases import adversarial_texts, decoded, invalid_bytes  # noqa: E402

# Ten scripts and more: ranges of letters, and what goes between words.
SCRIPTS = {
    "latin": ([(0x61, 0x7B), (0x61, 0x7B), (0xDF, 0xF6), (0x101, 0x17F)], " "), "cyrillic": ([(0x430, 0x450)], " "), "greek": ([(0x3B1, 0x3CA), (0x3AC, 0x3AF)], " "),
    "arabic": ([(0x627, 0x64B), (0x64B, 0x650)], " "), "hebrew": ([(0x5D0, 0x5EB)], " "), "devanagari": ([(0x904, 0x93A), (0x93E, 0x94E)], " "),
    "thai": ([(0xE01, 0xE3A), (0xE40, 0xE4F)], ""), "hangul": ([(0xAC00, 0xD7A4)], " "), "japanese": ([(0x3041, 0x3097), (0x30A1, 0x30F7), (0x4E00, 0x5200)], ""),
    "chinese": ([(0x4E00, 0x9FA6)], ""), "tamil": ([(0xB85, 0xBBA), (0xBBE, 0xBCE)], " "), "georgian": ([(0x10D0, 0x10F1)], " "),
}
MARKS = [".", ",", "!", "?", ":", ";", "\u3002", "\uff0c", "\u060c", "\u0964", " - ", " \u2014 ", "\n", "\n\n", " (", ") ", "\u00ab", "\u00bb", "\U0001F600", "\u00a0", " 3", " 1999", "\u0661"]


def script_text(name, size, rng):
    """Words of a made-up language: few are frequent, most are rare."""
    ranges, space = SCRIPTS[name]
    words = []
    for _ in range(6000):
        word = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(1 + min(rng.randrange(9), rng.randrange(9))))
        words.append(word.capitalize() if rng.random() < 0.1 else word)
    pieces, length = [], 0
    while length < size:
        word = words[int(6000 * rng.random() ** 3)]
        pieces.append(word + (rng.choice(MARKS) if rng.random() < 0.12 else "") + space)
        length += len(pieces[-1].encode())
    return "".join(pieces)


def read(path):
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, ValueError):
        return b""


def files_of(folders, suffixes):
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.suffix in suffixes and path.is_file() and not path.is_symlink():
                yield path


def take(paths, size):
    """Texts of the files, up to `size` bytes in all, files long enough to be of use and never the same twice."""
    seen, total = set(), 0
    for path in paths:
        data = read(path)[:400_000]
        if len(data) < 50 or b"\0" in data[:1000] or hash(data) in seen:
            continue
        seen.add(hash(data))
        total += len(data)
        yield data
        if total >= size:
            return


def mixed_texts(megabytes):
    """Kind and bytes of each text."""
    rng = random.Random(97)
    unit = megabytes * 1_000_000
    library = sysconfig.get_paths()["stdlib"]
    torch = sorted((ROOT / ".deps").glob("venv/lib/python3*/site-packages"))
    sources = {
        "code": (files_of([library, *torch, "/usr/lib/python3"], {".py", ".pyi"}), 0.27),
        "c": (files_of(["/usr/include", "/usr/lib/gcc", *torch], {".h", ".hpp", ".c", ".cpp", ".cuh"}), 0.17),
        "prose": (files_of(["/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl", "/usr/share/vim", ROOT / "docs"], {".gz", ".txt", ".md", ".pod", "", ".rst"}), 0.08),
        "markup": (files_of(["/usr/share", "/usr/lib", *torch], {".html", ".xml", ".svg", ".json", ".css", ".js", ".yaml", ".toml"}), 0.10),
        "locale": (files_of(["/usr/share/i18n", "/usr/share/X11", "/usr/share/unicode", "/usr/share/locale"], {"", ".gz", ".txt", ".mo"}), 0.05),
    }
    total = 0
    for kind, (paths, share) in sources.items():
        for data in take(paths, unit * share):
            total += len(data)
            yield kind, data
    for text in [t.encode() for t in adversarial_texts()] + invalid_bytes():
        total += len(text)
        yield "adversarial", text
    # Scripts make up the rest, in texts of every length.
    while total < unit:
        for name in SCRIPTS:
            data = script_text(name, rng.choice([200, 3000, 30_000, 120_000]), rng).encode()
            total += len(data)
            yield name, data


def training_texts(texts, rng, megabytes=2):
    """A sample to train on."""
    sample, total = [], 0
    for kind, data in rng.sample(texts, len(texts)):
        if kind == "adversarial":
            continue
        text = decoded(data[:6000])
        sample.append(text)
        total += len(text)
        if total > megabytes * 1_000_000:
            break
    return sample
