"""The contribution curve, from the files that runs leave behind: it reads, and trains nothing.

    python analyze.py [RUNS ...] [--out DIR]

RUNS (default: runs) is a folder of run folders as train.py writes them, or one that holds a `contribution.json` written here
before, or a folder of several of those. Prints the table and what it shows, and writes to DIR (default: here)
contribution.csv, contribution.json (the rows, and each run's outcomes, from which everything can be computed again) and
contribution.svg. Several sweeps go to DIR/NAME each and are compared: one picture of all curves, curves.svg, and how far every
two of them agree on which layers matter, curves.json.

Where a sweep has the runs for it, more tables follow, a function each: `additivity`, `movement`, `elsewhere`, `voting`, `guesses`.

Scores are means over seeds and problems, 0 to 1. Intervals are bootstrapped: problems and seeds are drawn again with
replacement, the same draw for every row, 2,000 times; the interval holds the middle 95 % of what comes out. Few seeds make
it too narrow: three say little about the fourth.
"""

import argparse
import csv
import io
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np

DRAWS = 2000
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError)  # what reading a file may end in


# ---------------------------------------------------------------------------------------------------- reading


def read_runs(folder):
    """The finished test runs in `folder` -> (settings, runs, notes on what was left out). ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; it should hold the runs of train.py")
    settings, runs, notes, unfinished, codes = None, [], [], [], {}
    for path in sorted({path.parent for name in ("config", "eval") for path in folder.glob(f"*/{name}.json")}):
        try:
            content = json.loads((path / "config.json").read_text(encoding="utf-8"))
            finished = (path / "eval.json").exists()
            if not finished and isinstance(content, dict) and "settings" not in content:
                continue  # a model's configuration: the base lives here too
            this = dict(content["settings"])
            layer, seed = this.pop("layer"), this.pop("seed")
            for name in ("boost_lr", "also"):
                this.pop(name, None)
            if this["panel"] != "test":
                continue
            if not finished:
                unfinished.append(path.name)
                continue
            if runs and this != settings:
                name = next(name for name in {**this, **settings} if this.get(name) != settings.get(name))
                notes.append(f"{path.name} was made with {name} = {this.get(name)!r}, not {settings.get(name)!r}")
                continue
            found = json.loads((path / "eval.json").read_text(encoding="utf-8"))
            run = {name: found[name] for name in ("right", "greedy", "samples", "length", "truncated")}
            run["before"] = {point: {"right": there["right"]} for point, there in found["before"].items()}
            run |= {name: found[name] for name in ("change", "trained", "parameters") if name in found}
            if found.get("also"):
                run["also"] = {
                    Path(name).name: {part: other[part] for part in ("right", "samples")} for name, other in found["also"].items()
                }
            if "solved" in found and (layer in ("base", "full") or layer.isdecimal()):
                run["votes"] = ballots(found["solved"], found["answers"], codes)
            runs.append(checked({"layer": layer, "seed": seed, **run}, this, runs))
            settings = this
        except DAMAGED as error:
            notes.append(f"{path.name} cannot be read ({type(error).__name__}: {error})")
    if unfinished:
        notes.append(f"{', '.join(unfinished[:5])}{' and more' * (len(unfinished) > 5)}: not finished")
    if not runs and (folder / "contribution.json").exists():
        try:
            record = json.loads((folder / "contribution.json").read_text(encoding="utf-8"))
            for run in record["runs"]:
                runs.append(checked(run, record["settings"], runs))
            if not runs:
                raise ValueError("no runs in it")
            return record["settings"], runs, []
        except DAMAGED as error:
            raise ValueError(f"{folder / 'contribution.json'}: damaged ({error})") from None
    if not runs:
        raise ValueError(
            f"{folder}: no finished run" + "".join(f"; {note}" for note in notes) + "; python train.py --layer each makes them"
        )
    return settings, runs, notes


def ballots(solved, answers, codes):
    """Every sample's answer as one character: * a right one, - none, else a letter that means the same answer in every run.

    solved: for each problem, such as "0110"; answers: for each problem a list; codes: what letters mean, extended here.
    """
    votes = []
    for problem, (outcomes, given) in enumerate(zip(solved, answers, strict=True)):
        letters = codes.setdefault(problem, {})
        for outcome, answer in zip(outcomes, given, strict=True):
            wrong = "-" if answer is None else letters.setdefault(answer, chr(ord("A") + len(letters)))
            votes.append("*" if outcome == "1" else wrong)
    return "".join(votes)


def read_guesses(folder):
    """What `train.py --layer probe` and `--layer search` left in a folder of runs or in the record of one, by name."""
    found = {}
    for name in ("probe", "search"):
        if (Path(folder) / f"{name}.json").exists():
            found[name] = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
    if not found and (Path(folder) / "contribution.json").exists():
        found = json.loads((Path(folder) / "contribution.json").read_text(encoding="utf-8")).get("guesses", {})
    return found


def checked(run, settings, others):
    """`run`, if figures can be computed from it and the `others`; an exception, one of DAMAGED, says what is wrong with it."""
    n, L, digits = len(run["right"]), settings["num_layers"], "0123456789"[: run["samples"] + 1]
    outcomes = [run, *run["before"].values()]
    fine = {
        "num_layers": isinstance(L, int) and 0 < L < 10_000,
        "steps": isinstance(settings["steps"], int) and settings["steps"] >= 0,
        "layer": re.fullmatch("[a-z0-9,-]+", run["layer"]) and not (run["layer"].isdecimal() and int(run["layer"]) >= L),
        "seed": isinstance(run["seed"], int) and all((run["layer"], run["seed"]) != (o["layer"], o["seed"]) for o in others),
        "samples": 0 < run["samples"] < 10,
        "right": n > 0 and all(len(o["right"]) == n and set(o["right"]) <= set(digits) for o in outcomes + others),
        "greedy": len(run["greedy"]) == n and set(run["greedy"]) <= {"0", "1"},
        "before": all(re.fullmatch("[0-9]{1,9}", point) for point in run["before"]),
        "length": 0 <= run["length"] < 1e9,
        "truncated": 0 <= run["truncated"] <= 1,
        "change": all(0 <= moved < float("inf") for moved in run.get("change", {}).values()),
        "trained": 0 <= run.get("trained", 0) <= run.get("parameters", 0),
        "votes": "votes" not in run or len(run["votes"]) == n * run["samples"],
        "also": all(
            0 < other["samples"] < 10 and set(other["right"]) <= set("0123456789"[: other["samples"] + 1]) and other["right"]
            and all(len(o["also"][name]["right"]) == len(other["right"]) for o in others if name in o.get("also", {}))
            for name, other in run.get("also", {}).items()
        ),
    }  # fmt: skip
    if wrong := [name for name in fine if not fine[name]]:
        raise ValueError(f"{', '.join(wrong)}: damaged, or at odds with another run")
    return run


def outcomes(runs, layers, what="right", point=None, domain=None):
    """Share of right answers per problem: an array (len(layers), seeds, problems), NaN where there is no such run.

    what: "right" (sampled) or "greedy"; point: an earlier step of training, None for its end; domain: one of --also, None for
    that which was trained on. The base, which no seed changes, stands for every seed.
    """
    seeds = sorted({run["seed"] for run in runs})
    table = np.full((len(layers), len(seeds), len((runs[0]["also"][domain] if domain else runs[0])["right"])), np.nan)
    for run in runs:
        if run["layer"] not in layers:
            continue
        source = run if point is None or run["layer"] == "base" else run["before"].get(point)
        source = run.get("also", {}).get(domain) if domain else source
        if source is None:
            continue
        values = np.array([int(digit) for digit in source[what]]) / (
            source.get("samples", run["samples"]) if what == "right" else 1
        )
        which = slice(None) if run["layer"] == "base" else seeds.index(run["seed"])
        table[layers.index(run["layer"]), which] = values
    return table


# ---------------------------------------------------------------------------------------------------- statistics


def contribution(score, base, full):
    """Layer contribution C(k) = (S_k - S_base) / (S_full - S_base), equation 4 of the paper; NaN where S_full = S_base."""
    gain = np.asarray(full - base, dtype=float)
    return (score - base) / np.where(gain == 0, np.nan, gain)


def bootstrap(table, draws=DRAWS, seed=0):
    """Scores (rows,) of a table (rows, seeds, problems), and `draws` resampled ones (draws, rows)."""
    rng = np.random.default_rng(seed)
    rows, seeds, problems = table.shape
    drawn = rng.integers(0, seeds, size=(draws, 1, seeds))  # first: the same seeds for panels of any size
    weights = [np.bincount(chosen, minlength=problems) for chosen in rng.integers(0, problems, size=(draws, problems))]
    sums = np.einsum("dp,rsp->drs", np.array(weights, dtype=float), table, optimize=True)  # (draws, rows, seeds)
    sums = np.take_along_axis(sums, np.broadcast_to(drawn, sums.shape), axis=2)
    # Rounded, so that equal scores are equal in whatever order a processor adds.
    return np.round(mean(table.sum(2)) / problems, 12), np.round(mean(sums) / problems, 12)


def mean(values):
    """Mean over the last axis of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(-1) / np.where(there.any(-1), there.sum(-1), np.nan)


