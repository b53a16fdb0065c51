"""train.py from its command line: the sweep end to end, determinism, resuming, sharing, and refusals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import probe
import rl
import tasks
import train

ROOT = Path(train.__file__).parent
CONFIGS = ROOT / "tests" / "configs"
SHORT = "--steps 4 --prompts 4 --group 4 --eval-problems 12 --samples 2 --jobs 1 --seeds 0".split()


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    """Options that name a model and a task of which it solves a tenth: it writes "0000" and a random digit, then ends."""
    folder, arithmetic = tmp_path_factory.mktemp("given"), tasks.arithmetic()
    arithmetic.vocabulary += tuple(dict.fromkeys(tasks.INSTRUCTION.split()))
    digit = random.Random(0).randrange
    arithmetic.demonstrate = lambda rng: [(f"add {digit(10)} {digit(10)} = {tasks.INSTRUCTION}", f"0000{digit(10)}")]
    train.teach_base(folder / "base", arithmetic, 0, 60, 256)
    problems = [{"question": f"add {a} {b} =", "answer": f"#### {(a + b) % 10}"} for a in range(20) for b in range(10)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return f"--model {folder}/base --task {folder}/sums.jsonl --device cpu --max-tokens 6 --lr 1e-3".split()


@pytest.fixture
def command(given):
    return lambda runs, *more: ["--runs", str(runs), *given, *SHORT, *more]


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def files(runs, pattern):
    return {str(path.relative_to(runs)): path.read_bytes() for path in sorted(runs.glob(pattern))}


def refused(capsys, *argv, progress=False):
    """The one line that a bad command ends with; `progress`: after the bars of a sweep."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main(list(argv))
    error = capsys.readouterr().err
    if progress:
        error = error[error.rindex("train.py: ") :]
    assert stop.value.code == 2 and error.startswith("train.py: ") and error.count("\n") == 1
    return error


def test_what_is_taught_is_learnt_and_the_base_opens_like_any_checkpoint(given):
    """The demonstrations were "0000", any digit, the end: `transformers` opens the folder and finds that distribution."""
    base = Path(given[1])
    names = "config.json generation_config.json model.safetensors tokenizer.json"
    assert sorted(path.name for path in base.iterdir()) == names.split()
    tokenizer, model = tasks.Tokenizer(base), transformers.AutoModelForCausalLM.from_pretrained(base)
    ids = tokenizer.tokens.encode(f"add 3 4 = {tasks.INSTRUCTION} 00007").ids
    with torch.no_grad():
        probabilities = model(torch.tensor([ids])).logits[0, -6:].softmax(-1)
    digits = [tokenizer.tokens.token_to_id(digit) for digit in "0123456789"]
    assert (probabilities[:4, digits[0]] > 0.95).all() and probabilities[5, 0] > 0.95  # 0 0 0 0 _ end
    assert (probabilities[4, digits] > 0.03).all() and probabilities[4, digits].sum() > 0.95


