"""Wrong inputs to the real program: each must end with its exit status and say what is wrong.

    TRIREME=build/trireme python3 tests/errors_test.py [NAME...]

A case is a run that would train but for one mistake. The last line is `N passed, N failed`.
"""

import concurrent.futures
import fcntl
import gzip
import json
import os
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

PROGRAM = os.environ.get("TRIREME", "build/trireme")
CONFIG, DATA, NUMERICAL, INTERRUPTED = 2, 3, 5, 130

TINY = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}


def value_text(value):
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, list):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {value_text(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


class Raw:
    """A value written into the run file as it is."""

    def __init__(self, text):
        self.text = text


class Folder:
    """The working folder of one case: a run file that trains, and what it reads."""

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self.tables = {
            "": {"out": "run", "seed": 1, "threads": 1},
            "model": {"config": "config.json"},
            "data": {"train": ["text.txt"], "valid": ["text.txt"], "seq_len": 16},
            "batch": {"sequences": 4, "micro": 2, "lanes": 2},
            "schedule": {"steps": 4, "warmup": 1},
            "precision": {"recipe": "fp32"},
            "checkpoint": {"every": 2},
        }
        self.write("config.json", json.dumps(TINY))
        self.write("text.txt", "the quick brown fox jumps over the lazy dog. " * 40)

    def write(self, name, content):
        mode = "wb" if isinstance(content, bytes) else "w"
        with open(self.path / name, mode) as file:
            file.write(content)

    def set(self, key, value):
        table, _, name = key.rpartition(".")
        self.tables.setdefault(table, {})[name] = value

    def remove(self, key):
        table, _, name = key.rpartition(".")
        del self.tables[table][name]

    def write_run(self):
        lines = []
        for table, values in self.tables.items():
            if table:
                lines.append(f"[{table}]")
            lines += [f"{name} = {value_text(value)}" for name, value in values.items()]
        self.write("run.toml", "\n".join(lines) + "\n")

    def run(self, *arguments, **options):
        environment = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1")
        return subprocess.run([PROGRAM, *arguments], cwd=self.path, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace", timeout=300, **options)

    def train(self, *arguments, **options):
        if not (self.path / "run.toml").exists():
            self.write_run()
        return self.run("train", "run.toml", *arguments, **options)

    def trained(self, steps=2):
        """Trains the first steps of the run, so that there is a checkpoint."""
        self.set("schedule.steps", 4)
        self.write_run()
        result = self.train()
        assert result.returncode == 0, result.stderr
        if steps == 2:
            shutil.rmtree(self.path / "run/checkpoints/step-4")

    def shard(self):
        return sorted((self.path / "run/checkpoints/step-2").glob("*.safetensors"))[0]


CASES = []


def case(name, status, *words):
    def register(function):
        CASES.append((name, status, words, function))
        return function
    return register


def wrong_value(name, key, value, *words, status=CONFIG):
    def body(folder):
        folder.set(key, value)
        return folder.train()
    CASES.append((name, status, words, body))


def wrong_arguments(name, status, words, *arguments):
    CASES.append((name, status, words, lambda folder: (folder.write_run(), folder.run(*arguments))[1]))


def wrong_text(name, text, *words):
    def body(folder):
        folder.write_run()
        with open(folder.path / "run.toml", "a") as file:
            file.write(text)
        return folder.train()
    CASES.append((name, CONFIG, words, body))


# --- the command line -----------------------------------------------------------------------------------------------
wrong_arguments("no-run-file", CONFIG, ["no run file is given"], "train")
wrong_arguments("missing-run-file", CONFIG, ["absent.toml", "no such run file"], "train", "absent.toml")
wrong_arguments("folder-for-run-file", CONFIG, ["not a file"], "train", ".")
wrong_arguments("unknown-option", CONFIG, ["--dryrun"], "train", "run.toml", "--dryrun")
wrong_arguments("unknown-command", CONFIG, ["trian"], "trian", "run.toml")
wrong_arguments("no-command", CONFIG, [])
wrong_arguments("set-without-value", CONFIG, ["--set schedule.steps", "no '='"], "train", "run.toml", "--set", "schedule.steps")
wrong_arguments("set-unknown-key", CONFIG, ["unknown key 'schedule.stepz'", "steps"], "train", "run.toml", "--set", "schedule.stepz=3")
wrong_arguments("set-wrong-type", CONFIG, ["schedule.steps wants a whole number"], "train", "run.toml", "--set", "schedule.steps=many")

# --- the run file's form --------------------------------------------------------------------------------------------
wrong_text("not-toml", "steps 3\n", "run.toml:")
wrong_text("unclosed-quote", "[log]\nevery = \"3\n", "run.toml:")
wrong_text("unknown-table", "[bach]\nmicro = 1\n", "unknown key 'bach'", "batch")
wrong_text("unknown-key", "[eval]\nevry = 1\n", "unknown key 'eval.evry'", "every")
wrong_text("key-of-another-table", "[optim]\nmicro = 1\n", "unknown key 'optim.micro'", "batch.micro")
wrong_text("key-twice", "[eval]\nevery = 1\nevery = 2\n", "run.toml:")
wrong_value("unknown-top-key", "sed", 3, "run.toml:", "unknown key 'sed'", "seed")
wrong_value("text-for-whole-number", "schedule.steps", "many", "run.toml:", "schedule.steps wants a whole number")
wrong_value("fraction-for-whole-number", "schedule.steps", 1.5, "schedule.steps wants a whole number")
wrong_value("text-for-number", "optim.lr", "fast", "optim.lr wants a number")
wrong_value("number-for-flag", "log.tensorboard", 1, "log.tensorboard wants true or false")
wrong_value("number-for-text", "out", 3, "out wants a text")
wrong_value("text-in-list-of-numbers", "optim.betas", ["a", 0.9], "optim.betas wants a list of numbers")
wrong_value("number-for-table", "memory", 3, "memory is a table")
wrong_value("date-for-number", "optim.lr", Raw("2024-01-01"), "a date or time")


def missing(name, key, *words):
    def body(folder):
        folder.remove(key)
        return folder.train()
    CASES.append((name, CONFIG, words, body))


missing("missing-out", "out", "'out' is missing")
missing("missing-data", "data.train", "'data.train' is missing")
missing("missing-model", "model.config", "'model' is missing")

# --- values that cannot be ------------------------------------------------------------------------------------------
wrong_value("empty-out", "out", "", "out = \"\"", "must not be empty")
wrong_value("negative-seed", "seed", -1, "seed = -1")
wrong_value("two-models", "model.preset", "llama-11m", "model.config", "model.preset", "both")
wrong_value("vocabulary-with-config", "model.vocab_size", 500, "model.vocab_size is for presets")
wrong_value("valid-twice", "data.valid_fraction", 0.1, "data.valid and data.valid_fraction are both given")
wrong_value("valid-fraction-above-one", "data.valid_fraction", 1.5, "data.valid_fraction = 1.5")
wrong_value("no-tokens-a-sequence", "data.seq_len", 0, "data.seq_len = 0")
wrong_value("sequence-past-the-model", "data.seq_len", 128, "128", "64")
wrong_value("unknown-packing", "data.packing", "document", "data.packing = \"document\"", "documents")
wrong_value("no-sources", "data.train", [], "data.train is empty")
wrong_value("no-sequences", "batch.sequences", 0, "batch.sequences = 0")
wrong_value("lanes-not-a-power-of-two", "batch.lanes", 3, "batch.lanes = 3", "power of two")
wrong_value("micro-does-not-divide", "batch.micro", 3, "3", "4")
wrong_value("lanes-do-not-divide", "batch.lanes", 4, "4")
wrong_value("two-betas-wanted", "optim.betas", [0.9], "optim.betas", "two numbers")
wrong_value("beta-of-one", "optim.betas", [0.9, 1.0], "below 1")
wrong_value("no-learning-rate", "optim.lr", 0, "optim.lr = 0", "greater than 0")
wrong_value("learning-rate-nan", "optim.lr", Raw("nan"), "optim.lr", "not a finite number")
wrong_value("negative-decay", "optim.weight_decay", -0.1, "optim.weight_decay = -0.1")
wrong_value("negative-clip", "optim.clip", -1, "optim.clip = -1")
wrong_value("unknown-optimizer", "optim.name", "adam", "optim.name = \"adam\"", "adamw")
wrong_value("unknown-schedule", "schedule.name", "cosin", "schedule.name = \"cosin\"", "cosine")
wrong_value("warmup-longer-than-run", "schedule.warmup", 40, "schedule.warmup = 40", "schedule.steps = 4")
wrong_value("decay-longer-than-run", "schedule.decay", 4, "schedule.decay = 4")
wrong_value("learning-rate-share-above-one", "schedule.min_lr_ratio", 2, "schedule.min_lr_ratio = 2")
wrong_value("no-steps", "schedule.steps", 0, "schedule.steps = 0")
wrong_value("unknown-precision", "precision.recipe", "fp64", "precision.recipe = \"fp64\"", "fp32")
wrong_value("unknown-policy", "loss.non_finite", "ignore", "loss.non_finite = \"ignore\"")
for axis in ("ep", "etp"):
    wrong_value(f"parallel-{axis}", f"parallel.{axis}", 2, f"parallel.{axis} = 2", "the model has no experts")
wrong_value("parallel-cp", "parallel.cp", 2, "[parallel] asks for 2 ranks, and 1 is here", "trireme launch --nproc 2")
wrong_value("parallel-dp", "parallel.dp", 2, "[parallel] asks for 2 ranks, and 1 is here", "trireme launch --nproc 2")
wrong_value("parallel-tp", "parallel.tp", 2, "[parallel] asks for 2 ranks, and 1 is here", "trireme launch --nproc 2")
wrong_value("parallel-pp", "parallel.pp", 2, "[parallel] asks for 2 ranks, and 1 is here", "parallel.pp = 1")
wrong_value("no-such-zero", "parallel.zero", 4, "parallel.zero = 4")
wrong_value("unknown-pipeline-schedule", "parallel.schedule", "1f2b", "parallel.schedule = \"1f2b\"", "1f1b")
wrong_value("unknown-part", "memory.recompute", ["layer.7.mlp"], "layer.7.mlp")
wrong_value("unknown-recompute", "memory.recompute", "some", "some")
wrong_value("ramp-without-steps", "batch.ramp_start", 4, "batch.ramp_start = 4", "batch.ramp_steps")
wrong_value("nothing-kept", "checkpoint.keep", 0, "checkpoint.keep = 0")


@case("ramp-not-in-whole-lanes", CONFIG, "ramp")
def _(folder):
    folder.set("batch.sequences", 8)
    folder.set("batch.ramp_start", 2)
    folder.set("batch.ramp_steps", 2)
    return folder.train()


wrong_value("source-without-path", "data.train", [{"weight": 1.0}], "data.train", "without a path")
wrong_value("source-with-unknown-key", "data.train", [{"path": "text.txt", "wait": 1.0}], "unknown key 'wait'", "weight")
wrong_value("source-without-weight", "data.train", [{"path": "text.txt", "weight": 1.0}, "text.txt"], "weight")
wrong_value("source-with-zero-weight", "data.train", [{"path": "text.txt", "weight": 0.0}], "weight")

# --- models ---------------------------------------------------------------------------------------------------------
wrong_value("missing-config", "model.config", "absent.json", "absent.json")


@case("unknown-preset", CONFIG, "llama-12m", "llama-11m")
def _(folder):
    folder.remove("model.config")
    folder.set("model.preset", "llama-12m")
    return folder.train()


def wrong_config(name, status, words, **changes):
    def body(folder):
        config = {key: value for key, value in {**TINY, **changes}.items() if value is not None}
        folder.write("config.json", json.dumps(config))
        return folder.train()
    CASES.append((name, status, words, body))


wrong_config("unknown-family", CONFIG, ["lama", "llama"], model_type="lama")
wrong_config("unknown-config-key", CONFIG, ["num_extra_heads"], num_extra_heads=2)
wrong_config("heads-do-not-divide", CONFIG, ["3"], num_key_value_heads=3)
wrong_config("no-hidden-size", CONFIG, ["hidden_size"], hidden_size=None)
wrong_config("vocabulary-smaller-than-tokenizer", CONFIG, ["256", "vocabulary of 200"], vocab_size=200)


@case("broken-config", CONFIG, "config.json")
def _(folder):
    folder.write("config.json", "{\"model_type\": ")
    return folder.train()


wrong_value("missing-init", "model.init", "absent", "absent", status=DATA)

# --- tokenizers and data --------------------------------------------------------------------------------------------
wrong_value("missing-tokenizer", "tokenizer.path", "absent.json", "absent.json", status=DATA)


def wrong_tokenizer(name, text, *words):
    def body(folder):
        folder.write("tokenizer.json", text)
        folder.set("tokenizer.path", "tokenizer.json")
        return folder.train()
    CASES.append((name, DATA, words, body))


wrong_tokenizer("broken-tokenizer", "{", "tokenizer.json")
wrong_tokenizer("tokenizer-of-another-kind", json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {}}}), "WordLevel")
wrong_tokenizer("tokenizer-without-model", "{}", "tokenizer.json", "model")

