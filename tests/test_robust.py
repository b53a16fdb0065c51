"""Nothing is lost, whatever happens: kills, full disks, damaged files, numbers and memory that give out, hostile text."""

import ast
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from test_train import refused, wait_until

import analyze
import tasks
import train

ROOT = Path(train.__file__).parent
SHORT = "--steps 6 --prompts 4 --group 4 --max-tokens 4 --eval-problems 8 --samples 2 --jobs 1 --seeds 0 --lr 1e-2 --device cpu"


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """Options that name a random model of two layers and a task of which it solves some by chance."""
    folder = tmp_path_factory.mktemp("random")
    words = tasks.embedded_tokenizer(dict.fromkeys([*"0123456789", "add", "=", *tasks.INSTRUCTION.split()]))
    tiny(num_hidden_layers=2, vocab_size=words.get_vocab_size()).save_pretrained(folder / "base")
    words.save(str(folder / "base" / "tokenizer.json"))
    (folder / "base" / "generation_config.json").write_text('{"eos_token_id": 0}')
    problems = [{"question": f"add {a} {b} =", "answer": f"#### {(a + b) % 10}"} for a in range(20) for b in range(10)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return ["--model", str(folder / "base"), "--task", str(folder / "sums.jsonl"), "--device", "cpu", *SHORT.split()]


@pytest.fixture(autouse=True)
def save_after_every_step(monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0)


@pytest.fixture
def command(random_model):
    return lambda runs, *more: ["--runs", str(runs), *random_model, *more]


@pytest.fixture(scope="module")
def whole(random_model, tmp_path_factory):
    """All files of a sweep that nothing disturbed."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    train.main(["--runs", str(runs), *random_model, "--layer", "each"])
    found = contents(runs)
    assert len(found) == 5 * 5 - 1, "base, full, norm and two layers of five files each; the base has no layer"
    lines = [json.loads(line) for line in found["full-seed-0/metrics.jsonl"].decode().splitlines()]
    assert sum(line["signal"] > 0 for line in lines) > 2, "there is something to lose"
    return found


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def contents(runs):
    """Every file in a runs folder but the locks."""
    return {
        str(path.relative_to(runs)): path.read_bytes() for path in runs.rglob("*") if path.is_file() and "lock" not in path.name
    }


def one_layer(whole, k=1):
    return {name: content for name, content in whole.items() if name.startswith(f"layer-{k}")}


# ---------------------------------------------------------------------------------------------------- killed


def test_twenty_kills_leave_the_files_of_an_undisturbed_sweep(runs, command, whole):
    argv = [sys.executable, ROOT / "tests" / "killing.py", "20", *command(runs, "--layer", "each")[1:]]
    done = subprocess.run(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    killed, finished = map(int, done.stdout.split())
    assert killed == 20
    for i in range(finished):
        assert contents(runs.with_name(f"runs-{i + 1}")) == whole


def test_what_safetensors_leaves_when_killed_is_removed(runs, command, whole):
    """Its own name for a file that is not whole yet: tempfile's, in the folder of the file."""
    part = runs / "full-seed-0" / "layer.safetensors.part"
    part.mkdir(parents=True)
    (part / ".tmpgHf03v").write_bytes(b"half")
    train.main(command(runs, "--layer", "each"))
    assert contents(runs) == whole


class Stop(Exception):
    pass


def stopped(monkeypatch, argv, name, at, error):
    """Run train.main with `error` raised by the `at`-th call of rl.`name`. Returns what main ended with, as text."""
    function, calls = getattr(train.rl, name), []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == at:
            for parameter in args[1].parameters.values() if name == "update" else ():
                parameter.grad = torch.ones_like(parameter)  # half-way through a backward pass
            raise error
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train.rl, name, broken)
        with pytest.raises((SystemExit, Stop)) as stop:
            train.main(argv)
    return str(getattr(stop.value, "code", ""))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = [
    truncate,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"{" * 99),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_run_starts_again(runs, command, whole, monkeypatch, capsys, damage):
    stopped(monkeypatch, command(runs, "--layer", "1"), "update", 5, Stop())
    damage(runs / "layer-1-seed-0" / "checkpoint.safetensors")
    capsys.readouterr()
    train.main(command(runs, "--layer", "1"))
    error = capsys.readouterr().err
    assert "layer-1-seed-0/checkpoint.safetensors is damaged (" in error and "Traceback" not in error
    assert contents(runs) == one_layer(whole)


