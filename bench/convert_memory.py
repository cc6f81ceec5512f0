#!/usr/bin/env python3
"""Memory and time of `trireme convert import` and `export` on a large model of random bfloat16 weights.

    bench/convert_memory.py FOLDER [--layers N] [--moe | --mxfp4] [--fp8] [--out RESULT.md]

Writes a Llama-shaped model with the widths of a 7B one (--moe: an OLMoE-shaped one with those of OLMoE-7B; --mxfp4: one with those of gpt-oss-20b, whose experts
are MXFP4 and come back as bfloat16) into FOLDER, converts it there and back, checks that every tensor
came back byte for byte (with --fp8: what was written as fp8 comes back so after another import and export), says the largest resident size of either process, and removes it all. The largest tensor decides about
memory, not the number of layers: 12 layers are 3B parameters and need 25 GB of disk while it runs, 32 are 7B and 55 GB. With --moe, 2 layers
are 1B and need 9 GB, 16 are 7B. A directory with experts is also exported straight from Hugging Face's files.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
HIDDEN, FFN, VOCAB = 4096, 11008, 128256
MOE_HIDDEN, MOE_FFN, MOE_VOCAB, MOE_EXPERTS = 2048, 1024, 50304, 64
OSS_HIDDEN, OSS_VOCAB, OSS_EXPERTS = 2880, 50304, 32


def moe_shapes(layers):
    yield "model.embed_tokens.weight", (MOE_VOCAB, MOE_HIDDEN)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}self_attn.{name}_proj.weight", (MOE_HIDDEN, MOE_HIDDEN)
        for name in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (MOE_HIDDEN,)
        yield f"{prefix}mlp.gate.weight", (MOE_EXPERTS, MOE_HIDDEN)
        for expert in range(MOE_EXPERTS):
            yield f"{prefix}mlp.experts.{expert}.gate_proj.weight", (MOE_FFN, MOE_HIDDEN)
            yield f"{prefix}mlp.experts.{expert}.up_proj.weight", (MOE_FFN, MOE_HIDDEN)
            yield f"{prefix}mlp.experts.{expert}.down_proj.weight", (MOE_HIDDEN, MOE_FFN)
    yield "model.norm.weight", (MOE_HIDDEN,)
    yield "lm_head.weight", (MOE_VOCAB, MOE_HIDDEN)


def mxfp4_tensors(layers):
    """Name, shape and type; a block is 32 numbers of four bits with one scale."""
    hidden, width, experts, blocks = OSS_HIDDEN, OSS_HIDDEN, OSS_EXPERTS, OSS_HIDDEN // 32
    yield "model.embed_tokens.weight", (OSS_VOCAB, hidden), "BF16"
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for name, rows, columns in (("q", 4096, hidden), ("k", 512, hidden), ("v", 512, hidden), ("o", hidden, 4096)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, columns), "BF16"
            yield f"{prefix}self_attn.{name}_proj.bias", (rows,), "BF16"
        yield f"{prefix}self_attn.sinks", (64,), "BF16"
        yield f"{prefix}input_layernorm.weight", (hidden,), "BF16"
        yield f"{prefix}post_attention_layernorm.weight", (hidden,), "BF16"
        yield f"{prefix}mlp.router.weight", (experts, hidden), "BF16"
        yield f"{prefix}mlp.router.bias", (experts,), "BF16"
        for name, rows in (("gate_up_proj", 2 * width), ("down_proj", hidden)):
            yield f"{prefix}mlp.experts.{name}_blocks", (experts, rows, blocks, 16), "U8"
            yield f"{prefix}mlp.experts.{name}_scales", (experts, rows, blocks), "U8"
            yield f"{prefix}mlp.experts.{name}_bias", (experts, rows), "BF16"
    yield "model.norm.weight", (hidden,), "BF16"
    yield "lm_head.weight", (OSS_VOCAB, hidden), "BF16"


def shapes(layers):
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{prefix}mlp.gate_proj.weight", (FFN, HIDDEN)
        yield f"{prefix}mlp.up_proj.weight", (FFN, HIDDEN)
        yield f"{prefix}mlp.down_proj.weight", (HIDDEN, FFN)
        yield f"{prefix}input_layernorm.weight", (HIDDEN,)
        yield f"{prefix}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def write_model(folder, layers, moe, mxfp4):
    """Bit patterns of small finite bfloat16 numbers, a block of them over and over, each time from another place; as MXFP4's
    scales they are at most 2^64. Returns how many numbers there are."""
    folder.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
              "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCAB,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
              "hidden_act": "silu", "dtype": "bfloat16"}
    if moe:
        config.update({"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": MOE_HIDDEN,
                       "intermediate_size": MOE_FFN, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": MOE_VOCAB,
                       "num_experts": MOE_EXPERTS, "num_experts_per_tok": 8})
    if mxfp4:
        config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": OSS_HIDDEN, "intermediate_size": OSS_HIDDEN,
                  "num_hidden_layers": layers, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": OSS_VOCAB,
                  "num_local_experts": OSS_EXPERTS, "num_experts_per_tok": 4, "attention_bias": True, "sliding_window": 128,
                  "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "tie_word_embeddings": False,
                  "hidden_act": "silu", "swiglu_limit": 7.0, "dtype": "bfloat16",
                  "quantization_config": {"quant_method": "mxfp4",
                                          "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                                                     "model.embed_tokens", "lm_head"]}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    header, at, numbers = {"__metadata__": {"format": "pt"}}, 0, 0
    if mxfp4:
        tensors = sorted(mxfp4_tensors(layers))
    else:
        tensors = sorted((name, shape, "BF16") for name, shape in (moe_shapes if moe else shapes)(layers))
    for name, shape, dtype in tensors:
        count = 1
        for extent in shape:
            count *= extent
        size = count * (2 if dtype == "BF16" else 1)
        numbers += count if dtype == "BF16" else 2 * count if name.endswith("_blocks") else 0
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = bytearray(os.urandom(32 << 20))
    block[1::2] = bytes(0x3C | b & 0x83 for b in block[1::2])
    if mxfp4:
        block[::2] = bytes(b & 0x7F for b in block[::2])
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left, turn = at, 0
        while left > 0:
            shift = turn * 4098 % len(block) // 2 * 2
            piece = (block[shift:] + block[:shift])[:left]
            file.write(piece)
            left -= len(piece)
            turn += 1
    return numbers


def digests(folder):
    """sha256 of every tensor's bytes, over all files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            for name, entry in json.loads(file.read(length)).items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                digest, left = hashlib.sha256(f"{entry['dtype']} {entry['shape']}".encode()), end - begin
                while left > 0:
                    piece = file.read(min(left, 16 << 20))
                    digest.update(piece)
                    left -= len(piece)
                found[name] = digest.hexdigest()
    return found


