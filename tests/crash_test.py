#!/usr/bin/env python3
"""A run that is killed again and again ends as the run that never was: same weights, optimizer state, metrics, export.

Real `trireme train` runs of tiny models get SIGKILL at random moments of every kind (while starting, between steps, in
the middle of writing a checkpoint, while exporting), 50 kills at least, and SIGTERM now and then; each is started
again until it is done and compared with an undisturbed run. A longer text is killed all along its tokenization, by
`train` (two threads) and by `data prepare`. Python's standard library only.

  CRASH_SEED=n   the moments (default: random, printed)   CRASH_KILLS=n   kills over all runs (default 54)
Last line: `N passed, N failed`.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
trireme = os.environ.get("TRIREME", os.path.join(root, "build", "trireme"))
seed = int(os.environ.get("CRASH_SEED", random.SystemRandom().randrange(10**6)))
wanted_kills = int(os.environ.get("CRASH_KILLS", 54))
print(f"CRASH_SEED={seed}")
chance = random.Random(seed)
passed = failed = 0

# Figures of the machine, not of the run.
MEASURED = {"step_s", "tokens_per_s", "model_tflops", "peak_bytes", "loader_exposed_s", "checkpoint_stall_s",
            "page_faults"}

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
          "max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
          "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

COMMON = """
seed = 7
threads = 1
[model]
config = "config.json"
[data]
train = ["text/*.txt"]
valid_fraction = 0.2
seq_len = 32
packing = "{packing}"
[batch]
sequences = 8
micro = 2
lanes = 2
{batch}
[optim]
name = "{optimizer}"
lr = 3e-3
[schedule]
steps = 48
warmup = 5
[precision]
recipe = "{precision}"
[eval]
every = 16
[checkpoint]
every = 3
keep = 2
"""
RUNS = {"adamw-fp32": dict(packing="documents", optimizer="adamw", precision="fp32", batch=""),
        "muon-bf16": dict(packing="stream", optimizer="muon", precision="bf16", batch="ramp_start = 4\nramp_steps = 20")}


def check(name, condition, detail=""):
    global passed, failed
    print(("ok      " if condition else "FAILED  ") + name + (f": {detail}" if detail else ""), flush=True)
    passed, failed = (passed + 1, failed) if condition else (passed, failed + 1)
    return condition


def launch(folder, *arguments):
    return subprocess.Popen([trireme, *arguments], cwd=folder,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start(folder, out, *more):
    return launch(folder, "train", "run.toml", "--set", f"out=\"{out}\"", "--quiet", *more)


def finish(process):
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def metrics(out):
    with open(os.path.join(out, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def digest(path):
    done = subprocess.run([trireme, "checkpoint", "digest", path, "--json"], capture_output=True, text=True)
    return json.loads(done.stdout)["digest"] if done.returncode == 0 else f"status {done.returncode}: {done.stderr}"


def checkpoints(out):
    folder = os.path.join(out, "checkpoints")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted((name for name in names if name.startswith("step-")), key=lambda name: int(name[5:]))


def result_of(out):
    """All that must be equal, by name."""
    result = {"metrics.jsonl": metrics(out)}
    for name in checkpoints(out):
        result[f"checkpoints/{name}"] = digest(os.path.join(out, "checkpoints", name))
        with open(os.path.join(out, "checkpoints", name, "manifest.json")) as file:
            result[f"checkpoints/{name} train state"] = json.load(file)["train"]
    for name in sorted(os.listdir(os.path.join(out, "export"))):
        with open(os.path.join(out, "export", name), "rb") as file:
            result[f"export/{name}"] = file.read()
    return result


def differences(got, want):
    # A SIGTERM writes a checkpoint of its own, which then is one of those kept: the newest must be there in both, older
    # ones are compared where both have them.
    newest = f"checkpoints/step-{max(int(key.split()[0][17:]) for key in want if key.startswith('checkpoints/'))}"
    optional = {key for key in set(got) ^ set(want) if key.startswith("checkpoints/") and key.split()[0] != newest}
    found = [key for key in sorted((set(got) | set(want)) - optional) if got.get(key) != want.get(key)]
    if "metrics.jsonl" in found:
        pairs = list(zip(got["metrics.jsonl"], want["metrics.jsonl"]))
        first = next((f"{a} and not {b}" for a, b in pairs if a != b), "")
        found.append(f"{len(got['metrics.jsonl'])} lines of {len(want['metrics.jsonl'])}; {first}")
    return found


def lines_of(path):
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def has_temporary(folder, prefix):
    try:
        return any(name.startswith(prefix) for name in os.listdir(folder))
    except FileNotFoundError:
        return False


def wait_for(process, event, limit=120.0):
    """Polls until the event, the process's end, or the limit."""
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end:
        if event():
            return True
    return False


