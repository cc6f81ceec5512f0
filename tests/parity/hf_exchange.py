#!/usr/bin/env python3
"""Exchange with transformers, live: models of all families go in and out of Trireme and stay what they were.

For every case of goldens/model_cases.py and a fresh random seed:
  * transformers saves the model (also bf16, also in shards, also without its head); `trireme convert import` reads it;
  * `trireme convert export` writes it again: config.json, generation_config.json and, where the source was not cut,
    model.safetensors are the same bytes; every tensor is equal; transformers loads it without a warning and gives the same
    logits and greedy tokens;
  * a second import and export, in shards, is the same model and, again, the same bytes;
  * `trireme checkpoint digest`, `diff` and `verify` agree;
  * where the program has `eval`, its losses on the imported model are transformers' (1e-5 relative);
  * fp8 in blocks, as `convert export --fp8` and as transformers itself writes it, and MXFP4 experts: what is read is bit for bit what
    transformers makes of them where it dequantises (without a GPU), with the same logits and losses; fp8 is written again to the same bytes.
Last line: `N passed, N failed`.
"""
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config  # noqa: E402
from transformers.integrations.finegrained_fp8 import Fp8Quantize  # noqa: E402
from transformers.quantizers import quantizer_finegrained_fp8  # noqa: E402

sys.path.insert(0, os.path.join(here, "..", "goldens"))
import model_cases  # noqa: E402

# It asks whether accelerate is installed, and does without it where it dequantises.
quantizer_finegrained_fp8.is_accelerate_available = lambda: True

torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
trireme = os.environ.get("TRIREME", os.path.join(root, "build", "trireme"))
seed = int(os.environ.get("PARITY_SEED", time.time_ns() % 1_000_000))
print(f"PARITY_SEED={seed}")
passed = failed = 0


def run(*arguments):
    done = subprocess.run([trireme, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"trireme {' '.join(arguments)}: status {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def refused(*arguments):
    """The status and the message of a command that must not succeed."""
    done = subprocess.run([trireme, *arguments], capture_output=True, text=True)
    assert done.returncode != 0, f"trireme {' '.join(arguments)} succeeded"
    return done.returncode, done.stderr


def check(name, function):
    global passed, failed
    try:
        detail = function()
        print(f"ok      {name}" + (f": {detail}" if detail else ""))
        passed += 1
    except Exception as error:  # every failure is a line of the result
        print(f"FAILED  {name}: {type(error).__name__}: {error}")
        failed += 1


def tensors_of(folder):
    tensors = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, file)))
    return tensors


def assert_same_tensors(got, want):
    assert set(got) == set(want), f"names differ: {set(got) ^ set(want)}"
    for key in want:
        assert got[key].dtype == want[key].dtype and torch.equal(got[key], want[key]), f"{key} differs"


def assert_same_files(a, b, names=None):
    names = names or sorted(set(os.listdir(a)) | set(os.listdir(b)))
    for name in names:
        with open(os.path.join(a, name), "rb") as one, open(os.path.join(b, name), "rb") as other:
            assert one.read() == other.read(), f"{name} differs"


class Warnings(logging.Handler):
    """What transformers and Python warn of."""

    def __enter__(self):
        self.texts = []
        logging.getLogger("transformers").addHandler(self)
        self.catcher = warnings.catch_warnings(record=True)
        self.caught = self.catcher.__enter__()
        warnings.simplefilter("always")
        return self

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            self.texts.append(record.getMessage())

    def __exit__(self, *error):
        self.catcher.__exit__(*error)
        logging.getLogger("transformers").removeHandler(self)
        self.logged = list(self.texts)  # by transformers itself
        self.texts += [str(warning.message) for warning in self.caught]


def load(folder, dtype, **options):
    """The model, which nothing is missing from and nothing warned of but that there is no GPU."""
    with Warnings() as said:
        model, info = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager",
                                                           dtype=dtype, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    found = [text for text in said.logged if "requires a GPU" not in text]
    assert not found, found
    return model.eval()


