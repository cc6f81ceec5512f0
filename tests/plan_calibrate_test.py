#!/usr/bin/env python3
"""`plan calibrate` end to end: what it writes is read by `plan simulate`, and says how long a step takes that a run then takes.

The device is the simulated one on a clock of its own, so that a step takes what its rates say and not what this machine has time
for. Last line: `N passed, N failed`.
"""
import json
import os
import sys

import tiny_run

CLOCK = "fp32=1e10,bf16=2e10,memory=5e9,host=5e9,launch=5e-6"
MACHINE = {"TRIREME_SIM_CLOCK": CLOCK}
QUICK = ["--rounds", "1", "--precision", "fp32", "--ranks", "1"]


def prepare(folder):
    tiny_run.prepare(folder)
    tiny_run.checked(folder, "train", "run.toml", "--set", "schedule.steps=4", "--device", "sim", **MACHINE)
    return folder


def document(folder, *arguments, **environment):
    return json.loads(tiny_run.checked(folder, *arguments, "--json", **environment).stdout)


def step_of(folder, trace):
    """Seconds of the step that a run traced, on the device's clock."""
    return document(folder, "trace", "summary", trace)["ranks"][0]["step_s"]


def close(got, want, share, what):
    assert abs(got / want - 1) <= share, f"{what}: {got} is not {want} within {share:.1%}"


def a_machine_is_measured_and_predicts_a_run(folder):
    done = document(folder, "plan", "calibrate", "--device", "sim", *QUICK, "--run", "run.toml", "--set", "device.name=sim",
                    "--out", "machine.toml", **MACHINE)
    assert done["cluster"] == "local-sim" and done["spans"] > 500, done
    close(done["peak_flops"]["fp32"], 1e10, 0.01, "the clock's rate")
    close(done["kernel_gap_s"], 5e-6, 0.01, "the clock's launch")
    assert not [name for name in os.listdir(folder) if name.startswith(".") or name.endswith(".tmp")], os.listdir(folder)
    predicted = document(folder, "plan", "simulate", "run.toml", "--set", "device.name=sim", "--profiles", "machine.toml",
                         "--cluster", "local-sim", "--report", "plan.html", "--out", "world.json")
    close(predicted["step_s"], step_of(folder, "run/trace.json"), 0.02, "predicted step")
    assert predicted["measured_share"] > 0.99, predicted["measured_share"]
    page = open(os.path.join(folder, "plan.html"), encoding="utf-8").read()
    assert "Where the time goes" in page and "Where the memory goes" in page
    world = json.load(open(os.path.join(folder, "world.json"), encoding="utf-8"))
    assert world["otherData"]["format"] == "trireme-world-1"


def a_trace_is_fitted_and_predicts_its_own_step_and_others(folder):
    done = document(folder, "plan", "calibrate", "--from-trace", "run/trace.json", "--out", "traced.toml")
    spans = len([event for event in json.load(open(os.path.join(folder, "run/trace.json"), encoding="utf-8"))["traceEvents"]
                 if event["ph"] == "X"])
    assert done["spans"] == spans, (done["spans"], spans)
    assert done["instructions"] and all("residual" in rate and rate["residual"] >= 0 for rate in done["instructions"])
    on = ["--profiles", "traced.toml", "--cluster", done["cluster"]]
    measured = step_of(folder, "run/trace.json")
    same = document(folder, "plan", "simulate", "run/run.toml", *on)
    close(same["step_s"], measured, 0.01, "its own step")
    # Twice the micro-batches: twice the work but for what a step does once.
    twice = document(folder, "plan", "simulate", "run/run.toml", "--set", "batch.sequences=16", *on)
    tiny_run.checked(folder, "train", "run.toml", "--set", "schedule.steps=4", "--set", "batch.sequences=16", "--set", "out=twice",
                     "--device", "sim", **MACHINE)
    close(twice["step_s"], step_of(folder, "twice/trace.json"), 0.02, "a longer step")


def what_is_wrong_is_said(folder):
    def refused(*arguments, status=2):
        return tiny_run.checked(folder, *arguments, status=status).stderr

    os.makedirs(os.path.join(folder, "elsewhere"), exist_ok=True)
    trace = open(os.path.join(folder, "run/trace.json"), encoding="utf-8").read()
    with open(os.path.join(folder, "elsewhere/trace.json"), "w", encoding="utf-8") as file:
        file.write(trace)
    assert "--run" in refused("plan", "calibrate", "--from-trace", "elsewhere/trace.json")
    with open(os.path.join(folder, "elsewhere/predicted.json"), "w", encoding="utf-8") as file:
        file.write(trace.replace('"measured"', '"predicted"'))
    assert "predicted" in refused("plan", "calibrate", "--from-trace", "elsewhere/predicted.json", "--run", "run.toml", status=3)
    assert "instructions" in refused("plan", "calibrate", "--from-trace", "run/trace.json", "--run", "run.toml", "--set",
                                     "batch.sequences=4", status=3)
    assert "no such device" in refused("plan", "calibrate", "--from-trace", "run/trace.json", "--base", "abacus")
    assert "TRIREME_SIM_CLOCK" in tiny_run.checked(folder, "plan", "calibrate", "--device", "sim", *QUICK, status=2,
                                                   TRIREME_SIM_CLOCK="fast").stderr
    assert "--cluster" in refused("plan", "simulate", "run.toml", "--report", "page.html")
    assert not os.path.exists(os.path.join(folder, "page.html"))


CASES = [a_machine_is_measured_and_predicts_a_run, a_trace_is_fitted_and_predicts_its_own_step_and_others, what_is_wrong_is_said]

if __name__ == "__main__":
    sys.exit(tiny_run.run_cases(CASES, prepare))
