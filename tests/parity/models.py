#!/usr/bin/env python3
"""Live parity with transformers: logits, loss and every parameter's gradient of all families, fp32.

For every case of goldens/model_cases.py, and PARITY_DRAWS (20) random configs of every family, with a fresh
random seed: transformers saves the model, the probe program (build/tests/model_probe) reads that folder, runs
forward and backward through the executor's own path and writes what it got. Arguments: families to do alone. Bounds: logits within 1e-5 of their largest magnitude, gradients within 1e-4 of theirs.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
sys.path.insert(0, os.path.join(here, "..", "goldens"))
import model_cases  # noqa: E402

probe = os.environ.get("TRIREME_MODEL_PROBE", os.path.join(root, "build", "tests", "model_probe"))
seed = int(os.environ.get("PARITY_SEED", time.time_ns() % 1_000_000))
print(f"PARITY_SEED={seed}")


def error(got, want):
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30))


# A family's draws are shared by its cases.
draws = int(os.environ.get("PARITY_DRAWS", 20))
families = {}
for name in model_cases.CASES:
    families.setdefault(name.split("-")[0], []).append(name)
cases = [(name, seed + number, False) for number, name in enumerate(model_cases.CASES)]
for family, names in families.items():
    cases += [(names[i % len(names)], seed + 1000 + i, True) for i in range(draws)]
only = sys.argv[1:]

passed = failed = 0
for name, number, drawn in cases:
    if only and name.split("-")[0] not in only:
        continue
    label = f"{name}{f' drawn with {number}' if drawn else ''}"
    with tempfile.TemporaryDirectory() as folder:
        model = model_cases.build(name, number, drawn)
        model.save_pretrained(folder)
        ids = torch.randint(0, 64, (2, 48), generator=torch.Generator().manual_seed(number))
        logits, loss, gradients = model_cases.reference(model, ids)
        ids_file, out = os.path.join(folder, "ids.json"), os.path.join(folder, "out.safetensors")
        with open(ids_file, "w") as file:
            json.dump(ids.tolist(), file)
        done = subprocess.run([probe, folder, ids_file, out], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"FAILED {label}: {done.stderr.strip()}")
            failed += 1
            continue
        got = load_file(out)
        worst = {"logits": (error(got["logits"], logits), 1e-5), "loss": (error(got["loss"], loss.reshape(1)), 1e-5)}
        missing = set(gradients) - {key.removeprefix("gradient.") for key in got}
        for key, want in gradients.items():
            if key not in missing:
                # A gradient that is zero in exact arithmetic (a key's bias) is compared on the scale of its layer.
                scale = max(float(want.abs().max()), 1e-3 * max(float(g.abs().max()) for g in gradients.values()))
                worst[key] = (float((got[f"gradient.{key}"].double() - want.double()).abs().max()) / scale, 1e-4)
        bad = [f"{key} {value:.1e} > {bound}" for key, (value, bound) in worst.items() if not value <= bound]
        bad += [f"no gradient of {key}" for key in sorted(missing)]
        print(("FAILED " if bad else "ok     ") + f"{label}: logits {worst['logits'][0]:.1e}, worst gradient "
              f"{max(v for k, (v, _) in worst.items() if k not in ('logits', 'loss')):.1e}" + "".join("\n  " + b for b in bad))
        passed, failed = (passed, failed + 1) if bad else (passed + 1, failed)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
