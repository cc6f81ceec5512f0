#!/usr/bin/env python3
"""Devices of plug-ins, through the program: a library of a third party is loaded, trains to the figures of the processor, is
resumed and generates; each thing that it may lack is replaced or refused with what PyTorch expects.

The library is tests/devices/abacus, which shares no code with Trireme; ABACUS_DEFECT says what it lacks. Last line:
`N passed, N failed`.
"""
import json
import os
import shutil
import sys

import tiny_run

DEVICES = os.path.join(os.environ.get("TRIREME_BUILD_DIR", os.path.join(tiny_run.ROOT, "build")), "tests", "devices")
ABACUS = os.path.join(DEVICES, "libabacus.so")
ON_ABACUS = ["--device", "abacus", "--plugin", ABACUS]
CASES = []


def case(function):
    CASES.append(function)
    return function


def run(folder, *arguments, status=0, defect="", **environment):
    return tiny_run.checked(folder, *arguments, status=status, ABACUS_DEFECT=defect, **environment)


def train(folder, out, *more, **options):
    return run(folder, "train", "run.toml", "--set", f"out={out}", *more, **options)


def losses(folder, name):
    with open(os.path.join(folder, name, "metrics.jsonl"), encoding="utf-8") as file:
        return [(entry["loss"], entry["grad_norm"]) for entry in map(json.loads, file)]


def assert_close(got, want):
    """float32 kernels of another order of operations: roundings of 2^-24 a step, which 40 steps of training blow up. The bound is
    that of kernel_choice_test.py for the same pair of kernels on the processor."""
    assert len(got) == len(want) == tiny_run.STEPS
    for (loss, norm), (loss_there, norm_there) in zip(got, want):
        assert abs(loss - loss_there) < 1e-2, (loss, loss_there)
        assert abs(norm - norm_there) < 5e-2 * max(1.0, norm_there), (norm, norm_there)
    # The first step has seen no update yet: one forward pass of some hundred operations in a chain.
    assert abs(got[0][0] - want[0][0]) < 1e-4, (got[0], want[0])


MOE = {**tiny_run.CONFIG, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
       "num_experts_per_tok": 2}


@case
def trains_to_the_figures_of_the_processor(folder):
    train(folder, "dense_cpu")
    train(folder, "dense_abacus", *ON_ABACUS)
    assert_close(losses(folder, "dense_abacus"), losses(folder, "dense_cpu"))


@case
def so_do_experts(folder):
    with open(os.path.join(folder, "moe.json"), "w", encoding="utf-8") as file:
        json.dump(MOE, file)
    moe = ["--set", "model.config=moe.json"]
    train(folder, "moe_cpu", *moe)
    train(folder, "moe_abacus", *moe, "--device", "abacus:1", "--plugin", ABACUS)
    assert_close(losses(folder, "moe_abacus"), losses(folder, "moe_cpu"))


@case
def resumes_exactly(folder):
    train(folder, "whole", *ON_ABACUS)
    train(folder, "half", *ON_ABACUS, "--set", "checkpoint.every=20")
    train(folder, "rest", *ON_ABACUS, "--set", "checkpoint.every=20", "--resume", "half/checkpoints/step-20")
    digests = [json.loads(run(folder, "checkpoint", "digest", name, "--json").stdout)["digest"] for name in ("whole", "rest")]
    assert digests[0] == digests[1], digests


@case
def generates_and_evaluates(folder):
    train(folder, "trained")
    texts = [run(folder, "generate", "trained", "--prompt", "a", "--greedy", "--max-new-tokens", "8", *device).stdout
             for device in ([], ON_ABACUS)]
    assert texts[0] == texts[1] and texts[0], texts
    figures = [json.loads(run(folder, "eval", "trained", "--data", "valid.txt", "--json", *device).stdout)["loss"]
               for device in ([], ON_ABACUS)]
    assert abs(figures[0] - figures[1]) < 1e-4, figures


@case
def ranks_talk_by_its_own_collectives(folder):
    few = ["--set", "schedule.steps=6", "--set", "schedule.warmup=1", "--set", "batch.lanes=2"]

    def over_two(out, *more, status=0, **environment):
        return run(folder, "launch", "--nproc", "2", "--", "train", "run.toml", "--set", f"out={out}", *ON_ABACUS, *few, "--set",
                   "parallel.dp=2", "--set", "parallel.zero=1", *more, status=status, OMP_NUM_THREADS="1", **environment)

    def digest(out):
        return json.loads(run(folder, "checkpoint", "digest", out, "--json").stdout)["digest"]

    train(folder, "one_rank", *ON_ABACUS, *few)
    own = os.path.join(DEVICES, "libtrireme_abacus_collectives.so")
    said = f"collectives of abacus: {own}"
    for out, more, environment in (("found", [], {"TRIREME_DEVICE_PATH": DEVICES}),
                                   ("named", ["--set", f"device.collectives={own}"], {"STORE_COLLECTIVES": "sequential"})):
        done = over_two(out, *more, **environment)
        assert said in done.stdout + done.stderr, done.stderr
        assert digest(out) == digest("one_rank"), out
    done = over_two("by_host", "--set", "device.collectives=host", TRIREME_DEVICE_PATH=DEVICES)
    assert said not in done.stdout + done.stderr and digest("by_host") == digest("one_rank"), done.stderr
    text = over_two("none", "--set", "device.collectives=absent.so", status=2).stderr
    assert "the collectives absent.so do not open" in text and 'device.collectives to "host"' in text, text