def outcome(folder, ids, dtype):
    """Logits, greedy tokens, and what loading and running the model warned of."""
    with Warnings() as said:
        model, info = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager", dtype=dtype,
                                                           output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
        model.eval()
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        start = ids[:1, :9]
        tokens = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=24, do_sample=False, pad_token_id=0)
    return logits, tokens, said.texts


def assert_same_outcome(got, want):
    assert torch.equal(got[0], want[0]), "logits differ"
    assert torch.equal(got[1], want[1]), "greedy tokens differ"
    # A config may be odd on purpose, and transformers say so of the source as well.
    assert not set(got[2]) - set(want[2]), f"transformers warns of the export: {got[2]}"


def exchange(folder, name, number, dtype, shard):
    model = model_cases.build(name, seed + number).to(dtype)
    # transformers refuses to save tied weights that were changed apart; it ties them again on loading.
    source, ours, back = (os.path.join(folder, part) for part in ("source", "ours", "back"))
    model.save_pretrained(source, **({"max_shard_size": "5KB"} if shard else {}))
    assert shard == os.path.exists(os.path.join(source, "model.safetensors.index.json"))
    ids = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(seed + number))

    imported = run("convert", "import", source, ours)
    assert run("checkpoint", "verify", ours)["ok"]
    digest = run("checkpoint", "digest", ours)
    assert len(digest["tensors"]) == imported["tensors"]
    # A selection bias is a buffer there, and saved like a parameter.
    saved = [buffer for key, buffer in model.named_buffers() if key in model.state_dict()]
    assert sum(torch.Size(t["shape"]).numel() for t in digest["tensors"]) == sum(
        p.numel() for p in [*model.parameters(), *saved])

    exported = run("convert", "export", ours, back)
    assert exported["path"] == back
    stored = tensors_of(source)
    assert exported["bytes"] == sum(t.numel() * t.element_size() for t in stored.values())
    assert_same_tensors(tensors_of(back), stored)
    same = ["config.json", "generation_config.json"] + ([] if shard else ["model.safetensors"])
    assert_same_files(source, back, same)
    want = outcome(source, ids, dtype)
    assert_same_outcome(outcome(back, ids, dtype), want)

    again, cut, cut_again = (os.path.join(folder, part) for part in ("again", "cut", "cut_again"))
    run("convert", "import", back, again)
    assert run("checkpoint", "diff", ours, again)["equal"]
    assert run("checkpoint", "digest", again)["digest"] == digest["digest"]
    run("convert", "export", again, cut, "--shard-gb", "5e-6")
    assert os.path.exists(os.path.join(cut, "model.safetensors.index.json"))
    assert_same_outcome(outcome(cut, ids, dtype), want)
    shutil.rmtree(again)
    run("convert", "import", cut, again)
    assert run("checkpoint", "digest", again)["digest"] == digest["digest"]
    run("convert", "export", again, cut_again, "--shard-gb", "5e-6")
    assert_same_files(cut, cut_again)
    return f"{len(stored)} tensors"


def other_type(folder, name, number):
    model = model_cases.build(name, seed + number)
    source, ours, back = (os.path.join(folder, part) for part in ("source", "ours", "back"))
    model.save_pretrained(source)
    run("convert", "import", source, ours)
    for dtype in (torch.bfloat16, torch.float16):
        run("convert", "export", ours, back, "--dtype", str(dtype).removeprefix("torch."), "--force")
        # What transformers keeps in fp32 whatever the model's type.
        wide = getattr(model, "_keep_in_fp32_modules_strict", None) or []
        assert_same_tensors(tensors_of(back), {key: t if any(word in key for word in wide) else t.to(dtype)
                                               for key, t in tensors_of(source).items()})
        loaded = AutoModelForCausalLM.from_pretrained(back, dtype="auto")
        assert loaded.dtype == dtype, f"config.json does not say {dtype}"


