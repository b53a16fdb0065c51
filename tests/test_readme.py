"""The README against the recorded runs it speaks of."""

import contextlib
import functools
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import analyze
import train

ROOT = Path(analyze.__file__).parent
RECORDS = sorted(path.parent.name for path in ROOT.glob("tests/recorded/*/contribution.json"))
README = (ROOT / "README.md").read_text()
WORDS = " ".join(README.split())
BLOCKS = re.findall(r"<!-- python analyze\.py (.*?) \| (.*?) -->\n```\n(.*?)\n```", README, re.DOTALL)


COMMANDS = sorted({command.split()[0] for command, _, _ in BLOCKS})
NUMBER = r"-?\d+\.\d+"


def alike(text, other):
    """Whether two texts are the same but for the last digit of some numbers: another processor rounds differently."""
    if re.sub(NUMBER, "#", text) != re.sub(NUMBER, "#", other):
        return False
    pairs = zip(re.findall(NUMBER, text), re.findall(NUMBER, other))
    return all(abs(float(a) - float(b)) < 1.5 * 10 ** -len(a.partition(".")[2]) for a, b in pairs)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A function: what `python analyze.py FOLDER --out FOLDER` prints, and the folder that it wrote to instead."""

    @functools.cache
    def reported(folder):
        out, printed = tmp_path_factory.mktemp("record"), io.StringIO()
        with contextlib.redirect_stdout(printed):
            analyze.main([str(ROOT / folder), "--out", str(out)])
        return printed.getvalue(), out

    return reported


@pytest.mark.parametrize("folder", COMMANDS)
def test_a_record_gives_the_files_that_lie_beside_it(record, folder):
    out = record(folder)[1]
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert len(files) == (3 * len(RECORDS) + 2 if folder == "tests/recorded" else 3)
    for file in files:
        assert alike((out / file).read_text(), (ROOT / folder / file).read_text()), file


@pytest.mark.parametrize("command, title, block", BLOCKS, ids=[title for _, title, _ in BLOCKS])
def test_every_table_is_what_its_command_prints(record, command, title, block):
    folder, out, same = shlex.split(command)
    lines, height = record(folder)[0].splitlines(), len(block.splitlines())
    assert out == "--out" and same == folder and any(alike("\n".join(lines[i : i + height]), block) for i in range(len(lines)))


def test_what_is_said_of_the_first_table():
    settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded/math")
    assert len(BLOCKS) > 8 and analyze.findings(settings, *analyze.summarize(settings, runs)) in WORDS


DOMAINS = {"math": "grpo", "code": "dr_grpo", "household": "gigpo"}


@pytest.mark.parametrize("task", DOMAINS)
def test_the_records_are_of_the_default_settings(task):
    settings = json.loads((ROOT / f"tests/recorded/{task}/contribution.json").read_text())["settings"]
    assert settings["task"] == task and settings["algo"] == DOMAINS[task]
    for name in ("steps", "lr", "prompts", "group", "max_tokens", "eval_problems"):
        assert settings[name] == train.EMBEDDED[task][name]


def test_gigpo_against_grpo_in_the_readme():
    for name, label in (("household", "`gigpo`"), ("household-grpo", "`grpo`")):
        settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded" / name)
        full = next(row for row in analyze.summarize(settings, runs)[0] if row["layer"] == "full")
        right = {
            run["seed"]: sum(map(int, run["right"])) / run["samples"] / len(run["right"])
            for run in runs
            if run["layer"] == "full"
        }
        cells = [label, *(f"{right[seed]:.3f}" for seed in (0, 1, 2)), f"{full['score']:.3f} ± {full['score_se']:.3f}"]
        assert f"| {' | '.join(cells)} | {full['greedy']:.3f} |" in README


def test_every_interval_in_the_text_is_one_of_the_record(record):
    prose = re.sub("```.*?```", "", README, flags=re.DOTALL)
    number = r"([−-]?[0-9]*\.[0-9]{2})"
    told = re.findall(rf"{number} \[{number}, {number}\]", " ".join(prose.split()))
    printed = "".join(record(folder)[0] for folder in COMMANDS)
    printed = {tuple(map(float, found)) for found in re.findall(rf"{number} \[{number}, {number}\]", printed)}
    printed |= {(-value, -high, -low) for value, low, high in printed}  # "less by ..."
    assert len(told) > 25
    for found in told:
        value = tuple(float(text.replace("−", "-")) for text in found)
        assert any(max(abs(a - b) for a, b in zip(value, one)) < 0.001 for one in printed), found


def contributions(name, seeds=False):
    """C by row name of a recorded sweep; with `seeds`, of each single layer one for every seed."""
    settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded" / name)
    rows, draws, layers = analyze.summarize(settings, runs)
    if not seeds:
        return {row["layer"]: row["contribution"] for row in rows}, draws, layers
    singles = [layer for layer in layers if layer.isdecimal()]
    score = analyze.outcomes(runs, ["base", "full", *singles]).mean(2)
    return (score[2:] - score[0]) / (score[1].mean() - score[0])


def short(value):
    return re.sub(r"^(−?)0\.", r"\1.", f"{value:.2f}".replace("-", "−"))


def test_how_far_seeds_differ():
    spread = [contributions(name, seeds=True).std(axis=1, ddof=1).mean() for name in ("math", "code", "household")]
    told = f"standard deviation of {spread[0]:.3f} in arithmetic, {spread[1]:.3f} in code and {spread[2]:.2f} in the household"
    assert told.replace(" 0.", " .") in WORDS


def test_how_pairs_compare_with_closing_the_gap():
    """C of a pair less 1 - (1 - C_a)(1 - C_b), averaged over pairs of neighbours, of layers four apart, and of the two ends."""
    c, _, _ = contributions("math")
    over = {
        apart: np.mean([c[f"{a},{a + apart}"] - 1 + (1 - c[str(a)]) * (1 - c[str(a + apart)]) for a in range(8 - apart)])
        for apart in (1, 4, 7)
    }
    assert abs(over[4]) < 0.005
    assert f"neighbours stay {short(-over[1])} below that, layers four apart meet it" in WORDS
    assert f"the first and the last exceed it by {short(over[7])}" in WORDS


def test_pairs_after_a_third_of_the_steps():
    """In units of full training's final gain: all 28 below the sum of both, and beyond the interval."""
    settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded/math")
    pairs = [f"{a},{b}" for a in range(8) for b in range(a + 1, 8)]
    layers = ["base", "full", *map(str, range(8)), *pairs]
    (score, draws), (last, last_draws) = (analyze.bootstrap(analyze.outcomes(runs, layers, point=p)) for p in ("40", None))
    c = (score - last[0]) / (last[1] - last[0])
    drawn = (draws - last_draws[:, [0]]) / (last_draws[:, [1]] - last_draws[:, [0]])
    at = [[layers.index(pair), *(layers.index(k) for k in pair.split(","))] for pair in pairs]
    assert all(analyze.interval((drawn[:, i] - drawn[:, a] - drawn[:, b])[:, None])[1][0] < 0 for i, a, b in at)
    sums = [c[a] + c[b] for _, a, b in at]
    assert f"when the sums are {short(min(sums))} to {short(max(sums))} of full training's final gain" in WORDS


