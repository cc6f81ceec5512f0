"""Opens a run's event files with the real TensorBoard and compares them with metrics.jsonl.

    python tests/parity/event_files.py [RUN_FOLDER]

Without a folder it trains a tiny model, stops it with a signal and resumes it first.

Every step of metrics.jsonl must be there exactly once, with the same figures to a float32, also when the run was
stopped and resumed. The last line is `N passed, N failed`.
"""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/lr": "lr",
    "speed/step_s": "step_s",
    "speed/tokens_per_s": "tokens_per_s",
    "memory/peak_bytes": "peak_bytes",
    "valid/loss": "valid_loss",
    "valid/bits_per_byte": "valid_bits_per_byte",
}


def float32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


RUN_FILE = """
out = "run"
threads = 1
[model]
preset = "trireme-default"
[data]
train = ["*.txt"]
valid_fraction = 0.2
seq_len = 32
[batch]
sequences = 2
micro = 1
lanes = 2
[schedule]
steps = 12
[eval]
every = 4
"""


def train_and_resume():
    """A run of the working folder that was stopped once and went on; returns its folder."""
    for i in range(40):
        Path(f"{i}.txt").write_text(f"Text number {i}, short and of no particular interest. " * 4)
    Path("run.toml").write_text(RUN_FILE)
    command = [os.environ["TRIREME"], "train", "run.toml", "--quiet"]
    first = subprocess.Popen(command)
    metrics = Path("run/metrics.jsonl")
    deadline = time.monotonic() + 300
    while first.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            first.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    first.wait()
    subprocess.run(command, check=True)
    return Path("run")


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else train_and_resume()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    passed = failed = 0
    for tag, key in TAGS.items():
        expected = {row["step"]: float32(row[key]) for row in rows if row.get(key) is not None}
        if not expected:
            continue
        found = [(event.step, event.value) for event in events.Scalars(tag)] if tag in tags else []
        same = dict(found) == expected and len(found) == len(expected)
        same = same and all(math.isfinite(event.wall_time) for event in events.Scalars(tag))
        print(f"{'ok' if same else 'FAILED'}  {tag}: {len(found)} events for {len(expected)} steps")
        passed, failed = passed + same, failed + (not same)
    print(f"{passed} passed, {failed} failed")
    return failed != 0 or passed == 0


if __name__ == "__main__":
    sys.exit(main())
