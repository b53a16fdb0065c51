"""How often analyze.py's claims are wrong, in simulated sweeps; each command prints one line.

    python tests/simulate.py equal          all layers and full training equal: any claim is wrong
    python tests/simulate.py arch           an arch over depth: how much of it is found
    python tests/simulate.py smooth         p of correlations, of unrelated curves
    python tests/simulate.py interval       how often the interval of C(k) holds the true C(k)

    --sweeps N (default 400), --layers 8,24,28, --seeds 1,2,3, --problems 300

A sweep is drawn as real ones look: four samples of each problem; problems differ in difficulty;
layers differ in what they solve, neighbours less; each run differs from every other a little, and
with several seeds, each run's level too (by about .02 of S, as in the household's record). With
one seed the claims are about this seed's models, so their levels are what is true. Single thread;
a few minutes a command.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import analyze


def chances(rng, level, problems, seeds, seed_sd):
    """Every run's chance of a right answer to every problem: (rows, seeds, problems).

    level: (rows,) in logits.
    """
    rows = len(level)
    own = smooth(rng, problems, rows).T  # what a row solves beyond its level
    logits = level[:, None, None] + rng.normal(0, 1.5, problems) + 0.8 * own[:, None, :]
    logits = logits + rng.normal(0, seed_sd if seeds > 1 else 0, (rows, seeds, 1))
    return 1 / (1 + np.exp(-logits - rng.normal(0, 0.5, (rows, seeds, problems))))


def sweep(rng, layers, full, base=-1.5, problems=300, seeds=1, seed_sd=0.1, samples=4):
    """Estimates of S by row name, as `analyze.scores` gives them, of layers of these levels."""
    level = np.array([base, full, *layers])
    table = rng.binomial(samples, chances(rng, level, problems, seeds, seed_sd)) / samples
    table[0] = table[0, 0]  # the base, which no seed changes
    names = ["base", "full", *map(str, range(len(layers)))]
    return dict(zip(names, analyze.bootstrap(table).T))


def smooth(rng, n, layers, r=0.8):
    """n curves over depth: AR(1) of lag-one autocorrelation r and variance 1."""
    curves = rng.normal(size=(n, layers))
    for k in range(1, layers):
        curves[:, k] = r * curves[:, k - 1] + np.sqrt(1 - r * r) * curves[:, k]
    return curves


def equal(layers, sweeps, problems=300, seeds=1, seed=0):
    """Shares of sweeps of equal layers, all of C = 1, that claim: any layer below the peak; an
    arch, both ends below it; any layer above full training."""
    rng, claims = np.random.default_rng(seed), []
    for _ in range(sweeps):
        found = analyze.findings(sweep(rng, np.zeros(layers), 0, problems=problems, seeds=seeds))
        below = found["below_peak"]
        claims.append([bool(below), {0, layers - 1} <= {*below}, bool(found["above_full"])])
    return np.mean(claims, axis=0)


def arch(layers, sweeps, problems=300, seeds=1, seed=0):
    """Of sweeps with an arch, C about .6, 1.2 and .5 at first, middle and last layer: shares that
    find both ends below the peak, and a layer above full training; mean share of the layers truly
    .2 of C below the top that are found to be below it."""
    depth = np.linspace(0, 1, layers)
    level = -0.9 + 1.8 * np.sin(np.pi * (0.1 + 0.8 * depth)) - 0.1 * depth
    rng, found = np.random.default_rng(seed), []
    for _ in range(sweeps):
        claims = analyze.findings(sweep(rng, level, 0.4, problems=problems, seeds=seeds))
        below, lower = claims["below_peak"], np.flatnonzero(level < level.max() - 0.5)
        ends = {0, layers - 1} <= {*below}
        found.append([ends, bool(claims["above_full"]), np.isin(lower, below).mean()])
    return np.mean(found, axis=0)


def unrelated(layers, pairs, r=0.8, seed=0):
    """Shares of pairs of independent AR(1) curves whose Spearman and Pearson have p < .05."""
    rng, small = np.random.default_rng(seed), []
    for _ in range(pairs):
        a, b = smooth(rng, 2, layers, r)
        small.append([analyze.correlate(a, b, of)[1] < 0.05 for of in (analyze.ranks, np.asarray)])
    return np.mean(small, axis=0)


def coverage(sweeps, problems=300, seeds=1, seed=0):
    """Share of intervals of C(k), over four layers a sweep, that hold the true C(k)."""
    level, rng = np.array([-1.5, 0.7, -0.5, 0.0, 0.5, 0.9]), np.random.default_rng(seed)
    truth = chances(rng, level, 100_000, 1 + 9 * (seeds > 1), 0.1).mean((1, 2))
    held = []
    for _ in range(sweeps):
        score = sweep(rng, level[2:], level[1], problems=problems, seeds=seeds)
        for name, c in analyze.contributions(score).items():
            if name.isdecimal():
                low, high = analyze.interval(c)
                true = analyze.contribution(truth[2 + int(name)], truth[0], truth[1])
                held.append(low <= true <= high)
    return np.mean(held)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("equal", "arch", "smooth", "interval"))
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--layers", default="8,24,28")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--problems", type=int, default=300)
    args = parser.parse_args(argv)
    layers, seeds = ([*map(int, text.split(","))] for text in (args.layers, args.seeds))
    said = []
    if args.command == "smooth":
        for L in layers:
            for r in (0.8, 0.9):
                shares = " and ".join(f"{share:.1%}" for share in unrelated(L, args.sweeps, r))
                said.append(f"{L} layers, autocorrelation {r}: {shares}")
        return print(f"p < .05 of unrelated curves (Spearman and Pearson): {'; '.join(said)}.")
    if args.command == "interval":
        for n in seeds:
            said.append(f"{coverage(args.sweeps, args.problems, n):.1%} with seeds: {n}")
        return print(f"95 % intervals that hold the true C(k): {', '.join(said)}.")
    what = "layer below the peak / arch / layer above full training"
    if args.command == "arch":
        what = "arch / layer above full training / layers .2 of C or more below the top"
    for L in layers:
        for n in seeds:
            shares = (equal if args.command == "equal" else arch)(L, args.sweeps, args.problems, n)
            shares = " / ".join(f"{share:.1%}" for share in shares)
            said.append(f"{L} layers, seeds {n}: {shares}")
    head = "Claimed of equal layers" if args.command == "equal" else "Found in an arch"
    print(f"{head} ({what}): {'; '.join(said)}.")


if __name__ == "__main__":
    main()