wrong_value("no-such-file", "data.train", ["absent/**/*.txt"], "data.train", "absent/**/*.txt", status=DATA)
wrong_value("folder-for-file", "data.train", ["."], "data.train", "folder", status=DATA)


def wrong_data(name, file, content, status, *words):
    def body(folder):
        folder.write(file, content)
        folder.set("data.train", [file])
        return folder.train()
    CASES.append((name, status, words, body))


wrong_data("empty-file", "empty.txt", "", DATA, "data.train")
wrong_data("shorter-than-a-window", "short.txt", "abc", DATA, "data.train", "tokens")
wrong_data("broken-json-line", "lines.jsonl", '{"text": "a"}\n{"text": \n', DATA, "lines.jsonl:2")
wrong_data("json-line-without-field", "lines.jsonl", '{"txt": "a"}\n', DATA, "lines.jsonl:1", "text")
wrong_data("json-field-not-text", "lines.jsonl", '{"text": 3}\n', DATA, "lines.jsonl:1", "not a string")
wrong_data("json-line-not-object", "lines.jsonl", "[1]\n", DATA, "lines.jsonl:1", "not a JSON object")
wrong_data("truncated-gzip", "lines.jsonl.gz", gzip.compress(b'{"text": "hello there"}\n' * 100)[:40], DATA, "lines.jsonl.gz")
wrong_data("not-gzip", "lines.jsonl.gz", b"hello", DATA, "lines.jsonl.gz")
wrong_data("not-zstandard", "lines.jsonl.zst", b"hello", DATA, "lines.jsonl.zst")