def base_model(folder, name, number):
    """A model saved without its head, where the head is tied."""
    model = model_cases.build(name, seed + number)
    whole, base, ours, ours_base = (os.path.join(folder, part) for part in ("whole", "base", "ours", "ours_base"))
    model.save_pretrained(whole)
    model.base_model.save_pretrained(base)
    run("convert", "import", whole, ours)
    run("convert", "import", base, ours_base)
    assert run("checkpoint", "diff", ours, ours_base)["equal"]


def refusals(folder):
    model = model_cases.build("llama", seed)
    source, ours = os.path.join(folder, "source"), os.path.join(folder, "ours")
    model.save_pretrained(source)
    torch.save(model.state_dict(), os.path.join(folder, "pytorch_model.bin"))
    shutil.copy(os.path.join(source, "config.json"), folder)
    status, message = refused("convert", "import", folder, ours)
    assert status == 3 and "pickle" in message, (status, message)
    run("convert", "import", source, ours)
    status, message = refused("convert", "import", source, ours)
    assert status == 2 and "is there already" in message, (status, message)
    with open(os.path.join(ours, "model.safetensors"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 4]))
    for command in (["checkpoint", "verify", ours], ["checkpoint", "digest", ours],
                    ["convert", "export", ours, os.path.join(folder, "out")]):
        status, message = refused(*command)
        assert status == 3 and "damaged" in message, (command, status, message)
    assert not os.path.exists(os.path.join(folder, "out")), "a failed export left something"


def eval_losses(folder, name, number):
    model = model_cases.build(name, seed + number)
    source, ours, lines = (os.path.join(folder, part) for part in ("source", "ours", "ids.jsonl"))
    model.save_pretrained(source)
    run("convert", "import", source, ours)
    ids = torch.randint(0, 64, (3, 33), generator=torch.Generator().manual_seed(seed + number))
    with open(lines, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ids.tolist())
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    want = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").double()
    worst = 0.0
    for where in (source, ours):
        got = run("eval", where, "--ids", lines)
        losses = torch.tensor(got["losses"], dtype=torch.float64)
        assert losses.shape == want.shape, f"{losses.shape} losses"
        worst = max(worst, float((losses - want).abs().max() / want.abs().max()))
        assert abs(got["loss"] - float(want.mean())) <= 1e-5 * float(want.mean()), (got["loss"], float(want.mean()))
    assert worst <= 1e-5, f"losses differ by {worst:.1e}"
    return f"{worst:.1e}"


def same_weights(ours, theirs, ids, folder, where):
    """Weights, logits and losses of two loaded models; the losses of `where` too, a directory that Trireme reads by itself."""
    # Beside weights that it dequantises to float32, transformers keeps the others in the type of the file.
    assert_same_tensors(ours.state_dict(), theirs.float().state_dict())
    with torch.no_grad():
        logits = theirs(input_ids=ids, use_cache=False).logits
        assert torch.equal(ours(input_ids=ids, use_cache=False).logits, logits), "logits differ"
    if not has_eval:
        return "weights and logits equal"
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").double()
    lines = os.path.join(folder, "ids.jsonl")
    with open(lines, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in ids.tolist())
    found = torch.tensor(run("eval", where, "--ids", lines)["losses"], dtype=torch.float64)
    worst = float((found - losses).abs().max() / losses.abs().max())
    assert worst <= 1e-5, f"losses differ by {worst:.1e}"
    return f"losses {worst:.1e}"


def wide_model(name, number):
    """The case with matrices of several blocks. transformers takes the size of blocks from the number of scales: whole blocks only."""
    config = model_cases.CASES[name]()
    config.hidden_size, config.intermediate_size = 256, 384
    if hasattr(config, "moe_intermediate_size"):
        config.moe_intermediate_size = 128
    config.initializer_range = 0.02
    model_cases.CASES["wide"] = lambda: config
    try:
        return model_cases.build("wide", seed + number)
    finally:
        del model_cases.CASES["wide"]


