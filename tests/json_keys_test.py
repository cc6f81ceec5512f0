#!/usr/bin/env python3
"""Every key that `--json` promises is there, and its value is what another way of computing it gives.

The keys are those that outside scripts rely on; more may be present. The values come from the definition (perplexity is
e to the loss), from files that the program wrote (safetensors headers, trace.json), or from another command (a task's
accuracy from `eval --ids`). Last line: `N passed, N failed`.
"""
import json
import math
import os
import shutil
import struct
import subprocess
import sys

import tiny_run

CASES = []


def case(function):
    CASES.append(function)
    return function


class Folder:
    """The working folder that all cases share: a trained model in `run`, and what they add."""

    def __init__(self, path):
        self.path = path
        tiny_run.train(path)
        self.newest = f"run/checkpoints/step-{tiny_run.STEPS}"

    def file(self, name):
        return os.path.join(self.path, name)

    def write(self, name, text):
        with open(self.file(name), "w", encoding="utf-8", newline="") as file:
            file.write(text)
        return name

    def write_lines(self, name, values):
        return self.write(name, "".join(json.dumps(value) + "\n" for value in values))

    def json(self, *arguments, status=0):
        """The one document that the command prints."""
        done = tiny_run.run(self.path, *arguments, "--json")
        assert done.returncode == status, f"{arguments}: status {done.returncode}: {done.stderr}"
        return json.loads(done.stdout)

    def ids(self, text, *more):
        self.write("some.txt", text)
        return self.json("tokenize", "encode", "--tokenizer", "tokenizer.json", "some.txt", *more)["ids"]

    def texts(self, sequences, *more):
        self.write_lines("some.ids", sequences)
        return self.json("tokenize", "decode", "--tokenizer", "tokenizer.json", "some.ids", *more)["texts"]

    def losses(self, sequences):
        self.write_lines("some.ids", sequences)
        return self.json("eval", "run", "--ids", "some.ids")["losses"]

    def end_of_text(self):
        described = self.json("tokenize", "inspect", "--tokenizer", "tokenizer.json")
        return next(token["id"] for token in described["special_tokens"] if token["token"] == described["eos"])


def require(document, *keys):
    missing = [key for key in keys if key not in document]
    assert not missing, f"missing {missing} in {list(document)}"


def near(a, b, relative=1e-6):
    assert math.isclose(a, b, rel_tol=relative, abs_tol=1e-9), f"{a} is not {b}"


