"""The handout and its grader: solutions earn everything; stubs, mistakes and tricks nothing.

This file holds solutions, so it is not handed out.
"""

import ast
import functools
import importlib
import json
import os
import shutil

import handout
import pytest

SEED = 5
EXERCISES = {e.name: e for e in handout.EXERCISES}
ROOT = handout.ROOT


@functools.cache
def right_values():
    return handout.right_values(SEED)


def graded(folder, tmp_path):
    handout.main(["--grade", str(folder), "--json", str(tmp_path / "points.json")])
    found = json.loads((tmp_path / "points.json").read_text())
    assert found["of"] == sum(e.points for e in handout.EXERCISES) == 100
    assert found["points"] == sum(row["points"] for row in found["exercises"])
    assert all(row["of"] == EXERCISES[row["name"]].points for row in found["exercises"])
    return {row["name"]: row["points"] for row in found["exercises"]}


def test_every_solution_passes(tmp_path):
    assert graded(ROOT, tmp_path) == {e.name: e.points for e in handout.EXERCISES}


# ---- Honest work: a solution in another style, and the mistakes that one makes in it

SOLUTIONS = {
    "analyze.contribution": '''
def contribution(score, base, full):
    score, base, full = map(np.asarray, (score, base, full))
    result = (score - base) / (full - base)
    return np.where(full == base, float("nan"), result)''',
    "train.freeze_all_but": '''
def freeze_all_but(model, spec, seed=0):
    import re
    n = model.config.num_hidden_layers
    wanted = set(layers_of(spec, n, seed))
    everything = spec == "full" or spec.startswith("boost-")
    trained = {}
    for name, parameter in model.named_parameters():
        layer = re.match(r"model\\.layers\\.(\\d+)\\.", name)
        train = everything or (spec == "norm" and name == "model.norm.weight")
        train = train or bool(layer) and int(layer[1]) in wanted
        parameter.requires_grad = train
        if train:
            trained[name] = parameter
    return trained, 0 if everything else min(wanted, default=n)''',
    "rl.group_advantages": '''
def group_advantages(rewards, normalize="std"):
    rows = []
    for row in rewards:
        advantage = row - row.mean()
        if normalize == "std":
            advantage = advantage / (row.std() + 1e-6)
        rows.append(advantage if (row != row[0]).any() else torch.zeros(len(row)))
    return torch.stack(rows)''',
    "rl.sample": '''
def sample(logits, temperature, uniform):
    from statistics import mean  # no use of it: a module that is loaded late
    tokens, logprobs = [], []
    for row, u in zip(logits, uniform):
        if temperature == 0:
            token, logprob = row.argmax(), torch.tensor(0.0)
        else:
            p = (row / temperature).softmax(0)
            token = (p.cumsum(0) < u).sum()
            logprob = p[token].log()
        tokens.append(token)
        logprobs.append(logprob)
    return torch.stack(tokens), torch.stack(logprobs)''',
    "model.rope_tables": '''
def rope_tables(config, positions):
    i = torch.arange(config.head_dim // 2)
    angle = positions.unsqueeze(-1) / config.rope_theta ** (2 * i / config.head_dim)
    angle = angle.repeat(1, 1, 2).unsqueeze(1)
    return angle.cos(), angle.sin()''',
    "rl.policy_loss": '''
def policy_loss(logprobs, old_logprobs, advantages, mask, *, aggregate="sequence", clip=0.2,
                max_tokens=None, ref_logprobs=None, kl_coef=0.0):
    losses = []
    for b, held in enumerate(mask):
        new, old, a = logprobs[b][held], old_logprobs[b][held], advantages[b]
        rho = torch.exp(new - old)
        loss = -torch.min(rho * a, torch.clip(rho, 1 - clip, 1 + clip) * a)
        if kl_coef:
            loss = loss + kl_coef * kl_estimate(new, ref_logprobs[b][held])
        losses.append(loss)
    if aggregate == "sequence":
        return sum(loss.mean() for loss in losses) / len(losses)
    number = len(losses) * max_tokens if aggregate == "constant" else mask.sum()
    return torch.cat(losses).sum() / number''',
    "model.Attention.forward": '''
class Attention:
    def forward(self, x, rope, mask, cache):
        c, (B, T, D) = self.config, x.shape
        heads = lambda y: y.reshape(B, T, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        n = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(n, dim=1), v.repeat_interleave(n, dim=1)
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) / c.head_dim**0.5
        if mask is not None:
            scores = scores + mask[:, :, :T]
        out = scores.softmax(-1) @ v
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))''',
    "rl.gigpo_advantages": '''
def gigpo_advantages(episode_return, step_return, group, trajectory, anchor, *, step_weight=1.0,
                     normalize="none"):
    result = torch.zeros(len(group))
    for g in set(group):
        rows = [i for i in range(len(group)) if group[i] == g]
        first = {trajectory[i]: i for i in rows}
        returns = torch.tensor([[episode_return[i] for i in first.values()]])
        level = dict(zip(first, group_advantages(returns, normalize)[0]))
        for i in rows:
            result[i] += level[trajectory[i]]
        for state in {anchor[i] for i in rows}:
            same = [i for i in rows if anchor[i] == state]
            returns = torch.tensor([[step_return[i] for i in same]])
            result[same] += step_weight * group_advantages(returns, normalize)[0]
    return result''',
    "analyze.bootstrap": '''
def bootstrap(table):
    import random
    rng = random.Random(7)
    rows, seeds, problems = table.shape
    result = [[np.nanmean(row) for row in table]]
    for _ in range(DRAWS):
        which = [rng.randrange(problems) for _ in range(problems)]
        z, line = [rng.gauss(0, 1) for _ in range(seeds)], []
        for row in table:
            there = [s for s in range(seeds) if not np.isnan(row[s][0])]
            n, mean = len(there), sum(z[s] for s in there) / len(there)
            weights = [1 / n + (z[s] - mean) / np.sqrt(max(n * (n - 1), 1)) for s in there]
            line.append(sum(w * row[s][which].mean() for w, s in zip(weights, there)))
        result.append(line)
    return np.array(result)''',
}  # fmt: skip