def fp8(folder, name, number):
    source, ours, fp8_dir, back, plain, again, theirs = (
        os.path.join(folder, part) for part in ("source", "ours", "fp8", "back", "plain", "again", "theirs"))
    model = wide_model(name, number).to(torch.bfloat16)
    model.save_pretrained(source)
    stored = tensors_of(source)
    ids = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(seed + number))

    run("convert", "import", source, ours)
    run("convert", "export", "--fp8", ours, fp8_dir)
    written = tensors_of(fp8_dir)
    quantised = {key for key, tensor in written.items() if tensor.dtype == torch.float8_e4m3fn}
    assert quantised and set(written) == set(stored) | {key + "_scale_inv" for key in quantised}
    assert all(torch.equal(written[key], stored[key]) for key in set(stored) - quantised)
    with open(os.path.join(fp8_dir, "config.json")) as file:
        declared = json.load(file)["quantization_config"]
    assert declared["quant_method"] == "fp8" and declared["weight_block_size"] == [128, 128], declared

    run("convert", "import", fp8_dir, back)
    run("convert", "export", back, plain, "--dtype", "float32")
    detail = same_weights(load(plain, torch.float32), load(fp8_dir, torch.float32), ids, folder, fp8_dir)
    run("convert", "export", "--fp8", back, again)
    assert_same_files(fp8_dir, again)

    # What transformers' own quantiser writes is read the same.
    os.mkdir(theirs)
    quantise = Fp8Quantize(type("Quantizer", (), {"quantization_config": FineGrainedFP8Config()}))
    tensors = {}
    for key, tensor in stored.items():
        tensors.update(quantise._quantize_one(key, tensor) if key in quantised and min(tensor.shape) >= 128 else {key: tensor})
    save_file(tensors, os.path.join(theirs, "model.safetensors"), metadata={"format": "pt"})
    shutil.copy(os.path.join(fp8_dir, "config.json"), theirs)
    run("convert", "import", theirs, back + "2")
    run("convert", "export", back + "2", plain + "2", "--dtype", "float32")
    same_weights(load(plain + "2", torch.float32), load(theirs, torch.float32), ids, folder, theirs)
    return f"{len(quantised)} of {len(stored)} tensors, {detail}"


