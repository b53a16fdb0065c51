"""analyze.py: C(k) and its interval on cases worked by hand, and what it says of damaged or missing runs."""

import csv
import itertools
import json
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest

import analyze

SETTINGS = {"num_layers": 3, "panel": "test", "steps": 30, "quick": False, "lr": 0.001}


def write_run(folder, layer, seed, right, greedy=None, samples=4, before=None, **changes):
    name = folder / f"{layer}-seed-{seed}"
    name.mkdir(parents=True)
    (name / "config.json").write_text(json.dumps({"settings": {**SETTINGS, "layer": layer, "seed": seed, **changes}}))
    found = {"right": right, "greedy": greedy or "1" * len(right), "samples": samples, "length": 6.0, "truncated": 0.25}
    (name / "eval.json").write_text(json.dumps({**found, "before": before or {}}))
    return name


write_one = write_run


def write_sweep(folder):
    """Four problems, twenty times over, and two seeds. Base .25, full .75, layers .5, .75 (the seeds differ) and .25."""

    def write_run(folder, layer, seed, right, greedy, before=None):
        times = lambda digits: {name: 20 * text for name, text in digits.items()}  # noqa: E731
        both = times({"right": right, "greedy": greedy})
        write_one(folder, layer, seed, **both, before={point: times(digits) for point, digits in (before or {}).items()})

    write_run(folder, "base", 0, "4000", "1000")
    for seed in (0, 1):
        write_run(folder, "full", seed, "4440", "1110", before={"10": {"right": "4400", "greedy": "1100"}})
        write_run(folder, "0", seed, "4400", "1100", before={"10": {"right": "4200", "greedy": "1000"}})
        write_run(folder, "1", seed, "4444" if seed else "4400", "1111")
        write_run(folder, "2", seed, "4000", "0000")
    return folder


def test_contribution_by_hand(tmp_path, capsys):
    analyze.main([str(write_sweep(tmp_path / "runs")), "--out", str(tmp_path)])
    rows = {row["layer"]: row for row in csv.DictReader(open(tmp_path / "contribution.csv"))}
    assert list(rows) == ["base", "full", "0", "1", "2"]
    assert [float(rows[k]["score"]) for k in rows] == [0.25, 0.75, 0.5, 0.75, 0.25]
    assert [float(rows[k]["contribution"]) for k in rows] == [0, 1, 0.5, 1, 0]
    assert [float(rows[k]["greedy_contribution"]) for k in rows] == [0, 1, 0.5, 1.5, -0.5]
    assert float(rows["0"]["contribution_step_10"]) == 0.5  # (.375 - .25) / (.5 - .25)
    assert rows["1"]["contribution_step_10"] == ""  # this layer left nothing at step 10
    assert rows["0"]["length"] == "6.0" and rows["0"]["truncated"] == "0.25"
    assert {"layer", "score", "score_se", "contribution", "low", "high", "greedy", "length", "truncated"} <= set(rows["0"])
    printed = capsys.readouterr().out
    assert "peak is layer 1 (50% of the depth) with C = 1.00" in printed
    root = xml.etree.ElementTree.parse(tmp_path / "contribution.svg").getroot()
    assert root.tag.endswith("svg")


def test_standard_error_is_that_of_the_mean_over_problems(tmp_path):
    """One seed, 0/1 outcomes: the bootstrap's standard error is sqrt(p (1 - p) / n)."""
    right = "4" * 300 + "0" * 700
    write_run(tmp_path, "base", 0, "0" * 1000)
    write_run(tmp_path, "full", 0, "4" * 1000)
    write_run(tmp_path, "0", 0, right)
    rows, _, _ = analyze.summarize(*analyze.read_runs(tmp_path)[:2])
    assert abs(rows[2]["score_se"] - (0.3 * 0.7 / 1000) ** 0.5) < 0.001
    # Here C is the score, so its interval is the score's: 0.3 -+ 1.96 s.e.
    assert abs(rows[2]["low"] - (0.3 - 1.96 * 0.0145)) < 0.004 and abs(rows[2]["high"] - (0.3 + 1.96 * 0.0145)) < 0.004