def index(ids, magic=b"MMIDIDX\x00\x00", code=8):
    """A Megatron index of one document of uint16 ids."""
    return (magic + struct.pack("<QBQQ", 1, code, 1, 2) + struct.pack("<i", len(ids)) + struct.pack("<q", 0) +
            struct.pack("<qq", 0, 1))


def indexed(name, status, words, ids=tuple(range(100)), **changes):
    def body(folder):
        folder.write("ids.bin", struct.pack(f"<{len(ids)}H", *ids)[:changes.pop("keep", 2 * len(ids))])
        folder.write("ids.idx", index(ids, **changes))
        folder.set("data.train", ["ids"])
        return folder.train()
    CASES.append((name, status, words, body))


indexed("index-with-wrong-magic", DATA, ["ids.idx"], magic=b"MMIDIDY\x00\x00")
indexed("index-of-fractions", DATA, ["ids.idx", "floating point"], code=6)
indexed("index-past-the-data", DATA, ["ids.idx", "end of the .bin"], keep=50)
indexed("id-past-the-vocabulary", DATA, ["id 400", "vocabulary of 320"], ids=tuple(range(301, 401)))


@case("index-without-data", DATA, "ids")
def _(folder):
    folder.write("ids.idx", index(range(10)))
    folder.set("data.train", ["ids"])
    return folder.train()