def kill_moment(process, out, kind, startup_s):
    """Returns at the moment of the kill."""
    if kind == "starting":
        wait_for(process, lambda: False, chance.uniform(0.0, 1.3 * startup_s))
        return
    if kind == "stepping":
        path = os.path.join(out, "metrics.jsonl")
        target = lines_of(path) + chance.randint(1, 12)
        wait_for(process, lambda: lines_of(path) >= target)
        wait_for(process, lambda: False, chance.uniform(0.0, 0.03))
    elif kind == "writing":
        folder = os.path.join(out, "checkpoints")
        for _ in range(chance.randint(1, 3)):
            wait_for(process, lambda: has_temporary(folder, ".tmp-step-"))
            wait_for(process, lambda: not has_temporary(folder, ".tmp-step-"), chance.uniform(0.0, 0.02))
    else:
        wait_for(process, lambda: has_temporary(out, ".tmp-export"))
        wait_for(process, lambda: False, chance.uniform(0.0, 0.02))


def disturbed_run(folder, out, kills, startup_s):
    """Runs to the end through `kills` kills at most; returns (kills, moments, problem)."""
    done = 0
    moments = []
    problem = ""
    path = os.path.join(folder, out)
    for attempt in range(400):
        newest = checkpoints(path)[-1:]
        process = start(folder, out)
        if done < kills:
            kind = chance.choices(["starting", "stepping", "writing", "exporting"], [2, 4, 6, 1])[0]
            kill_moment(process, path, kind, startup_s)
            gentle = chance.random() < 0.08
            process.send_signal(signal.SIGTERM if gentle else signal.SIGKILL)
            status, _, errors = finish(process)
            if gentle and status not in (0, 130, -signal.SIGTERM):
                problem = problem or f"SIGTERM ended with status {status}: {errors}"
            if status == -signal.SIGKILL:
                done += 1
                moments.append(kind)
            elif not gentle and status != 0:
                problem = problem or f"status {status}: {errors}"
                break
        else:
            status, _, errors = finish(process)
            if status != 0:
                problem = problem or f"status {status}: {errors}"
                break
        # What was complete stays complete, or makes room for something newer that is.
        now = checkpoints(path)
        if newest and (not now or int(now[-1][5:]) < int(newest[0][5:])):
            problem = problem or f"{newest[0]} was lost"
        if now:
            verified = subprocess.run([trireme, "checkpoint", "verify", os.path.join(path, "checkpoints", now[-1])],
                                      capture_output=True, text=True)
            if verified.returncode != 0:
                problem = problem or f"{now[-1]}: {verified.stdout}{verified.stderr}"
        if status == 0:
            return done, moments, problem
    return done, moments, problem or "the run never ended"


def older_checkpoint(folder, out, reference):
    """A damaged newest checkpoint stops the run with its name; the one before it leads to the same result."""
    process = start(folder, out, "--set", "schedule.steps=48")
    wait_for(process, lambda: len(checkpoints(os.path.join(folder, out))) == 2)
    process.send_signal(signal.SIGTERM)
    finish(process)
    path = os.path.join(folder, out, "checkpoints")
    older, newest = checkpoints(os.path.join(folder, out))[-2:]
    weights = os.path.join(path, newest, "model.safetensors")
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    status, _, errors = finish(start(folder, out))
    check("a damaged checkpoint stops the run with its name",
          status == 3 and newest in errors and "model.safetensors" in errors and "move that folder away" in errors,
          f"status {status}: {errors.strip()}")
    os.rename(os.path.join(path, newest), os.path.join(folder, "damaged"))
    status, _, errors = finish(start(folder, out))
    if check("the one before it takes over", status == 0, f"{older}, status {status} {errors.strip()}"):
        different = differences(result_of(os.path.join(folder, out)), reference)
        check("and leads to the same result", not different, "; ".join(map(str, different)))


