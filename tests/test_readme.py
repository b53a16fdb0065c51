"""The README against the recorded runs it speaks of."""

import json
from pathlib import Path

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
        assert settings[name] == train.EMBEDDED[name]