def interval(draws):
    """The middle 95 % of each column of (draws, rows), of what is there: two arrays (rows,)."""
    columns = [column[~np.isnan(column)] for column in draws.T]
    return [np.array([np.percentile(c, q) if len(c) else np.nan for c in columns]) for q in (2.5, 97.5)]


def summarize(settings, runs):
    """One dict for each row of the table: base, full, norm, then the layers, as far as there are runs for them."""
    names = {run["layer"] for run in runs}
    singles = sorted((name for name in names if name.isdecimal()), key=int)
    layers = [name for name in ("base", "full", "norm") if name in names] + singles
    layers += sorted(names - set(layers))  # several layers at once
    complete = {"base", "full"} <= names
    score, draws = bootstrap(outcomes(runs, layers))
    greedy, greedy_draws = bootstrap(outcomes(runs, layers, "greedy"))
    points = sorted({point for run in runs for point in run["before"]}, key=int)
    early = [bootstrap(outcomes(runs, layers, point=point))[0] for point in points]

    def c(scores):
        return contribution(scores, scores[..., [0]], scores[..., [1]]) if complete else np.full_like(scores, np.nan)

    low, high = interval(c(draws))
    greedy_low, greedy_high = interval(c(greedy_draws))
    rows = []
    for i, layer in enumerate(layers):
        mine, se = [run for run in runs if run["layer"] == layer], np.nanstd(draws[:, i], ddof=1)
        rows.append({
            "layer": layer, "score": score[i], "score_se": se, "contribution": c(score)[i], "low": low[i],
            "high": high[i], "greedy": greedy[i], "greedy_contribution": c(greedy)[i], "greedy_low": greedy_low[i],
            "greedy_high": greedy_high[i], "trains": mine[0]["trained"] / mine[0]["parameters"] if "trained" in mine[0] else np.nan,
            "steps": 0 if layer == "base" else settings["steps"], "length": np.mean([run["length"] for run in mine]),
            "truncated": np.mean([run["truncated"] for run in mine]), "seeds": len(mine),
            **{f"contribution_step_{point}": c(values)[i] for point, values in zip(points, early)},
        })  # fmt: skip
    return [{name: clean(value) for name, value in row.items()} for row in rows], draws, layers