def test_figures_of_the_claims(record):
    """What stands in sentences, against the rows and printed tables that it is taken from."""
    rows = {
        (name, row["layer"]): row
        for name in RECORDS
        for row in json.loads((ROOT / f"tests/recorded/{name}/contribution.json").read_text())["rows"]
    }
    greedy = {layer: rows["math", layer]["greedy_contribution"] for layer in "02"}
    assert f"({short(greedy['0'])} against {short(greedy['2'])} at the peak)" in WORDS
    middle = [re.search(rf"{name}\n-+\n.*?\n +middle .*? (\d\.\d\d) \[[^]]*\] +0\.0%", record("tests/recorded")[0], re.DOTALL)[1]
              for name in ("math", "code", "household")]  # fmt: skip
    assert "loses {}, {} and {} of C".format(*(short(float(value)) for value in middle)) in WORDS
    steps = [rows[name, layer]["contribution"] for name, layer in (("math-400-steps", "3"), ("math-rate-1e-3", "3"))]
    assert f"({short(steps[0])} after 400 steps, one seed; {short(steps[1])} at twice the rate)" in WORDS
    votes = re.search(r"\nmath\n-+\n.*?\nVoting\n(.*?)\n\n", record("tests/recorded")[0], re.DOTALL)[1].splitlines()
    full, one, several = (line.split() for line in (votes[2], votes[3], votes[4]))
    assert f"four voters: {short3(several[-4])} against {short3(full[-1])}" in WORDS
    assert f"and {short3(one[-4])} of one layer's samples" in WORDS
    lengths = [rows["code", layer]["length"] for layer in ("base", "full")]
    assert f"({lengths[0]:.1f} to {lengths[1]:.1f} tokens)" in WORDS
    cut = [rows["household", layer]["truncated"] for layer in ("full", "base")]
    assert f"{cut[0]:.0%} of full training's episodes run out of steps instead of {cut[1]:.0%}".replace("%", " %") in WORDS


