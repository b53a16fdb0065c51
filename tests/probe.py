"""Can the best layer be told without training every one? What a record's guesses were worth.

    python tests/probe.py tests/recorded/math
    python tests/probe.py --measure --seeds 0 --runs runs          # and any options of train.py

The record's `guesses` hold `search`, what `train.py --layer search` found, and in some records
`probe`: statistics of the gradient at the base, one number a layer. Beside these stands the middle
of the stack, the paper's advice. Printed of each: its rank correlation with C(k), the layer that it
picks, what that choice loses, and its cost in training steps, as a share of one seed's sweep.
The second command measures the statistics (`measure`) anew, for the options' model and task.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import analyze
import rl
import train

BATCHES = 3  # of a training step each, from which the statistics of the gradient were taken


def guesses_of(found, layers, steps):
    """name -> (a number for each layer, larger for better; its cost as a share of one sweep).

    found: a record's guesses; steps: of each run of the sweep. The search ranks layers by the round
    that dropped them, then by their score in it; its cost counts every seed that it was given.
    """
    whole = steps * layers
    guesses = {"middle": ([-abs(k - (layers - 1) / 2) for k in range(layers)], 0.0)}
    for name, values in found.get("probe", {}).items():
        guesses.setdefault(name, (values, BATCHES / whole))
    if search := found.get("search"):
        value = {}
        for i, each in enumerate(search["rounds"]):
            value |= {int(layer): i + score for layer, score in each["scores"].items()}
        value[search["layer"]] += 1
        trained = sum(each["steps"] * len(each["scores"]) for each in search["rounds"])
        trained = max(search["steps"], trained * len(search.get("seeds", [0])))
        guesses["search"] = ([value[k] for k in range(layers)], trained / whole)
    return guesses


def table(settings, runs, found):
    """The guesses as rows for `analyze.format_table`; none where C(k) means nothing."""
    score = analyze.scores(runs)
    c, c_of = analyze.contributions(score), analyze.curve(score)
    if not analyze.has_gain(score) or len(c_of) < 3:
        return []
    rows, best = [], max(c_of, key=c_of.get)
    guesses = guesses_of(found, settings["num_layers"], settings["steps"])
    for name, (values, cost) in guesses.items():
        values = {layer: values[int(layer)] for layer in c_of}
        pick = max(values, key=values.get)
        rho, p = analyze.correlate(c_of.values(), values.values(), analyze.ranks)
        row = {"guess": name, "Spearman with C(k)": rho, "p": p, "picks": pick, "its C": c_of[pick]}
        row |= {"best C less its": analyze.show(c[best] - c[pick]), "cost": f"{cost:.1%}"}
        rows.append(row)
    return rows


def measure(run, batches=BATCHES):
    """Statistics of the gradient g of the policy loss on a prompt's group, at the base: name -> one
    number a layer. `run` is a Run of full training, from whose first batches they are taken.

    gradient: the norm of the mean g. relative: that over the norm of the weights. signal_to_noise:
    the squared norm of the mean g over the variance of this mean, from prompt to prompt. adam: the
    mean |g| summed, what Adam's first step promises to gain.
    """
    model, s = run.model, run.settings
    layers = [list(layer.parameters()) for layer in model.model.layers]
    sums = [[torch.zeros_like(p, dtype=torch.float32) for p in layer] for layer in layers]
    squares, groups = [0.0] * len(layers), batches * s["prompts"]
    algorithm = dict(rl.ALGORITHMS[s["algo"]])
    aggregate = algorithm.pop("aggregate")
    for step in range(batches):
        problems = run.task.draw(s["seed"], step, s["prompts"])
        _, batch = run.collect(run.task, problems, s["group"], s["temperature"], run.generator)
        advantages = rl.compute_advantages(batch, s["group"], **algorithm)
        for group in range(s["prompts"]):
            rows = [row for row, e in enumerate(batch.episode) if e // s["group"] == group]
            signal = [row for row in rows if advantages[row] != 0]
            for part in rl.micro_batches(batch, signal, run.budget["training"]) if signal else ():
                logprobs, mask = rl.logprobs_of(model, batch, part, s["temperature"])
                loss = rl.policy_loss(
                    logprobs, logprobs.detach(), advantages[part], mask, aggregate=aggregate,
                    max_tokens=s["max_tokens"] * run.task.max_turns,
                )  # fmt: skip
                (loss * len(part) / len(rows)).backward()
            for k, layer in enumerate(layers):
                for total, p in zip(sums[k], layer):
                    if p.grad is not None:
                        total += p.grad
                        squares[k] += p.grad.float().square().sum().item()
            model.zero_grad()
    found = {"gradient": [], "relative": [], "signal_to_noise": [], "adam": []}
    for layer, mean, square in zip(layers, sums, squares):
        norm, weights = (
            sum(t.float().square().sum().item() for t in tensors) ** 0.5 for tensors in (mean, layer)
        )
        variance = (square / groups - (norm / groups) ** 2) / groups
        found["gradient"].append(norm / groups)
        found["relative"].append(norm / groups / weights)
        found["signal_to_noise"].append((norm / groups) ** 2 / max(variance, 1e-30))
        found["adam"].append(sum(t.abs().sum().item() for t in mean) / groups)
    return found


def open_run(argv):
    """A Run of full training for these options of train.py, at its base."""
    args = train.parse([*argv, "--layer", "full"])
    path = args.model or args.runs / args.base
    torch.set_num_threads(torch.get_num_threads() if args.model else 1)
    config = train.EMBEDDED_CONFIG
    if args.model:
        config = train.Config.from_hf(train.read_json(path / "config.json"))
    task, tokenizer, longest = train.open_task(args, path, config)
    model = train.Transformer.from_pretrained(
        path, dtype=train.DTYPES[args.dtype], device=args.device
    )
    settings = next(iter(train.runs_of(args, model.config, {}).values()))
    budget, _ = train.account(model.config, settings, longest, args.memory)
    return train.Run(model, tokenizer, task, args.runs, settings, budget)


def main(argv):
    if argv[:1] == ["--measure"]:
        for name, values in measure(open_run(argv[1:])).items():
            print(f"{name:16}" + " ".join(f"{value:9.3g}" for value in values))
        return
    for folder in argv:
        settings, runs, found, _ = analyze.read_runs(Path(folder))
        rows = table(settings, runs, found)
        print(
            folder, analyze.format_table(rows) if rows else "C(k) means nothing here", "", sep="\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