def clean(value):
    """Rounded for files; None for what is not a number."""
    if isinstance(value, (str, int)):
        return value
    return None if not np.isfinite(value) else round(float(value), 4)


def gained(layers, draws):
    """Whether full training took the score beyond the base's by more than the interval; else C(k) means nothing."""
    return {"base", "full"} <= set(layers) and interval(draws[:, [1]] - draws[:, [0]])[0][0] > 0


def findings(settings, rows, draws, layers):
    """What the curve shows, in sentences: peak, ends, and whether a layer reaches full training. draws (draws, rows): scores."""
    singles = [row for row in rows if row["layer"].isdecimal()]
    if not {"base", "full"} <= set(layers):
        return f"C(k) needs the runs base and full; there are {', '.join(layers)}."
    base, full = rows[0], rows[1]
    if not gained(layers, draws):
        text = f"Full training took the score from {base['score']:.3f} to {full['score']:.3f}, no gain beyond the interval: "
        return text + "there is nothing that a layer could have a share of, and C(k) means nothing here."
    draws = contribution(draws, draws[:, [0]], draws[:, [1]])
    if not singles:
        return "No single layer was trained yet."
    peak = max(singles, key=lambda row: row["contribution"])
    depth = int(peak["layer"]) / max(settings["num_layers"] - 1, 1)
    text = f"The peak is layer {peak['layer']} ({depth:.0%} of the depth) with C = {peak['contribution']:.2f}"

    def below(row):  # the peak, by more than the interval
        return interval(draws[:, [layers.index(peak["layer"])]] - draws[:, [layers.index(row["layer"])]])[0][0] > 0

    for row, end in ((singles[0], "first"), (singles[-1], "last")):
        if row is peak:
            text += f"; it is the {end} layer measured"
            continue
        text += f"; the {end} layer, {row['layer']}, has {row['contribution']:.2f}, "
        text += "below it beyond the interval" if below(row) else "not distinguishable from it"
    beside = [row["layer"] for row in singles[1:-1] if row is not peak and not below(row)]
    text += f"; in between, not distinguishable from it: layer {', '.join(beside)}" if beside else ""
    reach = [row["layer"] for row in singles if row["low"] > 1]
    level = [row["layer"] for row in singles if row["low"] <= 1 <= row["high"]]
    text += ". "
    if reach:
        text += f"Beyond its interval, full training is exceeded by layer {', '.join(reach)}"
    else:
        text += "No layer exceeds full training beyond its interval"
    text += f"; not distinguishable from it: {'layer ' + ', '.join(level) if level else 'none'}."
    ended = min(base["score"] / (1 - base["truncated"]), 1.0) if base["truncated"] < 1 else 0.0  # right of those that ended
    in_time = []
    for row in [full, *singles]:
        if row["truncated"] < base["truncated"] - 0.02 and row["score"] > base["score"]:
            part = (ended * (1 - row["truncated"]) - base["score"]) / (row["score"] - base["score"])
            part = min(max(part, 0.0), 1.0)
            name = "full training" if row is full else f"layer {row['layer']}"
            in_time.append(f"{name} {part:.0%} ({row['truncated']:.0%} cut)")
    if in_time:
        text += f" Fewer answers are cut short than the base's {base['truncated']:.0%}. If those that end were right as often "
        text += f"as the base's, {ended:.0%}, that alone would give so much of the gain: {', '.join(in_time)}."
    if max(row["seeds"] for row in singles) == 1:
        text += " One seed only: how much of this another seed would change, these intervals cannot tell."
    return text


# ---------------------------------------------------------------------------------------------------- between sweeps