def test_figures_of_the_real_model():
    found = json.loads((ROOT / "tests/recorded/real/qwen2.5-coder-0.5b/contribution.json").read_text())
    rows = {row["layer"]: row for row in found["rows"]}
    c = [rows[str(k)]["contribution"] for k in range(24)]
    thirds = [short(sum(c[i : i + 8]) / 8) for i in (0, 8, 16)]
    assert max(c) == c[11] and "the average is {}, {} and {}".format(*thirds) in WORDS
    assert f"(layer 11: C {', '.join(short(rows['11'][f'contribution{at}']) for at in ('_step_10', '_step_20', ''))})" in WORDS
    assert f"({short(rows['11']['greedy_contribution'])} for layer 11)" in WORDS
    assert f"and greedily {short(rows['mid-4']['greedy_contribution'])}" in WORDS


def short3(text):
    return re.sub(r"^0\.", ".", text)


def test_base_pass_rates():
    recorded = json.loads((ROOT / "tests/recorded/real/pass-rates.json").read_text())
    table = re.search(r"\n\| asked \|.*?\n\n", README, re.DOTALL)[0]
    for figures in recorded.values():
        for found in figures.values():
            assert f"{found['sampled']:.3f} / {found['greedy']:.3f}" in table
    assert table.count(" / ") == sum(map(len, recorded.values()))


def test_the_interval_of_gigpo_less_grpo():
    (_, draws, layers), (_, others, other_layers) = contributions("household"), contributions("household-grpo")
    difference = draws[:, layers.index("full")] - others[:, other_layers.index("full")]
    low, high = (bound[0] for bound in analyze.interval(difference[:, None]))
    assert f"(95 % interval over problems and seeds: {short(low)} to {short(high)})" in WORDS


def test_the_grids_of_rates():
    recorded = json.loads((ROOT / "tests/recorded/rates.json").read_text())
    for grid in recorded.values():
        assert grid["command"] in WORDS
        means = [sum(scores) / len(scores) for scores in grid["scores by rate, a seed each"].values()]
        digits = [re.findall(r"\.\d{3}", line) for line in README.splitlines()]
        assert any(len(found) == len(means) and all(abs(float(f) - m) < 6e-4 for f, m in zip(found, means)) for found in digits)


def test_the_exercises_name_functions_and_tests_that_are_there():
    for name, tests, chosen in re.findall(r"\| `(\w+\.\w+)`.*?pytest -q (tests/\w+\.py) -k \"(.*?)\"", README):
        module, function = name.split(".")
        assert re.search(rf"^def {function}\(", (ROOT / f"{module}.py").read_text(), re.MULTILINE)
        found = re.findall(r"^def (test_\w+)", (ROOT / tests).read_text(), re.MULTILINE)
        assert all(any(part in test for test in found) for part in chosen.split(" or "))
    assert README.count("python -m pytest -q tests/test_rl.py -k") == 4