EVERY_STEP = """trajectory = range(len(group))
        first = {i: i for i in rows}"""  # each step counts, not each trajectory

MISTAKES = [
    ("analyze.contribution", "np.where(full == base, float(\"nan\"), result)", "result + 0 * full"),
    ("analyze.contribution", "/ (full - base)", "/ full"),
    ("train.freeze_all_but", "parameter.requires_grad = train", "parameter.requires_grad &= train"),
    ("train.freeze_all_but", "(wanted, default=n)", "(wanted, default=0)"),
    ("train.freeze_all_but", "n, seed))", "n))"),
    ("train.freeze_all_but", "min(wanted", "max(wanted"),
    ("train.freeze_all_but", "model.norm.weight", "lm_head.weight"),
    ("rl.group_advantages", "row.std()", "row.std(correction=0)"),
    ("rl.group_advantages", "(row != row[0]).any()", "True"),
    ("rl.group_advantages", 'normalize == "std"', "True"),
    ("rl.sample", "/ temperature", "* temperature"),
    ("rl.sample", "p[token].log()", "p[token]"),
    ("rl.sample", "(p.cumsum(0) < u).sum()", "torch.multinomial(p, 1)[0]"),
    ("model.rope_tables", ".repeat(1, 1, 2)", ".repeat_interleave(2, -1)"),
    ("model.rope_tables", "2 * i", "i"),
    ("rl.policy_loss", "torch.min", "torch.max"),
    ("rl.policy_loss", "loss.mean()", "loss.sum()"),
    ("rl.policy_loss", "len(losses) * max_tokens", "max_tokens"),
    ("rl.policy_loss", "loss + kl_coef", "loss - kl_coef"),
    ("rl.policy_loss", "1 + clip", "1.2"),
    ("model.Attention.forward", "k.repeat_interleave(n, dim=1)", "k.repeat(1, n, 1, 1)"),
    ("model.Attention.forward", "rotate(k, *rope)", "k"),
    ("model.Attention.forward", "k, v = cache", "v, k = cache"),
    ("model.Attention.forward", "if mask is not None", "if False"),
    ("model.Attention.forward", "if c.qk_norm", "if False"),
    ("model.Attention.forward", " / c.head_dim**0.5", ""),
    ("rl.gigpo_advantages", "first = {trajectory[i]: i for i in rows}", EVERY_STEP),
    ("rl.gigpo_advantages", "i for i in rows if anchor", "i for i in range(len(group)) if anchor"),
    ("rl.gigpo_advantages", "+= step_weight *", "+="),
    ("analyze.bootstrap", "random.Random(7)", "random.Random()"),
    ("analyze.bootstrap", "n * (n - 1)", "n * n"),
    ("analyze.bootstrap", "(z[s] - mean)", "0"),
    ("analyze.bootstrap", "in table:", "in table:\n            z = [rng.gauss(0, 1) for _ in z]"),
    ("analyze.bootstrap", "in table:", "in table:\n            which = rng.choices(which, k=60)"),
    ("analyze.bootstrap", "result = [[np.nanmean(row) for row in table]]", "result = []"),
]  # fmt: skip