def ranks(values):
    """Ranks from 1 of values (..., n); equal values share the mean of their ranks."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal + 1) / 2


def pearson(x, y):
    """Pearson's correlation along the last axis; of `ranks`, it is Spearman's. NaN where one of them does not vary."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def correlate(a, b, seed=0):
    """How far two sweeps of equal depth agree on their layers' C(k): Spearman and Pearson, each with p and 95 % interval.

    p: how often a random permutation of one curve correlates as strongly, either way. Interval: both curves resampled over
    their own seeds and problems. a, b: (C (layers,), its bootstrap draws (draws, layers)).
    """
    rng, found = np.random.default_rng(seed), {}
    shuffled = rng.permuted(np.tile(a[0], (10000, 1)), axis=1)
    drawn = b[1][rng.permutation(len(b[1]))]  # each by itself, also where they share problems: wider, if anything
    for name, of in (("spearman", ranks), ("pearson", np.asarray)):
        rho = pearson(of(a[0]), of(b[0]))
        p = (1 + (np.abs(pearson(of(shuffled), of(b[0]))) >= np.abs(rho) - 1e-12).sum()) / (1 + len(shuffled))
        low, high = interval(pearson(of(a[1]), of(drawn))[:, None])
        found |= {name: clean(rho), f"{name}_p": clean(p), f"{name}_low": clean(low[0]), f"{name}_high": clean(high[0])}
    return found


def single_curve(sweep):
    """C(k) of a sweep's single layers, its draws, and the layers: what `correlate` compares."""
    settings, rows, draws, layers = sweep
    singles = [layer for layer in layers if layer.isdecimal()]
    draws = shares(draws)[:, [layers.index(layer) for layer in singles]]
    return np.array([row["contribution"] for row in rows if row["layer"] in singles], dtype=float), draws, singles


def compare(sweeps):
    """One dict for every pair of sweeps (name -> (settings, rows, draws, layers)) that gained and measured the same layers."""
    pairs, names = [], [name for name, (_, _, draws, layers) in sweeps.items() if gained(layers, draws)]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            (*a, layers), (*b, others) = single_curve(sweeps[one]), single_curve(sweeps[other])
            if layers == others and len(layers) > 2:
                pairs.append({"a": one, "b": other, "layers": len(layers), **correlate(a, b)})
    return pairs


# ---------------------------------------------------------------------------------------------------- within a sweep


def shares(draws):
    """C of every row, from draws of the scores (draws, rows) whose first two are base and full."""
    return contribution(draws, draws[:, [0]], draws[:, [1]])


def with_interval(value, draws):
    low, high = interval(draws[:, None])
    return "-" if value is None or not np.isfinite(value) else f"{value:.2f} [{low[0]:.2f}, {high[0]:.2f}]"


def additivity(runs, rows, draws, layers):
    """Pairs of layers trained together against what each gains alone, in units of C, with 95 % intervals."""
    c, point = shares(draws), np.array([row["contribution"] for row in rows], dtype=float)
    lines, counts = [["pair", "C together", "less the sum of both", "less the better one", "so together they give"]], {}
    for i, name in enumerate(layers):
        if name.count(",") == 1 and set(name.split(",")) <= set(layers):
            a, b = (layers.index(layer) for layer in name.split(","))
            over_sum, over_best = c[:, i] - c[:, a] - c[:, b], c[:, i] - np.maximum(c[:, a], c[:, b])
            (sum_low,), (sum_high,) = interval(over_sum[:, None])
            (best_low,), (best_high,) = interval(over_best[:, None])
            said = "the sum" if sum_low <= 0 <= sum_high else "more than the sum" if sum_low > 0 else "more than the better one"
            if sum_high < 0 and best_low <= 0:
                said = "what the better one gives" if best_high >= 0 else "less than the better one"
            counts[said] = counts.get(said, 0) + 1
            lines.append([
                name, with_interval(point[i], c[:, i]), with_interval(point[i] - point[a] - point[b], over_sum),
                with_interval(point[i] - max(point[a], point[b]), over_best), said,
            ])  # fmt: skip
    total = ", ".join(f"{said} {n} times" for said, n in counts.items())
    return align(lines) + f"\n{len(lines) - 1} pairs: {total}." if len(lines) > 1 else ""


def movement(runs, rows, draws, layers):
    """How far each layer's weights moved (the norm of the difference), in full training and alone, beside C(k)."""
    singles, c = [layer for layer in layers if layer.isdecimal()], {row["layer"]: row["contribution"] for row in rows}

    def moved(trained, layer):
        return mean(np.array([run["change"].get(layer, np.nan) for run in runs if run["layer"] == trained and "change" in run]))

    columns = {"in full training": [moved("full", k) for k in singles], "alone": [moved(k, k) for k in singles]}
    if len(singles) < 3 or np.isnan(list(columns.values())).any():
        return ""
    lines = [["layer", "C(k)", *(f"moved {name}" for name in columns)]]
    lines += [[k, f"{c[k]:.2f}", *(f"{values[i]:.3f}" for values in columns.values())] for i, k in enumerate(singles)]
    text, curve = align(lines), single_curve((None, rows, draws, layers))[:2]
    for name, values in columns.items():
        found = correlate(curve, (np.array(values), np.tile(values, (len(draws), 1))))
        text += f"\nSpearman of C(k) with the distance moved {name}: {format_correlation(found, 'spearman')}; "
        text += f"the farthest layer moved {max(values) / min(values):.2f} times as far as the nearest."
    return text