def test_interval_by_brute_force():
    """The bootstrap against the same resampling as a plain loop with other random numbers."""
    rng = np.random.default_rng(1)
    table = rng.integers(0, 5, size=(3, 3, 40)) / 4
    table[0] = table[0, 0]
    score, draws = analyze.bootstrap(table)
    np.testing.assert_allclose(score, table.mean((1, 2)))
    looped = []
    for _ in range(4000):
        problems, seeds = rng.integers(0, 40, 40), rng.integers(0, 3, 3)
        S = [np.mean([[table[row, seed, problem] for problem in problems] for seed in seeds]) for row in range(3)]
        looped.append(S)
    for ours, theirs in zip(analyze.interval(draws), analyze.interval(np.array(looped))):
        np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_equal_scores_are_equal_in_whatever_order_they_are_added():
    table = np.random.default_rng(0).integers(0, 4, size=(1, 3, 900)) / 3
    assert len({table[0, :, order].mean() for order in map(np.random.default_rng(1).permutation, [900] * 50)}) > 1
    shuffled = [table[:, :, np.random.default_rng(i).permutation(900)] for i in range(50)]
    assert len({analyze.bootstrap(t, draws=2)[0][0] for t in shuffled}) == 1


def test_the_interval_draws_the_same_problems_and_seeds_for_every_row():
    table = np.random.default_rng(0).integers(0, 5, size=(2, 3, 40)) / 4
    _, draws = analyze.bootstrap(np.concatenate([table, table[1:]]))
    np.testing.assert_array_equal(draws[:, 1], draws[:, 2])


def test_panels_of_any_size_draw_the_same_seeds():
    """Where the seeds alone differ, two panels' draws agree to the last digit: means over domains keep a seed's runs together."""
    levels = np.array([0.25, 0.5, 1.0])[None, :, None]
    draws = [analyze.bootstrap(np.broadcast_to(levels, (1, 3, n)))[1] for n in (40, 300)]
    np.testing.assert_array_equal(*draws)


def test_a_record_names_no_folder_of_the_machine_it_was_made_on():
    settings = {"model": "/home/me/models/Qwen3", "task": "alfworld:/home/me/.cache/alfworld", "lr": 1.0}
    assert analyze.public(settings) == {"model": "Qwen3", "task": "alfworld", "lr": 1.0}


def test_the_record_gives_the_same_files_again(tmp_path, capsys):
    analyze.main([str(write_sweep(tmp_path / "runs")), "--out", str(tmp_path / "a")])
    analyze.main([str(tmp_path / "a"), "--out", str(tmp_path / "b")])
    for name in ("contribution.csv", "contribution.json", "contribution.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_gain_gives_a_sentence_not_a_division(tmp_path, capsys):
    for layer in ("base", "full", "0"):
        write_run(tmp_path, layer, 0, "4400")
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    assert "from 0.500 to 0.500, no gain beyond the interval" in capsys.readouterr().out


@pytest.mark.parametrize("full, worst", [("2000", "0000"), ("4001", "4440")])  # full training hurts; gains a hair
def test_a_gain_within_noise_is_not_divided_by_in_words_or_picture(tmp_path, capsys, full, worst):
    for layer, right in (("base", "4000"), ("full", full), ("0", worst)):
        write_run(tmp_path, layer, 0, right)
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    assert "C(k) means nothing here" in capsys.readouterr().out
    assert (tmp_path / "contribution.svg").stat().st_size < 20000


def test_one_seed_and_quick_say_what_they_cannot_tell(tmp_path, capsys):
    for layer, right in (("base", "0000"), ("full", "4444"), ("0", "4000"), ("1", "4400")):
        write_run(tmp_path, layer, 0, right, quick=True)
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "One seed only" in printed and "smoke test" in printed


def test_what_is_missing_or_damaged_is_named_and_the_rest_reported(tmp_path, capsys):
    runs = write_sweep(tmp_path / "runs")
    (runs / "2-seed-1" / "eval.json").unlink()
    (runs / "1-seed-1" / "eval.json").write_text('{"right": "44')
    (runs / "0-seed-1" / "eval.json").write_text('{"right": "44x4", "greedy": "1111"}')
    write_run(runs, "2", 7, "4444", lr=0.5)
    (write_run(runs, "2", 8, 20 * "4400") / "config.json").unlink()
    write_run(runs, "2", 9, "4400")  # of fewer problems
    shutil.copytree(runs / "full-seed-0", runs / "full-seed-0 (copy)")
    (runs / "base").mkdir()
    (runs / "base" / "config.json").write_text('{"model_type": "qwen3"}')  # the model: not a run, and no reason to complain
    analyze.main([str(runs), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for text in (
        "2-seed-1: not finished",
        "1-seed-1 cannot be read",
        "0-seed-1 cannot be read",
        "2-seed-7 was made with lr = 0.5",
        "2-seed-8 cannot be read (FileNotFoundError",
        "2-seed-9 cannot be read (ValueError: right: damaged, or at odds",
        "full-seed-0 (copy) cannot be read (ValueError: seed: damaged, or at odds",
    ):
        assert f"left out of {runs}: {text}" in printed
    assert printed.count("left out of") == 7


def test_without_base_or_full_scores_are_shown(tmp_path, capsys):
    write_run(tmp_path, "0", 0, "4400")
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0.500" in printed and "C(k) needs the runs base and full" in printed


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"settings": {}, "runs": []}', '{"settings": 1, "rows": []}'])
def test_folders_without_runs_are_refused_in_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "contribution.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        analyze.main([str(tmp_path), "--out", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("analyze.py: ") and error.count("\n") == 1
    assert str(tmp_path) in error and not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------------- between sweeps


def test_ranks_and_correlation_by_hand():
    assert analyze.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    assert analyze.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    difference = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))  # without ties: 1 - 6 sum d^2 / (n (n^2 - 1))
    assert analyze.pearson(analyze.ranks(x), analyze.ranks(y)) == pytest.approx(1 - 6 * (difference**2).sum() / (9 * 80))