def mxfp4(folder, name, number):
    source, ours, plain = (os.path.join(folder, part) for part in ("source", "ours", "plain"))
    config = model_cases.CASES[name]()
    config.hidden_size, config.intermediate_size = 64, 96
    model_cases.CASES["wide"] = lambda: config
    try:
        model = model_cases.build("wide", seed + number).to(torch.bfloat16)
    finally:
        del model_cases.CASES["wide"]
    model.save_pretrained(source)
    generator = torch.Generator().manual_seed(seed + number)
    ids = torch.randint(0, 64, (2, 40), generator=generator)
    tensors = tensors_of(source)
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(key).shape  # transformers' modules hold [experts, in, out]
        tensors[key + "_blocks"] = torch.randint(0, 256, (experts, rows, width // 32, 16), generator=generator, dtype=torch.uint8)
        tensors[key + "_scales"] = torch.randint(118, 126, (experts, rows, width // 32), generator=generator, dtype=torch.uint8)
    save_file(tensors, os.path.join(source, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    config["quantization_config"] = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"}
    with open(os.path.join(source, "config.json"), "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)
    run("convert", "import", source, ours)
    run("convert", "export", ours, plain)
    with open(os.path.join(plain, "config.json")) as file:
        assert "quantization_config" not in json.load(file)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors_of(plain).values())
    return same_weights(load(plain, torch.float32), load(source, torch.float32, quantization_config=Mxfp4Config(dequantize=True)),
                        ids, folder, source)


def mtp(folder, name, number, layers, silent=True):
    """With as many layers as published models, whose multi-token-prediction layer transformers passes over in silence; or with others
    (`silent` false), where nothing is said only of what was exported without that layer."""
    config = model_cases.CASES[name]()
    # Lists of one entry a layer, where the config made them, are made anew.
    changed = {key: value for key, value in config.to_dict().items() if key not in ("layer_types", "mlp_layer_types")}
    config = type(config)(**{**changed, "num_hidden_layers": layers, "num_nextn_predict_layers": 1})
    model_cases.CASES["deep"] = lambda: config
    try:
        model = model_cases.build("deep", seed + number).to(torch.bfloat16)
    finally:
        del model_cases.CASES["deep"]
    source, ours, back, plain = (os.path.join(folder, part) for part in ("source", "ours", "back", "plain"))
    model.save_pretrained(source)
    tensors = tensors_of(source)
    main = set(tensors)
    last, extra = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    width = config.hidden_size
    tensors |= {key.replace(last, extra): t.clone() for key, t in tensors.items() if key.startswith(last)}
    tensors |= {extra + key: torch.randn(shape).to(torch.bfloat16) for key, shape in {
        "enorm.weight": (width,), "hnorm.weight": (width,), "shared_head.norm.weight": (width,), "eh_proj.weight": (width, 2 * width)}.items()}
    tensors |= {extra + "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
                extra + "shared_head.head.weight": tensors["lm_head.weight"].clone()}
    save_file(tensors, os.path.join(source, "model.safetensors"), metadata={"format": "pt"})
    run("convert", "import", source, ours)
    run("convert", "export", ours, back)
    assert_same_files(source, back, ["config.json", "generation_config.json", "model.safetensors"])
    run("convert", "export", "--without-mtp", ours, plain)
    assert set(tensors_of(plain)) == main, set(tensors_of(plain)) ^ main
    ids = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(seed + number))
    with torch.no_grad():
        got = [load(one, torch.bfloat16)(input_ids=ids, use_cache=False).logits for one in ((plain, back, source) if silent else (plain,))]
    assert all(torch.equal(one, got[0]) for one in got), "logits differ"
    return f"{sum(key.startswith(extra) for key in tensors)} tensors beside {len(tensors)}"


def in_folder(function, *arguments):
    def call():
        with tempfile.TemporaryDirectory() as folder:
            return function(folder, *arguments)
    return call


has_eval = "eval" in subprocess.run([trireme, "--help"], capture_output=True, text=True).stdout.split()
only = sys.argv[1:]  # families to do alone
for number, name in enumerate(model_cases.CASES):
    if only and name.split("-")[0] not in only:
        continue
    check(f"{name} fp32", in_folder(exchange, name, number, torch.float32, False))
    check(f"{name} bf16 in shards", in_folder(exchange, name, number, torch.bfloat16, True))
    check(f"{name} to other types", in_folder(other_type, name, number))
    if model_cases.CASES[name]().tie_word_embeddings:
        check(f"{name} without its head", in_folder(base_model, name, number))
    if has_eval:
        check(f"{name} losses", in_folder(eval_losses, name, number))
for number, name in enumerate(["llama", "phi3", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v2-yarn",
                               "deepseek_v3"]):
    if not only or name.split("-")[0] in only:
        check(f"{name} fp8", in_folder(fp8, name, number))
if not only or "gpt_oss" in only:
    check("gpt_oss mxfp4", in_folder(mxfp4, "gpt_oss", 0))
for number, (name, layers, silent) in enumerate([("deepseek_v3", 61, True), ("glm4_moe", 46, True), ("deepseek_v3", 3, False)]):
    if not only or name in only:
        check(f"{name} multi-token prediction in {layers} layers", in_folder(mtp, name, number, layers, silent))
check("refusals", in_folder(refusals))
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
