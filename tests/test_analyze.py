"""analyze.py: C(k), its interval and what is said of it, on cases worked by hand and simulated."""

import csv
import itertools
import json
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

import analyze

sys.path.insert(0, str(Path(__file__).parent))

import probe
import simulate

SETTINGS = {"num_layers": 3, "panel": "test", "steps": 30, "quick": False, "lr": 0.001}
SETTINGS |= {"problems": "digest", "weights": "digest"}


def write_run(folder, layer, seed, right, greedy=None, samples=4, before=None, **changes):
    name = folder / f"{layer}-seed-{seed}"
    name.mkdir(parents=True)
    settings = {**SETTINGS, "layer": layer, "seed": seed, **changes}
    versions = {"torch": "2.13.0", "git": "abc"}
    (name / "config.json").write_text(json.dumps({"settings": settings, "versions": versions}))
    found = {"right": right, "greedy": greedy or "1" * len(right), "samples": samples}
    found |= {"length": 6.0, "truncated": 0.25, "before": before or {}}
    (name / "eval.json").write_text(json.dumps(found))
    return name


def write_sweep(folder):
    """Four problems, 20 times over, two seeds. Base .25, full .75, layers .5, .75 (the seeds
    differ) and .25."""

    def write(layer, seed, right, greedy, step_10=None):
        before = {"10": {"right": 20 * step_10, "greedy": 20 * "1000"}} if step_10 else {}
        write_run(folder, layer, seed, 20 * right, 20 * greedy, before=before)

    write("base", 0, "4000", "1000")
    for seed in (0, 1):
        write("full", seed, "4440", "1110", "4400")
        write("0", seed, "4400", "1100", "4200")
        write("1", seed, "4444" if seed else "4400", "1111")
        write("2", seed, "4000", "0000")
    return folder


def write_layers(folder, scores, seeds=(0, 1), **fields):
    """A sweep of which every run of a layer solved all samples of this share of 200 problems."""
    for layer, share in scores.items():
        for seed in seeds if layer != "base" else (0,):
            n = round(200 * share)
            path = write_run(folder, layer, seed, "4" * n + "0" * (200 - n)) / "eval.json"
            more = {name: values[layer] for name, values in fields.items() if layer in values}
            path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def report(folder, capsys, again=True):
    """The blocks that are printed, by their first lines, as lists of lines."""
    analyze.main([str(folder), "--out", str(folder / "out")])
    printed = capsys.readouterr().out.split("written:")[0]
    if again:  # the record says the same
        analyze.main([str(folder / "out"), "--out", str(folder / "again")])
        told = capsys.readouterr().out.split("written:")[0]
        assert told.split("\n", 2)[2] == printed.split("\n", 2)[2]
    return {block.split("\n")[0]: block.split("\n")[1:] for block in printed.split("\n\n")}


def cells(line):
    return line.replace("[", "").replace("]", "").replace(",", "").split()


def table_of(folder):
    lines = (folder / "contribution.csv").read_text().splitlines()
    return {row["layer"]: row for row in csv.DictReader(lines)}


def load(folder):
    return json.loads((folder / "out" / "contribution.json").read_text())


# ---- C(k), its interval and the table


def test_contribution_by_hand(tmp_path):
    analyze.main([str(write_sweep(tmp_path / "runs")), "--out", str(tmp_path)])
    rows = table_of(tmp_path)
    assert list(rows) == ["base", "full", "0", "1", "2"]
    assert [float(rows[k]["score"]) for k in rows] == [0.25, 0.75, 0.5, 0.75, 0.25]
    assert [float(rows[k]["contribution"]) for k in rows] == [0, 1, 0.5, 1, 0]
    assert [float(rows[k]["c_greedy"]) for k in rows] == [0, 1, 0.5, 1.5, -0.5]
    assert float(rows["0"]["c_step_10"]) == 0.5  # (.375 - .25) / (.5 - .25)
    assert rows["1"]["c_step_10"] == ""  # this layer left nothing at step 10
    assert float(rows["0"]["length"]) == 6.0 and float(rows["0"]["truncated"]) == 0.25
    assert rows["0"]["seeds"] == "0 1" and rows["base"]["seeds"] == "0"
    columns = {"layer", "score", "score_se", "contribution", "low", "high", "greedy"}
    assert columns | {"length", "truncated"} <= set(rows["0"])