def measured(*command):
    """Seconds and the largest resident size of a command, in bytes."""
    start = time.perf_counter()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--moe", action="store_true", help="a mixture of experts")
    parser.add_argument("--mxfp4", action="store_true", help="a mixture of experts with MXFP4 experts")
    parser.add_argument("--fp8", action="store_true", help="export the linear weights as fp8 in blocks, and import those")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    folder = arguments.folder / "convert-memory"
    try:
        parameters = write_model(folder / "hf", arguments.layers, arguments.moe, arguments.mxfp4)
        print(f"{parameters / 1e9:.2f}B parameters", flush=True)
        program = ROOT / "build/trireme"
        rows = []
        hf, checkpoint, back, again = (folder / part for part in ("hf", "checkpoint", "back", "again"))
        steps = [("import", hf, checkpoint), ("export", checkpoint, back)]
        if arguments.fp8:
            steps = [("import", hf, checkpoint), ("export --fp8", checkpoint, back), ("import of fp8", back, checkpoint, "--force"),
                     ("export --fp8 again", checkpoint, again)]
        if arguments.moe or arguments.mxfp4:
            steps.append(("export of HF" + " --fp8" * arguments.fp8, hf, folder / "direct"))
        for name, *rest in steps:
            words = name.split()
            seconds, peak = measured(program, "convert", words[0], *(word for word in words if word == "--fp8"), *rest)
            rows.append((name, seconds, peak))
            print(f"{name}: {seconds:.0f} s, {peak / 2**30:.2f} GiB resident at most", flush=True)
        shutil.rmtree(checkpoint)
        same = arguments.mxfp4 or digests(back) == digests(again if arguments.fp8 else hf)
        if arguments.moe or arguments.mxfp4:
            same = same and digests(folder / "direct") == digests(back)
        print("tensors DIFFER" if not same else "both ways give the same bytes" if arguments.mxfp4 else "every tensor came back byte for byte")
        if arguments.out:
            kind = (" with experts" if arguments.moe else "") + (", fp8 in blocks" if arguments.fp8 else "")
            options = " --moe" * arguments.moe + " --fp8" * arguments.fp8
            vocab, hidden = (MOE_VOCAB, MOE_HIDDEN) if arguments.moe else (VOCAB, HIDDEN)
            largest = vocab * hidden / 1e9
            lines = [f"# Converting {parameters / 1e9:.2f}B parameters of bfloat16{kind}", "",
                     f"`bench/convert_memory.py --layers {arguments.layers}{options}`: to a checkpoint (float32) and back. The largest tensor, the",
                     f"embedding of {vocab} x {hidden}, has {2 * largest:.2f} GB as stored and {4 * largest:.2f} GB as float32. Resident size: the kernel's own",
                     "figure (ru_maxrss), mapped pages included.", "",
                     "| | largest resident size | seconds |", "|---|---|---|",
                     *(f"| {name} | {peak / 2**20:.0f} MiB | {seconds:.0f} |" for name, seconds, peak in rows), "",
                     f"Every tensor comes back byte for byte: {'yes' if same else 'NO'}.", ""]
            arguments.out.write_text("\n".join(lines))
        sys.exit(0 if same and all(peak < 3 * 2**30 for _, _, peak in rows) else 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
