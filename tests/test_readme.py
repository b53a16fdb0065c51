"""The README against the recorded runs it speaks of."""

import json
from pathlib import Path

import numpy as np
import pytest

import analyze
import train

ROOT = Path(analyze.__file__).parent
RECORDS = sorted(path.parent.name for path in ROOT.glob("tests/recorded/*/contribution.json"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_gives_the_files_that_lie_beside_it(tmp_path, capsys, name):
    analyze.main([str(ROOT / "tests/recorded" / name), "--out", str(tmp_path)])
    for file in ("contribution.csv", "contribution.svg", "contribution.json"):
        assert (tmp_path / file).read_text() == (ROOT / "tests/recorded" / name / file).read_text()


def test_the_readme_shows_the_recorded_table_and_what_it_says():
    settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded/math")
    rows, draws, layers = analyze.summarize(settings, runs)
    readme = (ROOT / "README.md").read_text()
    assert analyze.format_table(rows) in readme
    assert analyze.findings(settings, rows, draws, layers) in " ".join(readme.split())


DOMAINS = {"math": "grpo", "code": "dr_grpo", "household": "gigpo"}


@pytest.mark.parametrize("task", DOMAINS)
def test_the_records_are_of_the_default_settings(task):
    settings = json.loads((ROOT / f"tests/recorded/{task}/contribution.json").read_text())["settings"]
    assert settings["task"] == task and settings["algo"] == DOMAINS[task]
    for name in ("steps", "lr", "prompts", "group", "max_tokens", "eval_problems"):
        assert settings[name] == train.EMBEDDED[task][name]


def sweep(name):
    settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded" / name)
    return settings, *analyze.summarize(settings, runs)


def test_the_three_domains_stand_in_the_readme_side_by_side():
    sweeps, readme = {name: sweep(name) for name in DOMAINS}, (ROOT / "README.md").read_text()
    assert analyze.format_curves(sweeps) in readme
    assert analyze.format_pairs(analyze.compare(sweeps)) in readme
    assert analyze.draw_curves(sweeps) == (ROOT / "tests/recorded/curves.svg").read_text()


def test_gigpo_against_grpo_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for name, label in (("household", "`gigpo`"), ("household-grpo", "`grpo`")):
        _, rows, *_ = sweep(name)
        full = next(row for row in rows if row["layer"] == "full")
        runs = [run for run in analyze.read_runs(ROOT / "tests/recorded" / name)[1] if run["layer"] == "full"]
        right = {run["seed"]: sum(map(int, run["right"])) / run["samples"] / len(run["right"]) for run in runs}
        cells = [label, *(f"{right[seed]:.3f}" for seed in (0, 1, 2)), f"{full['score']:.3f} ± {full['score_se']:.3f}"]
        assert f"| {' | '.join(cells)} | {full['greedy']:.3f} |" in readme


def test_the_rank_correlations_between_the_records():
    """Spearman's rho between the contribution curves, as the README states them."""

    def ranks(name):
        settings, runs, _ = analyze.read_runs(ROOT / "tests/recorded" / name)
        values = [row["contribution"] for row in analyze.summarize(settings, runs)[0] if row["layer"].isdecimal()]
        return np.argsort(np.argsort(values))

    main, rate, steps = map(ranks, ("math", "math-rate-1e-3", "math-400-steps"))
    stated = (
        f"{np.corrcoef(main, rate)[0, 1]:.2f} with the sweep at twice the rate, {np.corrcoef(main, steps)[0, 1]:.2f} with that"
    )
    assert stated.replace("0.", ".") in (ROOT / "README.md").read_text()