@case
def the_run_file_and_a_search_path_name_it(folder):
    with open(os.path.join(folder, "plugin.toml"), "w", encoding="utf-8") as file:
        file.write(tiny_run.RUN + f'\n[device]\nname = "abacus"\nplugin = "{ABACUS}"\n')
    run(folder, "train", "plugin.toml", "--set", "out=by_file", "--set", "schedule.steps=3")
    with open(os.path.join(folder, "by_file", "run.toml"), encoding="utf-8") as file:
        assert ABACUS in file.read()
    # A device in parts: the second library here adds nothing but is opened all the same.
    parts = ABACUS + ":" + os.path.join(DEVICES, "..", "my_rms_norm.so")
    run(folder, "train", "plugin.toml", "--set", "out=in_parts", "--set", "schedule.steps=3", "--plugin", parts)
    assert losses(folder, "in_parts") == losses(folder, "by_file")
    text = train(folder, "none", "--device", "abacus", "--plugin", ABACUS + ":other.so", status=2).stderr
    assert "other.so: there is no such plug-in" in text, text
    few = ["--set", "schedule.steps=3", "--device", "abacus"]
    train(folder, "by_path", *few, TRIREME_DEVICE_PATH=f"/nowhere:{DEVICES}")
    assert losses(folder, "by_path") == losses(folder, "by_file")
    text = train(folder, "none", *few, status=2, TRIREME_DEVICE_PATH="/nowhere").stderr
    assert 'no plug-in for the device "abacus": looked for /nowhere/libtorch_abacus.so, /nowhere/libabacus.so' in text, text
    text = train(folder, "none", *few, status=2).stderr
    assert 'no device is called "abacus"' in text and "--plugin" in text, text


@case
def what_is_optional_is_replaced(folder):
    train(folder, "plain_cpu", "--set", "schedule.steps=6", "--set", "schedule.warmup=1")
    bare = "plain_allocator,plain_guard,plain_hooks,late_hooks,no_name"
    train(folder, "bare", *ON_ABACUS, "--set", "schedule.steps=6", "--set", "schedule.warmup=1", defect=bare)
    for (got, _), (want, _) in zip(losses(folder, "bare"), losses(folder, "plain_cpu")):
        assert abs(got - want) < 1e-3, (got, want)


@case
def a_missing_line_of_the_contract_is_named(folder):
    for defect, words in {
            "no_guard": ["guard: PyTorch expects a device guard: C10_REGISTER_GUARD_IMPL"],
            "no_allocator": ["PyTorch expects an allocator: REGISTER_ALLOCATOR"],
            "no_hooks": ["hooks: PyTorch expects at::RegisterPrivateUse1HooksInterface"],
            "no_device": ["devices: the guard's deviceCount() is 0"],
            "no_copy": ["operator aten::_copy_from: PyTorch expects a kernel of it for PrivateUse1"],
            "no_view,no_hooks": ["operator aten::view", "hooks: PyTorch expects"],
            "nothing": ["does not bring a device", "guard: PyTorch expects", "operator aten::empty.memory_format"],
            "throws": ["fails while it is loaded", "the abacus has no beads"]}.items():
        text = train(folder, "broken", *ON_ABACUS, status=4, defect=defect).stderr
        assert "libabacus.so" in text and all(word in text for word in words), (defect, text)


@case
def another_torch_is_named(folder):
    text = train(folder, "broken", *ON_ABACUS, status=2, defect="old_release").stderr
    assert "was built for torch 2.7.1, this Trireme runs torch 2." in text, text
    foreign = os.path.join(DEVICES, "libforeign_torch.so")
    text = train(folder, "broken", "--device", "foreign_torch", "--plugin", foreign, status=2).stderr
    assert "was built for another torch" in text and "no c10::function_of_another_release(int)" in text, text