def elsewhere(runs, rows, draws, layers):
    """Scores in the domains of --also, and C_all(k): the contribution by the mean over these and the domain trained on."""
    domains = sorted(next((run.get("also", {}) for run in runs if run["layer"] == "base"), {}))
    if not domains:
        return ""
    runs = [run for run in runs if set(run.get("also", {})) == set(domains)]
    layers = [layer for layer in layers if any(run["layer"] == layer for run in runs)]
    if layers[:2] != ["base", "full"]:
        return ""
    found = [bootstrap(outcomes(runs, layers, domain=domain)) for domain in (None, *domains)]
    scores, draws = (np.mean(values, axis=0) for values in zip(*found))
    c, row_of = contribution(scores, scores[0], scores[1]), {row["layer"]: row for row in rows}
    names = [f"S {domain}" for domain in domains]
    lines = [["layer", "S trained on", *names, "S of all", "C(k)", "C_all(k) [95 % interval]"]]
    for i, layer in enumerate(layers):
        own = row_of[layer]["contribution"]
        lines.append([
            layer, *(f"{domain[0][i]:.3f}" for domain in found), f"{scores[i]:.3f}", f"{own:.2f}", with_interval(c[i], shares(draws)[:, i]),
        ])  # fmt: skip
    of_all = [{"layer": layer, "contribution": value} for layer, value in zip(layers, c)]
    *one, singles = single_curve((None, [row_of[layer] for layer in layers], found[0][1], layers))
    *all_of_them, _ = single_curve((None, of_all, draws, layers))
    if len(singles) < 3:
        return align(lines)
    return align(lines) + f"\nPearson of C(k) with C_all(k): {format_correlation(correlate(one, all_of_them), 'pearson')}."


def vote(ballots):
    """What a majority vote earns: 1 for the right answer, "*"; a tie is settled by lot. "-" abstains."""
    counts = {letter: ballots.count(letter) for letter in set(ballots) - {"-"}}
    winners = [letter for letter, count in counts.items() if count == max(counts.values())]
    return ("*" in winners) / len(winners) if winners else 0.0


def voting(runs, rows, draws, layers):
    """Majority votes of as many answers: of one model, and of the models that were each trained on one of the best layers.

    Then how much the sets of problems solved differ: their mean Jaccard index, |A and B| / |A or B|, over pairs of models, and
    what it would be if who solves what were drawn by lot.
    """
    singles = [row for row in rows if row["layer"].isdecimal()]
    runs = [run for run in runs if set(run.get("votes", "")) - {"*", "-"}]
    n, samples = (len(runs[0]["right"]), runs[0]["samples"]) if runs else (0, 0)
    k = min(7, samples, len(singles))
    best = [row["layer"] for row in sorted(singles, key=lambda row: -row["contribution"])[:k]]
    seeds = sorted({run["seed"] for run in runs if run["layer"] == "full"})
    by = {(run["layer"], run["seed"]): [run["votes"][i : i + samples] for i in range(0, n * samples, samples)] for run in runs}
    by |= {("base", seed): value for (layer, _), value in list(by.items()) if layer == "base" for seed in seeds}
    voters = {"base": ["base"], "full": ["full"], f"layer {best[0]}" if best else "": best[:1], f"layers {', '.join(best)}": best}
    if k < 2 or not all((layer, seed) in by for layer in ("base", "full", *best) for seed in seeds):
        return ""

    def one(names, seed, problem):
        answers = [by[name, seed][problem] for name in names]
        if len(names) == 1:
            return vote(answers[0][:k])
        # Evaluation draws the same random numbers for every model, so each gives a sample of another number.
        return np.mean([vote([a[(j + i) % samples] for i, a in enumerate(answers)]) for j in range(samples)])

    table = np.array([[[one(names, seed, i) for i in range(n)] for seed in seeds] for names in voters.values()])
    single = np.array([[[np.mean([by[name, seed][i].count("*") / samples for name in names]) for i in range(n)] for seed in seeds]
                       for names in voters.values()])  # fmt: skip
    (alone, _), (score, drawn) = bootstrap(single), bootstrap(table)
    lines = [["votes", "one answer", "the vote", "less that of full training"]]
    for i, name in enumerate(voters):
        lines.append([f"{k} of {name}" if i < 3 else f"1 each of {name}", f"{alone[i]:.3f}", f"{score[i]:.3f}",
                      "" if name == "full" else with_interval(score[i] - score[1], drawn[:, i] - drawn[:, 1])])  # fmt: skip
    text = align(lines)
    solved = {(run["layer"], run["seed"]): np.array(list(run["greedy"])) == "1" for run in runs}
    for name, pairs in (
        ("these layers", [((a, s), (b, s)) for s in seeds for a, b in itertools.combinations(best, 2)]),
        ("seeds of full training", [(("full", s), ("full", t)) for s, t in itertools.combinations(seeds, 2)]),
    ):
        if pairs:
            both = [(solved[a], solved[b]) for a, b in pairs]
            index = np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in both])
            lot = np.mean([a.mean() * b.mean() / max(a.mean() + b.mean() - a.mean() * b.mean(), 1e-9) for a, b in both])
            text += f"\nJaccard index of the problems solved greedily, {name}: {index:.2f}; by lot {lot:.2f}."
    return text


