"""The contribution curve, from the files that runs leave behind: it reads, and trains nothing.

    python analyze.py [RUNS ...] [--out DIR]

RUNS (default: runs): a folder of train.py's run folders, or of records that this program has made,
or one of these. Prints tables and what they show; writes contribution.csv, .svg and .json, the
record, to DIR (default: here), several sweeps to DIR/NAME each.

An estimate, throughout, is an array: the figure, then 2,000 resampled values of it. Arithmetic on
such arrays gives estimates again, so C(k), a pair less its parts or one model less another is a
line each, and `show` prints the figure with its 95 % interval. Scores are means over seeds and
problems, 0 to 1.
"""

import argparse
import csv
import io
import itertools
import json
import re
from html import escape
from pathlib import Path

import numpy as np

DRAWS = 2000


# ---- The lesson: contribution, its interval, and what may be said of the curve


def contribution(score, base, full):
    """Layer contribution C(k) = (S_k - S_base) / (S_full - S_base), equation 4 of "Is One Layer
    Enough?" (arXiv 2607.01232). Numbers or arrays of one shape; NaN where S_full = S_base."""
    gain = np.asarray(full - base, dtype=float)
    return (score - base) / np.where(gain == 0, np.nan, gain)


def bootstrap(table):
    """Estimates of the mean of each row of `table` (rows, seeds, problems): (1 + draws, rows).

    NaN marks a seed that a row has no run of. First the means, then resampled ones: problems are
    drawn again with replacement, the same for every row and seed. Seeds are too few for that: a
    row's n seeds get weights 1/n + (z_s - mean z) / sqrt(n (n - 1)), z normal and the same for
    every row. The weighted mean then has the variance of a mean of n seeds.
    """
    rows, seeds, problems = table.shape
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1 + DRAWS, 1, seeds))
    drawn = rng.integers(problems, size=(1 + DRAWS, problems))
    z[0], drawn[0] = 0, np.arange(problems)  # the figure itself: each problem once
    there = ~np.isnan(table[:, :, 0])  # (rows, seeds)
    n = there.sum(1, keepdims=True)  # (rows, 1)
    centred = (z - (z * there).sum(2, keepdims=True) / n) * there  # (1 + draws, rows, seeds)
    weights = there / n + centred / np.sqrt(np.maximum(n * (n - 1), 1))
    counts = np.array([np.bincount(each, minlength=problems) for each in drawn], dtype=float)
    means = counts @ np.nan_to_num(table).reshape(-1, problems).T / problems
    # Rounded: equal scores are equal in whatever order a processor adds.
    return np.round((weights * means.reshape(-1, rows, seeds)).sum(2), 12)


def scores(runs):
    """Estimates of S by row name, in the table's order. The base stands for every seed."""
    seeds, found = sorted({run["seed"] for run in runs}), {}
    for run in runs:
        shares = np.array([*run["right"]], dtype=float) / run["samples"]
        mine = seeds if run["layer"] == "base" else [run["seed"]]
        found.setdefault(run["layer"], {}).update(dict.fromkeys(mine, shares))
    order = {"base": -3, "full": -2, "norm": -1}  # several layers at once come last
    names = sorted(found, key=lambda n: int(n) if n.isdecimal() else order.get(n, np.inf))
    table = [[found[n].get(seed, shares * np.nan) for seed in seeds] for n in names]
    return dict(zip(names, bootstrap(np.array(table)).T)) if names else {}


def contributions(score):
    """Estimates of C by row name from those of S; NaN without base and full."""
    base, full = (score.get(name, np.full(1 + DRAWS, np.nan)) for name in ("base", "full"))
    return {name: contribution(value, base, full) for name, value in score.items()}


def interval(estimate):
    """The middle 95 % of an estimate's resampled values, without NaN: (low, high)."""
    known = np.isfinite(estimate[0])
    return np.nanpercentile(estimate[1:], [2.5, 97.5]) if known else (np.nan, np.nan)