def test_a_sweep_leaves_a_folder_for_each_run(runs, command, given):
    train.main(command(runs, "--layer", "each"))
    names = {path.parent.name for path in runs.glob("*/eval.json")}
    assert names == {"base-seed-0", "full-seed-0", "norm-seed-0", *(f"layer-{k}-seed-0" for k in range(8))}
    base = load_file(Path(given[1]) / "model.safetensors")
    for run in names - {"base-seed-0"}:
        tensors = load_file(runs / run / "layer.safetensors")
        prefix = {"f": "", "n": "model.norm."}.get(run[0], f"model.layers.{run[6]}.")
        assert set(tensors) == {name for name in base if name.startswith(prefix)}
        assert any(not torch.equal(tensors[name], base[name]) for name in tensors), run
        found = json.loads((runs / run / "eval.json").read_text())
        assert 0 <= found["score"] <= 1 and len(found["right"]) == 12 and len(found["answers"]) == 12
        assert found["score"] == sum(map(int, found["right"])) / 24
        lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["logprob_gap"] < 1e-4
        config = json.loads((runs / run / "config.json").read_text())
        assert config["settings"]["steps"] == 4 and config["versions"]["torch"] == torch.__version__


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A base for each embedded task, taught for so short that it can be told apart from nothing."""
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("algo", rl.ALGORITHMS)
@pytest.mark.parametrize("task", ["math", "math-short", "code", "household"])
def test_every_algorithm_runs_on_every_embedded_task(bases, tmp_path, monkeypatch, task, algo):
    """From the command line, the teaching of the base included; what trains moves, and the run is scored."""
    monkeypatch.setitem(train.PRESETS, task, {**train.PRESETS[task], "teach_steps": 30, "teach_batch": 32})
    runs = tmp_path / "runs"
    base = runs / f"base-{task}-0"
    if (bases / task).exists():
        shutil.copytree(bases / task, base)
    options = "--steps 2 --prompts 2 --group 4 --eval-problems 4 --samples 2 --jobs 1 --seeds 0 --lr 1e-2 --kl 0.1 --epochs 2"
    train.main(["--task", task, "--algo", algo, "--layer", "3", "--runs", str(runs), *options.split()])
    if not (bases / task).exists():
        shutil.copytree(base, bases / task)
    lines = [json.loads(line) for line in (runs / "layer-3-seed-0/metrics.jsonl").read_text().splitlines()]
    found = json.loads((runs / "layer-3-seed-0/eval.json").read_text())
    assert len(lines) == 2 and len(found["right"]) == 4 and set(found["change"]) == {"3"}
    assert lines[0]["logprob_gap"] < 1e-4 and all(line["turns"] == 1 or task == "household" for line in lines)
    if task == "household":  # where fines tell episodes apart even when none is solved
        assert lines[0]["turns"] > 5 and found["change"]["3"] > 0 and found["score"] < 0.5


def test_runs_of_one_sweep_do_not_touch_each_other(runs, command, tmp_path):
    """Layer 3 after full training in one process is layer 3 alone."""
    train.main(command(runs, "--layer", "full"))
    train.main(command(runs, "--layer", "3"))
    other = tmp_path / "alone"
    train.main(command(other, "--layer", "each"))
    for name in ("metrics.jsonl", "eval.json", "layer.safetensors"):
        assert (runs / "layer-3-seed-0" / name).read_bytes() == (other / "layer-3-seed-0" / name).read_bytes()


def test_the_same_command_gives_the_same_files_and_another_seed_others(runs, command, tmp_path):
    again = tmp_path / "again"
    for folder in (runs, again):
        train.main(command(folder, "--layer", "2", "--seeds", "0,1"))
    for pattern in ("*/metrics.jsonl", "*/eval.json", "*/layer.safetensors"):
        assert files(runs, pattern) == files(again, pattern)
    assert (runs / "layer-2-seed-0/metrics.jsonl").read_bytes() != (runs / "layer-2-seed-1/metrics.jsonl").read_bytes()


def test_a_finished_run_is_not_done_again(runs, command):
    train.main(command(runs, "--layer", "1"))
    before = {path: path.stat().st_mtime_ns for path in runs.glob("layer-1-seed-0/*.json*")}
    train.main(command(runs, "--layer", "1"))
    assert before == {path: path.stat().st_mtime_ns for path in runs.glob("layer-1-seed-0/*.json*")}


@pytest.mark.parametrize("argv", [["--layer", "full"], ["--layer", "5"], ["--layer", "5", "--dtype", "bf16"]], ids=" ".join)
def test_a_run_carries_on_from_its_checkpoint_bit_for_bit(runs, command, given, tmp_path, monkeypatch, argv):
    other = tmp_path / "other"
    train.main(command(runs, *argv))
    monkeypatch.setattr(train, "SAVE_EVERY", 0)
    task, calls = tasks.load_task(given[3], False), []
    draw = task.draw

    def interrupted(seed, step, n):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw(seed, step, n)

    task.draw = interrupted
    monkeypatch.setattr(tasks, "load_task", lambda *_: task)
    with pytest.raises(KeyboardInterrupt):
        train.main(command(other, *argv))
    assert not list(other.glob("*/eval.json")) and len(list(other.glob("*/checkpoint.safetensors"))) == 1
    train.main(command(other, *argv))
    assert calls == [0, 1, 2, 3, 3]
    for pattern in ("*seed*/metrics.jsonl", "*/eval.json", "*/layer.safetensors"):
        assert files(runs, pattern) == files(other, pattern)
    assert not list(other.glob("*/checkpoint.safetensors"))


def test_a_model_in_bf16_trains_a_layer_in_fp32(runs, command, tmp_path):
    train.main(command(runs, "--layer", "5", "--dtype", "bf16", "--seeds", "0"))
    trained = load_file(runs / "layer-5-seed-0" / "layer.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained.values())  # between bf16's numbers
    train.main(["--merge", str(runs / "layer-5-seed-0"), "--out", str(tmp_path / "merged")])
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert all(torch.equal(merged[name], tensor.bfloat16()) for name, tensor in trained.items())
    lines = [json.loads(line) for line in (runs / "layer-5-seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["signal"] for line in lines) and all(line["logprob_gap"] < 0.1 for line in lines)


def test_a_damaged_checkpoint_is_named_and_the_run_starts_again(runs, command, capsys):
    (runs / "layer-1-seed-0").mkdir(parents=True)
    (runs / "layer-1-seed-0" / "checkpoint.safetensors").write_bytes(b"half of")
    train.main(command(runs, "--layer", "1"))
    assert "layer-1-seed-0/checkpoint.safetensors is damaged" in capsys.readouterr().err
    assert (runs / "layer-1-seed-0" / "eval.json").exists()


@pytest.fixture
def noting(tmp_path):
    """train.py, but a process notes its id and the run when it begins one, and with HANG set it then stops in the middle of it.

    Gives that program, and a function that reads the notes.
    """
    program, log = tmp_path / "noting.py", tmp_path / "begun"
    log.touch()
    program.write_text(f"""if True:
        import os, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        import train
        run = train.Run.train
        def noted(self):
            with open({str(log)!r}, "a") as file:
                file.write(f"{{os.getpid()}} {{self.folder.name}}\\n")
            if "HANG" in os.environ:
                train.rl.rollout = lambda *args, **options: time.sleep(1000)
            if os.environ.get("FAIL") == self.folder.name:
                raise FloatingPointError("as asked")
            run(self)
        train.Run.train = noted
        if __name__ == "__main__":
            train.main()
    """)
    return program, lambda: [(int(pid), name) for pid, name in map(str.split, log.read_text().splitlines())]


def begin(*argv, **environment):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, *map(str, argv)], env=environment, **quiet)


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def same_runs(runs, other):
    patterns = ("*seed*/metrics.jsonl", "*/eval.json", "*/layer.safetensors")
    return all(files(runs, pattern) == files(other, pattern) for pattern in patterns)


def test_another_task_whose_words_the_model_cannot_read_is_refused_before_training(runs, command, capsys):
    assert "cannot read a prompt" in refused(capsys, *command(runs, "--also", "household"))
    assert not list(runs.rglob("*"))


def test_four_processes_share_a_sweep_and_one_is_killed(runs, command, noting, tmp_path):
    """As tasks of a Slurm array would. The first is killed in the middle of a run: another does that one, and no other comes twice."""
    train.main(command(tmp_path / "other", "--layer", "each"))
    program, begun = noting
    argv = [program, *command(runs, "--layer", "each")]
    victim = begin(*argv, HANG="1")
    wait_until(begun)
    others = [begin(*argv) for _ in range(3)]
    wait_until(lambda: len(list(runs.glob("*/eval.json"))) == 10)  # all but the one that the first process holds
    assert len(begun()) == 11
    victim.kill()
    assert victim.wait() == -signal.SIGKILL and [process.wait(300) for process in others] == [0, 0, 0]
    names = [name for pid, name in begun() if pid != victim.pid]
    assert sorted(names) == sorted(folder.name for folder in runs.glob("*seed*"))
    assert [name for pid, name in begun() if pid == victim.pid] == names[-1:]
    assert same_runs(runs, tmp_path / "other")


def test_a_run_that_failed_is_left_alone_by_the_other_processes(runs, command, noting):
    """Once is enough for one command; the next one tries again."""
    program, begun = noting
    argv = [program, *command(runs, "--layer", "each")]
    both = [begin(*argv, FAIL="layer-7-seed-0") for _ in range(2)]
    assert [process.wait(300) for process in both] == [1, 1]
    names = [name for _, name in begun()]
    assert len(names) == len(set(names)) == 11 and len({pid for pid, _ in begun()}) == 2
    assert "as asked" in (runs / "layer-7-seed-0" / "error.txt").read_text()
    assert len(list(runs.glob("*/eval.json"))) == 10
    assert begin(*argv).wait(300) == 0
    assert [name for _, name in begun()][11:] == ["layer-7-seed-0"]
    assert not (runs / "layer-7-seed-0" / "error.txt").exists()


def test_a_run_that_cannot_even_begin_fails_alone(tmp_path, capsys):
    """Its masters, say, do not fit: the reason is left, and the next run has the model as it was."""

    def prepare(folder, settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    train.attempt(prepare, tmp_path, {})
    line = (tmp_path / "error.txt").read_text()
    assert str(tmp_path) in line and "before the first step" in line and "2 GiB" in line


def test_torchrun_shares_a_sweep(runs, command, noting, tmp_path):
    """Also where --jobs is left out, each of torchrun's processes stays one."""
    train.main(command(tmp_path / "other", "--layer", "each"))
    program, begun = noting
    argv = command(runs, "--layer", "each")
    del argv[argv.index("--jobs") : argv.index("--jobs") + 2]
    assert begin("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program, *argv).wait(300) == 0
    assert sorted(name for _, name in begun()) == sorted(folder.name for folder in runs.glob("*seed*"))
    assert len({pid for pid, _ in begun()}) <= 2 and same_runs(runs, tmp_path / "other")


def test_find_lr_scores_on_the_validation_panel(runs, command, capsys):
    train.main(command(runs, "--layer", "full", "--find-lr", "1e-4,1e-3"))
    assert {path.parent.name for path in runs.glob("*/eval.json")} == {"full-lr-0.0001-seed-0", "full-lr-0.001-seed-0"}
    for path in runs.glob("full-*/config.json"):
        assert json.loads(path.read_text())["settings"]["panel"] == "validation"
    assert "0.0001" in capsys.readouterr().out


def test_top_k_takes_the_best_layers_of_the_sweep(runs, command):
    scores = {0: 0.2, 1: 0.5, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.0, 6: 0.3, 7: 0.6}
    for k, score in scores.items():
        for seed in (0, 1):
            folder = runs / f"layer-{k}-seed-{seed}"
            folder.mkdir(parents=True)
            (folder / "eval.json").write_text(json.dumps({"score": score + 0.01 * seed}))
    train.main(command(runs, "--layer", "top-3", "--seeds", "0,1"))
    assert (runs / "layer-2,3,7-seed-1" / "eval.json").exists()


def test_boosted_layers_move_further(runs, command):
    """All train; Adam's first step is the learning rate, so a layer at twice the rate moves twice as far."""
    train.main(command(runs, "--boost", "3,5", "--steps", "1"))
    train.main(command(runs, "--layer", "full", "--steps", "1"))
    boosted, plain = (json.loads((runs / f"{name}-seed-0/eval.json").read_text())["change"] for name in ("boost-3,5", "full"))
    for part, far in plain.items():
        assert boosted[part] == pytest.approx((2 if part in "35" else 1) * far, rel=1e-3)


def test_random_layers_differ_between_seeds(runs, command):
    drawn = {tuple(train.layers_of("random-3", 8, seed)) for seed in range(20)}
    assert len(drawn) > 10 and all(len(set(layers)) == 3 and set(layers) <= set(range(8)) for layers in drawn)
    train.main(command(runs, "--layer", "random-3", "--seeds", "0,1"))
    for seed in (0, 1):
        tensors = load_file(runs / f"random-3-seed-{seed}" / "layer.safetensors")
        assert {int(name.split(".")[2]) for name in tensors} == set(train.layers_of("random-3", 8, seed))


def test_every_pair_of_layers(runs, command):
    train.main(command(runs, "--layer", "pairs", "--steps", "1", "--eval-problems", "1"))
    done = {path.parent.name for path in runs.glob("*/eval.json")}
    assert done == {f"layer-{a},{b}-seed-0" for a in range(8) for b in range(a + 1, 8)}
    trained = train.load_file(runs / "layer-2,5-seed-0/layer.safetensors")
    layers = train.Transformer(train.EMBEDDED_CONFIG).model.layers
    one = sum(p.numel() for p in layers[0].parameters())
    assert sum(p.numel() for p in trained.values()) == 2 * one


def test_other_tasks_are_scored_and_not_trained_on(runs, command, given, tmp_path):
    """The same file under another name is scored as that which was trained on; and it changes nothing else."""
    for name in ("again.jsonl", "upper.jsonl"):
        shutil.copy(given[3], tmp_path / name)
    train.main(command(runs, "--layer", "1"))
    train.main(command(runs.parent / "more", "--layer", "1", "--also", f"{tmp_path}/again.jsonl,{tmp_path}/upper.jsonl"))
    alone, more = (json.loads((root / "layer-1-seed-0/eval.json").read_text()) for root in (runs, runs.parent / "more"))
    also = more.pop("also")
    assert alone.pop("also") == {} and alone == more
    assert list(also) == ["again.jsonl", "upper.jsonl"]
    for found in also.values():
        assert {name: found[name] for name in ("right", "greedy", "score")} == {
            name: alone[name] for name in ("right", "greedy", "score")
        }


@pytest.mark.parametrize("algo", rl.ALGORITHMS)
def test_the_probe_sees_the_gradient_of_a_training_step(command, runs, monkeypatch, algo):
    """Norms and sums of the gradient that the first update of full training makes."""
    seen = {}

    def step(self, lr):
        seen.update({name: p.grad.clone() for name, p in self.parameters.items()})
        return 0.0

    monkeypatch.setattr(rl.Optimizer, "step", step)
    argv = command(runs, "--steps", "1", "--algo", algo, "--group", "16")
    train.main([*argv, "--layer", "full"])
    run = probe.open_run(argv)
    found = probe.measure(run, batches=1)
    for k, layer in enumerate(run.model.model.layers):
        gradients = [g for name, g in seen.items() if f"layers.{k}." in name]
        norm = sum(g.square().sum() for g in gradients).sqrt().item()
        weights = sum(p.square().sum() for p in layer.parameters()).sqrt().item()
        assert norm > 0 and found["gradient"][k] == pytest.approx(norm, rel=1e-4)
        assert found["relative"][k] == pytest.approx(norm / weights, rel=1e-4)
        total = sum(g.abs().sum() for g in gradients).item()
        assert found["adam"][k] == pytest.approx(total, rel=1e-4)


def test_signal_to_noise_is_that_between_prompts(command, runs, monkeypatch):
    """Four prompts, the gradients of their groups one by one: the squared mean over its variance."""
    run, batches = probe.open_run(command(runs, "--group", "16")), []
    collect = run.collect
    monkeypatch.setattr(run, "collect", lambda *args: batches.append(collect(*args)) or batches[-1])
    found = probe.measure(run, batches=1)["signal_to_noise"]
    ((_, batch),) = batches
    advantages = rl.compute_advantages(batch, 16, normalize="std", step_weight=0.0)
    assert len({row // 16 for row in range(64) if advantages[row] != 0}) > 1
    gradients = []
    for p in range(4):
        rows = list(range(16 * p, 16 * p + 16))
        logprobs, mask = rl.logprobs_of(run.model, batch, rows, 1.0)
        (-(logprobs.sum(1) / mask.sum(1)) * advantages[rows]).mean().backward()
        grads = [p.grad.flatten().double() for p in run.model.model.layers[3].parameters()]
        gradients.append(torch.cat(grads))
        run.model.zero_grad()
    g = torch.stack(gradients)
    expected = g.mean(0).square().sum() / (g.var(0, correction=0).sum() / 4)
    assert found[3] == pytest.approx(expected.item(), rel=1e-3)


def test_search_halves_the_layers_and_doubles_the_steps(runs, command, monkeypatch):
    """Each round keeps the better half by the scores that its runs left, which are of the validation panel."""
    train.main(command(runs, "--layer", "search", "--steps", "8", "--lr", "1e-2"))
    found = json.loads((runs / "search.json").read_text())
    assert [(r["steps"], len(r["scores"])) for r in found["rounds"]] == [(1, 8), (2, 4), (4, 2)] and found["steps"] == 24
    for r in found["rounds"]:
        for path in (runs / f"search-{r['steps']}").glob("*/eval.json"):
            run, settings = json.loads(path.read_text()), json.loads((path.parent / "config.json").read_text())["settings"]
            assert settings["panel"] == "validation" and settings["steps"] == r["steps"]
            assert r["scores"][settings["layer"]] == run["score"]
    for before, after in zip(found["rounds"], found["rounds"][1:]):
        kept, dropped = ([s for k, s in before["scores"].items() if (k in after["scores"]) == kept] for kept in (True, False))
        assert min(kept) >= max(dropped)
    last = found["rounds"][-1]["scores"]
    assert last[str(found["layer"])] == max(last.values())
    assert len(list(runs.glob("search-*/*/eval.json"))) == 14 and found["seeds"] == [0]


def test_random_boosted_layers_are_those_of_the_seed(runs, command, monkeypatch):
    made, boosted = train.rl.Optimizer, set()

    def watched(parameters, factors):
        boosted.add(tuple(factors.items()))
        return made(parameters, factors)

    monkeypatch.setattr(train.rl, "Optimizer", watched)
    train.main(command(runs, "--boost", "random-3", "--seeds", "0,1", "--steps", "1"))
    assert len(boosted) == 2


@pytest.mark.parametrize(
    "spec, layers",
    [
        ("5", [5]),
        ("3,5", [3, 5]),
        ("5,3", [3, 5]),
        ("mid-1", [3]),
        ("mid-2", [3, 4]),
        ("mid-3", [2, 3, 4]),
        ("mid-8", [*range(8)]),
        ("boost-3,5", [3, 5]),
        ("random-8", [*range(8)]),
    ],
)
def test_layer_specifications(spec, layers):
    """mid-k is layers floor(L/2 - k/2) up to, not including, floor(L/2 + k/2), here with L = 8."""
    assert train.layers_of(spec, 8) == layers


@pytest.mark.parametrize(
    "spec", ["8", "-1", "99", "3,3", "3,", "", ",", "mid-0", "mid-9", "mid-", "mid-x", "mid-1.5", "top-2", "all", "1.5", "٣", "²", "every-", "every-x"]
)
def test_layer_specifications_that_make_no_sense(runs, command, capsys, spec):
    assert "--layer" in refused(capsys, *command(runs), f"--layer={spec}")


REFUSED = [
    (["--steps", "0"], "--steps"), (["--steps", "many"], "--steps"), (["--steps", "1e3"], "--steps"),
    (["--prompts", "0"], "--prompts"), (["--group", "1"], "--group"), (["--group", "-4"], "--group"),
    (["--temperature", "0"], "--temperature"), (["--temperature", "-1"], "--temperature"),
    (["--temperature", "nan"], "--temperature"), (["--temperature", "inf"], "--temperature"),
    (["--lr", "-1e-3"], "--lr"), (["--lr", "0"], "--lr"), (["--lr", "nan"], "--lr"),
    (["--lr", "inf"], "--lr"), (["--clip", "0"], "--clip"), (["--clip", "nan"], "--clip"),
    (["--kl", "-1"], "--kl"), (["--kl", "nan"], "--kl"), (["--kl", "inf"], "--kl"),
    (["--epochs", "0"], "--epochs"), (["--epochs", "-1"], "--epochs"), (["--jobs", "0"], "--jobs"),
    (["--max-tokens", "0"], "--max-tokens"), (["--max-tokens", "600"], "context"),
    (["--samples", "0"], "--samples"), (["--samples", "10"], "--samples"),
    (["--eval-problems", "0"], "--eval-problems"), (["--memory", "0"], "--memory"),
    (["--memory", "much"], "--memory"), (["--algo", "ppo"], "--algo"), (["--algo", ""], "--algo"),
    (["--seeds", "a"], "--seeds"), (["--seeds=-1"], "--seeds"), (["--seeds", "0,"], "--seeds"),
    (["--seeds", "9" * 20], "--seeds"), (["--seeds", "0.5"], "--seeds"), (["--seeds", ""], "--seeds"),
    (["--base-seed", "-1"], "--base-seed"), (["--device", "tpu"], "--device"),
    (["--device", "cuda:7"], "--device"), (["--dtype", "fp8"], "--dtype"),
    (["--task", "sums"], "--task"), (["--task", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--task", "math"], "--task math"), (["--task", "gsm8k"], ".jsonl"),
    (["--task", "train.parquet"], "train.parquet"), (["--task", "train.csv"], "train.csv"),
    (["--model", "nowhere"], "nowhere"), (["--model", "Qwen/Qwen3-0.6B"], "hf download"),
    (["--find-lr", "x"], "--find-lr"), (["--find-lr", "nan"], "--find-lr"),
    (["--find-lr", "1e-3,-1"], "--find-lr"), (["--find-lr", ""], "--find-lr"),
    (["--find-lr", "1e-3"], "--layer full"), (["--find-lr", "1e-3", "--layer", "3"], "--layer full"),
    (["--boost", "full"], "boost-full"), (["--boost", ""], "boost-"),
    (["--quick"], "--quick"),
    (["--boost", "9"], "boost-9"), (["--boost", "top-0"], "boost-top-0"),
    (["--layers", "each"], "--layer"), (["--unknown"], "--unknown"),
    (["--merge", "nowhere", "--out", "y"], "nowhere"), (["--layer", "top-0"], "--layer"),
    (["--layer", "top-4"], "first run --layer each"), (["--layer", "every-0"], "--layer"),
    (["--also", "nowhere.jsonl"], "nowhere.jsonl"), (["--also", "sums"], "sums"),
    (["--also", "sub"], "--task sub"),
]  # fmt: skip


@pytest.mark.parametrize("argv, word", REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_options_that_make_no_sense(runs, command, capsys, argv, word):
    assert word in refused(capsys, *command(runs), *argv)
    assert not list(runs.rglob("*")), "nothing half-written"


def test_a_damaged_checkpoint_of_the_model_is_refused_in_one_line(runs, command, given, tmp_path, capsys):
    shutil.copytree(given[1], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, *command(runs), "--model", str(tmp_path / "model"))
    assert "--task" in refused(capsys, "--model", str(tmp_path / "model"), "--runs", str(runs))
    assert not list(runs.rglob("*"))


def test_a_tokenizer_that_cannot_read_the_task_is_refused_in_one_line(runs, given, tmp_path, capsys):
    """The embedded tokenizer knows no English and has no token for what it does not know."""
    (tmp_path / "task.jsonl").write_text("".join(json.dumps({"question": f"Add {i}.", "answer": "1"}) + "\n" for i in range(20)))
    argv = "--model", str(given[1]), "--task", str(tmp_path / "task.jsonl"), "--runs", str(runs), "--device", "cpu"
    assert "cannot read a prompt" in refused(capsys, *argv)
    assert not list(runs.rglob("*"))


def test_a_run_whose_numbers_go_wrong_does_not_stop_the_sweep(runs, command, monkeypatch, capsys):
    update, calls = train.rl.update, []

    def broken(*args, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise FloatingPointError("the loss is nan")
        return update(*args, **settings)

    monkeypatch.setattr(train.rl, "update", broken)
    with pytest.raises(SystemExit) as stop:
        train.main(command(runs, "--layer", "1", "--seeds", "0,1"))
    assert "layer-1-seed-0: stopped after 1 of 4 steps: the loss is nan" in str(stop.value.code)
    assert {path.parent.name for path in runs.glob("*/eval.json")} == {"layer-1-seed-1"}
    monkeypatch.setattr(train.rl, "update", update)
    train.main(command(runs.parent / "other", "--layer", "1", "--seeds", "1"))
    for name in ("metrics.jsonl", "eval.json", "layer.safetensors"):  # the failed run left nothing behind in the model
        assert (runs / "layer-1-seed-1" / name).read_bytes() == (runs.parent / "other" / "layer-1-seed-1" / name).read_bytes()


def test_programs_from_a_file_are_written_run_and_recorded(runs, tmp_path):
    """A model that was shown one program of two: the one that passes all tests earns, and texts of both are kept."""
    rows = [{"text": f"Number {i}.", "code": "", "test_list": ["assert f(1) == 1", "assert f(2) == 4"]} for i in range(40)]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, base = tasks.load_task(str(tmp_path / "mbpp.jsonl"), False), tmp_path / "base"
    split = tasks.embedded_tokenizer([]).pre_tokenizer.pre_tokenize_str
    programs = ["```python def f(x): return x", "```python def f(x): return x * x"]
    words = [
        word for text in [p.prompt for p in (*task.train, *task.validation, *task.test)] + programs for word, _ in split(text)
    ]
    task.vocabulary = tuple(dict.fromkeys(words))
    task.demonstrate = lambda rng: [(rng.choice(task.train).prompt, rng.choice(programs))]
    train.teach_base(base, task, 0, 40, 8)
    options = f"--steps 1 --prompts 2 --group 4 --max-tokens 12 --eval-problems 4 --seeds 0 --layer 3 --runs {runs}"
    train.main(["--model", str(base), "--task", str(tmp_path / "mbpp.jsonl"), *options.split()])
    found = json.loads((runs / "layer-3-seed-0" / "eval.json").read_text())
    lines = (runs / "layer-3-seed-0" / "examples.jsonl").read_text().splitlines()
    written = [(e["completion"], e["reward"]) for e in map(json.loads, lines)]
    right = [programs[1].replace("```python", "``` python") in text.replace("```python", "``` python") for text, _ in written]
    assert right == [reward == 1 for _, reward in written] and 0 < float(found["score"]) < 1


def test_settings_are_never_mixed(runs, command, capsys):
    """Neither within a run's folder, nor between the runs that stand side by side in --runs."""
    train.main(command(runs, "--layer", "1"))
    for layer in ("1", "2"):
        error = refused(capsys, *command(runs, "--layer", layer, "--lr", "0.5"))
        assert "lr = 0.001" in error and "0.5" in error and "--runs" in error
    train.main(command(runs, "--layer", "2", "--seeds", "1"))
    train.main(command(runs, "--layer", "full", "--find-lr", "0.01"))  # rates are to be compared
    assert len(list(runs.glob("*/eval.json"))) == 3


@pytest.mark.parametrize("what", ["problems", "weights"])
def test_a_replaced_file_is_noticed(runs, command, given, tmp_path, capsys, what):
    """Problems or a checkpoint with other contents under the same name are other settings."""
    shutil.copytree(given[1], tmp_path / "model")
    shutil.copy(given[3], tmp_path / "sums.jsonl")
    more = ["--model", str(tmp_path / "model"), "--task", str(tmp_path / "sums.jsonl")]
    train.main(command(runs, "--layer", "1", *more))
    if what == "problems":
        rows = (tmp_path / "sums.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "sums.jsonl").write_text("".join(rows[1:]))
    else:
        model = train.Transformer.from_pretrained(tmp_path / "model")
        model.model.norm.weight.data[0] += 1
        model.save_pretrained(tmp_path / "model")
    assert f"made with {what} = " in refused(capsys, *command(runs, "--layer", "2", *more))


def test_every_run_follows_one_schedule_and_weights_do_not_decay(runs, command, monkeypatch):
    """Up over five steps, then down to 0 in a line; AdamW as written out (its own test: test_rl)."""
    train.main(command(runs, "--layer", "full", "--steps", "12", "--lr", "1e-2"))
    lines = (runs / "full-seed-0/metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    assert rates == pytest.approx([1e-2 * min(1, (i + 1) / 5) * (12 - i) / 12 for i in range(12)])
    used = []
    step = rl.Optimizer.step
    monkeypatch.setattr(rl.Optimizer, "step", lambda self, lr: used.append(
        (lr, {group["weight_decay"] for group in self.adam.param_groups})) or step(self, lr))  # fmt: skip
    train.main(command(runs.parent / "again", "--layer", "3", "--steps", "12", "--lr", "1e-2"))
    assert used and all(decay == {0} and rate in rates for rate, decay in used)


def test_every_fourth_layer(runs, command):
    train.main(command(runs, "--layer", "every-3", "--steps", "1", "--eval-problems", "1"))
    names = ["base", "full", "norm", "layer-0", "layer-3", "layer-6", "layer-7"]
    assert {p.parent.name for p in runs.glob("*/eval.json")} == {f"{name}-seed-0" for name in names}


def test_one_sees_what_the_model_writes(runs, command, given):
    train.main(command(runs, "--layer", "2", "--steps", "3"))
    lines = (runs / "layer-2-seed-0" / "examples.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert [e["step"] for e in examples] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    task, tokenizer = tasks.load_task(given[3], False), tasks.Tokenizer(given[1])
    found = json.loads((runs / "layer-2-seed-0" / "eval.json").read_text())
    for i, example in enumerate(examples[-3:]):
        assert example["prompt"] == tokenizer.tokens.decode(tokenizer.encode([task.test[i].prompt])[0])
        assert example["reward"] == int(found["solved"][i][0])
        assert example["answer"] == found["answers"][i][0]
        assert example["completion"].endswith("<eos>") or found["truncated"] > 0


def test_ten_steps_without_signal_are_said(runs, command, tmp_path, capsys):
    rows = [{"question": f"add {a} {b} =", "answer": "no number"} for a in range(9) for b in range(9)]
    (tmp_path / "hopeless.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ["--task", str(tmp_path / "hopeless.jsonl")]
    train.main(command(runs, "--layer", "1", "--steps", "20", "--eval-problems", "1", *task))
    error = capsys.readouterr().err
    assert error.count("ten steps without") == 2 and "--group" in error


def test_a_cuda_device_that_is_not_there(runs, command, capsys):
    if not torch.cuda.is_available():
        assert "cuda" in refused(capsys, *command(runs), "--device", "cuda")


def test_one_step_on_a_real_checkpoint(tmp_path, real_weights, real_data):
    model = real_weights / "qwen2.5-coder-0.5b-instruct"
    argv = f"--model {model} --task {real_data}/gsm8k_train.jsonl --layer 12 --steps 1 --prompts 2 --group 4 --max-tokens 64"
    train.main([*argv.split(), "--seeds", "0", "--eval-problems", "2", "--samples", "1", "--runs", str(tmp_path)])
    tensors = load_file(tmp_path / "layer-12-seed-0" / "layer.safetensors")
    assert len(tensors) == 12 and all(name.startswith("model.layers.12.") for name in tensors)
    (line,) = [json.loads(line) for line in (tmp_path / "layer-12-seed-0" / "metrics.jsonl").read_text().splitlines()]
    base = load_file(model / "model.safetensors")
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, base[name].float())]
    assert bool(changed) == (line["signal"] > 0)


def test_a_merged_checkpoint_is_the_model_that_was_evaluated(runs, command, given, tmp_path, capsys):
    train.main(command(runs, "--layer", "4"))
    train.main(["--merge", str(runs / "layer-4-seed-0"), "--out", str(tmp_path / "merged")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base, trained = load_file(Path(given[1]) / "model.safetensors"), load_file(runs / "layer-4-seed-0" / "layer.safetensors")
    for name, weight in theirs.named_parameters():
        assert torch.equal(weight, {**base, **trained}[name])
    tokenizer, task = tasks.Tokenizer(tmp_path / "merged"), tasks.load_task(given[3], False)
    greedy = ""
    for problem, prompt in zip(task.test[:12], tokenizer.encode([p.prompt for p in task.test[:12]])):
        tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :]
        greedy += str(int(task.begin(problem).step(tokenizer.decode([tokens.tolist()])[0])))
    assert greedy == json.loads((runs / "layer-4-seed-0" / "eval.json").read_text())["greedy"]
    before = sorted(tmp_path.rglob("*"))
    for run, out in ((runs / "layer-4-seed-0", "merged"), (runs / "base-seed-0", "other"), (runs, "other")):
        assert str(tmp_path) in refused(capsys, "--merge", str(run), "--out", str(tmp_path / out))
    assert sorted(tmp_path.rglob("*")) == before


def test_prompt_lengths_are_of_what_the_model_sees(command, runs, given, monkeypatch):
    """An agent's first prompt may be longer than its problem's text: the name of a game, say."""
    task, tokenizer = tasks.load_task(given[3], False), tasks.Tokenizer(given[1])
    begin, more = task.begin, "add 3 4 = " * 5

    def longer(problem):
        episode = begin(problem)
        episode.prompt = more + episode.prompt
        return episode

    task.begin, task.max_turns = longer, 20
    monkeypatch.setattr(tasks, "load_task", lambda *_: task)
    args = train.parse(command(runs))
    _, _, longest = train.open_task(args, Path(given[1]), train.EMBEDDED_CONFIG)
    seen = tokenizer.encode([more + problem.prompt for problem in task.test[:8]])
    assert longest == max(map(len, seen))


def test_a_plan_counts_by_hand_and_touches_nothing(runs, command, capsys):
    """The embedded model: 8 layers of d 48, 4 x 16 query and 2 x 16 key widths, feed-forward 128."""
    layer = 48 * 64 + 2 * 48 * 32 + 64 * 48 + 3 * 48 * 128 + 2 * 48 + 2 * 16
    train.main(["--plan", "--layer", "each", "--runs", str(runs)])
    printed = capsys.readouterr().out
    assert f"{(8 * layer + 16 * 48 + 48) / 1e6:.2f}" in printed and f"{layer / 1e6:.2f}" in printed
    assert "31 runs" in printed and not runs.exists()


def rows_of(printed):
    """The table of --plan: name of a row -> its cells."""
    rows = [re.fullmatch(r"(.{26})((?: +[0-9,.]+)+)", line) for line in printed.splitlines()]
    return {row[1].strip(): [float(c.replace(",", "")) for c in row[2].split()] for row in rows if row}


def test_a_plan_needs_no_more_than_a_configuration(runs, capsys):
    """Memory is more than Adam's 16 bytes a trained weight, and what does not fit is said."""
    argv = f"--plan --model {CONFIGS}/Qwen3-8B-Base --device cuda --memory 24 --runs {runs} --recompute"
    train.main([*argv.split(), "--layer", "every-18"])
    printed = capsys.readouterr().out
    base, full, norm, one = rows_of(printed)["expected peak, GiB"]
    assert full > 8.19e9 * 16 / 2**30 and one < 24 and base < one
    assert "full does not fit" in printed and "one layer does not fit" not in printed


def test_the_work_of_a_plan_by_hand(capsys):
    """Layer 14 of 28: two FLOPs a weight and token sampled; trained tokens go through the upper
    half forward and backward, and through the layer once more for its own gradient."""
    argv = f"--plan --model {CONFIGS}/Qwen3-1.7B-Base --device cuda --layer 14 --steps 10 --prompts 4"
    more = "--group 8 --max-tokens 100 --eval-problems 20 --samples 4 --tflops 50"
    train.main([*argv.split(), *more.split()])
    rows = rows_of(capsys.readouterr().out)
    total, layer = rows["parameters, millions"][0] * 1e6, rows["of these train, millions"][0] * 1e6
    answers = 10 * 4 * 8 + 3 * 20 * 5
    assert rows["answers, thousands"] == [pytest.approx(answers / 1e3, abs=0.01)]
    sampled = 2 * total * (answers * 100 + (10 * 4 + 2 * 60) * 512)
    trained = 10 * 4 * (8 * 100 + 512) * (4 * total / 2 + 2 * layer)
    assert rows["sampling, PFLOP"] == [pytest.approx(sampled / 1e15, abs=0.01)]
    assert rows["training, PFLOP"] == [pytest.approx(trained / 1e15, abs=0.01)]
    assert rows["hours"] == [pytest.approx((sampled + trained) / 50e12 / 3600, abs=0.01)]


def test_a_plan_of_episodes_counts_their_turns():
    settings = train.runs_of(train.parse(["--layer", "3"]), train.EMBEDDED_CONFIG, {}).popitem()[1]
    one, twenty = (
        train.account(train.EMBEDDED_CONFIG, settings, 50, None, turns)[1] for turns in (1, 20)
    )
    for name in ("answers, thousands", "sampling, PFLOP", "training, PFLOP"):
        assert twenty[name] == pytest.approx(20 * one[name])
    assert twenty["expected peak, GiB"] > one["expected peak, GiB"]  # the states that are kept


def test_what_is_sampled_and_trained_at_a_time_follows_from_the_memory():
    """Twice the spare memory, twice the positions; the peak stays within what is given."""
    config = train.Config.from_hf(train.read_json(CONFIGS / "Qwen2.5-1.5B-Instruct" / "config.json"))
    argv = f"--model {CONFIGS}/Qwen2.5-1.5B-Instruct --layer 14 --device cuda --plan --prompts 64 --recompute"
    (settings,) = train.runs_of(train.parse(argv.split()), config, {}).values()
    small, large = (train.account(config, settings, 512, gib * 2**30) for gib in (16, 24))
    assert small[1]["expected peak, GiB"] <= 16 and large[1]["expected peak, GiB"] <= 24
    for phase in ("sampling", "training"):
        assert 1.5 < large[0][phase] / small[0][phase] < 3
    assert train.account(config, settings, 512, None)[0] == {"sampling": 16384, "training": 4096}
