"""Opens a run's event files with the real TensorBoard and compares them with metrics.jsonl.

    python tests/parity/tensorboard.py RUN_FOLDER

Every step of metrics.jsonl must be there exactly once, with the same figures to a float32, also when the run was
stopped and resumed. The last line is `N passed, N failed`.
"""

import json
import math
import struct
import sys
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


def main():
    folder = Path(sys.argv[1])
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