def guesses(settings, found, rows, draws, layers):
    """Ways to tell the best layer without the sweep: rank correlation with C(k), the layer picked, and what that choice loses.

    Cost: steps of one layer, as a share of those of one seed's sweep over all layers. For the search, layers are ranked by the
    round that dropped them, then by their score in it.
    """
    c, drawn, singles = single_curve((None, rows, draws, layers))
    lines = [["guess", "Spearman with C(k) [95 %]", "p", "picks layer", "its C", "best C less its [95 %]", "cost"]]
    whole = settings["steps"] * settings["num_layers"]
    tried = [(name, values, 0.0 if name == "middle" else 3 / whole) for name, values in found.get("probe", {}).items()]
    if "search" in found:
        value = {}
        for i, each in enumerate(found["search"]["rounds"]):
            value |= {int(layer): i + score for layer, score in each["scores"].items()}
        value[found["search"]["layer"]] += 1
        tried.append(("search", [value[k] for k in range(settings["num_layers"])], found["search"]["steps"] / whole))
    for name, values, cost in tried:
        values = np.array(values, dtype=float)[[int(layer) for layer in singles]]
        agreement = correlate((c, drawn), (values, np.tile(values, (len(drawn), 1))))
        pick, best = values.argmax(), c.argmax()
        text, p = format_correlation(agreement, "spearman").rsplit(", p = ", 1)
        regret = with_interval(c[best] - c[pick], drawn.max(1) - drawn[:, pick])  # each draw has a best layer of its own
        lines.append([name, text, p, singles[pick], f"{c[pick]:.2f}", regret, f"{cost:.1%}"])
    return align(lines) if len(lines) > 1 else ""


def studies(settings, runs, found, rows, draws, layers):
    """The tables of this section for which the runs are there: title -> text."""
    if not gained(layers, draws):
        return {}
    texts = {
        "Two layers together": additivity,
        "How far the weights moved": movement,
        "Other domains": elsewhere,
        "Voting": voting,
    }
    texts = {title: function(runs, rows, draws, layers) for title, function in texts.items()}
    texts["Which layer, without the sweep"] = guesses(settings, found, rows, draws, layers) if found else ""
    return {title: text for title, text in texts.items() if text}


# ---------------------------------------------------------------------------------------------------- writing


def align(lines):
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def format_curves(sweeps):
    """Several sweeps side by side as text: scores of base and full training, C(k) of all else. Intervals: each sweep's table."""
    names = {row["layer"]: None for _, rows, *_ in sweeps.values() for row in rows if "," not in row["layer"]}  # in order, once
    lines = [["", *sweeps]]
    for name in sorted(names, key=lambda name: (name.isdecimal(), int(name) if name.isdecimal() else 0)):
        part, digits = ("score", 3) if name in ("base", "full") else ("contribution", 2)
        found = [next((row[part] for row in rows if row["layer"] == name), None) for _, rows, *_ in sweeps.values()]
        lines.append([f"S {name}" if digits == 3 else f"C {name}", *("-" if v is None else f"{v:.{digits}f}" for v in found)])
    return align(lines)


def format_correlation(found, name):
    value, low, high, p = (found[name + end] for end in ("", "_low", "_high", "_p"))
    return "-, p = -" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}], p = {p:.4f}"


def format_pairs(pairs):
    """The table of `compare` as text."""
    lines = [["rank agreement of C(k)", "layers", "Spearman [95 % interval]", "p", "Pearson [95 % interval]", "p"]]
    for pair in pairs:
        cells = [f"{pair['a']} / {pair['b']}", str(pair["layers"])]
        for name in ("spearman", "pearson"):
            cells += format_correlation(pair, name).split(", p = ")
        lines.append(cells)
    return align(lines)