def tensors_of(path):
    """{name: (dtype, shape)} and the bytes of the tensors of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    size = sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in header.values())
    return {name: (tensor["dtype"], tensor["shape"]) for name, tensor in header.items()}, size


@case
def eval_ids(folder):
    text = tiny_run.VALID.strip()
    sequences = [folder.ids(text), folder.ids("fox 🚣 Größe"), folder.ids("x")]
    assert len(sequences[2]) == 1  # predicts nothing
    folder.write_lines("lines.ids", sequences)
    got = folder.json("eval", "run", "--ids", "lines.ids")
    require(got, "loss", "tokens", "perplexity", "bits_per_byte", "losses")
    assert [len(line) for line in got["losses"]] == [len(ids) - 1 for ids in sequences]
    every = [loss for line in got["losses"] for loss in line]
    assert got["tokens"] == len(every)
    near(got["loss"], sum(every) / len(every))
    near(got["perplexity"], math.exp(got["loss"]))
    # The first token of a line is not predicted; the texts are ASCII there.
    firsts = folder.texts([ids[:1] for ids in sequences])
    size = sum(len(t.encode()) for t in (text, "fox 🚣 Größe", "x")) - sum(map(len, firsts))
    near(got["bits_per_byte"], sum(every) / math.log(2) / size)


@case
def losses_are_of_a_distribution(folder):
    """The probabilities of all that could come next sum to one: the losses are nats of a softmax over the vocabulary."""
    prefix = folder.ids("The quick")
    losses = folder.losses([prefix + [token] for token in range(tiny_run.CONFIG["vocab_size"])])
    near(sum(math.exp(-line[-1]) for line in losses), 1.0, 1e-5)
    assert max(line[-1] for line in losses) - min(line[-1] for line in losses) > 1.0  # and not all alike


@case
def eval_without_a_tokenizer(folder):
    """Ids need none: bits per byte is unknown, the rest is as before."""
    shutil.copytree(folder.file("run/export"), folder.file("bare"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.remove(folder.file(f"bare/{name}"))
    folder.write_lines("bare.ids", [folder.ids("The lazy dog")])
    got = folder.json("eval", "bare", "--ids", "bare.ids")
    require(got, "loss", "tokens", "perplexity", "bits_per_byte", "losses")
    assert got["bits_per_byte"] is None
    near(got["loss"], folder.json("eval", "run", "--ids", "bare.ids")["loss"])


@case
def eval_data(folder):
    """A document that fits one window is a sequence with the end of text behind it."""
    text = "The quick fox 東京 jumps."
    ids = folder.ids(text) + [folder.end_of_text()]
    losses = folder.losses([ids])[0]
    folder.write("one.txt", text)
    got = folder.json("eval", "run", "--data", "one.txt", "--packing", "documents")
    require(got, "loss", "tokens", "perplexity", "bits_per_byte", "bytes")
    assert got["tokens"] == len(losses)
    near(got["loss"], sum(losses) / len(losses), 1e-5)
    near(got["perplexity"], math.exp(got["loss"]))
    assert got["bytes"] == len(text.encode()) - len(folder.texts([ids[:1]])[0].encode())
    near(got["bits_per_byte"], got["loss"] * got["tokens"] / math.log(2) / got["bytes"])


@case
def eval_tasks(folder):
    """acc: the choice of the highest summed log-likelihood; acc_norm: of the highest per character."""
    questions = [("fox", "The quick brown", [" fox", " fox jumps over the lazy dog.", " 東京"]),
                 ("fox", "Größe,", [" 東京 and", " and", " x"]),
                 ("fox", "jumps over", [" the lazy", " t", " dog brown"]),
                 ("row", "東京 and 🚣", [" row on.", " r", " lazy"]),
                 ("row", "The", [" quick brown fox jumps", " q"])]
    best, best_norm = [], []
    for _, context, choices in questions:
        shared = len(folder.ids(context))
        wholes = [folder.ids(context + choice) for choice in choices]
        scores = [-sum(losses[shared - 1:]) for losses in folder.losses(wholes)]
        best.append(max(range(len(choices)), key=lambda c: scores[c]))
        best_norm.append(max(range(len(choices)), key=lambda c: scores[c] / len(choices[c])))
    assert best != best_norm, f"the questions do not tell the two apart: {best}"
    answers = [choice if i % 2 == 0 else (choice + 1) % len(questions[i][2]) for i, choice in enumerate(best)]
    folder.write_lines("tasks.jsonl", [{"task": task, "context": context, "choices": choices, "answer": answer}
                                       for (task, context, choices), answer in zip(questions, answers)])
    got = folder.json("eval", "run", "--tasks", "tasks.jsonl")
    require(got, "tasks")
    assert {task["name"] for task in got["tasks"]} == {"fox", "row"}
    for task in got["tasks"]:
        require(task, "name", "acc", "acc_norm", "acc_bytes", "count", "contexts_cut")
        assert task["contexts_cut"] == 0
        rows = [i for i, question in enumerate(questions) if question[0] == task["name"]]
        assert task["count"] == len(rows)
        near(task["acc"], sum(best[i] == answers[i] for i in rows) / len(rows))
        near(task["acc_norm"], sum(best_norm[i] == answers[i] for i in rows) / len(rows))
    assert all(0 < task["acc"] < 1 for task in got["tasks"])


@case
def generate_greedy(folder):
    prompts = ["The quick", "Größe"]
    got = folder.json("generate", "run", "--prompt", prompts[0], "--prompt", prompts[1], "--greedy", "-n", 6, "--ignore-eos")
    require(got, "outputs")
    assert [output["prompt"] for output in got["outputs"]] == prompts
    for output in got["outputs"]:
        require(output, "prompt", "ids", "text", "finish")
        assert output["finish"] == "length" and len(output["ids"]) == 6
        assert output["text"] == folder.texts([output["ids"]])[0]
        # Greedy: of all tokens the first is the likeliest.
        prefix = folder.ids(output["prompt"])
        losses = folder.losses([prefix + [token] for token in range(tiny_run.CONFIG["vocab_size"])])
        assert output["ids"][0] == min(range(len(losses)), key=lambda token: losses[token][-1])
    folder.write_lines("prompts.ids", [folder.ids(prompt) for prompt in prompts])
    by_ids = folder.json("generate", "run", "--ids", "prompts.ids", "--greedy", "-n", 6, "--ignore-eos")["outputs"]
    assert [output["ids"] for output in by_ids] == [output["ids"] for output in got["outputs"]]
    assert [output["prompt"] for output in by_ids] == [folder.ids(prompt) for prompt in prompts]


@case
def generate_finishes(folder):
    longest = folder.json("generate", "run", "--prompt", "The quick", "--greedy", "-n", 500, "--ignore-eos")["outputs"][0]
    assert longest["finish"] == "context", longest["finish"]
    stop = longest["text"][3:6]
    stopped = folder.json("generate", "run", "--prompt", "The quick", "--greedy", "-n", 500, "--stop", stop)["outputs"][0]
    assert stopped["finish"] == "stop" and stopped["text"] == longest["text"][:longest["text"].index(stop)], stopped


@case
def tokenize_encode(folder):
    text = tiny_run.VALID + "a🚣b\n"
    folder.write("words.txt", text)
    got = folder.json("tokenize", "encode", "--tokenizer", "tokenizer.json", "words.txt")
    require(got, "ids", "offsets")
    assert folder.texts([got["ids"]])[0] == text
    assert len(got["ids"]) == len(got["offsets"])
    pieces = folder.texts([[token] for token in got["ids"]])
    whole = 0
    for piece, (begin, end) in zip(pieces, got["offsets"]):
        part = text[begin:end]
        if "\ufffd" in piece:  # holds a part of a character: the offsets are of all of it
            assert not part.isascii()
            assert [c for c in part if c.isascii()] == [c for c in piece if c.isascii()], (part, piece)
        else:
            assert part == piece, (part, piece)
            whole += len(piece)
    assert 0 < whole < len(text)  # both kinds are there

    lines = folder.json("tokenize", "encode", "--tokenizer", "tokenizer.json", "--lines", "words.txt")
    assert [line["ids"] for line in lines] == [folder.ids(line) for line in text.split("\n")[:-1]]
    assert all(line["offsets"][-1][1] == len(part) for line, part in zip(lines, text.split("\n")))
    folder.write("more.txt", "fox")
    files = folder.json("tokenize", "encode", "--tokenizer", "tokenizer.json", "words.txt", "more.txt")
    assert [one["ids"] for one in files] == [got["ids"], folder.ids("fox")]
    for one in lines + files:
        require(one, "ids", "offsets")


@case
def checkpoint_digest(folder):
    got = folder.json("checkpoint", "digest", folder.newest)
    require(got, "digest", "tensors")
    for tensor in got["tensors"]:
        require(tensor, "name", "dtype", "shape", "xxh3")
        assert len(tensor["xxh3"]) == 16 and int(tensor["xxh3"], 16) >= 0
    assert len(got["digest"]) == 16
    exported = folder.json("checkpoint", "digest", "run/export")
    held, _ = tensors_of(folder.file("run/export/model.safetensors"))
    assert {t["name"]: (t["dtype"], t["shape"]) for t in exported["tensors"]} == held
    assert folder.json("checkpoint", "digest", "run") == folder.json("checkpoint", "digest", folder.newest)


@case
def checkpoint_verify(folder):
    sound = folder.json("checkpoint", "verify", folder.newest)
    require(sound, "ok", "damaged")
    assert sound["ok"] is True and sound["damaged"] == []
    shutil.copytree(folder.file(folder.newest), folder.file("damaged"))
    shard = sorted(name for name in os.listdir(folder.file("damaged")) if name.endswith(".safetensors"))[0]
    with open(folder.file(f"damaged/{shard}"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    got = folder.json("checkpoint", "verify", "damaged", status=3)
    require(got, "ok", "damaged")
    assert got["ok"] is False and got["damaged"]
    for damage in got["damaged"]:
        require(damage, "file", "tensor", "reason")
        assert damage["file"] == shard and damage["reason"]


@case
def checkpoint_diff(folder):
    same = folder.json("checkpoint", "diff", "run", folder.newest)
    require(same, "equal", "differences")
    assert same["equal"] is True and same["differences"] == []
    shutil.copytree(folder.file("run/export"), folder.file("changed"))
    path = folder.file("changed/model.safetensors")
    with open(path, "r+b") as file:  # the first element of one tensor becomes 1000
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        name = "model.norm.weight"
        assert header[name]["dtype"] == "F32"
        place = 8 + size + header[name]["data_offsets"][0]
        file.seek(place)
        before = struct.unpack("<f", file.read(4))[0]
        file.seek(place)
        file.write(struct.pack("<f", 1000.0))
    got = folder.json("checkpoint", "diff", "run/export", "changed", status=3)
    assert got["equal"] is False and len(got["differences"]) == 1
    difference = got["differences"][0]
    require(difference, "name", "reason", "elements", "max_absolute", "max_relative")
    assert difference["name"] == name and difference["elements"] == 1
    near(difference["max_absolute"], 1000.0 - before)


@case
def convert(folder):
    exported = folder.json("convert", "export", "run", "exported")
    require(exported, "tensors", "bytes", "path")
    held, size = tensors_of(folder.file("exported/model.safetensors"))
    assert exported["tensors"] == len(held) and exported["bytes"] == size
    assert os.path.samefile(folder.file(exported["path"]), folder.file("exported"))
    imported = folder.json("convert", "import", "exported", "imported")
    require(imported, "tensors", "bytes", "path")
    assert imported["tensors"] == len(held) and imported["bytes"] == size
    assert os.path.samefile(folder.file(imported["path"]), folder.file("imported"))
    assert folder.json("checkpoint", "digest", "imported")["digest"] == \
        folder.json("checkpoint", "digest", "exported")["digest"]


@case
def train_dry_run(folder):
    got = folder.json("train", "run.toml", "--dry-run", "--set", "out=\"other\"")
    require(got, "parameters", "active_parameters", "flops_per_token", "peak_bytes", "steps", "problems")
    held, _ = tensors_of(folder.file("run/export/model.safetensors"))
    assert got["parameters"] == got["active_parameters"] == sum(math.prod(shape) for _, shape in held.values())
    assert got["steps"] == tiny_run.STEPS and got["problems"] == []
    # Every weight of a product is used once forward and twice backward, by two operations each; the embedding is the head's.
    assert got["flops_per_token"] > 6 * sum(math.prod(shape) for _, shape in held.values() if len(shape) == 2)
    assert got["peak_bytes"] > 4 * got["parameters"]
    status = folder.json("train", "run.toml", "--dry-run", "--set", "data.seq_len=100000", status=2)
    assert status["problems"], "a window longer than the context is a problem"


@case
def plan_simulate(folder):
    got = folder.json("plan", "simulate", "run.toml", "--gemm-gflops", 100)
    require(got, "step_s", "tokens_per_s", "peak_bytes", "exposed_comm_s", "hidden_comm_share", "bubble_share", "flops_model",
            "flops_hardware")
    tokens = tiny_run.SEQUENCES * tiny_run.SEQ_LEN
    near(got["tokens_per_s"], tokens / got["step_s"])
    dry = folder.json("train", "run.toml", "--dry-run", "--set", "out=\"other\"")
    near(got["flops_model"], dry["flops_per_token"] * tokens)
    near(got["flops_hardware"], got["flops_model"])  # nothing is recomputed
    assert got["exposed_comm_s"] == 0 and got["hidden_comm_share"] == 1  # one rank
    assert 0 <= got["bubble_share"] < 1


@case
def plan_simulate_on_a_cluster(folder):
    got = folder.json("plan", "simulate", "run.toml", "--cluster", "dgx-h100", "--parallel", "dp=2")
    require(got, "step_s", "tokens_per_s", "peak_bytes", "exposed_comm_s", "hidden_comm_share", "bubble_share", "flops_model",
            "flops_hardware", "interval_s", "sent_bytes", "time_by_kind_s")
    near(got["tokens_per_s"], tiny_run.SEQUENCES * tiny_run.SEQ_LEN / 2 / got["step_s"])  # of one accelerator
    assert got["world"] == 2 and len(got["peak_bytes"]) == 1  # one stage
    assert got["interval_s"][0] < got["step_s"] < got["interval_s"][1]


@case
def plan_score(folder):
    os.makedirs(folder.file("truth"), exist_ok=True)
    with open(folder.file("truth/some.csv"), "w", encoding="utf-8") as file:
        file.write("row_id,model,layers,hidden,ffn,heads,framework,device,num_devices,mbs,gbs,seq,precision,iter_s,quality\n"
                   "some-1,llama,8,4096,11008,32,Megatron-LM,A100-SXM-80GB,8,1,64,4096,bf16,1.5,A\n"
                   "some-2,llama,,4096,11008,32,Megatron-LM,A100-SXM-80GB,8,1,64,4096,bf16,1.5,A\n")
    got = folder.json("plan", "score", "--truth", "truth", "--rows")
    require(got, "sources", "overall", "rows")
    keys = ("source", "rows", "refused", "time_mape", "time_worst", "mem_mape", "oom_balanced_accuracy", "interval_coverage",
            "constant_mape")
    require(got["sources"][0], *keys)
    require(got["overall"], *keys)
    assert (got["sources"][0]["source"], got["sources"][0]["rows"], got["sources"][0]["refused"]) == ("some", 1, 1)
    row = got["rows"][0]
    require(row, "row_id", "predicted_s", "measured_s")
    near(got["overall"]["time_mape"], abs(row["predicted_s"] / row["measured_s"] - 1))


@case
def trace_summary(folder):
    got = folder.json("trace", "summary", "run/trace.json")
    require(got, "ranks")
    with open(folder.file("run/trace.json"), encoding="utf-8") as file:
        trace = json.load(file)
    queues = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"]
              if event["ph"] == "M" and event["name"] == "thread_name"}
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if queues[event["tid"]] == "compute")
    busy, reached = 0.0, 0.0
    for begin, end in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    rank = got["ranks"][0]
    require(rank, "step_s", "compute_s", "comm_s", "exposed_comm_s", "hidden_comm_share", "idle_s")
    step = max(event["ts"] + event["dur"] for event in events)
    near(rank["step_s"], step * 1e-6, 1e-4)
    near(rank["compute_s"], busy * 1e-6, 1e-4)
    near(rank["idle_s"], (step - busy) * 1e-6, 1e-3)
    assert rank["comm_s"] == rank["exposed_comm_s"] == 0 and rank["hidden_comm_share"] == 1  # one rank


@case
def bench(folder):
    commands = {
        ("gemm", "--shape", "16x32x8", "--seconds", "0.01"): ["gemm.fp32.16x32x8", "gemm.bf16.16x32x8"],
        ("tokenize", "--tokenizer", "tokenizer.json", "text.txt"): ["tokenize.bytes", "tokenize.tokens"],
        ("train", "--preset", "llama-11m", "--micro", 1, "--seq-len", 16, "--warmup", 0, "--steps", 2): ["train.llama-11m.fp32"],
        ("kernels", "--rows", 32, "--seq-len", 16, "--hidden", 32, "--heads", 2, "--kv-heads", 2, "--feed-forward", 64,
         "--vocab-size", 64, "--precision", "fp32", "--seconds", "0.002"): None}
    for arguments, names in commands.items():
        got = folder.json("bench", *arguments)
        require(got, "machine", "results")
        assert got["machine"]["cpus"] >= 1
        if names is None:
            assert len(got["results"]) > 8 and len({result["name"] for result in got["results"]}) == len(got["results"])
        else:
            assert [result["name"] for result in got["results"]] == names, arguments
        for result in got["results"]:
            require(result, "name", "median", "min", "max", "unit")
            assert 0 < result["min"] <= result["median"] <= result["max"] and result["unit"], result


sys.exit(tiny_run.run_cases(CASES, Folder))
