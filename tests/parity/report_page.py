#!/usr/bin/env python3
"""The report of a run in a real browser: its script runs without an error, every chart is drawn, and the page is
readable in light and in dark. Needs chromium; `scripts/setup report` brings it.

    REPORT_SCREENSHOT=FILE    also keeps the light page's picture there (docs/report.png is made so)
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from PIL import Image  # TensorBoard brings it

TRIREME = os.environ["TRIREME"]
CONFIG = {"model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
          "rope_theta": 10000.0, "tie_word_embeddings": True}
RUN = """out = "run"
threads = 1
[model]
config = "config.json"
[data]
train = ["text.txt"]
valid = ["text.txt"]
seq_len = 32
[batch]
sequences = 4
micro = 2
lanes = 2
[schedule]
steps = 12
warmup = 2
[precision]
recipe = "fp32"
[eval]
every = 4
[sample]
prompts = ["the <b>quick</b>"]
tokens = 8
"""
passed = failed = 0


def check(name, condition, detail=""):
    global passed, failed
    print(("ok      " if condition else "FAILED  ") + name + (f": {detail}" if detail and not condition else ""), flush=True)
    passed, failed = (passed + 1, failed) if condition else (passed, failed + 1)


def browse(*arguments):
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--v=0", "--virtual-time-budget=4000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def picture(path):
    """Width, mean brightness and number of shades."""
    with Image.open(path) as image:
        histogram = image.convert("L").histogram()
        pixels = sum(histogram)
        return image.width, sum(i * n for i, n in enumerate(histogram)) / pixels, sum(n > 0 for n in histogram)


browser = shutil.which("chromium") or shutil.which("chromium-browser")
if browser is None:
    print("skipped: no chromium; `scripts/setup report` installs it\n0 passed, 0 failed")
    sys.exit(0)
with open("config.json", "w") as file:
    json.dump(CONFIG, file)
with open("text.txt", "w") as file:
    file.write("the quick brown fox jumps over the lazy dog. " * 60)
with open("run.toml", "w") as file:
    file.write(RUN)
done = subprocess.run([TRIREME, "train", "run.toml", "--quiet"], capture_output=True, text=True)
check("a run with a report", done.returncode == 0, done.stderr[-500:])
page = "file://" + os.path.abspath("run/report.html")

source = open("run/report.html").read()
check("one self-contained page", not re.search(r"""(src|href)=["']?(https?:)?//""", source))
shown = browse("--dump-dom", page)
check("the script runs without an error", not re.search(r"Uncaught|SyntaxError|TypeError|ReferenceError", shown.stderr),
      shown.stderr[-800:])
charts = re.findall(r'id="(chart-[a-z-]+)"', source)
drawn = re.findall(r"<(?:path|polyline|rect|line)\b", shown.stdout)
check("charts are there", len(charts) >= 4, str(charts))
check("and drawn", len(drawn) > 20, f"{len(drawn)} shapes")
check("a sample's mark-up stays text", "<b>quick</b>" not in shown.stdout and "&lt;b&gt;quick" in shown.stdout)



def light_and_dark(what, page):
    brightness = {}
    for scheme in ("light", "dark"):
        with tempfile.TemporaryDirectory() as profile:
            path = os.path.abspath(f"{what}{scheme}.png")
            flags = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
            browse(f"--user-data-dir={profile}", f"--screenshot={path}", "--window-size=1000,1400", *flags, page)
            check(f"{what}a picture in {scheme}", os.path.exists(path))
            width, brightness[scheme], shades = picture(path)
            check(f"{what}{scheme}: not blank", width == 1000 and shades > 16, f"{width} wide, {shades} shades")
    check(f"{what}light is light and dark is dark", brightness["light"] > 150 > brightness["dark"] + 30, str(brightness))


light_and_dark("", page)
# The page of a run that has not begun.
done = subprocess.run([TRIREME, "plan", "simulate", "run.toml", "--cluster", "dgx-h100", "--parallel", "dp=2", "--report", "plan.html"],
                      capture_output=True, text=True)
check("plan: a page", done.returncode == 0, done.stderr[-500:])
source = open("plan.html").read()
check("plan: self-contained", not re.search(r"""(src|href)=["']?(https?:)?//""", source))
page = "file://" + os.path.abspath("plan.html")
shown = browse("--dump-dom", page)
check("plan: the script runs without an error", not re.search(r"Uncaught|SyntaxError|TypeError|ReferenceError", shown.stderr),
      shown.stderr[-800:])
# The script gives the canvas its height, and the legend its kinds with their shares.
canvas = re.search(r'<canvas id="timeline"[^>]*style="height: (\d+)px', shown.stdout)
check("plan: the timeline is drawn", canvas is not None and int(canvas.group(1)) > 100)
legend = re.search(r'<div id="legend"[^>]*>(.*?)</div>', shown.stdout, re.DOTALL)
check("plan: with its legend", legend is not None and "backward-input" in legend.group(1) and "%" in legend.group(1))
light_and_dark("plan: ", page)
if os.environ.get("REPORT_SCREENSHOT"):
    shutil.copy("light.png", os.environ["REPORT_SCREENSHOT"])
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
