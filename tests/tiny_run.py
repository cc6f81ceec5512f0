"""A run that takes a second, for the suites that look at what the program prints, and how their cases are run. Python's
standard library only."""
import json
import os
import subprocess
import sys
import tempfile
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRIREME = os.path.abspath(os.environ.get("TRIREME", os.path.join(ROOT, "build", "trireme")))

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
          "max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
          "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

RUN = """
out = "run"
seed = 7
threads = 1
[model]
config = "config.json"
[tokenizer]
path = "tokenizer.json"
[data]
train = ["text.txt"]
valid = ["valid.txt"]
seq_len = 32
[batch]
sequences = 8
micro = 2
lanes = 2
[optim]
lr = 1e-2
[schedule]
steps = 40
warmup = 2
[precision]
recipe = "fp32"
[eval]
every = 0
[log]
trace_step = 3
"""
SEQUENCES, SEQ_LEN, STEPS = 8, 32, 40

TEXT = "The quick brown fox jumps over the lazy dog. Größe, 東京 and 🚣 row on.\n" * 60
VALID = "The lazy fox jumps 東京.\n"


def run(folder, *arguments, **options):
    """The program with these arguments in this folder; its output as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **options.pop("env", {})}
    return subprocess.run([TRIREME, *map(str, arguments)], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300, **options)


def checked(folder, *arguments, status=0, **environment):
    """The same, where any other exit status is a failure of the case."""
    done = run(folder, *arguments, env=environment)
    assert done.returncode == status, f"{arguments} {environment}: status {done.returncode}: {done.stdout[-3000:]}{done.stderr}"
    return done


def write_files(folder):
    """Everything that the run needs but its tokenizer."""
    for name, text in {"config.json": json.dumps(CONFIG), "run.toml": RUN, "text.txt": TEXT, "valid.txt": VALID}.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
            file.write(text)


TRAIN_TOKENIZER = ["tokenize", "train", "text.txt", "--vocab-size", "300", "--out", "tokenizer.json"]


def must(folder, *arguments):
    done = run(folder, *arguments)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: status {done.returncode}: {done.stderr}")


def prepare(folder):
    """Everything that the run needs; returns the folder."""
    write_files(folder)
    must(folder, *TRAIN_TOKENIZER)
    return folder


def train(folder):
    """A trained model in folder/run, and what it needed; returns the folder."""
    prepare(folder)
    must(folder, "train", "run.toml")
    return folder


class Skipped(Exception):
    """A case that this machine cannot run, and why."""


def run_cases(cases, prepare):
    """Runs the functions that the command line names, else all, on what prepare() makes of a new folder, which they share.
    Prints a line each and `N passed, N failed`; returns the exit status."""
    wanted = sys.argv[1:]
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="trireme-test-") as path:
        folder = prepare(path)
        for function in cases:
            if wanted and function.__name__ not in wanted:
                continue
            try:
                function(folder)
                passed += 1
                print(f"ok      {function.__name__}", flush=True)
            except Skipped as reason:
                print(f"skipped {function.__name__}: {reason}", flush=True)
            except (AssertionError, LookupError, ValueError, OSError, subprocess.SubprocessError):
                failed += 1
                print(f"FAILED  {function.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed != 0