LONG = """
out = "unused"
seed = 7
threads = 2
[model]
config = "config.json"
[tokenizer]
path = "tokenizer.json"
[data]
train = ["long.jsonl"]
valid = ["text/0.txt"]
seq_len = 32
[batch]
sequences = 8
micro = 2
lanes = 2
[schedule]
steps = 6
warmup = 1
[precision]
recipe = "fp32"
[eval]
every = 3
[checkpoint]
every = 3
"""
PREPARE = ["data", "prepare", "long.jsonl", "--tokenizer", "tokenizer.json", "--valid-fraction", "0.1", "--threads", "2",
           "--quiet", "--out"]


def temporaries(folder):
    """Every file below the folder with a name of the program's temporaries."""
    return [os.path.join(path, name) for path, _, names in os.walk(folder) for name in names
            if name.startswith((".tmp-", ".old-")) or ".tmp" in name]


def indexes(folder):
    return [name for name in os.listdir(folder) if name.endswith(".idx")] if os.path.isdir(folder) else []


def contents(folder):
    result = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            result[name] = file.read()
    return result


def kill_all_along(begin, tokens, num_indexes, kills):
    """Kills what `begin()` starts at delays spread over the time in which it fills the folder `tokens`, whose length the
    first, undisturbed process shows; `num_indexes` data sets end it. Returns (length, hits, temporaries seen, problem)."""
    process = begin()
    wait_for(process, lambda: temporaries(tokens))
    first = time.monotonic()
    wait_for(process, lambda: len(indexes(tokens)) >= num_indexes)
    length = time.monotonic() - first
    status, _, errors = finish(process)
    if status != 0:
        return length, 0, 0, f"undisturbed: status {status}: {errors}"
    shutil.rmtree(tokens)
    hits = seen = 0
    for number in range(kills):
        process = begin()
        wait_for(process, lambda: temporaries(tokens))
        wait_for(process, lambda: False, length * (number + chance.random()) / kills)
        process.send_signal(signal.SIGKILL)
        status, _, errors = finish(process)
        if status not in (0, -signal.SIGKILL):
            return length, hits, seen, f"status {status}: {errors}"
        seen += bool(temporaries(tokens))
        complete = indexes(tokens)
        hits += len(complete) < num_indexes
        for name in complete:  # the next one works as well
            os.remove(os.path.join(tokens, name))
    return length, hits, seen, ""


def killed_while_tokenizing(folder, kills):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choice(letters) for _ in range(chance.randint(2, 9))) for _ in range(50000)]
    with open(os.path.join(folder, "long.jsonl"), "w") as file:
        for _ in range(25000):  # several times what is encoded at once
            file.write(json.dumps({"text": " ".join(chance.choices(words, k=25))}) + "\n")
    with open(os.path.join(folder, "run.toml"), "w") as file:
        file.write(LONG)
    trained = finish(launch(folder, "tokenize", "train", "text/*.txt", "--vocab-size", "320", "--out", "tokenizer.json"))
    check("a tokenizer", trained[0] == 0, trained[2])

    # The folder of tokens is named, so that the undisturbed process that is timed has it as well.
    out = os.path.join(folder, "long")
    status, _, errors = finish(start(folder, "long-reference"))
    if not check("two threads: the undisturbed run", status == 0, errors):
        return
    reference, tokens = result_of(f"{out}-reference"), contents(f"{out}-reference/cache")
    attempts = iter(["timed"] + ["long"] * (kills + 1))
    cache = os.path.join(folder, "long", "cache")

    def begin():
        name = next(attempts)
        return start(folder, name, "--set", f"data.cache=\"{cache}\"")

    length, hits, seen, problem = kill_all_along(begin, cache, 1, kills)
    check(f"two threads: {hits} of {kills} kills in {length:.2f} s of tokenizing", not problem and hits * 2 > kills and seen > 0,
          problem or f"{seen} left something")
    # The moments between the writing of a small file and its name are too short to hit: what they would leave.
    for name in (".run.toml.999999.0.tmp", "cache/.tokens-0.idx.999999.1.tmp"):
        with open(os.path.join(out, name), "w") as file:
            file.write("half")
    status, _, errors = finish(start(folder, "long"))
    if check("two threads: the run that is left alone", status == 0, errors):
        different = differences(result_of(out), reference)
        check("two threads: the same result", not different, "; ".join(map(str, different)))
        check("two threads: the same tokens", contents(cache) == tokens, " ".join(os.listdir(cache)))
        check("two threads: nothing is left over", not temporaries(out), " ".join(temporaries(out)))

    prepared = os.path.join(folder, "prepared")
    length, hits, seen, problem = kill_all_along(lambda: launch(folder, *PREPARE, "prepared/all"), prepared, 2, kills)
    check(f"data prepare: {hits} of {kills} kills in {length:.2f} s", not problem and hits * 2 > kills and seen > 0,
          problem or f"{seen} left something")
    for out in ("prepared/all", "undisturbed/all"):
        status, _, errors = finish(launch(folder, *PREPARE, out))
        check(f"data prepare: {out}", status == 0, errors)
    check("data prepare: the same files and nothing left over",
          contents(prepared) == contents(os.path.join(folder, "undisturbed")), " ".join(os.listdir(prepared)))