def show(estimate):
    """An estimate as text: the figure [low, high]."""
    return "{} [{}, {}]".format(*map(number, (estimate[0], *interval(estimate))))


def has_gain(score):
    """Whether full training beat the base by more than the interval; else C(k) means nothing."""
    return {"base", "full"} <= {*score} and interval(score["full"] - score["base"])[0] > 0


def findings(score):
    """What may be said of the curve: the layer with the highest C(k), the layers below the best,
    above full training, and not distinguishable from it; None where C(k) means nothing.

    score: estimates of S by row name; C divides all by one gain, so their differences decide.
    Of many equal layers some two lie far apart by chance, so each claim has one width for all. A
    resample's error is its score less the figure; the width is the 97.5 % quantile of the largest
    gap between two layers' errors, or of the largest error of a layer less full training. So each
    claim is wrong in about 2.5 % of sweeps. (Few seeds are too few to studentise.)
    """
    claims = ("peak", "below_peak", "above_full", "level_with_full")
    names = [name for name in score if name.isdecimal()]
    if not names or not has_gain(score):
        return dict.fromkeys(claims)
    layers = np.array([int(name) for name in names])
    s = np.stack([score[name] for name in names], axis=1)  # (1 + draws, layers)
    error = s[1:] - s[0]
    gap = np.quantile(error.max(1) - error.min(1), 0.975)
    below = s[0].max() - s[0] > gap
    over = s - score["full"][:, None]
    width = np.quantile(np.abs(over[1:] - over[0]).max(1), 0.975)
    found = (s[0].argmax(), below, over[0] > width, np.abs(over[0]) <= width)
    return {claim: layers[which].tolist() for claim, which in zip(claims, found)}


def describe(found, score, seeds):
    """The findings in words. score: what they were found in, over these seeds."""
    peak, *others = found.values()
    if peak is None:
        return "C(k) is undefined: no clear gain of full training, or no layers with its seeds."
    c, (below, above, level) = contributions(score)[str(peak)], map(listed, others)
    whose = f"Over {len(seeds)} seeds" if len(seeds) > 1 else "On this seed's model"
    return (
        f"{whose}, layer {peak} is highest, C = {show(c)}. Below the best: {below}; above full "
        f"training: {above}; not distinguishable from it: {level}. (Bounds for all at once, 95 %.)"
    )


def summarize(settings, runs):
    """(rows, score): the table's rows, a dict each, and the estimates of S by row name. In a row,
    depth is 0 to 1; c_greedy and c_step_N are C by greedy answers and after step N."""
    score, last = scores(runs), max(settings["num_layers"] - 1, 1)
    greedy = scores([{**run, "right": run["greedy"], "samples": 1} for run in runs])
    c, c_greedy, along, rows = contributions(score), contributions(greedy), {}, []
    for point in sorted({point for run in runs for point in run["before"]}, key=int):
        then = [run for run in runs if point in run["before"] or run["layer"] == "base"]
        then = scores([{**run, **run["before"].get(point, {})} for run in then])
        along[f"c_step_{point}"] = contributions(then)
    for name in score:
        mine = [run for run in runs if run["layer"] == name]
        row = {"layer": name, "depth": int(name) / last if name.isdecimal() else np.nan}
        row |= {"score": score[name][0], "score_se": score[name][1:].std(ddof=1)}
        row["contribution"], (row["low"], row["high"]) = c[name][0], interval(c[name])
        row |= {"greedy": greedy[name][0], "c_greedy": c_greedy[name][0]}
        row |= {step: c.get(name, [np.nan])[0] for step, c in along.items()}
        row |= {part: np.mean([run[part] for run in mine]) for part in ("length", "truncated")}
        row["seeds"] = " ".join(str(run["seed"]) for run in mine)
        rows.append({column: rounded(value) for column, value in row.items()})
    return rows, score


# ---- Machinery: the lesson ends here. Other tables, comparing sweeps, reading, pictures, writing.