def test_checkpoints_come_by_time(runs, command, monkeypatch):
    """After each step where no time has to pass (but not after the last), and none in a long time."""
    for seconds, expected in ((0, 5), (1000, 0)):
        saved, save = [], train.Run.save
        monkeypatch.setattr(train, "SAVE_EVERY", seconds)
        monkeypatch.setattr(train.Run, "save", lambda self, saved=saved, save=save: saved.append(self.step) or save(self))
        train.main(command(runs / str(seconds), "--layer", "1"))
        monkeypatch.setattr(train.Run, "save", save)
        assert len([step for step in saved if step < 6]) == expected


def test_ctrl_c_saves_first(runs, command, whole):
    """SIGINT in the middle of a sweep of two processes: both save after their step, and all goes on."""
    argv = [arg for arg in command(runs, "--layer", "each", "--jobs", "2", "--steps", "400")]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *argv], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(list(runs.glob("*/metrics.jsonl"))) > 1 and any(p.read_text().count("\n") > 5 for p in runs.glob("*/metrics.jsonl")))
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "carries on" in error and "Traceback" not in error, error[-2000:]
    for path in runs.glob("*/checkpoint.safetensors"):
        with safe_open(path, framework="pt") as file:
            step = json.loads(file.metadata()["log"])["step"]
        assert step == len((path.parent / "metrics.jsonl").read_text().splitlines()) > 0
    assert list(runs.glob("*/checkpoint.safetensors"))


def test_a_helper_ends_when_its_parent_is_killed(runs, command):
    argv = command(runs, "--layer", "each", "--jobs", "2", "--steps", "4000")
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *argv], stderr=subprocess.DEVNULL)
    logs = lambda: sorted(path.read_text().count("\n") for path in runs.glob("*-seed-0/metrics.jsonl"))  # noqa: E731
    wait_until(lambda: len([lines for lines in logs() if lines > 2]) >= 2)
    process.kill()
    process.wait()
    time.sleep(2)
    before = logs()
    time.sleep(1)
    assert logs() == before


# ---------------------------------------------------------------------------------------------------- disks and folders


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 KiB, and a function that mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)  # l: a mapped file may not be let go of yet


@pytest.mark.parametrize("filled", [0, 20, 44, 60])
def test_a_full_disk_stops_the_sweep_in_one_line_and_loses_nothing(disk, command, whole, capsys, filled):
    folder, remount = disk
    (folder / "filled").write_bytes(bytes(filled * 1024))
    error = refused(capsys, *command(folder / "runs", "--layer", "each"), progress=True)
    assert "No space left" in error and str(folder / "runs") in error
    assert not list(folder.rglob("*.part")) and len(error) < 500
    for path in folder.rglob("*.json"):
        assert isinstance(json.loads(path.read_text()), dict), "nothing half-written"
    remount("size=64m")
    train.main(command(folder / "runs", "--layer", "each"))
    assert contents(folder / "runs") == whole