def test_p_is_that_of_all_permutations():
    a, b = np.array([0.1, 0.5, 0.7, 0.6, 0.2, 0.3]), np.array([0.2, 0.4, 0.9, 0.5, 0.3, 0.1])
    found = analyze.correlate((a, np.tile(a, (50, 1))), (b, np.tile(b, (50, 1))))
    for name, of in (("spearman", lambda x: np.argsort(np.argsort(x))), ("pearson", lambda x: x)):
        rho = np.corrcoef(of(a), of(b))[0, 1]
        every = [abs(np.corrcoef(of(np.array(p)), of(b))[0, 1]) >= abs(rho) - 1e-9 for p in itertools.permutations(a)]
        assert found[name] == pytest.approx(rho, abs=1e-4) and found[f"{name}_p"] == pytest.approx(np.mean(every), abs=0.01)
        assert found[f"{name}_low"] == found[f"{name}_high"] == found[name]  # draws that do not vary


def test_sweeps_are_compared(tmp_path, capsys):
    one = write_sweep(tmp_path / "one")
    other = tmp_path / "other"  # the same curve at another height, from other problems; and a third that lacks a layer
    for layer, right in (("base", "000"), ("full", "444"), ("0", "440"), ("1", "444"), ("2", "400")):
        write_run(other, layer, 0, 30 * right)
    third = tmp_path / "third"
    for layer, right in (("base", "000"), ("full", "444"), ("0", "440")):
        write_run(third, layer, 0, 30 * right)
    analyze.main([str(one), str(other), str(third), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "curves.json").read_text())
    assert list(found["sweeps"]) == ["one", "other", "third"]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["layers"]) == ("one", "other", 3)
    assert pair["spearman"] == 1.0 and pair["spearman_low"] <= pair["spearman_high"] <= 1.0 and pair["spearman_p"] > 0.3
    printed = capsys.readouterr().out
    assert "one / other" in printed and "C 2" in printed and "third\n-----\n" in printed
    root = xml.etree.ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 3


def test_flat_curves_have_no_correlation(tmp_path, capsys):
    for name in ("one", "other"):
        for layer, right in (("base", "000"), ("full", "444"), ("0", "440"), ("1", "440"), ("2", "440")):
            write_run(tmp_path / name, layer, 0, 30 * right)
    analyze.main([str(tmp_path / "one"), str(tmp_path / "other"), "--out", str(tmp_path)])
    (pair,) = json.loads((tmp_path / "curves.json").read_text())["pairs"]
    assert pair["spearman"] is None and pair["pearson"] is None


# ---------------------------------------------------------------------------------------------------- within a sweep


def write_layers(folder, scores, seeds=(0, 1), **fields):
    """A sweep of which every run of a layer solved all samples of the given share of 200 problems."""
    for layer, share in scores.items():
        for seed in seeds if layer != "base" else (0,):
            n = round(200 * share)
            path = write_run(folder, layer, seed, "4" * n + "0" * (200 - n)) / "eval.json"
            more = {name: values[layer] for name, values in fields.items() if layer in values}
            path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def report(folder, capsys):
    analyze.main([str(folder), "--out", str(folder / "out")])
    printed = capsys.readouterr().out
    analyze.main([str(folder / "out"), "--out", str(folder / "again")])  # the record says the same
    assert printed.split("written:")[0] == capsys.readouterr().out.split("written:")[0]
    return {block.split("\n")[0]: block.split("\n")[1:] for block in printed.split("\n\n")}