def main():
    folder = tempfile.mkdtemp(prefix="trireme-crash-")
    os.mkdir(os.path.join(folder, "text"))
    words = ["oar", "bank", "keel", "bow", "stern", "mast", "sail", "row", "the", "a", "and", "of", "pulls", "\n"]
    for number in range(24):
        with open(os.path.join(folder, "text", f"{number}.txt"), "w") as file:
            file.write(" ".join(chance.choice(words) for _ in range(chance.randint(20, 260))))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(CONFIG, file)
    kills = 0
    number = 0
    references = {}
    while kills < wanted_kills:
        name = list(RUNS)[number % len(RUNS)]
        with open(os.path.join(folder, "run.toml"), "w") as file:
            file.write(f"out = \"unused\"\n{COMMON.format(**RUNS[name])}")
        if name not in references:
            process = start(folder, f"{name}-reference")
            begin = time.monotonic()
            wait_for(process, lambda: lines_of(os.path.join(folder, f"{name}-reference", "metrics.jsonl")) > 0)
            startup_s = time.monotonic() - begin
            status, _, errors = finish(process)
            if not check(f"{name}: the undisturbed run", status == 0, errors.strip()):
                break
            references[name] = (result_of(os.path.join(folder, f"{name}-reference")), startup_s)
            check(f"{name}: metrics of every step",
                  [line["step"] for line in references[name][0]["metrics.jsonl"]] == list(range(1, 49)))
        reference, startup_s = references[name]
        out = f"{name}-{number}"
        done, moments, problem = disturbed_run(folder, out, min(14, wanted_kills - kills), startup_s)
        if not check(f"{name}: {done} kills", not problem, problem or " ".join(sorted(moments))):
            break
        kills += done
        different = differences(result_of(os.path.join(folder, out)), reference)
        check(f"{name}: the same result", not different, "; ".join(map(str, different)))
        leftovers = [n for n in os.listdir(os.path.join(folder, out)) + os.listdir(os.path.join(folder, out, "checkpoints"))
                     if n.startswith((".tmp-", ".old-"))]
        check(f"{name}: nothing is left over", not leftovers, " ".join(leftovers))
        number += 1
        if number > 40:
            check("kills that hit", False, f"only {kills} of {wanted_kills}")
            break
    if failed == 0:
        with open(os.path.join(folder, "run.toml"), "w") as file:
            file.write(f"out = \"unused\"\n{COMMON.format(**RUNS['adamw-fp32'])}")
        older_checkpoint(folder, "older", references["adamw-fp32"][0])
        killed_while_tokenizing(folder, max(2, wanted_kills // 7))
    check(f"{wanted_kills} kills", kills >= wanted_kills, str(kills))
    if failed == 0:
        shutil.rmtree(folder)
    else:
        print(f"kept {folder}")
    print(f"{passed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