def format_table(rows):
    """Dicts with the same keys as text, a line each."""
    lines = [[*rows[0]], *([number(value, 3) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)
    return "\n".join(line.rstrip() for line in lines)


def curve(score):
    """C by the names of single layers."""
    return {name: c[0] for name, c in contributions(score).items() if name.isdecimal()}


def seeds_of(runs):
    return sorted({run["seed"] for run in runs if run["layer"] != "base"})


def common(runs, names):
    """The runs of these rows, of the seeds that all of them have; and the base's."""
    seeds = ({run["seed"] for run in runs if run["layer"] == name} for name in names)
    wanted = {*itertools.product(names, set.intersection(*seeds))}
    return [run for run in runs if run["layer"] == "base" or (run["layer"], run["seed"]) in wanted]


def pairs_in(score):
    """The pairs of layers that were trained together and alone."""
    return [name for name in score if name.count(",") == 1 and {*name.split(",")} <= {*score}]


def additivity(runs, score):
    """Pairs of layers trained together against what each gains alone, in units of C."""
    pairs, table = pairs_in(score), []
    runs = common(runs, {"full", *pairs, *",".join(pairs).split(",")})
    score = scores(runs)

    def verdict(difference):
        low, high = interval(difference)
        return "cannot tell" if low <= 0 <= high else "more" if low > 0 else "less"

    for pair in pairs if has_gain(score) else ():
        both, a, b = (contributions(score)[name] for name in (pair, *pair.split(",")))
        row = {"pair": pair, "C together": show(both)}
        for name, alone in (("the sum", a + b), ("the better one", np.maximum(a, b))):
            row |= {f"less {name}": show(both - alone), f"than {name}": verdict(both - alone)}
        table.append(row)
    return table and f"{format_table(table)}\nSeeds: {listed(seeds_of(runs))}."


def movement(runs, score):
    """How far full training moved each layer, the norm of its weights' difference, beside C(k)."""
    c = curve(score)
    moved = [run["change"] for run in runs if run["layer"] == "full" and run.get("change")]
    if not c or not moved:
        return ""
    moved = {layer: np.mean([change.get(layer, np.nan) for change in moved]) for layer in c}
    rho, p = correlate(c.values(), moved.values(), ranks)
    table = format_table([{"layer": k, "C(k)": c[k], "moved": moved[k]} for k in c])
    return f"{table}\nSpearman of C(k) and distance: {number(rho)}, p = {number(p, 3)}."


def other_domains(runs, score):
    """Scores in the domains of --also, and C_all(k), of the mean over these and that trained on."""
    domains = sorted(next((run.get("also", {}) for run in runs if run["layer"] == "base"), {}))
    runs = [run for run in runs if {*run.get("also", {})} == {*domains}]
    own = scores(runs)
    if not domains or not has_gain(own):
        return ""
    parts = {"S trained on": own}
    parts |= {f"S {d}": scores([{**run, **run["also"][d]} for run in runs]) for d in domains}
    mean = {name: sum(part[name] for part in parts.values()) / len(parts) for name in own}
    table = [
        {"layer": name, **{column: part[name][0] for column, part in parts.items()}}
        | {"S of all": mean[name][0], "C_all(k) [95 %]": show(c_all)}
        for name, c_all in contributions(mean).items()
    ]
    r, p = correlate(curve(own).values(), curve(mean).values())
    text = f"Pearson of C(k) with C_all(k), which contains it: {number(r)}, p = {number(p, 3)}."
    return f"{format_table(table)}\n{text}"


def vote(ballots):
    """What a majority vote earns: 1 for the right answer, "*"; a tie shares it; "-" abstains."""
    counts = [ballots.count(letter) for letter in {*ballots} - {"-"}]
    most = max(counts, default=0)
    return (ballots.count("*") == most) / counts.count(most) if most else 0.0


def voting(runs, score):
    """Majority votes of as many answers, of one model and of models trained on one of the best
    layers each; then how much the solved problems overlap."""
    runs = [run for run in runs if run.get("votes")]
    if not any(run["votes"].strip("*-") for run in runs):
        return ""  # programs give no answer
    samples, c = runs[0]["samples"], curve(score)
    best = sorted(c, key=c.get, reverse=True)[: min(7, samples)]
    runs = common(runs, ["full", *best])
    seeds, k, by = seeds_of(runs), len(best), {(run["layer"], run["seed"]): run for run in runs}
    if k < 2 or not seeds:
        return ""

    def earned(voters, seed):  # of each problem; the i-th voter gives its i-th sample
        votes = [by[name, seed]["votes"][i::samples] for i, name in enumerate(voters)]
        return [vote(ballots) for ballots in zip(*votes)]

    voters = {f"{k} of full": ["full"] * k, f"{k} of layer {best[0]}": best[:1] * k}
    voters[f"1 each of layers {listed(best)}"] = best
    table = [[earned(names, seed) for seed in seeds] for names in voters.values()]
    full, *_ = table = bootstrap(np.array(table)).T
    table = [
        {"votes": name, "the vote": each[0], "less full training's": show(each - full)}
        for name, each in zip(voters, table)
    ]
    overlap = []
    for seed, pair in itertools.product(seeds, itertools.combinations(best, 2)):
        a, b = (np.array([*by[layer, seed]["greedy"]]) == "1" for layer in pair)
        p, q = a.mean(), b.mean()
        overlap.append([(a & b).sum() / max((a | b).sum(), 1), p * q / max(p + q - p * q, 1e-9)])
    text = "\nJaccard index of what two of these layers solve greedily: {:.2f}; by chance {:.2f}."
    return format_table(table) + text.format(*np.mean(overlap, axis=0))


# ---- Between sweeps


def ranks(values):
    """Ranks from 1 of values (..., n); equal values share the mean of their ranks."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal + 1) / 2


def pearson(x, y):
    """Pearson's correlation along the last axis, Spearman's of `ranks`; NaN where one is flat."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    norm = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return (x * y).sum(-1) / np.where(norm > 0, norm, np.nan)


def smooth_curves(like, rng):
    """10,000 random curves as smooth over depth as `like`: AR(1) of its lag-one autocorrelation r,
    plus (1 + 4 r) / L, by which few layers understate it; .8 to .97."""
    L, r = len(like), np.nan_to_num(pearson(like[1:], like[:-1]))
    r = np.clip(r + (1 + 4 * r) / L, 0.8, 0.97)
    curves = rng.normal(size=(10_000, L))
    for k in range(1, L):
        curves[:, k] = r * curves[:, k - 1] + np.sqrt(1 - r * r) * curves[:, k]
    return curves


def correlate(a, b, of=np.asarray):
    """How far two curves over depth agree: (Pearson's correlation, p); of=ranks: Spearman's.

    p: how often two random curves as smooth as these correlate as strongly, either way. Against
    shuffled layers a quarter of unrelated curves would pass, as neighbouring layers are alike. No
    interval: resampling adds noise to noise, which pulls every correlation towards 0.
    """
    rng, curves = np.random.default_rng(0), np.array([[*a], [*b]])
    if curves.shape[1] < 3:
        return np.nan, np.nan
    value = pearson(*of(curves))
    chance = np.abs(pearson(*(of(smooth_curves(each, rng)) for each in curves)))
    p = (1 + (chance >= np.abs(value) - 1e-12).sum()) / (1 + len(chance))
    return value, p if np.isfinite(value) else np.nan


def compare(sweeps):
    """How far every two sweeps, name -> (rows, score), agree on the C(k) of the same layers."""
    curves, pairs = {n: curve(score) for n, (_, score) in sweeps.items() if has_gain(score)}, []
    for (one, a), (other, b) in itertools.combinations(curves.items(), 2):
        if a and [*a] == [*b]:
            rho, p = correlate(a.values(), b.values(), ranks)
            pairs.append({"a": one, "b": other, "spearman": rounded(rho), "p": rounded(p)})
    return pairs


# ---- Reading


DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError, re.error)


def parsed(path):
    return json.loads(path.read_bytes())


def read_runs(folder):
    """The finished test runs in `folder` -> (settings, runs, guesses, notes). ValueError if none.

    settings: what all runs share; guesses: what `train.py --layer search` found; notes: which runs
    were left out, and why.
    """
    settings, runs, guesses, notes, letters, versions = None, [], {}, [], {}, set()
    for path in sorted(folder.glob("*/config.json")):
        try:
            config = parsed(path)
            if "settings" not in config:
                continue  # a model's configuration: the base lives here too
            own = {name: config["settings"].pop(name) for name in ("layer", "seed")}
            shared = {  # without the folders of this machine
                name: Path(str(value)).name if name in ("model", "task") else value
                for name, value in config["settings"].items() if name != "also"
            }  # fmt: skip
            if shared["panel"] != "test":
                continue
            for name in {**shared, **settings} if runs else ():
                if shared.get(name) != settings.get(name):
                    raise ValueError(f"{name} {shared.get(name)!r}, not {settings.get(name)!r}")
            run = own | read_outcomes(parsed(path.with_name("eval.json")), letters)
            runs.append(checked(run, shared, runs))
            settings, made = shared, config.get("versions", {})
            versions.add(f"torch {made.get('torch')} and code {made.get('git')}")
        except DAMAGED as error:
            why = "not done" if isinstance(error, FileNotFoundError) else repr(error)
            notes.append(f"left out of {folder}: {path.parent.name}: {why}")
    if len(versions) > 1:
        notes.append(f"in {folder}, runs of different versions: {'; '.join(sorted(versions))}")
    try:
        if (path := folder / "search.json").exists():
            guesses = {"search": parsed(path)}
        if not runs and (path := folder / "contribution.json").exists():
            record = parsed(path)
            settings, guesses = record["settings"], record.get("guesses", {})
            for run in record["runs"]:
                runs.append(checked(run, settings, runs))
    except DAMAGED as error:
        raise ValueError(f"{path}: damaged ({error!r})") from None
    if not runs:
        raise ValueError("; ".join([f"{folder}: no finished run of train.py", *notes]))
    return settings, runs, guesses, notes


def read_outcomes(found, letters):
    """What a record keeps of a run's eval.json. Of answers a character for each sample: * if right,
    - if none, or a letter for its value. letters: problem -> answer -> letter, extended here."""
    kept = ("right", "greedy", "samples", "length", "truncated", "change")
    run = {name: found[name] for name in kept if name in found} | {"votes": ""}
    for part in ("before", "also"):  # at earlier steps, and in other domains
        run[part] = {
            Path(name).name: {"samples": at.get("samples", run["samples"]), "right": at["right"]}
            for name, at in (found.get(part) or {}).items()
        }
    for i, (marks, given) in enumerate(zip(found.get("solved", ()), found.get("answers", ()))):
        known = letters.setdefault(i, {None: "-"})
        for mark, answer in zip(marks, given, strict=True):
            letter = known.setdefault(answer, chr(ord("A") + len(known) - 1))
            run["votes"] += "*" if mark == "1" else letter
    return run


def checked(run, settings, others):
    """`run`, if it is whole and of the others' panel; else one of DAMAGED is raised."""
    n, samples, before = len(run["right"]), run["samples"], run["before"].values()
    parts = [run, {"right": run["greedy"], "samples": 1}, *before, *run.get("also", {}).values()]
    numbers = [run["seed"], run["length"], run["truncated"], *map(int, run["before"])]
    fine = (
        re.fullmatch("[a-z0-9,-]+", run["layer"])
        and all(re.fullmatch(f"[0-{p.get('samples', samples):d}]+", p["right"]) for p in parts)
        and {n, len(run["greedy"]), *(len(at["right"]) for at in before)} == {n}
        and min(settings["num_layers"] - 1, *numbers, *run.get("change", {}).values()) >= 0
        and all((n, samples) == (len(other["right"]), other["samples"]) for other in others)
        and (run["layer"], run["seed"]) not in [(other["layer"], other["seed"]) for other in others]
    )
    if not fine:
        raise ValueError("damaged, there twice, or of another panel than runs before it")
    return run


# ---- Pictures


def svg_text(x, y, content, anchor="middle", size=13):
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="#333">{escape(str(content))}</text>'


def svg_path(path, color, width=1.0):
    return f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def points(rows, *columns):
    """Depth and these columns of the rows that have them: those of single layers."""
    rows = ([row[name] for name in ("depth", *columns)] for row in rows)
    return [row for row in rows if None not in row]


def axes(left, width, title, ticks, curves):
    """SVG elements of C(k) over depth. ticks: depth -> label; curves: (label, color, points), a
    point being depth, C and, if there is one, its interval."""
    values = [0, 1, *(value for *_, of in curves for point in of for value in point[1:])]
    bottom, top = min(values) - 0.08, max(values) + 0.08
    step = 0.25 if top - bottom < 2 else np.ceil((top - bottom) / 8)  # of the grid

    def x(depth):
        return round(left + width * (0.04 + 0.92 * depth), 1)

    def y(value):
        return round(50 + 260 * (top - value) / (top - bottom), 1)

    svg = [
        svg_path(f"M{x(0.5)},50v260", "#f2f2f2", 0.184 * width),
        svg_text(x(0.5), 45, "40-60 % of the depth", size=11),
        svg_text(x(0.5), 20, title, size=16),
        *(svg_text(x(depth), 330, label) for depth, label in ticks.items()),
    ]
    for tick in step * np.arange(np.ceil(bottom / step), top / step):
        name = {0: "base", 1: "full training"}.get(tick, "")
        svg += [
            svg_path(f"M{left},{y(tick)}h{width}", "#555" if name else "#ddd"),
            svg_text(left - 7, y(tick) + 4, number(tick), "end"),
            svg_text(left + width, y(tick) + (-5 if tick else 13), name, "end", 11),
        ]
    for i, (label, color, of) in enumerate(curve for curve in curves if curve[-1]):
        places = [f"{x(depth)},{y(c)}" for depth, c, *_ in of]
        bars = (f"M{x(p[0])},{y(p[2])}V{y(p[3])}" for p in of if len(p) > 2)
        n = width // 135  # labels in a row of the key
        right, down = left + width // n * (i % n), 360 + 20 * (i // n)
        svg += [
            svg_path("M" + "L".join(places), color, 2),
            svg_path("".join(f"M{place}m-3,0h6" for place in places), color, 6),
            svg_path("".join(bars), color, 1.5),
            svg_path(f"M{right},{down}h20", color, 2),
            svg_text(right + 25, down + 4, label, "start"),
        ]
    return svg


def picture(*panels):
    size = 'viewBox="0 0 880 420" font-family="Helvetica, Arial, sans-serif"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', svg_path("M0,210h880", "#fff", 420)]
    return "\n".join([*head, *itertools.chain(*panels), "</svg>\n"])


