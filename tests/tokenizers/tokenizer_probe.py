"""Runs build/tests/tokenizer_probe, which encodes and decodes for the scripts that compare it with the `tokenizers` library."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Probe:
    def __init__(self, program=None):
        build = pathlib.Path(os.environ.get("TRIREME_BUILD_DIR", ROOT / "build"))
        self.process = subprocess.Popen([str(program or build / "tests/tokenizer_probe")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the probe died of {json.dumps(request)[:300]}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        return self.process.wait()