def format_table(rows):
    """The table as text, one line a row; pairs of layers are left to `additivity` where that has all it needs."""
    names = {row["layer"] for row in rows}
    rows = [row for row in rows if row["layer"].count(",") != 1 or not {"base", "full", *row["layer"].split(",")} <= names]

    def number(value, digits):
        return "-" if value is None else f"{round(value, digits) + 0:.{digits}f}"  # + 0: no -0.00

    steps = [name for name in rows[0] if name.startswith("contribution_step_")]
    head = ["layer", "S sampled ± s.e.", "C(k) [95 % interval]", "S greedy", "C greedy"]
    head += [f"C at step {name.rsplit('_', 1)[1]}" for name in steps]
    lines = [[*head, "trains", "steps", "length", "truncated", "seeds"]]
    for row in rows:
        c = "-"
        if row["layer"] not in ("base", "full") and row["contribution"] is not None:
            c = f"{number(row['contribution'], 2)} [{number(row['low'], 2)}, {number(row['high'], 2)}]"
        cells = [row["layer"], f"{row['score']:.3f} ± {row['score_se']:.3f}", c, number(row["greedy"], 3)]
        cells += [number(row[name], 2) for name in ("greedy_contribution", *steps)]
        trains = "-" if row["trains"] is None else f"{row['trains']:.1%}"
        lines.append([*cells, trains, str(row["steps"]), number(row["length"], 1), f"{row['truncated']:.1%}", str(row["seeds"])])
    return align(lines)


def text(x, y, content, anchor="middle", color="#333", extra=""):
    content = str(content).replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" {extra}>{content}</text>'


def line(x1, y1, x2, y2, color, width=1.0, dash=""):
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}" stroke-dasharray="{dash}"/>'


def panel(left, width, title, ticks, curves, level=None):
    """SVG elements of one panel: C(k) over relative depth, with the levels of the base, 0, and of full training, 1.

    ticks: (depth 0 to 1, layer); curves: (label, color, width, dash, [(depth, C, low, high), ...]), low and high None where no
    interval is wanted; level: a C to draw as a horizontal line, or None.
    """
    values = [0.0, 1.0, *(value for *_, points in curves for point in points for value in point[1:] if value is not None)]
    values += [level] if level is not None else []
    bottom, top = min(values) - 0.08, max(values) + 0.08

    def at(depth, value):
        return left + width * (0.06 + 0.88 * depth), 330 - 258 * (value - bottom) / (top - bottom)

    small, right = 'font-size="11"', left + width
    svg = [text(left + width / 2, 22, title, extra='font-weight="bold"')]
    every = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 10 ** np.ceil(np.log10(top - bottom))) if top - bottom < 10 * step)
    for tick in every * np.arange(int(np.ceil(bottom / every)), int(np.floor(top / every)) + 1):
        y, strong = at(0, tick)[1], tick in (0, 1)
        svg += [line(left, y, right, y, "#555" if strong else "#e4e4e4", 1.2 if strong else 1)]
        name, place = ("full training", y - 5) if tick else ("base", y + 13)
        svg += [text(right - 3, place, name, "end", "#777", small)] if strong else []
        svg += [text(left - 7, y + 4, f"{tick + 0:.2f}", "end")]
    svg += [text(at(depth, 0)[0], 348, layer) for depth, layer in ticks]
    svg += [text(at(quarter / 4, 0)[0], 60, f"{quarter / 4:.0%}", color="#888", extra=small) for quarter in range(5)]
    svg += [
        text(left + width / 2, 368, "layer trained alone" if ticks else ""),
        text(left + width / 2, 44, "relative depth", color="#888", extra=small),
    ]
    if level is not None:
        y = at(0, level)[1]
        svg += [line(left, y, right, y, "#777", 1.2, "2 4"), text(right - 70, y - 5, "final norm only", "end", "#777", small)]
    key, below = left + 4, 386
    for label, color, stroke, dash, points in curves:
        path = " ".join("{:.1f},{:.1f}".format(*at(depth, value)) for depth, value, *_ in points)
        svg += [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{stroke}" stroke-dasharray="{dash}"/>']
        for depth, value, low, high in points:
            x, y = at(depth, value)
            svg += [line(x, at(0, low)[1], x, at(0, high)[1], color, 1.6)] if low is not None else []
            svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3.2 if stroke > 2 else 2.2}" fill="{color}"/>']
        if key > left + 4 and key + 30 + 6.8 * len(label) > left + width:
            key, below = left + 4, below + 18
        svg += [line(key, below, key + 24, below, color, stroke, dash), text(key + 30, below + 4, label, "start")]
        key += 50 + 6.8 * len(label)
    return svg


def picture(*panels):
    size = 'viewBox="0 0 880 420" font-family="Helvetica, Arial, sans-serif" font-size="13"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="880" height="420" fill="white"/>']
    return "\n".join([*head, *sum(panels, []), "</svg>"]) + "\n"


def curve(rows, settings, name="contribution", bounds=("low", "high")):
    """The points of a curve for `panel`: a column of the rows of single layers, and the columns of its interval."""
    singles = [row for row in rows if row["layer"].isdecimal() and row[name] is not None]
    last = max(settings["num_layers"] - 1, 1)
    return [(int(row["layer"]) / last, row[name], *(row[b] if b else None for b in bounds)) for row in singles]