def draw_sweep(rows):
    """One sweep as SVG: C(k) with intervals and by greedy answers; C along training."""
    blue, ticks = "#0b5394", {}
    for row in rows:
        if row["depth"] is not None and row["depth"] >= max(ticks, default=-1) + 0.06:
            ticks[row["depth"]] = row["layer"]
    left = [("greedy answers", "#e6b0aa", points(rows, "c_greedy"))]
    sampled = points(rows, "contribution", "low", "high")
    left.append(("sampled answers, 95 % interval", blue, sampled))
    steps = [column for column in rows[0] if column.startswith("c_step_")]
    shades = zip(steps, ("#b9cfe8", "#6f9fd0"))
    right = [(f"step {step[7:]}", shade, points(rows, step)) for step, shade in shades]
    right.append(("at the end", blue, points(rows, "contribution")))
    return picture(
        axes(52, 420, "C(k) of the layer trained alone", ticks, left),
        axes(530, 336, "C(k) along training", ticks, right),
    )


def draw_curves(sweeps):
    """The curves of several sweeps as SVG."""
    colors = "#0b5394 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #555555 #8c564b #9acd32 #7b4fb5"
    looks = zip(sweeps.items(), itertools.cycle(colors.split()))
    curves = [(name, color, points(rows, "contribution")) for (name, (rows, _)), color in looks]
    ticks = {quarter / 4: f"{quarter / 4:.0%}" for quarter in range(5)}
    return picture(axes(52, 810, "C(k) over relative depth", ticks, curves))