@case
def what_the_user_mistakes_is_named(folder):
    def refused(*arguments):
        return train(folder, "broken", *arguments, status=2).stderr

    text = refused("--device", "abakus", "--plugin", ABACUS)
    assert 'brings the device "abacus", not "abakus"' in text and "write --device abacus" in text, text
    text = refused("--plugin", ABACUS)
    assert 'is not used by the device "cpu"' in text and '"abacus"' in text, text
    text = refused("--device", "sim", "--plugin", ABACUS)
    assert 'is not used by the device "sim"' in text, text
    shutil.copy(ABACUS, os.path.join(folder, "libother.so"))
    text = refused("--device", "abacus", "--plugin", f"{ABACUS}:libother.so")
    assert "libother.so brings another device" in text and 'belongs to "abacus"' in text and "one device only" in text, text
    text = refused("--device", "abacus", "--plugin", "nothing.so")
    assert "nothing.so: there is no such plug-in" in text, text
    text = refused("--device", "abacus", "--plugin", "text.txt")
    assert "text.txt does not open" in text, text
    text = train(folder, "broken", "--device", "abacus:7", "--plugin", ABACUS, status=4).stderr
    assert "no device abacus:7; the plug-in finds 2" in text, text


@case
def an_operator_that_is_missing_is_named(folder):
    # Before the first step, and in what --dry-run lists.
    want = 'device.name = "abacus" has no kernel of aten::rsqrt.out, which a step of this run calls'
    text = train(folder, "lacking", *ON_ABACUS, status=4, defect="lacks_operators").stderr
    assert want in text and "step 1/" not in text, text
    assert want in train(folder, "lacking", *ON_ABACUS, "--dry-run", status=4, defect="lacks_operators").stdout
    # Where nothing looks ahead, PyTorch's own words in brief.
    train(folder, "has_all", "--set", "schedule.steps=3", "--set", "schedule.warmup=1")
    text = run(folder, "generate", "has_all", "--prompt", "a", *ON_ABACUS, status=4, defect="lacks_operators").stderr
    assert "aten::rsqrt.out" in text and "abacus" in text and "trireme doctor" in text and "defect" not in text, text


@case
def doctor_says_what_a_step_needs(folder):
    got = json.loads(run(folder, "doctor", *ON_ABACUS, "--json").stdout)
    assert got["ok"] and got["plugin"]["name"] == "abacus" and got["plugin"]["devices"] == 2, got
    assert all(line["state"] == "kept" for line in got["plugin"]["contract"]), got["plugin"]
    assert got["collectives"] == "host" and got["graphs"] is False, got
    with_own = json.loads(run(folder, "doctor", *ON_ABACUS, "--json", TRIREME_DEVICE_PATH=DEVICES).stdout)
    assert with_own["collectives"] == os.path.join(DEVICES, "libtrireme_abacus_collectives.so"), with_own
    for survey in got["runs"]:
        where = {use["name"]: use["where"] for use in survey["operators"]}
        # What tests/devices/abacus/operators.cpp registers is the device's own; what it does not, is not.
        assert where["aten::mm.out"] == where["aten::_copy_from"] == where["aten::add.out"] == "device", where
        assert where["aten::rsqrt.out"] == where["aten::bmm.out"] == "cpu" and where["aten::add_.Tensor"] == "composite", where
        for use in survey["operators"]:
            assert (use["seconds"] > 0) == (use["where"] == "cpu" and use["calls"] > 0), use
        assert 0 < survey["cpu_s"] < survey["step_s"] and not survey["missing"], survey
    table = run(folder, "doctor", *ON_ABACUS).stdout
    assert "aten::bmm.out" in table and "are spent on the CPU" in table, table


@case
def doctor_names_every_operator_that_is_missing(folder):
    got = json.loads(run(folder, "doctor", *ON_ABACUS, "--json", status=4, defect="lacks_operators").stdout)
    assert not got["ok"] and all(survey["missing"] == ["aten::rsqrt.out"] for survey in got["runs"]), got
    assert any(line["what"] == "fallback" and line["state"] == "replaced" for line in got["plugin"]["contract"]), got
    done = run(folder, "doctor", *ON_ABACUS, "--config", "run.toml", status=4, defect="lacks_operators")
    assert "abacus:0 has no kernel of aten::rsqrt.out" in done.stderr and "a step of llama, fp32" in done.stdout, done.stderr


@case
def doctor_names_what_is_replaced(folder):
    got = json.loads(run(folder, "doctor", *ON_ABACUS, "--config", "run.toml", "--json",
                         defect="plain_allocator,plain_guard,plain_hooks,late_hooks,no_name").stdout)
    replaced = {line["what"] for line in got["plugin"]["contract"] if line["state"] == "replaced"}
    assert replaced == {"memory statistics", "memory size", "random numbers", "pinned memory", "new streams",
                        "synchronize device", "events", "data types"}, replaced
    assert got["ok"] and not got["plugin"]["named_by_library"] and got["memory_bytes"] == 0, got


@case
def memory_that_ends_is_said(folder):
    text = train(folder, "small", *ON_ABACUS, status=2, ABACUS_MEMORY_BYTES="65536").stderr
    assert "the device has" in text, text
    train(folder, "model")
    text = run(folder, "generate", "model", "--prompt", "a", *ON_ABACUS, status=4, ABACUS_MEMORY_BYTES="20000").stderr
    assert "out of memory" in text and "defect" not in text, text


sys.exit(tiny_run.run_cases(CASES, tiny_run.prepare))
