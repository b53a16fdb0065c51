"""The contribution curve, from the files that runs leave behind: it reads, and trains nothing.

    python analyze.py [RUNS] [--out DIR]

RUNS (default: runs) is a folder of run folders as train.py writes them, or one that holds a `contribution.json` written here
before. Prints the table and what it shows, and writes to DIR (default: here) contribution.csv, contribution.json (the rows,
and each run's outcomes, from which everything can be computed again) and contribution.svg.

Scores are means over seeds and problems, 0 to 1. Intervals are bootstrapped: problems and seeds are drawn again with
replacement, the same draw for every row, 2,000 times; the interval holds the middle 95 % of what comes out. Few seeds make
it too narrow: three say little about the fourth.
"""

import argparse
import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np

DRAWS = 2000
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)  # what reading a file may end in


# ---------------------------------------------------------------------------------------------------- reading


def read_runs(folder):
    """The finished test runs in `folder` -> (settings, runs, notes on what was left out). ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; it should hold the runs of train.py")
    settings, runs, notes = None, [], []
    for path in sorted({path.parent for name in ("config", "eval") for path in folder.glob(f"*/{name}.json")}):
        try:
            content = json.loads((path / "config.json").read_text(encoding="utf-8"))
            finished = (path / "eval.json").exists()
            if not finished and isinstance(content, dict) and "settings" not in content:
                continue  # a model's configuration: the base lives here too
            this = dict(content["settings"])
            layer, seed = this.pop("layer"), this.pop("seed")
            if this["panel"] != "test":
                continue
            if not finished:
                notes.append(f"{path.name} is not finished")
                continue
            if runs and this != settings:
                name = next(name for name in {**this, **settings} if this.get(name) != settings.get(name))
                notes.append(f"{path.name} was made with {name} = {this.get(name)!r}, not {settings.get(name)!r}")
                continue
            found = json.loads((path / "eval.json").read_text(encoding="utf-8"))
            run = {name: found[name] for name in ("right", "greedy", "samples", "length", "truncated", "before")}
            runs.append(checked({"layer": layer, "seed": seed, **run}, this, runs))
            settings = this
        except DAMAGED as error:
            notes.append(f"{path.name} cannot be read ({type(error).__name__}: {error})")
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


def checked(run, settings, others):
    """`run`, if figures can be computed from it and the `others`; an exception, one of DAMAGED, says what is wrong with it."""
    n, L, digits = len(run["right"]), settings["num_layers"], "0123456789"[: run["samples"] + 1]
    outcomes = [run, *run["before"].values()]
    fine = {
        "num_layers": isinstance(L, int) and 0 < L < 10_000,
        "layer": re.fullmatch("[a-z0-9,-]+", run["layer"]) and not (run["layer"].isdecimal() and int(run["layer"]) >= L),
        "seed": isinstance(run["seed"], int) and all((run["layer"], run["seed"]) != (o["layer"], o["seed"]) for o in others),
        "samples": 0 < run["samples"] < 10,
        "right": n > 0 and all(len(o["right"]) == n and set(o["right"]) <= set(digits) for o in outcomes + others),
        "greedy": all(len(o["greedy"]) == n and set(o["greedy"]) <= {"0", "1"} for o in outcomes),
        "before": all(re.fullmatch("[0-9]{1,9}", point) for point in run["before"]),
        "length": 0 <= run["length"] < 1e9,
        "truncated": 0 <= run["truncated"] <= 1,
    }
    if wrong := [name for name in fine if not fine[name]]:
        raise ValueError(f"{', '.join(wrong)}: damaged, or at odds with another run")
    return run


def outcomes(runs, layers, what="right", point=None):
    """Share of right answers per problem: an array (len(layers), seeds, problems), NaN where there is no such run.

    what: "right" (sampled) or "greedy"; point: an earlier step of training, None for its end. The base, which no seed
    changes, stands for every seed.
    """
    seeds = sorted({run["seed"] for run in runs})
    table = np.full((len(layers), len(seeds), len(runs[0]["right"])), np.nan)
    for run in runs:
        if run["layer"] not in layers:
            continue
        source = run if point is None or run["layer"] == "base" else run["before"].get(point)
        if source is None:
            continue
        values = np.array([int(digit) for digit in source[what]]) / (run["samples"] if what == "right" else 1)
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
    weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws) / problems  # (draws, problems)
    scores = np.einsum("dp,rsp->drs", weights, table, optimize=True)  # (draws, rows, seeds)
    drawn = rng.integers(0, seeds, size=(draws, 1, seeds))
    with np.errstate(invalid="ignore"):
        return mean(table.mean(2)), mean(np.take_along_axis(scores, np.broadcast_to(drawn, scores.shape), axis=2))


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
            "greedy_high": greedy_high[i], "length": np.mean([run["length"] for run in mine]),
            "truncated": np.mean([run["truncated"] for run in mine]), "seeds": len(mine),
            **{f"contribution_step_{point}": c(values)[i] for point, values in zip(points, early)},
        })  # fmt: skip
    return [{name: clean(value) for name, value in row.items()} for row in rows], draws, layers


def clean(value):
    """Rounded for files; None for what is not a number."""
    if isinstance(value, (str, int)):
        return value
    return None if not np.isfinite(value) else round(float(value), 4)


def findings(settings, rows, draws, layers):
    """What the curve shows, in sentences: peak, ends, and whether a layer reaches full training. draws (draws, rows): scores."""
    singles = [row for row in rows if row["layer"].isdecimal()]
    if not {"base", "full"} <= set(layers):
        return f"C(k) needs the runs base and full; there are {', '.join(layers)}."
    base, full = rows[0], rows[1]
    if interval(draws[:, [1]] - draws[:, [0]])[0][0] <= 0:
        text = f"Full training took the score from {base['score']:.3f} to {full['score']:.3f}, no gain beyond the interval: "
        return text + "there is nothing that a layer could have a share of, and C(k) means nothing here."
    draws = contribution(draws, draws[:, [0]], draws[:, [1]])
    if not singles:
        return "No single layer was trained yet."
    peak = max(singles, key=lambda row: row["contribution"])
    depth = int(peak["layer"]) / max(settings["num_layers"] - 1, 1)
    text = f"The peak is layer {peak['layer']} ({depth:.0%} of the depth) with C = {peak['contribution']:.2f}"
    for row, end in ((singles[0], "first"), (singles[-1], "last")):
        if row is peak:
            text += f"; it is the {end} layer measured"
            continue
        margin = interval(draws[:, [layers.index(peak["layer"])]] - draws[:, [layers.index(row["layer"])]])[0][0]
        text += f"; the {end} layer, {row['layer']}, has {row['contribution']:.2f}, "
        text += "below it beyond the interval" if margin > 0 else "not distinguishable from it"
    reach = [row["layer"] for row in singles if row["low"] > 1]
    level = [row["layer"] for row in singles if row["low"] <= 1 <= row["high"]]
    text += ". "
    if reach:
        text += f"Beyond its interval, full training is exceeded by layer {', '.join(reach)}"
    else:
        text += "No layer exceeds full training beyond its interval"
    text += f"; not distinguishable from it: {'layer ' + ', '.join(level) if level else 'none'}."
    if max(row["seeds"] for row in singles) == 1:
        text += " One seed only: how much of this another seed would change, these intervals cannot tell."
    return text


# ---------------------------------------------------------------------------------------------------- writing


def format_table(rows):
    """The table as text, one line a row."""

    def number(value, digits):
        return "-" if value is None else f"{round(value, digits) + 0:.{digits}f}"  # + 0: no -0.00

    steps = [name for name in rows[0] if name.startswith("contribution_step_")]
    head = ["layer", "S sampled ± s.e.", "C(k) [95 % interval]", "S greedy", "C greedy"]
    lines = [head + [f"C at step {name.rsplit('_', 1)[1]}" for name in steps] + ["length", "truncated", "seeds"]]
    for row in rows:
        c = "-"
        if row["layer"] not in ("base", "full") and row["contribution"] is not None:
            c = f"{number(row['contribution'], 2)} [{number(row['low'], 2)}, {number(row['high'], 2)}]"
        cells = [row["layer"], f"{row['score']:.3f} ± {row['score_se']:.3f}", c, number(row["greedy"], 3)]
        cells += [number(row[name], 2) for name in ("greedy_contribution", *steps)]
        lines.append([*cells, number(row["length"], 1), f"{row['truncated']:.1%}", str(row["seeds"])])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def draw_curve(rows, settings):
    """The picture as SVG text: C(k) with intervals and the greedy curve left, C along training right."""
    singles = [row for row in rows if row["layer"].isdecimal() and row["contribution"] is not None]
    norm = next((row["contribution"] for row in rows if row["layer"] == "norm"), None)
    steps = [name for name in rows[0] if name.startswith("contribution_step_")]
    L = settings["num_layers"]
    values = [row[name] for row in singles for name in ("low", "high", "greedy_contribution", *steps) if row[name] is not None]
    values += [norm] if norm is not None else []
    bottom, top = min([0.0, *values]) - 0.08, max([1.0, *values]) + 0.08
    svg = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 390" font-family="Helvetica, Arial, sans-serif" font-size="13">'
    ]
    svg.append('<rect width="880" height="390" fill="white"/>')

    def text(x, y, content, anchor="middle", color="#333", extra=""):
        svg.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" {extra}>{content}</text>')

    def line(x1, y1, x2, y2, color, width=1.0, dash=""):
        svg.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}" '
            f'stroke-dasharray="{dash}"/>'
        )

    def panel(left, width, title, curves):
        def at(layer, value):
            x = left + width * (layer + 0.5) / L
            return x, 330 - 258 * (value - bottom) / (top - bottom)

        text(left + width / 2, 22, title, extra='font-weight="bold"')
        every = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 10 ** np.ceil(np.log10(top - bottom))) if top - bottom < 10 * step)
        for tick in every * np.arange(int(np.ceil(bottom / every)), int(np.floor(top / every)) + 1):
            y = at(0, tick)[1]
            strong = tick in (0, 1)
            line(left, y, left + width, y, "#555" if strong else "#e4e4e4", 1.2 if strong else 1)
            if strong:
                text(left + width - 3, y - 5, "full training" if tick else "base", "end", "#777", 'font-size="11"')
            text(left - 7, y + 4, f"{tick + 0:.2f}", "end")
        for layer in range(0, L, max(1, L // 12)):
            x = at(layer, 0)[0]
            text(x, 348, layer)
            text(x, 60, f"{layer / max(L - 1, 1):.0%}", color="#888", extra='font-size="11"')
        text(left + width / 2, 368, "layer trained alone")
        text(left + width / 2, 44, "relative depth", color="#888", extra='font-size="11"')
        for i, (label, color, width_, dash, name, with_interval) in enumerate(curves):
            points = [(*at(int(row["layer"]), row[name]), row) for row in singles if row[name] is not None]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
            svg.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width_}" stroke-dasharray="{dash}"/>'
            )
            for x, y, row in points:
                if with_interval:
                    line(x, at(0, row["low"])[1], x, at(0, row["high"])[1], color, 1.6)
                svg.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3.2 if width_ > 2 else 2.2}" fill="{color}"/>')
            y = at(0, 0)[1] - 22 - 17 * (len(curves) - 1 - i)
            line(left + 10, y - 4, left + 34, y - 4, color, width_, dash)
            text(left + 40, y, label, "start")
        return at

    at = panel(52, 420, "Layer contribution C(k) = (S_k − S_base) / (S_full − S_base)", [
        ("greedy answers", "#c0392b", 1.5, "5 4", "greedy_contribution", False),
        ("sampled answers, 95 % interval", "#1f5fa8", 2.5, "", "contribution", True),
    ])  # fmt: skip
    if norm is not None:
        y = at(0, norm)[1]
        line(52, y, 472, y, "#777", 1.2, "2 4")
        text(400, y - 5, "final norm only", "end", "#777", 'font-size="11"')
    shades = ["#b9cfe8", "#6f9fd0"][2 - len(steps[:2]) :]
    curves = [(f"after {n.rsplit('_', 1)[1]} steps", color, 2.0, "", n, False) for n, color in zip(steps, shades)]
    panel(526, 336, "C(k) along training", [*curves, ("at the end", "#1f5fa8", 2.5, "", "contribution", False)])
    svg.append("</svg>")
    return "\n".join(svg) + "\n"


def plain(text):
    """One line without control characters: what a file or its name holds must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