def found_here(monkeypatch, name, source):
    """What the case gives with this source; in this process, so nothing for tricks."""
    module, parts = importlib.import_module(name.split(".")[0]), name.split(".")[1:]
    place = getattr(module, parts[0]) if parts[1:] else module
    monkeypatch.setattr(place, parts[-1], None)  # so that it is put back
    handout.put(module, name, source)
    try:
        return json.loads(json.dumps(EXERCISES[name].case(SEED)))
    finally:
        monkeypatch.undo()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_in_another_style_passes(monkeypatch, name):
    expected = right_values()[name]
    assert EXERCISES[name].passes(found_here(monkeypatch, name, SOLUTIONS[name]), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, right, wrong", MISTAKES)
def test_a_mistake_earns_nothing(monkeypatch, name, right, wrong):
    expected = right_values()[name]
    assert right in SOLUTIONS[name]
    found = found_here(monkeypatch, name, SOLUTIONS[name].replace(right, wrong))
    assert not EXERCISES[name].passes(found, expected)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """A handout."""
    out = tmp_path_factory.mktemp("handout") / "out"
    handout.main([str(out)])
    return out


def test_the_handout(students, monkeypatch):
    text = (students / "EXERCISES.md").read_text()
    for i, exercise in enumerate(handout.EXERCISES, 1):
        file = f"{exercise.name.split('.')[0]}.py"
        assert f"## {i}. `{exercise.name}` ({exercise.points} points)" in text
        assert exercise.text in text
        source = (students / file).read_text()
        own = handout.find(source, exercise.name)
        reference = handout.find((ROOT / file).read_text(), exercise.name)
        assert ast.dump(own.args) == ast.dump(reference.args)
        assert ast.get_docstring(own) == ast.get_docstring(reference) is not None
        with pytest.raises(NotImplementedError, match=f"exercise {i}: {exercise.name}"):
            found_here(monkeypatch, exercise.name, source)
    assert not (students / ".git").exists() and not (students / handout.SOLUTIONS).exists()
    assert (students / "README.md").exists() and (students / "tests/recorded/README.md").exists()


def test_stubs_fail_and_what_is_solved_passes(students, tmp_path, capsys):
    solved = {"rl.sample", "model.Attention.forward", "analyze.bootstrap"}
    for file in handout.FILES:
        shutil.copy(students / file, tmp_path)
        with open(tmp_path / file, "a") as f:  # of two functions of one name, the last counts
            f.writelines(SOLUTIONS[name] + "\n" for name in solved if name.split(".")[0] in file)
    earned = {e.name: e.points * (e.name in solved) for e in handout.EXERCISES}
    assert graded(tmp_path, tmp_path) == earned
    assert "NotImplementedError: exercise 1: analyze.contribution" in capsys.readouterr().out


# ---- Dishonest work


def earned(folder, text):
    """(points, why not more) of the first exercise for a file of this text."""
    (folder / "analyze.py").write_text(text)
    return handout.grade_one(folder, EXERCISES["analyze.contribution"], SEED, right_values())


FORGE = """def contribution(*_):
    import os
    for fd in range(3, 30):
        try:
            os.write(fd, {}.encode())
        except OSError:
            pass
    os._exit(0)"""

TRICKS = {
    "leaves at once": "def contribution(*_):\n    import os\n    os._exit(0)",
    "exits": "def contribution(*_):\n    raise SystemExit(0)",
    "says that it passed": "def contribution(*_):\n    print('9 passed')\n    return 1",
    "is equal to everything": "def contribution(*_):\n    class Any(float):\n"
    "        __eq__ = lambda *_: True\n        tolist = lambda self: self\n    return Any(1)",
    "patches the grader": "def contribution(*_):\n    import json, sys\n"
    "    handout = sys.modules['handout']\n    handout.alike = lambda *_: True\n"
    "    for e in handout.EXERCISES:\n        object.__setattr__(e, 'passes', lambda *_: True)\n"
    "    json.dumps = lambda *_: '[1]'\n    return 1",
    "writes the points": "def contribution(*_):\n    open(POINTS, 'w').write('1')\n    return 1",
    "reads the reference": "def contribution(*a):\n    space = {}\n"
    "    exec(open(REFERENCE).read(), space)\n    return space['contribution'](*a)",
    "reads it when it is put in place": "def contribution(*a, s=open(REFERENCE).read()):\n    pass",
    "imports it": "def contribution(*a):\n    import sys, importlib\n"
    "    sys.path.insert(0, ROOT)\n    del sys.modules['analyze']\n"
    "    return importlib.import_module('analyze').contribution(*a)",
    "starts a process": "def contribution(*_):\n    import os\n    os.fork()\n    return 1",
    "takes all memory": "def contribution(*_):\n    return bytearray(16 << 30)",
    "answers without end": FORGE.format("('[' * (8 << 20))"),
    "answers by nesting": FORGE.format("('[' * 200000 + ']' * 200000)"),
    "answers by a huge number": FORGE.format("('[' + '9' * 4000 + ', 1, [1, 1, 1, 1, 1]]')"),
    "answers NaN": FORGE.format("'NaN'"),
    "reports that it passed": FORGE.format("'{\"points\": 5}'"),
    "knows the values of the handout": FORGE.format("KNOWN"),
}


@pytest.mark.skipif(not handout.sys.platform.startswith("linux"), reason="a filter of Linux's")
@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_earns_nothing(tmp_path, trick):
    points, known = tmp_path / "points.json", EXERCISES["analyze.contribution"].case(0)
    text = TRICKS[trick].replace("KNOWN", repr(json.dumps(known))).replace("ROOT", repr(str(ROOT)))
    text = text.replace("POINTS", repr(str(points)))
    text = text.replace("REFERENCE", repr(str(ROOT / "analyze.py")))
    got, why = earned(tmp_path, text)
    assert got == 0 and why
    assert not points.exists()


@pytest.mark.parametrize("forever", ["while True:\n        pass", "import time; time.sleep(1e6)"])
def test_an_exercise_ends_when_its_time_is_up(tmp_path, monkeypatch, forever):
    monkeypatch.setattr(handout, "SECONDS", 2)
    text = f"def contribution(*_):\n    {forever}"
    got = earned(tmp_path, text)
    assert got == (0, "no answer in 2 seconds")


BAD = ["def (", "", "\x00", "contribution = 3", "-" * 3_000_000 + "1", "(" * 5000,
       "# coding: none\n", "def contribution(:\n", "class contribution: pass"]  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_file_without_the_function_earns_nothing(tmp_path, text):
    got, why = earned(tmp_path, text)
    assert got == 0 and why


def test_only_plain_files_are_read(tmp_path):
    expected, exercise = right_values(), EXERCISES["analyze.contribution"]
    assert handout.grade_one(tmp_path, exercise, SEED, expected)[0] == 0  # none
    (tmp_path / "analyze.py").symlink_to(ROOT / "analyze.py")
    assert handout.grade_one(tmp_path, exercise, SEED, expected)[0] == 0
    (tmp_path / "analyze.py").unlink()
    os.mkfifo(tmp_path / "analyze.py")
    assert handout.grade_one(tmp_path, exercise, SEED, expected)[0] == 0


def test_bad_calls_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(handout, "ROOT", tmp_path)  # no checkout
    new, no = str(tmp_path / "new"), str(tmp_path / "no")
    calls = [], ["out", "--grade", "x", "--json", "y"], ["--grade", "x"], [str(tmp_path)], [new]
    for argv in (*calls, ["--grade", no, "--json", "p"]):
        with pytest.raises(SystemExit) as stop:
            handout.main(argv)
        assert stop.value.code == 2
        assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