def test_standard_error_is_that_of_the_mean_over_problems(tmp_path):
    """One seed, 0/1 outcomes: the bootstrap's standard error is sqrt(p (1 - p) / n)."""
    for layer, right in (("base", "0" * 1000), ("full", "4" * 1000), ("0", "4" * 300 + "0" * 700)):
        write_run(tmp_path, layer, 0, right)
    row = analyze.summarize(SETTINGS, analyze.read_runs(tmp_path)[1])[0][2]
    assert abs(row["score_se"] - (0.3 * 0.7 / 1000) ** 0.5) < 0.001
    # Here C is the score, so its interval is the score's: 0.3 -+ 1.96 s.e.
    assert abs(row["low"] - (0.3 - 1.96 * 0.0145)) < 0.004
    assert abs(row["high"] - (0.3 + 1.96 * 0.0145)) < 0.004


def test_interval_by_brute_force():
    """The bootstrap against its docstring as a plain loop, with other random numbers."""
    rng = np.random.default_rng(1)
    table = rng.integers(0, 5, size=(3, 3, 40)) / 4
    table[0] = table[0, 0]  # as the base
    estimates = analyze.bootstrap(table)
    np.testing.assert_allclose(estimates[0], table.mean((1, 2)))
    looped = []
    for _ in range(4000):
        problems, z = rng.integers(0, 40, 40), rng.normal(size=3)
        weights = [1 / 3 + (z[s] - sum(z) / 3) / (3 * 2) ** 0.5 for s in range(3)]
        means = [[np.mean([row[s][i] for i in problems]) for s in range(3)] for row in table]
        looped.append([sum(w * m for w, m in zip(weights, row)) for row in means])
    for estimate, drawn in zip(estimates.T, np.transpose(looped)):
        low, high = np.percentile(drawn, [2.5, 97.5])
        np.testing.assert_allclose(analyze.interval(estimate), (low, high), atol=0.02)


@pytest.mark.parametrize("levels", [[0.25, 0.5], [0.25, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0]])
def test_seeds_vary_the_mean_by_their_variance_over_their_number(levels):
    """Where seeds alone differ; a row without the first seed has the variance of the others."""
    table = np.repeat(np.array([levels, levels])[:, :, None], 50, axis=2)
    table[1, 0] = np.nan
    drawn = analyze.bootstrap(table)[1:]
    n = len(levels)
    assert drawn[:, 0].std() == pytest.approx(np.std(levels, ddof=1) / n**0.5, rel=0.08)
    rest = np.std(levels[1:], ddof=1) / (n - 1) ** 0.5 if n > 2 else 0
    assert drawn[:, 1].std() == pytest.approx(rest, rel=0.08)


def test_equal_scores_are_equal_in_whatever_order_they_are_added():
    table, rng = (
        np.random.default_rng(0).integers(0, 4, size=(1, 3, 900)) / 3,
        np.random.default_rng(1),
    )
    orders = [rng.permutation(900) for _ in range(20)]
    assert len({table[0, :, order].mean() for order in orders}) > 1
    assert len({analyze.bootstrap(table[:, :, order])[0, 0] for order in orders}) == 1


def test_every_row_is_resampled_over_the_same_problems_and_seeds():
    table = np.random.default_rng(0).integers(0, 5, size=(2, 3, 40)) / 4
    drawn = analyze.bootstrap(np.concatenate([table, table[1:]]))
    np.testing.assert_array_equal(drawn[:, 1], drawn[:, 2])


def test_panels_of_any_size_weight_seeds_alike():
    """Where seeds alone differ, two panels' resampled values agree: means over domains keep a
    seed's runs together."""
    levels = np.array([0.25, 0.5, 1.0])[None, :, None]
    drawn = [analyze.bootstrap(np.broadcast_to(levels, (1, 3, n)) + 0.0) for n in (40, 300)]
    np.testing.assert_allclose(*drawn, atol=1e-11)


def test_a_row_tells_which_seeds_it_has(tmp_path, capsys):
    write_sweep(tmp_path)
    shutil.rmtree(tmp_path / "1-seed-0")
    report(tmp_path, capsys)
    seeds = {row["layer"]: row["seeds"] for row in load(tmp_path)["rows"]}
    assert seeds == {"base": "0", "full": "0 1", "0": "0 1", "1": "1", "2": "0 1"}


# ---- What is said of the curve


def findings(levels, full, n=400, seeds=1):
    """Of layers with these shares of right answers, on problems drawn independently."""
    rng = np.random.default_rng(0)
    shares = np.array([0.1, full, *levels])[:, None, None]
    table = rng.binomial(4, np.broadcast_to(shares, (len(levels) + 2, seeds, n))) / 4
    names = ["base", "full", *map(str, range(len(levels)))]
    return analyze.findings(dict(zip(names, analyze.bootstrap(table).T)))