# ---- Writing


def rounded(value):
    """Rounded for files; None for what is not a number."""
    if value is None or isinstance(value, str):
        return value
    return round(float(value), 4) if np.isfinite(value) else None


def number(value, digits=2):
    """As text; "-" for what is not a number."""
    value = rounded(value)
    return f"{value + 0:.{digits}f}" if isinstance(value, float) else value or "-"


def listed(values):
    return ", ".join(map(str, values)) or "none"


def one_line(text):
    """One line without control characters: what a file holds must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def sweep_files(settings, runs, guesses, rows, found):
    """What is written of one sweep: name -> text."""
    record = dict(settings=settings, findings=found, rows=rows, guesses=guesses, runs=runs)
    table = io.StringIO()
    lines = [rows[0], *(row.values() for row in rows)]
    csv.writer(table, lineterminator="\n").writerows(lines)
    return {
        "contribution.svg": draw_sweep(rows),
        "contribution.csv": table.getvalue(),
        "contribution.json": json.dumps(record, indent=1) + "\n",
    }


def process(folders, out):
    """Read and compute: (blocks of text to print, files to write)."""
    sweeps, blocks, files = {}, [], {}
    for folder in folders:
        settings, runs, guesses, notes = read_runs(folder)
        name = one_line(folder.resolve().name)
        while name in sweeps:  # two folders of one name
            name += "-2"
        rows, score = sweeps[name] = summarize(settings, runs)
        same = common(runs, ["full", *curve(score)])  # layers are compared over the same seeds
        even = scores(same)
        found = findings(even)
        blocks += [f"{name}\n{'-' * len(name)}", *map(one_line, notes)]
        apart = pairs_in(score) if has_gain(score) else ()
        blocks.append(format_table([row for row in rows if row["layer"] not in apart]))
        blocks.append(describe(found, even, seeds_of(same)))
        for table in (additivity, movement, other_domains, voting) if has_gain(score) else ():
            if text := table(runs, score):
                blocks.append(f"{table.__name__.capitalize().replace('_', ' ')}\n{text}")
        place = out / name if len(folders) > 1 else out
        written = sweep_files(settings, runs, guesses, rows, found)
        files |= {place / file: text for file, text in written.items()}
    if len(sweeps) > 1:
        pairs = compare(sweeps)
        blocks += [format_table(pairs)] if pairs else []
        files[out / "curves.json"] = json.dumps(pairs, indent=1) + "\n"
        files[out / "curves.svg"] = draw_curves(sweeps)
    return blocks, files


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.error = lambda message: parser.exit(2, f"analyze.py: {one_line(message)}\n")
    parser.add_argument("runs", nargs="*", default=["runs"], help="folders of runs")
    parser.add_argument("--out", default=".", metavar="DIR", help="where the files go")
    args = parser.parse_args(argv)
    folders = []
    for folder in map(Path, args.runs):
        records = [] if [*folder.glob("*/config.json")] else folder.glob("*/contribution.json")
        folders += sorted(path.parent for path in records) or [folder]
    try:
        blocks, files = process(folders, Path(args.out))
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.error(error)
    print("\n\n".join([*blocks, one_line(f"written: {', '.join(map(str, files))}")]))


if __name__ == "__main__":
    main()