def test_pairs_by_hand(tmp_path, capsys):
    """Base 0, full 1, so C is the score, and of samples that all agree. The resampled share of a nested set varies with it."""
    scores = {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.3, "2": 0.4, "0,1": 0.9, "0,2": 0.4, "1,2": 0.5, "0,1,2": 1.0}
    lines = report(write_layers(tmp_path, scores), capsys)["Two layers together"]
    cells = [line.split() for line in lines]
    assert [cell[0] for cell in cells[1:4]] == ["0,1", "0,2", "1,2"]
    assert [cell[1] for cell in cells[1:4]] == ["0.90", "0.40", "0.50"]
    assert [cell[4] for cell in cells[1:4]] == ["0.40", "-0.20", "-0.20"] and [cell[7] for cell in cells[1:4]] == [
        "0.60",
        "0.00",
        "0.10",
    ]
    assert lines[1].endswith("more than the sum") and lines[2].endswith("what the better one gives")
    assert lines[3].endswith("more than the better one") and lines[4].startswith("3 pairs: more than the sum 1 times")


def test_movement_by_hand(tmp_path, capsys):
    change = {"full": {"0": 1.0, "1": 2.0, "2": 4.0}, "0": {"0": 3.0}, "1": {"1": 2.0}, "2": {"2": 1.0}}
    scores = {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.3, "2": 0.4}
    lines = report(write_layers(tmp_path, scores, change=change), capsys)["How far the weights moved"]
    assert [line.split() for line in lines[1:4]] == [
        ["0", "0.20", "1.000", "3.000"],
        ["1", "0.30", "2.000", "2.000"],
        ["2", "0.40", "4.000", "1.000"],
    ]
    assert "in full training: 1.00 [" in lines[4] and "4.00 times" in lines[4]
    assert "alone: -1.00 [" in lines[5] and "3.00 times" in lines[5]


def test_other_domains_by_hand(tmp_path, capsys):
    """C_all is of the mean over domains, each with problems of its own number: here two and one."""

    def other(*shares):
        return {name: {"right": "4" * n + "0" * (10 - n), "samples": 4} for name, n in zip(("x", "y"), shares)}

    scores = {"base": 0.0, "full": 1.0, "0": 0.5, "1": 0.25, "2": 0.0}
    also = {"base": other(5, 5), "full": other(8, 5), "0": other(5, 5), "1": other(8, 8), "2": other(2, 5)}
    lines = report(write_layers(tmp_path, scores, also=also), capsys)["Other domains"]
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:6]}
    for layer, shares in also.items():
        expected = [scores[layer], *(len(shares[name]["right"].rstrip("0")) / 10 for name in ("x", "y"))]
        assert [float(cell) for cell in cells[layer][:3]] == expected and float(cells[layer][3]) == pytest.approx(
            np.mean(expected), abs=1e-3
        )
    # Sums over the domains: base 1.0, full 2.3
    for layer, total in (("0", 1.5), ("1", 1.85), ("2", 0.7)):
        assert float(cells[layer][5]) == pytest.approx((total - 1.0) / 1.3, abs=0.006)
    assert float(lines[6].split(": ")[1].split()[0]) == pytest.approx(
        np.corrcoef([0.5, 0.25, 0.0], [1.5, 1.85, 0.7])[0, 1], abs=0.006
    )


def test_other_domains_want_full_training_scored_there_too(tmp_path, capsys):
    also = {layer: {"x": {"right": "4400", "samples": 4}} for layer in ("base", "0", "1", "2")}
    scores = {"base": 0.0, "full": 1.0, "0": 0.5, "1": 0.25, "2": 0.0}
    assert "Other domains" not in report(write_layers(tmp_path, scores, also=also), capsys)


@pytest.mark.parametrize(
    "ballots, earned",
    [("*", 1), ("A", 0), ("-", 0), ("--*", 1), ("*AB", 1 / 3), ("**A", 1), ("AA*", 0), ("AA**", 1 / 2), ("AB--", 0), ("", 0)],
)
def test_a_vote_by_hand(ballots, earned):
    assert analyze.vote(ballots) == pytest.approx(earned)