def test_findings_where_differences_are_plain():
    found = findings([0.3, 0.9, 0.6, 0.88], 0.6)
    assert found["peak"] in (1, 3) and found["below_peak"] == [0, 2]
    assert found["above_full"] == [1, 3] and found["level_with_full"] == [2]


def test_findings_by_brute_force():
    """Every pair of layers against the largest deviation of any pair, as loops."""
    score = simulate.sweep(np.random.default_rng(3), np.linspace(-1, 0.5, 6), 0.2)
    s, full = [score[str(k)] for k in range(6)], score["full"]
    widest = [
        max(abs((a[d] - a[0]) - (b[d] - b[0])) for a, b in itertools.combinations(s, 2))
        for d in range(1, 2001)
    ]
    width, peak = np.quantile(widest, 0.975), max(range(6), key=lambda k: s[k][0])
    against = [max(abs((a[d] - a[0]) - (full[d] - full[0])) for a in s) for d in range(1, 2001)]
    reach = np.quantile(against, 0.975)
    assert analyze.findings(score) == {
        "peak": peak,
        "below_peak": [k for k in range(6) if s[peak][0] - s[k][0] > width],
        "above_full": [k for k in range(6) if s[k][0] - full[0] > reach],
        "level_with_full": [k for k in range(6) if abs(s[k][0] - full[0]) <= reach],
    }


@pytest.mark.parametrize("layers, seeds", [(24, 1), (8, 2), (8, 3)])
def test_of_equal_layers_little_is_claimed(layers, seeds):
    """Separate 95 % intervals would claim some layer below the peak in nine of ten sweeps, and
    some above full training in a third. (In 60 sweeps at 5 %, more than 7 are one in 100.)"""
    below, arch, above = simulate.equal(layers, 60, problems=200, seeds=seeds)
    assert below <= 7 / 60 and arch <= 4 / 60 and above <= 7 / 60


def test_an_arch_is_found():
    arch, above, below = simulate.arch(24, 20)
    assert arch > 0.9 and below > 0.9 and above > 0.2


def test_intervals_of_c_hold_the_truth():
    assert simulate.coverage(60) > 0.88 and simulate.coverage(60, seeds=3) > 0.88


def test_findings_stand_in_the_record_and_in_words(tmp_path, capsys):
    scores = {"base": 0.2, "full": 0.6, "0": 0.3, "1": 0.9, "2": 0.6}
    blocks = report(write_layers(tmp_path, scores), capsys)
    found = {"peak": 1, "below_peak": [0, 2], "above_full": [1], "level_with_full": [2]}
    assert load(tmp_path)["findings"] == found
    said = next(block for block in blocks if "highest" in block)
    assert said.startswith("Over 2 seeds, layer 1 is highest")
    assert "Below the best: 0, 2;" in said and "above full training: 1;" in said


def test_of_one_seed_nothing_is_claimed_for_others(tmp_path, capsys):
    blocks = report(write_layers(tmp_path, {"base": 0, "full": 1, "0": 0.3}, seeds=[0]), capsys)
    said = next(block for block in blocks if "highest" in block)
    assert said.startswith("On this seed's model") and "seeds" not in said


def test_layers_are_compared_over_the_seeds_that_all_have(tmp_path, capsys):
    """Layer 1 has only a lucky seed; on that seed layer 0 is better."""
    for layer, shares in (("0", (0.2, 0.9)), ("1", (None, 0.6)), ("full", (0.8, 0.8))):
        for seed, share in enumerate(shares):
            if share is not None:
                write_run(
                    tmp_path, layer, seed, "4" * int(200 * share) + "0" * int(200 - 200 * share)
                )
    write_run(tmp_path, "base", 0, "0" * 200)
    blocks = report(tmp_path, capsys)
    rows = {row["layer"]: row for row in load(tmp_path)["rows"]}
    assert rows["0"]["score"] < rows["1"]["score"]
    assert load(tmp_path)["findings"]["peak"] == 0
    assert any(block.startswith("On this seed's model") for block in blocks)


