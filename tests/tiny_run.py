"""A run that takes a second, for the suites that look at what the program prints. Python's standard library only."""
import json
import os
import subprocess

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


def write_files(folder):
    """Everything that the run needs but its tokenizer."""
    for name, text in {"config.json": json.dumps(CONFIG), "run.toml": RUN, "text.txt": TEXT, "valid.txt": VALID}.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="") as file:
            file.write(text)


TRAIN_TOKENIZER = ["tokenize", "train", "text.txt", "--vocab-size", "300", "--out", "tokenizer.json"]


def train(folder):
    """A trained model in folder/run, and its tokenizer."""
    write_files(folder)
    for arguments in (TRAIN_TOKENIZER, ["train", "run.toml"]):
        done = run(folder, *arguments)
        if done.returncode != 0:
            raise RuntimeError(f"{arguments}: status {done.returncode}: {done.stderr}")