def test_voting_by_hand(tmp_path, capsys):
    """Two problems, twenty times over, three samples, one seed. What is voted on are answers, written by each run in other words and order."""
    solved = {"base": ["000", "001"], "full": ["110", "100"], "0": ["011", "000"], "1": ["110", "001"], "2": ["100", "000"]}
    answers = {"base": [["7", "7", "8"], [None, "5", "3"]], "full": [["1", "1.0", "9"], ["3", "4", "4"]],
               "0": [["9", "1", "1"], ["5", "4", "5"]], "1": [["1", "1", "8"], ["4", "5", "3"]],
               "2": [["1", "9", "9"], ["4", "5", "5"]]}  # fmt: skip
    for layer in solved:
        found = {
            "right": "".join(str(s.count("1")) for s in solved[layer]),
            "greedy": {"0": "10", "1": "01", "2": "11"}.get(layer, "11"),
        }
        path = write_run(tmp_path, layer, 0, 20 * found["right"], 20 * found["greedy"], samples=3) / "eval.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "solved": 20 * solved[layer], "answers": 20 * answers[layer]})
        )
    lines = report(tmp_path, capsys)["Voting"]
    rows = [line.split("  ") for line in lines[1:5]]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    # Base: 7 wins; 5 and the right 3 draw. Full: right; 4 wins. Layer 1, the best: right; three draw.
    # Of layers 1, 0, 2, samples of other numbers: 1, 1, 9 and 4, 4, 5; then 1, 1, 1 and 5, 5, 4; then 8, 9, 9 and 3, 5, 5.
    assert [row[0] for row in rows] == ["3 of base", "3 of full", "3 of layer 1", "1 each of layers 1, 0, 2"]
    assert [float(row[1]) for row in rows] == pytest.approx([1 / 6, 3 / 6, 3 / 6, 6 / 18], abs=1e-3)
    assert [float(row[2]) for row in rows] == pytest.approx([0.25, 0.5, 4 / 6, (1 + 1) / 6], abs=1e-3)
    assert lines[5].endswith("these layers: 0.33; by lot 0.44.")


def test_guesses_by_hand(tmp_path, capsys):
    scores = {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.6, "2": 0.4}
    write_layers(tmp_path, scores)
    (tmp_path / "probe.json").write_text(json.dumps({"gradient": [3, 1, 2], "middle": [-1, 0, -1]}))
    rounds = [{"steps": 7, "scores": {"0": 0.1, "1": 0.3, "2": 0.2}}, {"steps": 15, "scores": {"1": 0.3, "2": 0.4}}]
    (tmp_path / "search.json").write_text(json.dumps({"layer": 2, "rounds": rounds, "steps": 51}))
    lines = report(tmp_path, capsys)["Which layer, without the sweep"]
    gradient, middle, search = (line.split() for line in lines[1:])
    # name, Spearman, its interval of two, p, pick, its C, regret, its interval of two, cost in steps of 3 layers x 30
    assert gradient[1] == "-1.00" and gradient[5:8] == ["0", "0.20", "0.40"] and gradient[-1] == "3.3%"
    assert middle[1] == "0.87" and middle[5:8] == ["1", "0.60", "0.00"] and middle[-1] == "0.0%"
    assert search[1] == "0.50" and search[5:8] == ["2", "0.40", "0.20"] and search[-1] == "56.7%"


@pytest.mark.parametrize("content", ["{", "[]", '{"gradient": [1]}', '{"gradient": "abc"}', '{"gradient": null}'])
def test_damaged_guesses_are_named_and_the_rest_reported(tmp_path, capsys, content):
    write_layers(tmp_path, {"base": 0.0, "full": 1.0, "0": 0.2, "1": 0.6, "2": 0.4})
    (tmp_path / "probe.json").write_text(content)
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "found by probe or search cannot be read" in printed and "The peak is layer 1" in printed


def test_a_gain_of_shorter_answers_is_pointed_out(tmp_path, capsys):
    """Half of the base's answers are cut and the rest all right; full training does nothing but end them in time."""
    scores = {"base": 0.5, "full": 0.75, "0": 0.6, "1": 0.6, "2": 0.6}
    write_layers(tmp_path, scores, truncated={"base": 0.5, "full": 0.25, "0": 0.45, "1": 0.5, "2": 0.2})
    analyze.main([str(tmp_path), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "than the base's 50%. If those that end were right as often as the base's, 100%, that alone" in printed
    # Layer 0 gains .1, of which .05 by answers that end; layer 1 ends no more of them; layer 2 ends .3 more, which explains all.
    assert "gain: full training 100% (25% cut), layer 0 50% (45% cut), layer 2 100% (20% cut)." in printed


def test_a_folder_of_records_is_all_of_them(tmp_path, capsys):
    for name in ("one", "other"):
        analyze.main([str(write_sweep(tmp_path / name / "runs")), "--out", str(tmp_path / "records" / name)])
    analyze.main([str(tmp_path / "records"), "--out", str(tmp_path / "new")])
    for name in ("one", "other"):
        for end in ("csv", "json", "svg"):
            written = [(tmp_path / root / name / f"contribution.{end}").read_text() for root in ("records", "new")]
            assert written[0] == written[1]
    assert json.loads((tmp_path / "new/curves.json").read_text())["pairs"][0]["spearman"] == 1.0