@pytest.mark.parametrize("full, worst", [("4400", "4400"), ("2000", "0000"), ("4001", "4440")])
def test_without_a_gain_nothing_is_claimed(tmp_path, capsys, full, worst):
    """Full training gives nothing, hurts, or gains a hair: C(k) would divide by noise."""
    for layer, right in (
        ("base", "4400" if full == "4400" else "4000"),
        ("full", full),
        ("0", worst),
    ):
        write_run(tmp_path, layer, 0, right)
    blocks = report(tmp_path, capsys)
    assert any(block.startswith("C(k) is undefined") for block in blocks)
    assert set(load(tmp_path)["findings"].values()) == {None}
    assert (tmp_path / "out" / "contribution.svg").stat().st_size < 20000


def test_without_base_or_full_scores_are_shown(tmp_path, capsys):
    write_run(tmp_path, "0", 0, "4400")
    write_run(tmp_path, "0,1", 0, "4440")
    blocks = report(tmp_path, capsys)
    assert [row["score"] for row in load(tmp_path)["rows"]] == [0.5, 0.75]
    assert any("0.750" in line for block in blocks.values() for line in block)
    assert set(load(tmp_path)["findings"].values()) == {None}


# ---- Reading


def test_what_is_missing_or_damaged_is_named_and_the_rest_reported(tmp_path, capsys):
    runs = write_sweep(tmp_path / "runs")
    (runs / "2-seed-1" / "eval.json").unlink()
    (runs / "1-seed-1" / "eval.json").write_text('{"right": "44')
    found = json.loads((runs / "0-seed-1" / "eval.json").read_text())
    (runs / "0-seed-1" / "eval.json").write_text(json.dumps({**found, "right": 20 * "44x4"}))
    write_run(runs, "2", 7, 20 * "4444", lr=0.5)
    write_run(runs, "2", 8, 20 * "4444", problems="another")
    write_run(runs, "2", 9, 20 * "4444", weights="another")
    write_run(runs, "2", 10, "4400")  # of fewer problems
    write_run(runs, "2", 11, 20 * "4444", panel="validation")  # not meant to be read
    shutil.copytree(runs / "full-seed-0", runs / "full-seed-0 (copy)")
    (runs / "base").mkdir()  # the model: not a run, and no reason to complain
    (runs / "base" / "config.json").write_text('{"model_type": "qwen3"}')
    analyze.main([str(runs), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name, why in (
        ("2-seed-1", "not done"),
        ("1-seed-1", ""),
        ("0-seed-1", "damaged"),
        ("2-seed-7", "lr 0.5, not 0.001"),
        ("2-seed-8", "problems 'another', not 'digest'"),
        ("2-seed-9", "weights 'another', not 'digest'"),
        ("2-seed-10", "another panel"),
        ("full-seed-0 (copy)", "there twice"),
    ):
        line = next(
            x for x in printed.splitlines() if x.startswith(f"left out of {runs}: {name}: ")
        )
        assert why in line
    assert printed.count("left out of") == 8
    rows = table_of(tmp_path)
    assert [rows[k]["seeds"] for k in ("full", "0", "1", "2")] == ["0 1", "0", "0", "0"]


def test_versions_that_differ_are_noted(tmp_path, capsys):
    one, other = write_sweep(tmp_path / "one"), write_sweep(tmp_path / "other")
    assert not any("different versions" in block for block in report(one, capsys))
    for seed, new in ((0, ("2.13.0", "2.11.0")), (1, ("abc", "def"))):
        path = other / f"1-seed-{seed}" / "config.json"
        path.write_text(path.read_text().replace(*new))
    blocks = report(other, capsys, again=False)
    (note,) = (block for block in blocks if "different versions" in block)
    assert all(part in note for part in ("2.13.0", "2.11.0", "abc", "def"))


def test_a_record_names_no_folder_of_the_machine_it_was_made_on(tmp_path, capsys):
    paths = {"model": "/home/me/models/Qwen3", "task": "alfworld:/home/me/.cache/alfworld"}
    for layer in ("base", "full", "0"):
        write_run(tmp_path, layer, 0, "4400", **paths)
    report(tmp_path, capsys)
    assert load(tmp_path)["settings"] == {**SETTINGS, "model": "Qwen3", "task": "alfworld"}
    assert "/home" not in (tmp_path / "out" / "contribution.json").read_text()


def test_the_record_gives_the_same_files_again(tmp_path):
    analyze.main([str(write_sweep(tmp_path / "runs")), "--out", str(tmp_path / "a")])
    analyze.main([str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    for end in ("csv", "json", "svg"):
        written = [(tmp_path / x / f"contribution.{end}").read_bytes() for x in "ab"]
        assert written[0] == written[1]


@pytest.mark.parametrize(
    "content", [None, "", "{}", "[]", '{"settings": {}, "runs": []}', '{"settings": 1, "rows": []}']
)
def test_folders_without_runs_are_refused_in_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "contribution.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        analyze.main([str(tmp_path), "--out", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("analyze.py: ") and error.count("\n") == 1
    assert str(tmp_path) in error and not (tmp_path / "new").exists()


def test_control_characters_do_not_reach_the_terminal():
    assert analyze.one_line("a\x1b[2J\n b\u202e\r") == "a?[2J b?"


def test_answers_of_one_value_get_one_letter_in_all_runs():
    letters, found = {}, {"right": "10", "greedy": "10", "samples": 2, "length": 1, "truncated": 0}
    found |= {"before": {}, "solved": ["10", "00"], "answers": [["7", "8"], [None, "3"]]}
    assert analyze.read_outcomes(found, letters)["votes"] == "*B-A"
    found |= {"solved": ["00", "01"], "answers": [["8", "9"], ["3", "4"]]}
    assert analyze.read_outcomes(found, letters)["votes"] == "BCA*"


# ---- Between sweeps


def test_ranks_and_correlation_by_hand():
    assert analyze.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    assert analyze.correlate(x, y)[0] == pytest.approx(np.corrcoef(x, y)[0, 1])
    difference = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    rho = 1 - 6 * (difference**2).sum() / (9 * 80)  # without ties
    assert analyze.correlate(x, y, analyze.ranks)[0] == pytest.approx(rho)
    assert np.isnan(analyze.correlate(x, np.ones(9))).all()


def test_random_curves_are_as_smooth_as_the_curve():
    """Of a straight line .97, of noise .8 at least; variance 1 at every layer."""
    rng = np.random.default_rng(0)
    for like, r in ((np.arange(24.0), 0.97), (rng.normal(size=24), 0.8)):
        curves = analyze.smooth_curves(like, rng)
        np.testing.assert_allclose(curves.std(0), 1, atol=0.04)
        lagged = [np.corrcoef(curves[:, k], curves[:, k + 1])[0, 1] for k in range(23)]
        np.testing.assert_allclose(lagged, r, atol=0.02)


@pytest.mark.parametrize("layers", [8, 24])
def test_unrelated_smooth_curves_are_seldom_significant(layers):
    """Against shuffled layers a quarter would be. (Of 120 at 5 %, 12 or more: one in 60.)"""
    assert max(simulate.unrelated(layers, 120)) < 0.1


def test_p_is_small_where_curves_do_agree():
    """Independent AR(1) curves of autocorrelation .8 correlate at .9 less than once in 1,000."""
    a = simulate.smooth(np.random.default_rng(5), 1, 24)[0]
    noise = np.random.default_rng(6).normal(size=24)
    assert analyze.correlate(a, a + 0.2 * noise)[1] < 0.01


def test_sweeps_are_compared(tmp_path, capsys):
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    write_sweep(one)  # the others: the same curve at another height, and one that lacks a layer
    for layer, right in (
        ("base", "000"),
        ("full", "444"),
        ("0", "440"),
        ("1", "444"),
        ("2", "400"),
    ):
        write_run(other, layer, 0, 30 * right)
        if layer != "2":
            write_run(third, layer, 0, 30 * right)
    analyze.main([*map(str, (one, other, third)), "--out", str(tmp_path)])
    (pair,) = json.loads((tmp_path / "curves.json").read_text())
    assert (pair["a"], pair["b"], pair["spearman"]) == ("one", "other", 1.0) and pair["p"] > 0.1
    assert "third\n-----\n" in capsys.readouterr().out
    text = (tmp_path / "curves.svg").read_text()
    assert all(f">{name}</text>" in text for name in ("one", "other", "third"))


def test_flat_curves_have_no_correlation(tmp_path):
    for name in ("one", "other"):
        rights = {"base": "000", "full": "444", "0": "440", "1": "440", "2": "440"}
        for layer, right in rights.items():
            write_run(tmp_path / name, layer, 0, 30 * right)
    analyze.main([str(tmp_path / "one"), str(tmp_path / "other"), "--out", str(tmp_path)])
    (pair,) = json.loads((tmp_path / "curves.json").read_text())
    assert pair["spearman"] is None and pair["p"] is None


def test_sweeps_of_one_name_are_written_apart_and_within_out(tmp_path, capsys):
    folders = [write_sweep(tmp_path / name / "runs") for name in ("a", "b", "c")]
    before = {path for path in tmp_path.rglob("*")}
    analyze.main([*map(str, folders), "--out", str(tmp_path / "out")])
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "out") for path in new) and len(new) == 3 * 3 + 2
    assert str(tmp_path / "out") in capsys.readouterr().out


def test_a_name_that_was_made_up_is_not_taken_twice(tmp_path):
    folders = [write_sweep(tmp_path / name) for name in ("a/x-2", "a/x", "b/x", "c/x")]
    analyze.main([*map(str, folders), "--out", str(tmp_path / "out")])
    names = {path.parent.name for path in tmp_path.glob("out/*/contribution.csv")}
    assert len(names) == 4 and {"x", "x-2"} < names


def test_runs_are_read_though_a_record_lies_among_them(tmp_path, capsys):
    runs = write_sweep(tmp_path / "runs")
    analyze.main([str(runs), "--out", str(runs / "out")])
    before = capsys.readouterr().out
    (runs / "1-seed-1/eval.json").unlink()
    analyze.main([str(runs), "--out", str(tmp_path / "out")])
    assert "not done" not in before and "1-seed-1: not done" in capsys.readouterr().out


def test_a_folder_of_records_is_all_of_them(tmp_path):
    for name in ("one", "other"):
        runs = write_sweep(tmp_path / name / "runs")
        analyze.main([str(runs), "--out", str(tmp_path / "records" / name)])
    analyze.main([str(tmp_path / "records"), "--out", str(tmp_path / "new")])
    for name, end in itertools.product(("one", "other"), ("csv", "json", "svg")):
        paths = [tmp_path / root / name / f"contribution.{end}" for root in ("records", "new")]
        assert paths[0].read_text() == paths[1].read_text()
    assert json.loads((tmp_path / "new/curves.json").read_text())[0]["spearman"] == 1.0


def test_pictures_are_svg_with_a_point_for_every_layer(tmp_path):
    analyze.main([str(write_sweep(tmp_path / "runs")), "--out", str(tmp_path)])
    root = xml.etree.ElementTree.parse(tmp_path / "contribution.svg").getroot()
    assert root.tag.endswith("svg")
    paths = [path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    points = [path.count("m-3,0h6") for path in paths if "m-3,0h6" in path]
    assert sorted(points) == [1, 3, 3, 3]  # after step 10; greedy, sampled, at the end


# ---- Within a sweep


def test_pairs_by_hand(tmp_path, capsys):
    """Base 0, full 1, so C is the score. The resampled share of a nested set varies with it."""
    scores = {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.3, "2": 0.4}
    scores |= {"0,1": 0.9, "0,2": 0.4, "1,2": 0.55, "0,1,2": 1.0}
    blocks = report(write_layers(tmp_path, scores), capsys)
    lines = {
        cells(line)[0]: line.replace("cannot tell", "cannot-tell") for line in blocks["Additivity"]
    }
    table = {pair: cells(lines[pair.replace(",", "")]) for pair in ("0,1", "0,2", "1,2")}
    assert [row[1] for row in table.values()] == ["0.90", "0.40", "0.55"]
    assert [row[4] for row in table.values()] == ["0.40", "-0.20", "-0.15"]  # less the sum
    assert [row[7] for row in table.values()] == ["more", "less", "less"]
    assert [row[8] for row in table.values()] == ["0.60", "0.00", "0.15"]  # less the better one
    assert [row[11] for row in table.values()] == ["more", "cannot-tell", "more"]
    table = next(lines for head, lines in blocks.items() if head.startswith("layer "))
    assert {line.split()[0] for line in table} >= {"2", "0,1,2"}
    assert not any(line.split()[0] == "0,1" for line in table)  # told in the other table


def test_pairs_are_not_said_to_add_up_where_nothing_can_be_told(tmp_path, capsys):
    """Two layers that gain next to nothing, and as much together: both intervals hold 0."""
    rng = np.random.default_rng(0)
    shares = {"base": 0.3, "full": 0.8, "0": 0.32, "1": 0.32, "0,1": 0.32}
    for layer, share in shares.items():
        write_run(tmp_path, layer, 0, "".join(map(str, rng.binomial(4, share, 60))))
    (line,) = (x for x in report(tmp_path, capsys)["Additivity"] if x.strip().startswith("0,1"))
    assert line.count("cannot tell") == 2


def test_pairs_are_compared_over_their_own_seeds(tmp_path, capsys):
    """The pair has seed 0 alone, on which its layers solved less than on seed 1."""
    for seed, level in ((0, 0.2), (1, 0.8)):
        write_layers(tmp_path, {"0": level, "1": level, "full": 1.0}, seeds=[seed])
    write_layers(tmp_path, {"0,1": 0.4}, seeds=[0])
    write_layers(tmp_path, {"base": 0.0})
    lines = report(tmp_path, capsys)["Additivity"]
    assert cells(lines[1])[4] == "0.00" and lines[2] == "Seeds: 0."


def test_movement_by_hand(tmp_path, capsys):
    change = {"full": {"0": 1.0, "1": 2.0, "2": 4.0}, "0": {"0": 3.0}}
    scores = {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.3, "2": 0.4}
    lines = report(write_layers(tmp_path, scores, change=change), capsys)["Movement"]
    table = [line.split() for line in lines[1:4]]
    assert table == [["0", "0.200", "1.000"], ["1", "0.300", "2.000"], ["2", "0.400", "4.000"]]
    assert "Spearman" in lines[4] and " 1.00, p = " in lines[4]


def test_tables_of_few_layers_do_without_a_correlation(tmp_path, capsys):
    change = {"full": {"0": 1.0, "1": 2.0, "2": 4.0}}
    also = {layer: {"x": {"right": "4400", "samples": 4}} for layer in ("base", "full", "0")}
    blocks = report(write_layers(tmp_path / "one", {"base": 0, "full": 1}, change=change), capsys)
    assert "Movement" not in blocks
    scores = {"base": 0, "full": 1, "0": 0.5}
    blocks = report(write_layers(tmp_path / "two", scores, change=change, also=also), capsys)
    assert blocks["Movement"][-1].endswith("-, p = -.")
    assert blocks["Other domains"][-1].endswith("-, p = -.")


def test_other_domains_by_hand(tmp_path, capsys):
    """C_all is of the mean over domains, each with problems of its own number."""

    def other(*shares):
        zipped = zip(("x", "y"), shares)
        return {name: {"right": "4" * n + "0" * (10 - n), "samples": 4} for name, n in zipped}

    scores = {"base": 0.0, "full": 1.0, "0": 0.5, "1": 0.25, "2": 0.0}
    tens = {"base": (5, 5), "full": (8, 5), "0": (5, 5), "1": (8, 8), "2": (2, 5)}
    also = {layer: other(*pair) for layer, pair in tens.items()}
    lines = report(write_layers(tmp_path, scores, also=also), capsys)["Other domains"]
    table = {cells(line)[0]: [float(x) for x in cells(line)[1:]] for line in lines[1:6]}
    for layer, (x, y) in tens.items():
        expected = [scores[layer], x / 10, y / 10, (scores[layer] + x / 10 + y / 10) / 3]
        assert table[layer][:4] == pytest.approx(expected, abs=1e-3)
    for layer, total in (("0", 1.5), ("1", 1.85), ("2", 0.7)):  # base 1.0, full 2.3
        assert table[layer][4] == pytest.approx((total - 1.0) / 1.3, abs=0.006)
    r = np.corrcoef([0.5, 0.25, 0.0], [1.5, 1.85, 0.7])[0, 1]
    assert float(lines[6].split(": ")[1].split(",")[0]) == pytest.approx(r, abs=0.006)


def test_other_domains_want_full_training_scored_there_too(tmp_path, capsys):
    also = {layer: {"x": {"right": "4400", "samples": 4}} for layer in ("base", "0", "1", "2")}
    scores = {"base": 0.0, "full": 1.0, "0": 0.5, "1": 0.25, "2": 0.0}
    assert "Other domains" not in report(write_layers(tmp_path, scores, also=also), capsys)


@pytest.mark.parametrize(
    "ballots, earned",
    [
        ("*", 1),
        ("A", 0),
        ("-", 0),
        ("--*", 1),
        ("*AB", 1 / 3),
        ("**A", 1),
        ("AA*", 0),
        ("AA**", 1 / 2),
    ]
    + [("AB--", 0), ("", 0), ("AAB", 0)],
)
def test_a_vote_by_hand(ballots, earned):
    assert analyze.vote(ballots) == pytest.approx(earned)


def write_votes(folder, **changes):
    """Two problems, 20 times over, three samples, one seed; answers in one spelling per value."""
    solved = {"base": ["000", "001"], "full": ["110", "100"], "0": ["011", "000"]}
    solved |= {"1": ["110", "001"], "2": ["100", "000"]}
    answers = {
        "base": [["7", "7", "8"], [None, "5", "3"]],
        "full": [["1", "1", "9"], ["3", "4", "4"]],
    }
    answers |= {"0": [["9", "1", "1"], ["5", "4", "5"]], "1": [["1", "1", "8"], ["4", "5", "3"]]}
    answers |= {"2": [["1", "9", "9"], ["4", "5", "5"]]}
    greedy = {"base": "11", "full": "11", "0": "10", "1": "01", "2": "11"}
    for layer in solved:
        right = 20 * "".join(str(marks.count("1")) for marks in solved[layer])
        path = write_run(folder, layer, 0, right, 20 * greedy[layer], samples=3, **changes)
        found = json.loads((path / "eval.json").read_text())
        found |= {"solved": 20 * solved[layer], "answers": 20 * answers[layer]}
        (path / "eval.json").write_text(json.dumps(found))
    return folder


def test_voting_by_hand(tmp_path, capsys):
    lines = report(write_votes(tmp_path), capsys)["Voting"]
    # Full: right; 4 wins. Layer 1, the best: right; the right 3 draws with 4 and 5.
    # Layers 1, 0, 2 give samples 1, 2, 3: 1, 1, 9 is right; 4, 4, 5 is not.
    votes = [line.split("  ") for line in lines[1:4]]
    votes = [[cell.strip() for cell in row if cell.strip()] for row in votes]
    assert [row[0] for row in votes] == ["3 of full", "3 of layer 1", "1 each of layers 1, 0, 2"]
    assert [float(row[1]) for row in votes] == pytest.approx([0.5, (1 + 1 / 3) / 2, 0.5], abs=1e-3)
    # Greedily: layers 1 and 0 share none of two, each shares one of two with layer 2.
    assert "0.33; by chance 0.44" in lines[4] and len(lines) == 5


def test_a_model_that_is_always_right_votes_too(tmp_path, capsys):
    path = write_votes(tmp_path) / "full-seed-0/eval.json"
    found = json.loads(path.read_text())
    found |= {"right": 40 * "3", "solved": 40 * ["111"], "answers": 20 * [3 * ["1"], 3 * ["4"]]}
    path.write_text(json.dumps(found))
    lines = report(tmp_path, capsys)["Voting"]
    assert lines[1].split()[:4] == ["3", "of", "full", "1.000"]


def test_programs_have_no_value_to_vote_for(tmp_path, capsys):
    write_votes(tmp_path)
    for path in tmp_path.glob("*/eval.json"):
        found = json.loads(path.read_text())
        found["answers"] = [3 * [None] for _ in found["answers"]]
        path.write_text(json.dumps(found))
    assert "Voting" not in report(tmp_path, capsys)


# ---- tests/probe.py

ROUNDS = [
    {"steps": 7, "scores": {"0": 0.1, "1": 0.3, "2": 0.2}},
    {"steps": 15, "scores": {"1": 0.3, "2": 0.4}},
]


def test_guesses_by_hand(tmp_path, capsys):
    write_layers(tmp_path, {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.6, "2": 0.4})
    found = {"layer": 2, "rounds": ROUNDS, "steps": 51}
    (tmp_path / "search.json").write_text(json.dumps(found))
    report(tmp_path, capsys)
    assert load(tmp_path)["guesses"] == {"search": found}
    settings, runs, guesses, _ = analyze.read_runs(tmp_path / "out")
    guesses["probe"] = {"gradient": [3, 1, 2]}
    rows = {row["guess"]: row for row in probe.table(settings, runs, guesses)}
    told = {
        name: [row["picks"], row["its C"], row["best C less its"].split()[0], row["cost"]]
        for name, row in rows.items()
    }
    assert told == {  # cost: of 3 layers with 30 steps each
        "middle": ["1", 0.6, "0.00", "0.0%"],
        "gradient": ["0", 0.2, "0.40", "3.3%"],
        "search": ["2", 0.4, "0.20", "56.7%"],
    }
    told = [rows[name]["Spearman with C(k)"] for name in ("middle", "gradient", "search")]
    assert told == pytest.approx([0.866, -1, 0.5], abs=1e-3)
    probe.main([str(tmp_path / "out")])
    assert "56.7%" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seeds": [0, 1, 2]}, {"steps": 3 * 51}])
def test_a_search_costs_what_all_its_seeds_cost(change):
    search = {"layer": 2, "rounds": ROUNDS, "steps": 51, **change}
    assert probe.guesses_of({"search": search}, 3, 30)["search"][1] == pytest.approx(3 * 51 / 90)