@case("nothing-held-out", DATA, "data.valid_fraction")
def _(folder):
    folder.remove("data.valid")
    folder.set("data.valid_fraction", 1e-9)
    return folder.train()


wrong_value("missing-baselines", "data.baselines", "absent.json", "absent.json", status=DATA)
wrong_value("baselines-of-another-kind", "data.baselines", "config.json", "data.baselines", status=DATA)

# --- folders, checkpoints, the disk ---------------------------------------------------------------------------------
wrong_value("out-is-a-file", "out", "text.txt", "text.txt", status=DATA)
wrong_value("out-cannot-be-written", "out", "/proc/trireme", "/proc/trireme", status=DATA)


@case("two-runs-in-one-out", CONFIG, "another run is writing there", str(os.getpid()))
def _(folder):
    (folder.path / "run").mkdir()
    with open(folder.path / "run/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        return folder.train()


@case("another-config-for-the-checkpoint", CONFIG, "optim.lr", "schedule.steps: 4 there, 5 now")
def _(folder):
    folder.trained()
    return folder.train("--set", "optim.lr=0.5", "--set", "schedule.steps=5")


@case("another-model-for-the-checkpoint", CONFIG, "config differs", "intermediate_size")
def _(folder):
    folder.trained()
    folder.write("config.json", json.dumps({**TINY, "intermediate_size": 64}))
    return folder.train()


@case("another-text-for-the-checkpoint", DATA, "data.train", "is not what this run was trained on")
def _(folder):
    folder.trained()
    folder.write("text.txt", "something else altogether, and longer. " * 80)
    return folder.train()


@case("truncated-shard", DATA, ".safetensors")
def _(folder):
    folder.trained()
    os.truncate(folder.shard(), folder.shard().stat().st_size // 2)
    return folder.train()


@case("flipped-bit-in-a-shard", DATA, ".safetensors")
def _(folder):
    folder.trained()
    content = bytearray(folder.shard().read_bytes())
    content[-100] ^= 4
    folder.shard().write_bytes(content)
    return folder.train()


@case("flipped-bit-in-the-manifest", DATA, "manifest.json")
def _(folder):
    folder.trained()
    path = folder.path / "run/checkpoints/step-2/manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3', 1).replace('"step":2', '"step":3', 1))
    return folder.train()


@case("missing-shard", DATA, ".safetensors")
def _(folder):
    folder.trained()
    folder.shard().unlink()
    return folder.train()


@case("resume-from-nowhere", DATA, "absent")
def _(folder):
    return folder.train("--resume", "absent")


@case("start-over-in-a-used-folder", CONFIG, "--resume no", "step-2")
def _(folder):
    folder.trained()
    return folder.train("--resume", "no")


@case("resume-with-another-base", CONFIG, "rope_theta", "config differs")
def _(folder):
    folder.trained()
    folder.write("config.json", json.dumps({**TINY, "rope_theta": 500.0}))
    return folder.train()


@case("resume-with-other-letters", DATA, "data.train")
def _(folder):
    folder.trained()
    folder.write("text.txt", "the quick brown fox jumps over the lazy cat. " * 40)
    return folder.train()


@case("dry-run-of-another-run", CONFIG, "optim.lr")
def _(folder):
    folder.trained()
    return folder.train("--dry-run", "--set", "optim.lr=0.5")


@case("export-folder-of-somebody", CONFIG, "export", "more than a model")
def _(folder):
    (folder.path / "run/export").mkdir(parents=True)
    folder.write("run/export/thesis.txt", "years of work")
    folder.write("run/.tmp-notes", "mine")
    result = folder.train()
    assert (folder.path / "run/export/thesis.txt").exists() and (folder.path / "run/.tmp-notes").exists()
    return result


@case("convert-over-somebodys-folder", CONFIG, "home", "more than a model")
def _(folder):
    folder.trained()
    (folder.path / "home/docs").mkdir(parents=True)
    folder.write("home/docs/letter", "dear")
    result = folder.run("convert", "export", "run", "home", "--force")
    assert (folder.path / "home/docs/letter").exists()
    return result


@case("a-killed-process-of-the-same-number", 0)
def _(folder):
    # Every first process of a container has the same number: what a killed one left must not stop the next.
    folder.write_run()
    (folder.path / "run").mkdir()
    script = "for i in 0 1 2 3 4 5 6 7 8 9; do : > run/.run.toml.$$.$i.tmp; : > run/.metrics.jsonl.$$.$i.tmp; done; " \
             "exec " + shlex.quote(os.path.abspath(PROGRAM)) + " train run.toml"
    return subprocess.run(["sh", "-c", script], cwd=folder.path, capture_output=True, text=True, timeout=300,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))


@case("one-of-two-ranks", CONFIG, "MASTER_ADDR")
def _(folder):
    folder.write_run()
    return subprocess.run([PROGRAM, "train", "run.toml"], cwd=folder.path, capture_output=True, text=True, timeout=300,
                          env=dict(os.environ, WORLD_SIZE="2", RANK="1"))


wrong_value("graphs-on-the-processor", "device.graphs", True, "device.graphs", "records no work")
wrong_value("no-nucleus", "sample.top_p", 0.0, "sample.top_p", "above 0")
wrong_value("prompt-past-the-context", "sample.prompts", ["word " * 40], "sample.prompts", "context")


@case("init-from-another-model", CONFIG, "model.init", "differs")
def _(folder):
    folder.trained()
    folder.write("config.json", json.dumps({**TINY, "intermediate_size": 64}))
    return folder.train("--set", "model.init=run/checkpoints/step-2", "--set", "out=other")


@case("full-disk-for-metrics", DATA, "metrics.jsonl", "No space left")
def _(folder):
    (folder.path / "run").mkdir()
    (folder.path / "run/metrics.jsonl").symlink_to("/dev/full")
    return folder.train()


@case("full-disk-for-checkpoints", DATA, "step-2")
def _(folder):
    # No file may grow past 20 kB: the shard is the first that would, and the system refuses it as a full disk does.
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    result = folder.train("--set", "log.trace_step=0", preexec_fn=limit)
    left = list((folder.path / "run/checkpoints").glob("step-*"))
    assert not left, f"a partial checkpoint is there: {left}"
    return result


# --- numbers --------------------------------------------------------------------------------------------------------
@case("loss-not-finite", NUMERICAL, "the loss is", "non_finite")
def _(folder):
    result = folder.train("--set", "optim.lr=1e38", "--set", "schedule.warmup=0")
    steps = [json.loads(line)["step"] for line in (folder.path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) < 4, f"metrics of steps {steps}"
    assert (folder.path / f"run/checkpoints/step-{len(steps)}/manifest.json").exists(), "the last good step is lost"
    return result


@case("too-many-steps-left-out", NUMERICAL, "in a row")
def _(folder):
    return folder.train("--set", "optim.lr=1e38", "--set", "schedule.warmup=0", "--set", "loss.non_finite=skip",
                        "--set", "loss.max_skips=1", "--set", "schedule.steps=10")


# --- other commands -------------------------------------------------------------------------------------------------
wrong_arguments("generate-without-model", CONFIG, [], "generate")
wrong_arguments("generate-from-nowhere", DATA, ["absent"], "generate", "absent", "--prompt", "a")
wrong_arguments("generate-from-a-text", DATA, ["text.txt"], "generate", "text.txt", "--prompt", "a")
wrong_arguments("eval-from-nowhere", DATA, ["absent"], "eval", "absent", "--data", "text.txt")
wrong_arguments("eval-of-negative-windows", CONFIG, ["--seq-len"], "eval", "absent", "--data", "text.txt", "--seq-len", "-3")
wrong_arguments("verify-nothing", DATA, ["absent"], "checkpoint", "verify", "absent")
wrong_arguments("export-nothing", DATA, ["absent"], "convert", "export", "absent", "out")
wrong_arguments("encode-with-nothing", DATA, ["absent.json"], "tokenize", "encode", "--tokenizer", "absent.json", "text.txt")
wrong_arguments("explain-a-missing-run", CONFIG, ["absent.toml"], "plan", "explain", "absent.toml")


def check(number, root):
    name, status, words, body = CASES[number]
    try:
        result = body(Folder(root / f"{number:03}-{name}"))
    except Exception:  # a case's own assertion, or a time-out
        return f"{name}: {traceback.format_exc(limit=2)}"
    problems = []
    if result.returncode != status:
        problems.append(f"exit status {result.returncode}, expected {status}")
    for word in words:
        if word not in result.stderr:
            problems.append(f"the message lacks {word!r}")
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error:", "  hint:"))]
    if len(lines) > 4 or "terminate called" in result.stderr:
        problems.append("the error is not a few lines")
    return f"{name}: {'; '.join(problems)}\n    stderr: {result.stderr[-600:]}" if problems else ""


def main():
    chosen = [i for i, entry in enumerate(CASES) if not sys.argv[1:] or entry[0] in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [text for text in pool.map(lambda i: check(i, Path(folder)), chosen) if text]
    for text in failures:
        print("FAILED ", text)
    print(f"{len(chosen) - len(failures)} passed, {len(failures)} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
