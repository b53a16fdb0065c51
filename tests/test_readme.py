"""The README against the recorded runs it speaks of."""

import json
from pathlib import Path

import numpy as np
import pytest

import analyze

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


def test_the_record_is_of_the_default_settings():
    import train

    settings = json.loads((ROOT / "tests/recorded/math/contribution.json").read_text())["settings"]
    for name in ("steps", "lr", "prompts", "group", "max_tokens", "eval_problems"):
        assert settings[name] == train.EMBEDDED["math"][name]


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