def fail(message):
    """The end of a command that cannot be done: one line, exit status 2."""
    print(f"analyze.py: {plain(message)}", file=sys.stderr)
    sys.exit(2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.error = fail
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="folder of runs (default: runs)")
    parser.add_argument("--out", default=".", metavar="DIR", help="where the files go (default: here)")
    args = parser.parse_args(argv)
    try:
        settings, runs, notes = read_runs(args.runs)
        rows, draws, layers = summarize(settings, runs)
        record = ",\n".join(json.dumps(run) for run in runs)
        head = json.dumps({"settings": settings, "rows": rows}, indent=1)[:-2]
        table = io.StringIO()
        writer = csv.DictWriter(table, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files = {"contribution.csv": table.getvalue(), "contribution.json": f'{head},\n "runs": [\n{record}\n]}}\n'}
        files["contribution.svg"] = draw_curve(rows, settings)
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():  # beside, and renamed when all are whole
            (out / f"{name}.part").write_text(text, encoding="utf-8")
        for name in files:
            (out / f"{name}.part").replace(out / name)
    except (ValueError, OSError) as error:
        for part in Path(args.out).glob("contribution.*.part"):
            part.unlink()
        fail(error)
    for note in notes:
        print(f"left out: {plain(note)}")
    print(format_table(rows))
    print()
    print(findings(settings, rows, draws, layers))
    if settings.get("quick"):
        print("This was --quick, a smoke test: too short for its figures to mean much.")
    print(f"\nwritten: {', '.join(str(out / name) for name in ('contribution.svg', 'contribution.csv', 'contribution.json'))}")


if __name__ == "__main__":
    main()