def test_a_folder_that_may_only_be_read(disk, command, capsys):
    folder, remount = disk
    remount("size=64m")
    train.main(command(folder / "runs", "--layer", "1", "--steps", "1"))
    before = contents(folder)
    remount("ro")
    assert "Read-only" in refused(capsys, *command(folder / "runs", "--layer", "0"))
    assert "Read-only" in refused(capsys, *command(folder / "new", "--layer", "0"))
    assert "Read-only" in refused(capsys, "--merge", str(folder / "runs" / "layer-1-seed-0"), "--out", str(folder / "merged"))
    with pytest.raises(SystemExit) as stop:
        analyze.main([str(folder / "runs"), "--out", str(folder / "runs")])
    assert stop.value.code == 2 and "Read-only" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_write_refused_in_the_middle_of_a_sweep(runs, command, whole, monkeypatch, capsys, at):
    replace, calls = os.replace, []

    def broken(source, target):
        calls.append(1)
        if len(calls) > at + 5:  # five of them write the settings
            raise PermissionError(13, "Permission denied", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    error = refused(capsys, *command(runs, "--layer", "each"), progress=True)
    assert "Permission denied" in error and str(runs) in error and not list(runs.rglob("*.part"))
    monkeypatch.setattr(os, "replace", replace)
    train.main(command(runs, "--layer", "each"))
    assert contents(runs) == whole


def test_a_base_or_a_merged_checkpoint_is_written_whole_or_not_at_all(disk, runs, command, capsys):
    folder, remount = disk
    remount("size=40k")
    with pytest.raises(OSError, match="base cannot be written"):
        train.teach_base(folder / "base", tasks.arithmetic(), 0, 1, 2)
    train.main(command(runs, "--layer", "1"))
    assert "merged cannot be written" in refused(capsys, "--merge", str(runs / "layer-1-seed-0"), "--out", str(folder / "merged"))
    assert not list(folder.iterdir())


FOREIGN = {
    "runs is a file": (lambda runs: runs.write_text("mine"), "runs"),
    "runs is in a file": (lambda runs: (runs.parent / "runs").write_text("mine"), "runs"),
    "the run's folder is a file": (lambda runs: runs.mkdir() or (runs / "layer-1-seed-0").write_text("mine"), "layer-1-seed-0"),
    "settings of something else": ("{}", "layer-1-seed-0/config.json"),
    "settings of a model": ('{"model_type": "qwen3"}', "layer-1-seed-0/config.json"),
    "settings that are a list": ('{"settings": [1]}', "layer-1-seed-0/config.json"),
    "settings that are text": ('{"settings": "abc"}', "layer-1-seed-0/config.json"),
    "a list": ("[1, 2]", "layer-1-seed-0/config.json"),
    "half of it": ('{"settings": {"ste', "layer-1-seed-0/config.json"),
    "nothing": ("", "layer-1-seed-0/config.json"),
    "not text": (b"\xff\xfe\x00", "layer-1-seed-0/config.json"),
    "very deep": ("[" * 100_000, "layer-1-seed-0/config.json"),
    "no settings at all": ('{"settings": {}}', "was made with"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_that_is_not_ours_is_left_alone(runs, command, capsys, case):
    make, word = FOREIGN[case]
    if callable(make):
        make(runs)
    else:
        (runs / "layer-1-seed-0").mkdir(parents=True)
        (runs / "layer-1-seed-0" / "config.json").write_bytes(make if isinstance(make, bytes) else make.encode())
    before = contents(runs.parent)
    error = refused(capsys, *command(runs / "in" if "in a file" in case else runs, "--layer", "each"))
    assert word in error and before.items() <= contents(runs.parent).items()
    if not callable(make):
        assert contents(runs.parent) == before, "no settings of other runs written either"


@pytest.mark.parametrize("content", ["", "{}", '{"score": "high"}', '{"score": null}', "[]"])
def test_a_ranking_or_table_from_damaged_scores_is_refused(runs, command, capsys, content):
    for k in (0, 1):
        (runs / f"layer-{k}-seed-0").mkdir(parents=True)
        (runs / f"layer-{k}-seed-0" / "eval.json").write_text(content if k else '{"score": 0.5}')
    assert "layer-1-seed-0/eval.json" in refused(capsys, *command(runs, "--layer", "top-1"))


# ---------------------------------------------------------------------------------------------------- runs that cannot go on

ERRORS = {
    "loss": ("update", FloatingPointError("the loss is nan"), "stopped after 2 of 6 steps: the loss is nan"),
    "gradient": (
        "update",
        FloatingPointError("the gradient's norm is inf"),
        "stopped after 2 of 6 steps: the gradient's norm is inf",
    ),
    "prompt": ("rollout", ValueError("a prompt of 600 tokens and 4 new ones exceed"), "of 6 steps: a prompt of 600 tokens and 4 new ones"),
    "memory": ("update", MemoryError("out of memory with one row at a time"), "stopped after 2 of 6 steps: out of memory"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_run_that_cannot_go_on_keeps_its_checkpoint_and_the_sweep_goes_on(runs, command, whole, monkeypatch, case):
    """What comes after it is untouched by it, and the same command finishes it when the cause is gone."""
    function, error, message = ERRORS[case]
    said = stopped(monkeypatch, command(runs, "--layer", "each"), function, 3 + 2 * (function == "rollout"), error)
    assert said.startswith(f"{runs}/full-seed-0: ") and message in said and "\n" not in said
    (kept,) = {path.parent.name for path in runs.glob("*/checkpoint.safetensors")}
    assert kept == "full-seed-0"
    found = contents(runs)
    assert {name: found[name] for name in found if "full" not in name} == {
        name: whole[name] for name in whole if "full" not in name
    }
    train.main(command(runs, "--layer", "each"))
    assert contents(runs) == whole


def test_other_errors_are_bugs_and_are_not_hidden(runs, command, monkeypatch):
    allocator = RuntimeError("CUDACachingAllocator.cpp:1234: invalid stream capture status")
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), allocator, KeyError("x")):
        monkeypatch.setattr(train.rl, "update", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            train.main(command(runs, "--layer", "1"))


@pytest.mark.parametrize(
    "poison, message",
    [(lambda loss: loss * float("nan"), "the gradient's norm is nan"), (lambda loss: loss * 1e38 * 1e-3, "the gradient's norm is inf")],
)
def test_weights_are_untouched_by_what_is_not_finite(runs, command, whole, monkeypatch, poison, message):
    """The loss itself goes wrong, in the third step; the checkpoint holds the weights of the second."""
    policy_loss, calls, weights = train.rl.policy_loss, [], []
    update = train.rl.update

    def watched(model, optimizer, *args, **options):
        weights.append([master.detach().clone() for master in optimizer.masters.values()])
        calls.append(1)
        try:
            return update(model, optimizer, *args, **options)
        except FloatingPointError:
            assert all(torch.equal(*pair) for pair in zip(weights[-1], optimizer.masters.values()))
            raise

    def broken(*args, **options):
        loss = policy_loss(*args, **options)
        return poison(loss) if len(calls) == 3 else loss

    with monkeypatch.context() as patch:
        patch.setattr(train.rl, "update", watched)
        patch.setattr(train.rl, "policy_loss", broken)
        with pytest.raises(SystemExit) as stop:
            train.main(command(runs, "--layer", "1"))
    assert f"layer-1-seed-0: stopped after 2 of 6 steps: {message}" in stop.value.code
    saved = load_file(runs / "layer-1-seed-0" / "checkpoint.safetensors")
    assert all(any(torch.equal(saved[name], w) for w in weights[2]) for name in saved if name.startswith("weight."))
    train.main(command(runs, "--layer", "1"))
    assert contents(runs) == one_layer(whole)


def test_a_model_whose_log_probabilities_are_not_finite(runs, command, tmp_path, random_model):
    broken = tmp_path / "broken"
    shutil.copytree(random_model[1], broken)
    model = train.Transformer.from_pretrained(broken)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(broken)
    with pytest.raises(SystemExit) as stop:
        train.main(command(runs, "--layer", "each", "--model", str(broken)))
    lines = stop.value.code.splitlines()
    assert len(lines) == 5 and all("a log-probability at sampling is not finite" in line for line in lines)
    assert "full-seed-0: stopped after 0 of 6 steps" in lines[1] and not list(runs.glob("*/eval.json"))


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_written(runs, command, tmp_path, capsys):
    problems = [{"question": "add " * (1 if i else 200) + str(i), "answer": "#### 1"} for i in range(20)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    error = refused(capsys, *command(runs, "--task", str(tmp_path / "long.jsonl")))
    assert "--max-tokens 4" in error and "context of 128" in error and not list(runs.rglob("*"))


# ---------------------------------------------------------------------------------------------------- untrusted text


HOSTILE = "\x1b[2J\x07\x9b31m\u202eevil\r"


def harmless(text):
    return all(c.isprintable() for c in text.removesuffix("\n"))


@given(st.text())
def test_a_message_is_one_printable_line(text):
    for module in (train, analyze):
        line = module.one_line(text)
        assert harmless(line)
        assert line == text or not harmless(text) or " ".join(text.split()) == line


def test_control_characters_do_not_reach_the_terminal(runs, command, tmp_path, capsys, monkeypatch):
    for argv in (
        ["--task", str(tmp_path / f"{HOSTILE}.jsonl")], ["--model", str(tmp_path / HOSTILE)], ["--layer", HOSTILE], ["--seeds", HOSTILE],
        ["--device", HOSTILE], [f"--{HOSTILE}"],
    ):  # fmt: skip
        error = refused(capsys, *command(runs), *argv)
        assert harmless(error), argv
    said = stopped(monkeypatch, command(runs, "--layer", "1"), "update", 2, ValueError(HOSTILE))
    assert "stopped after" in said and harmless(said) and "\x1b[2J" not in capsys.readouterr().out
    (runs / HOSTILE).mkdir()
    (runs / HOSTILE / "config.json").write_text(json.dumps({"settings": {HOSTILE: HOSTILE}}))
    (runs / "base").mkdir()
    (runs / "base" / "config.json").write_text(
        json.dumps({HOSTILE: 1, "settings": {"layer": HOSTILE, "seed": 0, "panel": "test", "num_layers": 3, "steps": 9}})
    )
    found = {"right": "1", "greedy": "1", "samples": 1, "length": 1, "truncated": 0, "before": {}}
    (runs / "base" / "eval.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit):
        analyze.main([str(runs), "--out", str(tmp_path)])
    (runs / "base" / "config.json").write_text(
        json.dumps({"settings": {"layer": "base", "seed": 0, "panel": "test", "num_layers": 3, "steps": 9}})
    )
    analyze.main([str(runs), "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert "left out of" in printed.out and all(harmless(line) for line in (printed.out + printed.err).split("\n"))


def test_nothing_is_unpickled_and_only_the_sandbox_runs_text():
    for file in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cPickle", "shelve", "dill", "joblib", "numpy.lib.format"} & set(names), file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "np.load", "os.system", "yaml.load", "compile"), file
                assert called not in ("eval", "exec") or file.name == "tasks.py", file


# ---------------------------------------------------------------------------------------------------- any input at all


def layers_by_the_book(spec, L):
    if spec in ("full", "norm", "base"):
        return []
    if match := re.fullmatch("mid-([1-9][0-9]*)", spec):
        k = Fraction(int(match[1]))
        ends = [math.floor(Fraction(L, 2) - k / 2), math.floor(Fraction(L, 2) + k / 2)]
        return [layer for layer in range(L) if ends[0] <= layer < ends[1]] if 1 <= k <= L else None
    if not re.fullmatch("(0|[1-9][0-9]*)(,(0|[1-9][0-9]*))*", spec):
        return None
    layers = [int(part) for part in spec.split(",")]
    return sorted(layers) if len({*layers}) == len(layers) and max(layers) < L else None


SPECS = [
    st.text(), st.text("0123456789,-midfulnorbse "), st.from_regex("(mid|top)-[0-9]{1,3}", fullmatch=True),
    st.lists(st.integers(0, 40), max_size=5).map(lambda layers: ",".join(map(str, layers))),
]  # fmt: skip


@settings(max_examples=400)
@given(st.one_of(SPECS), st.integers(1, 40))
def test_any_layer_specification_gives_layers_or_a_refusal(spec, L):
    expected = layers_by_the_book(spec, L)
    if expected is None:
        with pytest.raises(ValueError, match="--layer"):
            train.layers_of(spec, L)
    else:
        assert train.layers_of(spec, L) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 4) | st.floats() | st.text(max_size=4) | st.sampled_from(["0", "01", "right", "3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.sampled_from(["right", "greedy", "10"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = [
    ("settings",),
    ("settings", "num_layers"),
    ("settings", "steps"),
    ("settings", "layer"),
    ("settings", "seed"),
    ("settings", "panel"),
    ("settings", "quick"),
]
NAMES += [(name,) for name in ("right", "greedy", "samples", "length", "truncated", "before")]
NAMES += [(name,) for name in ("change", "also", "solved", "answers")] + [
    ("change", "0"),
    ("also", "x"),
    ("also", "x", "right"),
]
NAMES += [("before", "10"), ("before", "10", "right"), ("before", "10", "greedy")]


@st.composite
def run_files(draw):
    """config.json and eval.json of one run: as they should be, but for up to two fields, or any JSON, or any bytes, or none."""
    layer, n = draw(st.sampled_from(["base", "full", "norm", "0", "1", "1,2", "mid-2"])), draw(st.sampled_from([4, 4, 4, 3]))
    digits = st.text("01234", min_size=n, max_size=n)
    config = {
        "settings": {
            "layer": layer,
            "seed": draw(st.integers(0, 1)),
            "panel": "test",
            "num_layers": 3,
            "steps": 9,
            "quick": False,
        }
    }
    outcome = {"right": draw(digits), "greedy": draw(st.text("01", min_size=n, max_size=n))}
    found = {**outcome, "samples": 4, "length": 2.5, "truncated": 0.5, "before": {"10": dict(outcome)}}
    found |= {"change": {"0": 1.0, "1": 2.0}, "also": {"x": {**outcome, "samples": 4, "length": 1, "truncated": 0}}}
    found |= {"solved": [int(digit) * "1" + (4 - int(digit)) * "0" for digit in outcome["right"]]}
    found |= {"answers": [["a", "b", None, "a"]] * n}
    for path in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        target = found if path[0] in found else config
        for name in path[:-1]:
            target = target.get(name) if isinstance(target, dict) else None
        if isinstance(target, dict):
            target[path[-1]] = draw(JSON)
    written = []
    for value in (config, found):
        as_bytes = json.dumps(value).encode()
        spoilt = (
            st.none()
            | st.binary(max_size=9)
            | JSON.map(lambda v: json.dumps(v).encode())
            | st.just(as_bytes[: len(as_bytes) // 2])
        )
        written.append(draw(spoilt) if draw(st.integers(0, 7)) == 7 else as_bytes)
    return written


def reported(folder):
    """What analyze.py makes of a folder: True for files and a table, False for one line of refusal."""
    try:
        analyze.main([str(folder), "--out", str(folder / "out")])
    except SystemExit as stop:
        assert stop.code == 2 and not (folder / "out").exists()
        return False
    rows = json.loads((folder / "out" / "contribution.json").read_text())["rows"]
    assert rows and {path.name for path in (folder / "out").iterdir()} == {
        f"contribution.{end}" for end in ("csv", "json", "svg")
    }
    return True


@settings(max_examples=150, deadline=None)
@given(st.lists(run_files(), max_size=6), st.none() | st.binary(max_size=9) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_folder_gives_a_report_or_a_refusal(folders, record):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for i, contents in enumerate(folders):
            (folder / f"run-{i}").mkdir()
            for name, content in zip(("config.json", "eval.json"), contents):
                if content is not None:
                    (folder / f"run-{i}" / name).write_bytes(content)
        if record is not None:
            (folder / "contribution.json").write_bytes(record)
        reported(folder)


@settings(max_examples=100, deadline=None)
@given(st.lists(run_files(), min_size=1, max_size=4))
def test_any_record_gives_a_report_or_a_refusal(folders):
    """The same of contribution.json, which a report can be made from again."""
    runs, shared = [], {"num_layers": 3, "steps": 9}
    for config, found in folders:
        try:
            config, found = json.loads(config), json.loads(found)
            runs.append({"layer": config["settings"].pop("layer"), "seed": config["settings"].pop("seed"), **found})
            shared = config["settings"]
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "contribution.json").write_text(json.dumps({"settings": shared, "runs": runs}))
        reported(Path(folder))