def draw_curve(rows, settings):
    """The picture of one sweep as SVG text: C(k) with intervals and the greedy curve left, C along training right."""
    norm = next((row["contribution"] for row in rows if row["layer"] == "norm"), None)
    L, none, blue = settings["num_layers"], (None, None), "#1f5fa8"
    ticks = [(layer / max(L - 1, 1), layer) for layer in range(0, L, max(1, L // 12))]
    sampled = ("sampled answers, 95 % interval", blue, 2.5, "", curve(rows, settings))
    greedy = ("greedy answers", "#c0392b", 1.5, "5 4", curve(rows, settings, "greedy_contribution", none))
    title = "Layer contribution C(k) = (S_k − S_base) / (S_full − S_base)"
    along = [name for name in rows[0] if name.startswith("contribution_step_")][:2]
    along = [
        (f"step {name.rsplit('_', 1)[1]}", shade, 2.0, "", curve(rows, settings, name, none))
        for name, shade in zip(along, ["#b9cfe8", "#6f9fd0"][2 - len(along) :])
    ]
    along.append(("at the end", blue, 2.5, "", curve(rows, settings, bounds=none)))
    return picture(
        panel(52, 420, title, ticks, [greedy, sampled], norm), panel(526, 336, "C(k) along training", ticks, along)
    )  # fmt: skip


def draw_curves(sweeps):
    """The curves of several sweeps, name -> (settings, rows, ...), in one picture over relative depth."""
    colors = ["#1f5fa8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#555555", "#17a2b8", "#b5651d"]
    curves = [
        (name, colors[i % len(colors)], 2.5, "" if i < len(colors) else "5 4", points)
        for i, (name, points) in enumerate((name, curve(rows, settings)) for name, (settings, rows, *_) in sweeps.items())
        if points
    ]
    return picture(panel(52, 810, "Layer contribution C(k)", (), curves))


def plain(text):
    """One line without control characters: what a file or its name holds must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def fail(message):
    """The end of a command that cannot be done: one line, exit status 2."""
    print(f"analyze.py: {plain(message)}", file=sys.stderr)
    sys.exit(2)


def public(settings):
    """Settings as a record shows them: model and task by their names, without the folders of whose machine it was."""
    return {name: Path(str(value)).name if name in ("model", "task") else value for name, value in settings.items()}


def sweep_files(settings, runs, found, rows):
    """What is written of one sweep: name -> text. The .json holds all that is needed to write the three again."""
    record = ",\n".join(json.dumps(run) for run in runs)
    head = json.dumps({"settings": public(settings), "rows": rows, "guesses": found}, indent=1)[:-2]
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return {
        "contribution.svg": draw_curve(rows, settings), "contribution.csv": table.getvalue(),
        "contribution.json": f'{head},\n "runs": [\n{record}\n]}}\n',
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.error = fail
    parser.add_argument("runs", nargs="*", default=["runs"], metavar="RUNS", help="folders of runs (default: runs)")
    parser.add_argument("--out", default=".", metavar="DIR", help="where the files go (default: here)")
    args = parser.parse_args(argv)
    out, sweeps, texts, files = Path(args.out), {}, {}, {}
    try:
        folders = [sorted(path.parent for path in Path(f).glob("*/contribution.json")) or [Path(f)] for f in args.runs]
        folders = sum(folders, [])
        for folder in folders:
            settings, runs, notes = read_runs(folder)
            name = folder.resolve().name
            name = str(folder) if name in sweeps else name
            rows, draws, layers = summarize(settings, runs)
            sweeps[name] = settings, rows, draws, layers
            try:
                found = read_guesses(folder)
                more = studies(settings, runs, found, rows, draws, layers)
            except DAMAGED as error:
                found, more = {}, {}
                notes.append(f"what was found by probe or search cannot be read ({type(error).__name__}: {error})")
            for note in notes:
                print(f"left out of {plain(folder)}: {plain(note)}")
            texts[name] = [format_table(rows), findings(settings, rows, draws, layers), *(f"{t}\n{more[t]}" for t in more)]
            if settings.get("quick"):
                texts[name].append("This was --quick, a smoke test: too short for its figures to mean much.")
            folder = out / name if len(folders) > 1 else out
            files |= {folder / file: text for file, text in sweep_files(settings, runs, found, rows).items()}
        if len(sweeps) > 1:
            pairs = compare(sweeps)
            curves = {name: {"settings": public(sweep[0]), "rows": sweep[1]} for name, sweep in sweeps.items()}
            files[out / "curves.json"] = json.dumps({"sweeps": curves, "pairs": pairs}, indent=1) + "\n"
            files[out / "curves.svg"] = draw_curves(sweeps)
        parts = {path.with_name(f"{path.name}.part"): path for path in files}
        for part, path in parts.items():  # beside, and renamed when all are whole
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(files[path], encoding="utf-8")
        for part, path in parts.items():
            part.replace(path)
    except (ValueError, OSError) as error:
        for part in filter(Path.is_file, (path.with_name(f"{path.name}.part") for path in files)):
            part.unlink()
        fail(error)
    for name, blocks in texts.items():
        print("\n\n".join([f"{name}\n{'-' * len(name)}"] * (len(texts) > 1) + blocks) + "\n")
    if len(sweeps) > 1:
        print(f"{format_curves(sweeps)}\n\n{format_pairs(pairs)}\n")
    print(f"written: {', '.join(map(str, files))}")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # as of `| head`; the files are written
        sys.stderr.close()
