"""Train one layer by reinforcement learning, freeze the rest, and measure what it gives.

    python train.py --layer each          base, full training, each layer alone and the final norm alone, three seeds
    python train.py --layer 5             layer 5 alone, and nothing else
    python train.py --layer full --find-lr 2e-4,5e-4,1e-3     which rate is best for full training, on the validation panel
    python train.py --layer search        which layer seems best, for about a third of what the sweep costs

Read it from the bottom: `main` checks the settings, `sweep` goes through the runs, `train` is one run from start to end,
`evaluate` scores a model, `teach_base` makes the embedded model. A run is a folder under --runs:

    config.json         every setting, the seed, versions and git revision
    metrics.jsonl       one line a step
    eval.json           score, per-problem outcomes, answers and lengths; outcomes after a third and two thirds of the steps
    layer.safetensors   the tensors that trained, and only those

A finished run is never done again; an unfinished one carries on from its last checkpoint. Any number of processes may work on
one folder: each takes a run by locking it, and the lock of a process that died is free again. Left out on purpose: logging
services, configuration files, distributed data parallelism (runs are independent, so they are what is spread).
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch: its threads then do not burn a core that others want

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import rl
import tasks
from model import Config, Transformer, read_json
from tasks import plain

EMBEDDED = {  # for each of the tasks that the embedded model is taught; the last two are the steps and the batch of teaching
    "math": dict(steps=120, lr=5e-4, prompts=32, group=16, max_tokens=6, eval_problems=1000, teach_steps=700, teach_batch=256),
    "code": dict(steps=120, lr=5e-4, prompts=32, group=16, max_tokens=12, eval_problems=500, teach_steps=600, teach_batch=256),
    "household": dict(steps=50, lr=5e-4, prompts=8, group=8, max_tokens=4, eval_problems=200, teach_steps=700, teach_batch=128),
}
EMBEDDED["math-short"] = EMBEDDED["math"]
QUICK = {  # a smoke test of each
    "math": dict(steps=40, eval_problems=300, teach_steps=550),
    "code": dict(steps=40, eval_problems=100, teach_steps=350),
    "household": dict(steps=10, eval_problems=50, teach_steps=350),
}
QUICK["math-short"] = QUICK["math"]
REAL = dict(steps=200, lr=5e-6, prompts=32, group=8, max_tokens=1024, teach_steps=0, teach_batch=0)

EMBEDDED_CONFIG = Config(
    vocab_size=16, hidden_size=48, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, rope_theta=1e4, max_position_embeddings=512,
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAVE_EVERY, SAVE_COST = 30, 20  # seconds between a run's checkpoints, or so many times what one took if that is more
PARENT = os.environ.get("ONELAYER_PARENT")  # the process id of the train.py that started this one, if one did
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.safetensors.before")  # the last one, and what there is if it is damaged


# ---------------------------------------------------------------------------------------------------- the embedded base


def teach_base(path, task, taught):
    """Teach a tiny Qwen3 from demonstrations and save it as a Hugging Face folder, with its tokenizer.

    taught: the `task`'s name, the `seed`, the number of `steps`, and the demonstrated answers a step (`batch`).
    """
    seed, steps = taught["seed"], taught["steps"]
    words = tasks.embedded_tokenizer(task.vocabulary)
    torch.manual_seed(seed)
    model = Transformer(replace(EMBEDDED_CONFIG, vocab_size=words.get_vocab_size()))
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng, eos = random.Random(f"demonstrations {seed}"), [0]
    bar, shown = tqdm(range(steps), desc="teaching the base", leave=False), []
    for step in bar:
        while len(shown) < taught["batch"]:
            shown += task.demonstrate(rng)
        now, shown = shown[: taught["batch"]], shown[taught["batch"] :]
        prompts, answers = ([e.ids for e in words.encode_batch(list(texts))] for texts in zip(*now))
        tokens, real = rl.pad([p + a + eos for p, a in zip(prompts, answers)], "cpu")  # (B, T)
        is_answer = real & (torch.arange(tokens.shape[1]) >= torch.tensor([[len(p)] for p in prompts]))
        logits = model(tokens[:, :-1])[is_answer[:, 1:]]  # only answers are learnt: (answer tokens, vocab)
        targets = tokens[:, 1:][is_answer[:, 1:]]
        loss = F.cross_entropy(logits, targets)
        # Warm up, hold, and come down over the last 30 %.
        rate = 3e-3 * min(1, (step + 1) / 50) * min(1, max(0.05, (1 - step / steps) / 0.3))
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{(logits.argmax(-1) == targets).float().mean():.3f}")
    with beside(path) as part:
        model.save_pretrained(part)
        (part / "tokenizer.json").write_text(words.to_str(pretty=True))
        (part / "generation_config.json").write_text(json.dumps({"eos_token_id": eos[0]}))
        (part / "teaching.json").write_text(json.dumps(taught))


# ---------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def beside(path):
    """Yield a name to write to, and rename that file or folder to `path` in the end: a reader never finds half of it.

    Only one process at a time may write a `path`. OSError names what cannot be written; then nothing of it stays.
    """
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # a folder that a killed process left
    try:
        yield part
        if part.is_file():
            with open(part, "rb") as file:
                os.fsync(file.fileno())  # on the disk before it has its name, should the power fail
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error}): make room there, or choose another folder") from None


def write_json(path, *values):
    with beside(path) as part:
        part.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_tensors(path, tensors, metadata=None):
    for left in path.parent.glob(".tmp*"):  # safetensors writes under such a name first, and a killed process leaves it
        left.unlink()
    with beside(path) as part:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)


@contextlib.contextmanager
def locked(path, wait=False):
    """Hold the lock file `path` for a block; yields False where another process has it. Freed by the system if we die."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield True
        except BlockingIOError:
            yield False


def is_done(folder):
    """eval.json is a run's last file, and then its checkpoints go."""
    return (folder / "eval.json").exists() and not (folder / "checkpoint.safetensors").exists()


# ---------------------------------------------------------------------------------------------------- one run


def is_count(text):
    return text.isascii() and text.isdecimal() and len(text) < 5


def layers_of(spec, num_layers, seed=0):
    """The layers that a --layer SPEC names: "5", "3,5", "mid-4", "random-4"; none for "full", "base", "norm" (the final norm).

    "boost-3,5" is full training in which these layers learn faster.
    """
    if spec in ("full", "norm", "base"):
        return []
    name, _, rest = spec.partition("-")
    if name == "boost":
        return layers_of(rest, num_layers, seed)
    if name in ("mid", "random") and is_count(rest) and 0 < int(rest) <= num_layers:
        k = int(rest)
        if name == "random":  # a control for the paper's guided choices: other layers for each seed
            return sorted(random.Random(f"layers {seed}").sample(range(num_layers), k))
        return list(range((num_layers - k) // 2, (num_layers + k) // 2))  # Mid-k: floor(L/2 - k/2) up to floor(L/2 + k/2)
    parts = spec.split(",")
    if all(is_count(part) and int(part) < num_layers for part in parts) and len(set(map(int, parts))) == len(parts):
        return sorted(map(int, parts))
    raise ValueError(
        f"--layer {spec}: this model has layers 0 to {num_layers - 1}; it must be one of them, several such as 3,5 without "
        "repeats, full, norm, base, mid-K, random-K or top-K with K from 1 to the number of layers, each, pairs, probe, search or auto"
    )


def choose(model, spec, seed=0):
    """Freeze everything but what `spec` trains. Returns the names of what trains, and the first layer a gradient reaches."""
    L = model.config.num_hidden_layers
    layers = layers_of(spec, L, seed)
    if spec.startswith(("full", "boost")):
        prefixes, start = ("",), 0
    elif spec == "norm":
        prefixes, start = ("model.norm.",), L
    else:
        prefixes, start = tuple(f"model.layers.{k}." for k in layers), min(layers, default=L)
    names = [name for name, _ in model.named_parameters() if prefixes and name.startswith(prefixes)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names, start


def play(model, tokenizer, task, problems, group_size, settings, generator, temperature, start=0):
    """Episodes, `group_size` of each problem, played to their end, and the Rollout of all their turns."""
    episodes = [task.start(problem) for problem in problems for _ in range(group_size)]
    return episodes, rl.play(
        model, tokenizer, episodes, group_size=group_size, max_new_tokens=settings["max_tokens"], eos_id=tokenizer.eos_ids,
        generator=generator, temperature=temperature, start=start, token_budget=4 * settings["token_budget"],  # no graph: more fits
    )  # fmt: skip


def evaluate(model, tokenizer, task, settings):
    """Score a model on fixed problems: `samples` episodes each at the temperature of training, and the greedy one.

    Returns score and greedy (0 to 1: solved), mean length in tokens and truncated share of the sampled episodes, and for each
    problem which samples solved it, whether the greedy one did, and the answers given. The same random numbers every time.
    """
    generator = torch.Generator(device=model.lm_head.weight.device).manual_seed(1)
    problems, samples = getattr(task, settings["panel"])[: settings["eval_problems"]], settings["samples"]
    n = len(problems)
    episodes, batch = play(model, tokenizer, task, problems, samples, settings, generator, settings["temperature"])
    groups = [episodes[i : i + samples] for i in range(0, n * samples, samples)]
    solved = ["".join(str(int(episode.solved)) for episode in group) for group in groups]  # such as "0110"
    right = [outcomes.count("1") for outcomes in solved]
    lengths, cut = lengths_of(batch, episodes)
    greedy = [int(episode.solved) for episode in play(model, tokenizer, task, problems, 1, settings, generator, 0.0)[0]]
    return {
        "score": sum(right) / (n * samples), "greedy_score": sum(greedy) / n, "length": sum(lengths) / len(lengths),
        "truncated": sum(cut) / len(cut), "samples": samples, "lengths": lengths, "solved": solved,
        "answers": [[episode.answer for episode in group] for group in groups],
        "right": "".join(map(str, right)), "greedy": "".join(map(str, greedy)),  # one character a problem
    }  # fmt: skip


def lengths_of(batch, episodes):
    """For each episode: the tokens that the model wrote in it, and whether it was cut: in its last turn, or out of steps."""
    lengths, cut = [0] * len(episodes), [False] * len(episodes)
    for episode, completion, truncated in zip(batch.episode, batch.completions, batch.truncated):
        lengths[episode] += len(completion)
        cut[episode] = episodes[episode].out_of_steps or truncated  # of its turns the last one counts
    return lengths, cut


def train(model, tokenizer, task, folder, settings, bar, check):
    """One run: RL-train what settings["layer"] names, evaluate after each third, leave the run's files in `folder`.

    `check` is called before every step. The model leaves as it came, also after an exception: what trained is put back.
    """
    names, start = choose(model, settings["layer"], settings["seed"])
    trained = {name: parameter for name, parameter in model.named_parameters() if name in names}
    untrained = {name: parameter.detach().clone() for name, parameter in trained.items()}
    try:
        train_steps(model, tokenizer, task, folder, settings, trained, untrained, start, bar, check)
    except (MemoryError, RuntimeError) as error:
        no_memory = re.search("(out of|not enough) memory|can't allocate|ALLOC_FAILED", str(error))
        if isinstance(error, RuntimeError) and not no_memory:
            raise
        raise MemoryError(what_to_lower(model.config, settings, longest_prompt(tokenizer, task))) from None
    finally:
        for name, parameter in trained.items():
            parameter.data.copy_(untrained[name])
            parameter.grad = None  # of a step cut short


def train_steps(model, tokenizer, task, folder, settings, trained, untrained, start, bar, check):
    """The loop of `train`: `trained` parameters by name, their `untrained` values, and the layer at which gradients stop."""
    model.recompute = settings["recompute"]
    steps = settings["steps"] if trained else 0
    bar.reset(total=steps)
    thirds = (1, 2, 3) if settings["panel"] == "test" else (3,)  # a search for a rate or a layer wants the end alone
    points = sorted({round(steps * third / 3) for third in thirds} - {0}) or [0]
    faster = layers_of(settings["layer"], settings["num_layers"], settings["seed"]) if "boost_lr" in settings else []
    faster = tuple(f"model.layers.{k}." for k in faster)
    factors = [settings["boost_lr"] / settings["lr"] if faster and name.startswith(faster) else 1.0 for name in trained]
    optimizer = rl.Optimizer(trained.values(), factors) if trained else None
    generator = torch.Generator(device=model.lm_head.weight.device).manual_seed(settings["seed"])
    P, G = settings["prompts"], settings["group"]
    algorithm = dict(rl.ALGORITHMS[settings["algo"]])
    aggregate = algorithm.pop("aggregate")

    done, lines, evaluations = load_checkpoint(folder, trained, optimizer, generator) if trained else (0, [], {})
    write_json(folder / "metrics.jsonl", *lines)
    every, saved_at, saving = settings["save_every"], time.monotonic(), 0.0
    bar.update(done)
    for step in range(done, steps):
        check()
        drawn = task.draw(settings["seed"], step, P)
        episodes, batch = play(model, tokenizer, task, drawn, G, settings, generator, settings["temperature"], start)
        advantages = rl.advantages(batch, G, **algorithm)
        lr = settings["lr"] * min(1, (step + 1) / settings["warmup"]) * (1 - step / steps)  # the same schedule for every run
        figures = rl.update(
            model, optimizer, batch, advantages, lr=lr, temperature=settings["temperature"], start=start,
            aggregate=aggregate, clip=settings["clip"], max_tokens=settings["max_tokens"], kl_coef=settings["kl"],
            reference=list(untrained.values()), epochs=settings["epochs"], token_budget=settings["token_budget"],
        )  # fmt: skip
        lengths, cut = lengths_of(batch, episodes)
        solved = torch.tensor([float(episode.solved) for episode in episodes]).view(P, G)
        line = {"step": step + 1, "reward": sum(batch.reward) / (P * G), "accuracy": solved.mean().item()}
        line |= {"solved": solved.amax(1).mean().item()}  # by one of the group or more
        line |= {"turns": len(batch.reward) / (P * G), "length": sum(lengths) / (P * G), "truncated": sum(cut) / (P * G)}
        line |= {"lr": lr, **figures}
        lines.append(line)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        bar.set_postfix(reward=f"{line['reward']:.3f}", accuracy=f"{line['accuracy']:.3f}", length=f"{line['length']:.0f}")
        if step + 1 in points:
            evaluations[step + 1] = evaluate(model, tokenizer, task, settings)
        bar.update(1)
        started = time.monotonic()
        due = (step + 1) % every == 0 if every else started - saved_at >= max(SAVE_EVERY, SAVE_COST * saving)
        if due and step + 1 < steps:
            save_checkpoint(folder, step + 1, trained, optimizer, generator, lines, evaluations)
            saved_at = time.monotonic()
            saving = saved_at - started
    if not trained:  # the base
        evaluations[0] = evaluate(model, tokenizer, task, settings)

    write_json(folder / "metrics.jsonl", *lines)
    if trained:
        write_tensors(folder / "layer.safetensors", dict(zip(trained, optimizer.masters)))
    last = evaluations[points[-1]]
    path = {point: {name: evaluations[point][name] for name in ("right", "greedy")} for point in points[:-1]}
    change = {}  # how far each layer moved: the norm of the difference, over all its tensors
    for name, master in zip(trained, optimizer.masters if trained else ()):
        part = name.split(".")[2] if ".layers." in name else name
        change[part] = change.get(part, 0.0) + (master.detach() - untrained[name].float()).square().sum().item()
    change = {part: squares**0.5 for part, squares in change.items()}
    others = task.also if settings["panel"] == "test" else ()
    elsewhere = {name: evaluate(model, tokenizer, other, settings) for name, other in others}
    counts = [sum(p.numel() for p in parameters) for parameters in (trained.values(), model.parameters())]
    write_json(folder / "eval.json", {
        "panel": settings["panel"], "step": points[-1], **last, "before": path, "also": elsewhere, "change": change,
        "trained": counts[0], "parameters": counts[1],
    })  # fmt: skip
    for path in sorted(folder.glob("checkpoint*"), reverse=True):  # the last one last: until then the run is not done
        path.unlink()


def checksum(folder, log, tensors):
    """Of all that is in a checkpoint, and of the run it belongs to."""
    crc = zlib.crc32((folder / "config.json").read_bytes() + log.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].detach().cpu().numpy().tobytes(), crc)
    return str(crc)


def save_checkpoint(folder, step, trained, optimizer, generator, lines, evaluations):
    """All that the rest of the run depends on, in one file: weights, Adam's moments, random numbers, the log so far."""
    tensors = {"generator": generator.get_state()}
    for name, master in zip(trained, optimizer.masters):
        tensors[f"weight.{name}"] = master.detach()
        for moment, value in optimizer.adam.state.get(master, {}).items():
            tensors[f"{moment}.{name}"] = value
    log = json.dumps({"step": step, "lines": lines, "evaluations": evaluations})
    last, before = (folder / name for name in CHECKPOINTS)
    if last.exists():
        os.replace(last, before)
    write_tensors(last, tensors, {"log": log, "checksum": checksum(folder, log, tensors)})


def load_checkpoint(folder, trained, optimizer, generator):
    """Carry on from `folder`'s last good checkpoint: returns the steps done, their log lines and evaluations, or nothing done."""
    for path in filter(Path.exists, (folder / name for name in CHECKPOINTS)):
        try:
            with safe_open(path, framework="pt") as file:
                log, tensors = file.metadata()["log"], {name: file.get_tensor(name) for name in file.keys()}
                if file.metadata()["checksum"] != checksum(folder, log, tensors):
                    raise ValueError("its checksum is wrong")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            tqdm.write(plain(f"{path} is damaged ({error}): removed, to go on from an earlier one or start again"), sys.stderr)
            path.unlink()
            continue
        generator.set_state(tensors["generator"])
        with torch.no_grad():
            for (name, parameter), master in zip(trained.items(), optimizer.masters):
                master.copy_(tensors[f"weight.{name}"])
                parameter.copy_(master)
                moments = [m for m in ("step", "exp_avg", "exp_avg_sq") if f"{m}.{name}" in tensors]
                optimizer.adam.state[master] = {m: tensors[f"{m}.{name}"].to(master.device) for m in moments}
        log = json.loads(log)
        return log["step"], log["lines"], {int(point): value for point, value in log["evaluations"].items()}
    return 0, [], {}


# ---------------------------------------------------------------------------------------------------- many runs


def run_name(settings):
    rate = f"-lr-{settings['lr']:g}" if settings["panel"] == "validation" else ""
    kind = "layer-" if settings["layer"][0].isdecimal() else ""
    return f"{kind}{settings['layer']}{rate}-seed-{settings['seed']}"


def git_revision():
    """The commit this code is at, or None where that cannot be told."""
    try:
        git = subprocess.run(["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return git.stdout.strip() or None


def claim_settings(runs):
    """Write each run's settings to its config.json, if none that is there already differs: ValueError names the difference."""
    for folder, settings in runs.items():
        there = read_json(folder / "config.json", "settings") if (folder / "config.json").exists() else settings
        for name in sorted({*there, *settings}):
            if there.get(name) != settings.get(name):
                raise ValueError(
                    f"{folder} was made with {name} = {there.get(name)!r}, this command says {settings.get(name)!r}: "
                    f"choose a new folder, such as --runs {folder.parent}-2, or remove this one"
                )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "git": git_revision()}
    for folder, settings in runs.items():
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", {"settings": settings, "versions": versions})


@contextlib.contextmanager
def helping(command, environment, count):
    """Within this block `count` more processes run the same command, and so share its runs; it ends when they do."""
    helpers = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
        for helper in helpers:  # they end by themselves, as there is nothing left to do
            helper.wait()
    finally:
        for helper in helpers:
            helper.terminate()


def sweep(runs, model, tokenizer, task):
    """Do all `runs`, a dict of folder -> settings, with whatever other processes work on them, until each is done.

    Returns one line for each run that failed; the others go on. OSError, one line, where a folder cannot be written.
    """
    failed = {}
    overall = tqdm(total=len(runs), initial=sum(map(is_done, runs)), desc="sweep", unit="run", disable=bool(PARENT), smoothing=0)
    bar = tqdm(total=1, unit="step", leave=False, disable=bool(PARENT))

    def check():
        overall.n = sum(map(is_done, runs))
        overall.refresh()
        if PARENT and os.getppid() != int(PARENT):
            sys.exit(1)

    try:
        while left := [folder for folder in runs if folder not in failed and not is_done(folder)]:
            busy = 0
            for folder in left:
                check()
                with locked(folder / "lock") as mine:
                    if not mine or is_done(folder):
                        busy += 1
                        continue
                    bar.set_description(folder.name)
                    try:
                        train(model, tokenizer, task, folder, runs[folder], bar, check)
                    except (FloatingPointError, MemoryError, OSError, ValueError) as error:
                        failed[folder] = plain(f"{folder}: stopped in step {min(bar.n + 1, bar.total)} of {bar.total}: {error}")
                        if isinstance(error, OSError):  # a full disk would stop the others too
                            raise OSError(failed[folder]) from None
                        bar.clear()
                        tqdm.write(failed[folder])
            if busy == len(left):
                time.sleep(0.2)
        check()
    finally:
        bar.close()
        overall.close()
    return list(failed.values())


# ---------------------------------------------------------------------------------------------------- which layer?


def probe(model, tokenizer, task, settings, batches=3):
    """What gradients at the base say of each layer, before anything is trained: statistic -> one number a layer.

    g is the gradient of the policy loss on one prompt's group, from `batches` batches of a training step each. Per layer:
    gradient, the norm of the mean g; relative, that divided by the norm of the weights; signal_to_noise, the squared norm of
    the mean g over its variance from prompt to prompt; adam, the mean |g| summed, what a first Adam step promises to gain.
    middle is no measurement: nearness to the middle of the stack, which is what the paper advises without any.
    """
    choose(model, "full")
    model.recompute = settings["recompute"]
    L, P, G = model.config.num_hidden_layers, settings["prompts"], settings["group"]
    layers = [[p for name, p in model.named_parameters() if name.startswith(f"model.layers.{k}.")] for k in range(L)]
    total, squares, prompts = [[torch.zeros_like(p, dtype=torch.float32) for p in layer] for layer in layers], [0.0] * L, 0
    generator = torch.Generator(device=model.lm_head.weight.device).manual_seed(settings["seed"])
    algorithm = dict(rl.ALGORITHMS[settings["algo"]])
    aggregate = algorithm.pop("aggregate")
    for step in tqdm(range(batches), desc="probe", leave=False):
        drawn = task.draw(settings["seed"], step, P)
        _, batch = play(model, tokenizer, task, drawn, G, settings, generator, settings["temperature"])
        advantages = rl.advantages(batch, G, **algorithm)
        for group in range(P):
            rows = [row for row, episode in enumerate(batch.episode) if episode // G == group]
            for part in rl.micro_batches(batch, [row for row in rows if advantages[row] != 0], settings["token_budget"]):
                logprobs, mask = rl.score(model, batch, part, settings["temperature"])
                loss = rl.policy_loss(
                    logprobs, logprobs.detach(), advantages[part], mask, aggregate=aggregate, max_tokens=settings["max_tokens"]
                )
                (loss * len(part) / len(rows)).backward()
            prompts += 1
            for k, layer in enumerate(layers):
                for mean, p in zip(total[k], layer):
                    if p.grad is not None:
                        mean += p.grad
                        squares[k] += p.grad.float().square().sum().item()
            model.zero_grad()
    found = {"gradient": [], "relative": [], "signal_to_noise": [], "adam": []}
    for layer, sums, square in zip(layers, total, squares):
        norm, weights = (sum(t.float().square().sum().item() for t in tensors) ** 0.5 for tensors in (sums, layer))
        variance = (square - norm**2 / prompts) / prompts
        found["gradient"].append(norm / prompts)
        found["relative"].append(norm / prompts / weights)
        found["signal_to_noise"].append((norm / prompts) ** 2 / (max(variance, 1e-30) / prompts))
        found["adam"].append(sum(t.abs().sum().item() for t in sums) / prompts)
    return {**found, "middle": [-abs(k - (L - 1) / 2) for k in range(L)]}


def mean_scores(runs):
    """The mean score of each group of finished runs: pairs of (folder, group) -> group -> score."""
    found = {}
    for folder, group in runs:
        found.setdefault(group, []).append(read_json(folder / "eval.json", "score", float))
    return {group: sum(scores) / len(scores) for group, scores in found.items()}


def search(args, config, root, run_sweep):
    """Find a layer for less than the sweep costs: train all for a few steps, drop the worse half, the rest for twice as many.

    Every round is anew, with a whole schedule of its own, under root/search-STEPS; the last has half of --steps. Scored on the
    validation panel. Returns {"layer", "rounds": [{"steps", "scores"}], "steps"}: `steps` of one layer, all rounds together.
    """
    layers, rounds = list(range(config.num_hidden_layers)), []
    halvings = (len(layers) - 1).bit_length()
    for i in range(halvings):
        steps = max(1, args.steps >> (halvings - i))
        options = argparse.Namespace(**{**vars(args), "steps": steps, "find_lr": [args.lr]})
        runs = {}
        for k in layers:
            options.layer = str(k)
            runs |= runs_of(options, config, root / f"search-{steps}")
        run_sweep(runs)
        scores = mean_scores((folder, int(settings["layer"])) for folder, settings in runs.items())
        rounds.append({"steps": steps, "scores": scores})
        layers = sorted(layers, key=lambda k: -scores[k])[: (len(layers) + 1) // 2]
    return {"layer": layers[0], "rounds": rounds, "steps": sum(r["steps"] * len(r["scores"]) for r in rounds)}


# ---------------------------------------------------------------------------------------------------- plan and merge


def plan(config, spec, settings, prompt_length):
    """Expected memory of one run in bytes, part by part, and how many parameters train: computed from shapes alone.

    Sampling and training follow one another, so the peak holds the larger of the two. Activations are counted per token and
    layer from what autograd keeps: about 8 vectors of the residual's width, 3 of the heads', 3 of the MLP's.
    """
    with torch.device("meta"):
        model = Transformer(config)
    names, start = choose(model, spec)
    parameters = dict(model.named_parameters())
    total, trained = sum(p.numel() for p in parameters.values()), sum(parameters[name].numel() for name in names)
    size = DTYPES[settings["dtype"]].itemsize  # bytes a number
    D, L, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    G, new = settings["group"], settings["max_tokens"]
    heads, kv = config.num_attention_heads * config.head_dim, 2 * config.num_key_value_heads * config.head_dim
    # Sampling: as many prompts at a time as the budget holds.
    at_once = min(settings["prompts"], max(1, 4 * settings["token_budget"] // (G * (prompt_length + new))))
    cache = size * L * kv * at_once * (G * (prompt_length + new) + prompt_length)
    kept = size * D * settings["prompts"] * (G * new + prompt_length) * (start > 0)
    # Training: a micro-batch is as many rows as the budget holds, at least one with its prompt.
    tokens = max(min(settings["token_budget"], settings["prompts"] * (G * new + prompt_length)), prompt_length + new)
    inner = 8 * D + 3 * (heads + kv) + 3 * config.intermediate_size + kv * prompt_length // new  # numbers a token and layer
    activations = (L - start) * D + inner if settings["recompute"] else (L - start) * inner
    head = 16 * min(rl.CHUNK, tokens * vocab) + (size + 4) * vocab * D * (spec == "full")
    return {
        "parameters": total, "trained": trained, "weights": size * total,
        "masters, gradients, Adam, untrained copy": trained * ((12 if size == 4 else 18) + size),
        "hidden states kept": kept, "sampling: cache": cache, "sampling: log-probabilities": 16 * at_once * G * vocab,
        "training: activations": size * tokens * activations * (spec != "norm"), "training: log-probabilities": head,
        "program and libraries": 4 * 10**8,
    }  # fmt: skip


def peak(parts):
    """The largest sum of `plan`'s parts that are in memory at one time."""
    held = [value for name, value in parts.items() if name not in ("parameters", "trained") and ":" not in name]
    return sum(held) + max(sum(v for n, v in parts.items() if n.startswith(phase)) for phase in ("sampling:", "training:"))


def what_to_lower(config, settings, prompt_length):
    """What to say where memory ran out: which options would help, and the peak that `plan` expects with each."""

    names = [name for name in ("token_budget", "prompts", "group", "max_tokens") if settings[name] > 3]
    changes = [{}, {"recompute": True}, *({name: settings[name] // 2} for name in names)]
    now, *peaks = (peak(plan(config, settings["layer"], {**settings, **change}, prompt_length)) / 2**30 for change in changes)
    options = ["--recompute", *(f"--{name.replace('_', '-')} {settings[name] // 2}" for name in names)]
    lower = [f"{option} ({gib:.2f})" for option, gib in zip(options, peaks) if gib < now]
    return f"out of memory, where {now:.2f} GiB were expected; lower it with {' or '.join(lower)}, in a new --runs folder"


def longest_prompt(tokenizer, task):
    every = [p.prompt for one in (task, *dict(task.also).values()) for p in (*one.validation, *one.test, *one.train)]
    return max(map(len, tokenizer.encode(every)))


def print_plan(config, runs, prompt_length):
    """What `--plan` prints: parameters and memory of the first run of each kind, and the number of runs."""
    kinds = {}
    for settings in runs:
        kind = "one layer" if settings["layer"].isdecimal() else settings["layer"]
        kinds.setdefault(kind, plan(config, settings["layer"], settings, prompt_length))
    kinds = {kind: parts for kind, parts in kinds.items() if kind != "base"}
    print(f"{'':42}" + "".join(f"{kind:>14}" for kind in kinds))
    for name in next(iter(kinds.values()), {}):
        unit = 1e6 if name in ("parameters", "trained") else 2**30
        label = {"parameters": "parameters, millions", "trained": "of these train, millions"}.get(name, f"{name}, GiB")
        print(f"{label:42}" + "".join(f"{parts[name] / unit:14.2f}" for parts in kinds.values()))
    print(f"{'expected peak, GiB':42}" + "".join(f"{peak(parts) / 2**30:14.2f}" for parts in kinds.values()))
    print(f"{len(runs)} runs")


def merge(run, out, model_path=None):
    """Write the checkpoint that a run evaluated: its model with the trained tensors in place, tokenizer and settings copied.

    ValueError or OSError, one line, where the run is not finished, `out` is there already, or the tensors do not fit.
    """
    run, out = Path(run), Path(out)
    if not is_done(run) or not (run / "layer.safetensors").exists():
        raise ValueError(f"--merge {run}: not a finished run that trained something, with eval.json and layer.safetensors")
    if out.exists():
        raise ValueError(f"--out {out}: is there already; choose a new folder")
    settings = read_json(run / "config.json", "settings")
    embedded = settings["model"].startswith("embedded, seed")
    source = Path(model_path or (run.parent / "base" if embedded else settings["model"]))
    model = Transformer.from_pretrained(source, dtype=DTYPES[settings.get("dtype", "fp32")])
    parameters = dict(model.named_parameters())
    try:
        tensors = load_file(run / "layer.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{run / 'layer.safetensors'}: not a whole safetensors file ({error})") from None
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise ValueError(f"{run / 'layer.safetensors'}: tensor {name} does not fit the model in {source}")
        parameters[name].data.copy_(tensor)
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    config = {**read_json(source / "config.json"), "torch_dtype": dtype, "dtype": dtype}
    with beside(out) as part:
        model.save_pretrained(part)
        for file in sorted(source.iterdir()):
            if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.startswith("model."):
                shutil.copyfile(file, part / file.name)
        (part / "config.json").write_text(json.dumps(config))


# ---------------------------------------------------------------------------------------------------- the command line


def fail(message):
    """The end of a command that cannot be done: one line, exit status 2."""
    if not PARENT:  # which meets the same
        print(f"train.py: {plain(message)}", file=sys.stderr)
    sys.exit(2)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.error = fail
    add = parser.add_argument
    specs = "5 | 3,5 | full | norm | base | mid-4 | top-4 | random-4 | each (default) | pairs | probe | search | auto"
    add("--layer", default="each", metavar="SPEC", help=specs)
    add("--boost", metavar="SPEC", help="train everything, these layers (3,5 | mid-4 | top-4 | ...) at the rate --boost-lr")
    add("--boost-lr", type=float, help="their learning rate (default: twice --lr, as in the paper)")
    add("--model", metavar="DIR", help="checkpoint in Hugging Face format (default: the embedded model, made on first use)")
    add("--task", default="math", help="math (default), math-short, code, household, alfworld:FOLDER, a .jsonl or .json file")
    add("--fields", metavar="Q,A", help="names of the question and answer fields of a --task file whose format is not known")
    add("--instruction", metavar="TEXT", help="what every question of a --task file ends with (default: to reason, and box)")
    add("--also", metavar="TASKS", help="tasks to score every model on too, untrained: a.jsonl,household; of math: sub,max,min")
    add("--algo", default="grpo", choices=rl.ALGORITHMS, help="default: grpo")
    add("--runs", default="runs", metavar="DIR", help="folder for the runs (default: runs)")
    add("--seeds", default=None, metavar="0,1,2", help="one run per seed (default 0,1,2 for the embedded model, else 0)")
    add("--quick", action="store_true", help="a smoke test: one seed, few steps, a base taught less")
    add("--find-lr", metavar="RATES", help="full training at each of these rates, scored on the validation panel")
    add("--steps", type=int, help="optimizer steps of a run")
    add("--lr", type=float, help="learning rate, the same for full and single layers")
    add("--prompts", type=int, help="problems a step")
    add("--group", type=int, help="completions a problem")
    add("--max-tokens", type=int, help="longest completion")
    add("--temperature", type=float, default=1.0, help="of sampling, in training and evaluation (default 1)")
    add("--clip", type=float, default=0.2, help="clip range of the ratio (default 0.2)")
    add("--kl", type=float, default=0.0, help="weight of the KL penalty to the base (default 0)")
    add("--epochs", type=int, default=1, help="updates a batch (default 1)")
    add("--eval-problems", type=int, help="problems of the panel that are evaluated on (embedded 1000, else 8 a training prompt)")
    add("--samples", type=int, default=4, help="sampled completions a problem in evaluation (default 4)")
    add("--base-seed", type=int, default=0, help="seed of the embedded model (default 0)")
    add("--save-every", type=int, metavar="STEPS", help="steps between a run's checkpoints (default: those of half a minute)")
    add("--token-budget", type=int, default=4096, help="positions a training pass, a quarter of those sampled at a time")
    add("--recompute", action="store_true", help="keep less for the backward pass and compute it again: less memory, more time")
    add("--jobs", type=int, help="processes that share the runs (default: one a core for the embedded model, else 1)")
    add("--plan", action="store_true", help="print parameters and expected memory, and run nothing")
    add("--merge", metavar="RUN", help="with --out DIR: write the full checkpoint of a finished run")
    add("--out", metavar="DIR", help="new folder for --merge")
    add("--device", help="cpu or cuda (default: cuda where there is one and --model is given)")
    add("--dtype", choices=DTYPES, help="what the model computes in (default: bf16 on cuda, else fp32)")
    args = parser.parse_args(argv)

    embedded = args.model is None
    if args.quick and not embedded:
        fail("--quick is a smoke test of the embedded model; with --model, lower --steps and --eval-problems instead")
    if embedded and args.task not in EMBEDDED:
        fail(f"--task {args.task} needs --model: the embedded model knows only its own tasks, {', '.join(EMBEDDED)}")
    defaults = {**EMBEDDED[args.task], **(QUICK[args.task] if args.quick else {})} if embedded else REAL
    for name, value in defaults.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() and not embedded else "cpu"
    if args.dtype is None:
        args.dtype = "bf16" if args.device == "cuda" else "fp32"
    if args.model:  # recorded under one name, from wherever it was typed
        args.model = str(Path(args.model).resolve())
    if args.task.endswith((".json", ".jsonl")):
        args.task = str(Path(args.task).resolve())
    if args.task.startswith("alfworld:"):  # in which the shell expands no ~
        args.task = f"alfworld:{Path(os.path.expanduser(args.task.removeprefix('alfworld:'))).resolve()}"
    args.also = [
        str(Path(name).resolve()) if name.endswith((".json", ".jsonl")) else name for name in (args.also or "").split(",") if name
    ]
    if len({Path(name).name for name in args.also}) < len(args.also):
        fail(f"--also {','.join(args.also)}: no two tasks may have the same name")
    if args.seeds is None:
        args.seeds = "0,1,2" if embedded and not args.quick else "0"
    if args.eval_problems is None:
        args.eval_problems = 8 * args.prompts  # a short trial is evaluated shortly
    for name in "steps prompts group max_tokens epochs eval_problems samples jobs token_budget save_every".split():
        least = 2 if name == "group" else 1
        if getattr(args, name) is not None and getattr(args, name) < least:
            fail(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least {least}")
    if args.samples > 9:
        fail(f"--samples is {args.samples}; it must be at most 9, so that a problem's outcome is one digit")
    if args.boost_lr is None:
        args.boost_lr = 2 * args.lr
    elif not args.boost:
        fail("--boost-lr goes with --boost SPEC")
    if args.boost and (args.layer != "each" or args.find_lr or args.boost.startswith(("full", "base", "norm", "boost"))):
        fail("--boost names layers, such as 3,5 or top-4, and trains everything: it goes without --layer and --find-lr")
    if args.boost == "" or args.layer.startswith("boost"):
        fail("--boost wants the layers that learn faster, such as --boost 3,5")
    for name in ("lr", "boost_lr", "temperature", "clip"):
        if not 0 < getattr(args, name) < float("inf"):
            fail(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be a number above 0")
    if not 0 <= args.kl < float("inf"):
        fail(f"--kl is {args.kl}; it must be 0 or above")
    if bool(args.merge) != bool(args.out) or args.merge and args.plan:
        fail("--merge RUN and --out DIR go together, and without --plan")
    if os.path.exists(args.runs) and not os.path.isdir(args.runs):
        fail(f"--runs {args.runs} is a file; it must be a folder, new or of runs with these settings")
    if args.device != "cpu" and not (args.device == "cuda" and (args.plan or torch.cuda.is_available())):
        fail(f"--device {args.device} is not there; this machine has cpu" + (" and cuda" if torch.cuda.is_available() else ""))
    try:
        args.seeds = [int(seed) for seed in args.seeds.split(",")]
        args.find_lr = [float(rate) for rate in args.find_lr.split(",")] if args.find_lr is not None else []
    except ValueError:
        fail("--seeds takes whole numbers and --find-lr numbers, with commas between them")
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= seed < 2**32 for seed in [*args.seeds, args.base_seed]):
        fail(f"--seeds {args.seeds}, --base-seed {args.base_seed}: seeds must be different, from 0 to {2**32 - 1}")
    if args.find_lr and (args.layer != "full" or not all(0 < rate < float("inf") for rate in args.find_lr)):
        fail("--find-lr goes with --layer full and rates above 0: full training chooses, every layer uses the same")
    return args


def resolved(spec, root, num_layers):
    """A SPEC with "top-K" replaced by the layers it stands for, and layers in order: 5,3 is 3,5."""
    if spec.startswith("top-") and is_count(spec[4:]):
        return top_layers(root, int(spec[4:]), num_layers)
    layers = layers_of(spec, num_layers)
    return ",".join(map(str, layers)) if layers and spec[0].isdecimal() else spec


def top_layers(root, count, num_layers):
    """The `count` layers that scored best alone, on average over the seeds in `root`, as a SPEC such as "3,5"."""
    scores = mean_scores((path.parent, k) for k in range(num_layers) for path in root.glob(f"layer-{k}-seed-*/eval.json"))
    if missing := sorted(set(range(num_layers)) - set(scores)):
        raise ValueError(f"--layer top-{count}: {root} has no score for layer {missing[0]}: first run --layer each")
    if not 0 < count <= num_layers:
        raise ValueError(f"--layer top-{count}: K must be from 1 to {num_layers}")
    return ",".join(map(str, sorted(sorted(scores, key=lambda k: -scores[k])[:count])))


def runs_of(args, config, root):
    """The runs a command asks for: folder -> settings. ValueError for a --layer that makes no sense for this model."""
    L = config.num_hidden_layers
    each = list(map(str, range(L)))
    several = {"each": ["base", "full", "norm", *each], "pairs": list(map(",".join, itertools.combinations(each, 2)))}
    several |= {"probe": ["full"], "search": each, "auto": each}
    specs = several.get(args.layer) or [resolved(args.layer, root, L)]
    if args.boost:
        specs = [f"boost-{resolved(args.boost, root, L)}"]
    names = "task algo steps prompts group max_tokens temperature clip kl epochs eval_problems samples quick device dtype"
    shared = {name: getattr(args, name) for name in [*names.split(), "token_budget", "recompute"]}
    shared["model"] = args.model or f"embedded, seed {args.base_seed}, {args.teach_steps} steps"
    shared |= {name: getattr(args, name) for name in ("fields", "instruction") if getattr(args, name) is not None}
    shared |= {"also": args.also} if args.also else {}
    shared |= {"num_layers": L, "warmup": 5, "panel": "validation" if args.find_lr else "test"}
    runs = {}
    for seed in args.seeds:
        for spec in specs:
            for lr in args.find_lr or [args.lr]:
                settings = {**shared, "layer": spec, "seed": seed, "lr": lr}
                settings |= {"boost_lr": args.boost_lr} if args.boost else {}
                if spec != "base" or seed == args.seeds[0]:  # nothing trains in the base, so no seed matters
                    runs[root / run_name(settings)] = settings
    return runs


def open_base(path, task, args):
    """Make the embedded base where it is not there yet; ValueError where there is one that was taught otherwise."""
    taught = {"task": args.task, "seed": args.base_seed, "steps": args.teach_steps, "batch": args.teach_batch}
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name("base.lock"), wait=True):
        if not path.exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(2)  # always two, whatever the number of cores
            teach_base(path, task, taught)
            torch.set_num_threads(threads)
    there = read_json(path / "teaching.json")
    if there != taught:
        raise ValueError(f"{path} was taught with {there}, not {taught}: choose a new folder, such as --runs {path.parent}-2")


def report(root, name, found):
    """Print what `probe` or `search` found, and leave it in `root` for analyze.py."""
    if PARENT:
        return
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / f"{name}.json", found)
    if name == "probe":
        for statistic, values in found.items():
            print(f"{statistic:16}" + " ".join(f"{value:9.3g}" for value in values))
        return
    for r in found["rounds"]:
        best = sorted(r["scores"].items(), key=lambda item: -item[1])
        print(f"{r['steps']} steps: " + ", ".join(f"layer {layer} {score:.3f}" for layer, score in best))
    print(f"found: layer {found['layer']}")


def main(argv=None):
    args = parse(argv)
    embedded, root = args.model is None, Path(args.runs)
    path = root / "base" if embedded else Path(args.model)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torchrun = os.environ.get("LOCAL_RANK")  # the number of this process on its machine, if torchrun started it
    jobs = args.jobs or (cores if embedded and not torchrun else 1)
    threads = 1 if embedded else max(1, torch.get_num_threads() // jobs)  # one thread: the same figures on any number of cores
    torch.set_num_threads(threads)
    try:
        if args.merge:
            merge(args.merge, args.out, args.model)
            return print(f"written: {args.out}")
        task = tasks.load_task(args.task, embedded or args.plan, args.fields, args.instruction)
        task.also = [(name, tasks.load_task(name, embedded)) for name in args.also]
        for name, other in task.also:
            if embedded and not {*other.vocabulary} <= {*task.vocabulary}:
                raise ValueError(
                    f"--also {name}: the model of --task {args.task} does not know its words; math also has sub, max, min"
                )
            if embedded and other.test == task.test:
                raise ValueError(f"--also {name}: has the problems that --task {args.task} is scored on; it must be another task")
        args.eval_problems = min(args.eval_problems, len(task.test))
        if args.plan:
            config = EMBEDDED_CONFIG if embedded else Config.from_hf(read_json(path / "config.json"))
            known = not embedded and (path / "tokenizer.json").exists()
            longest = longest_prompt(tasks.Tokenizer(path), task) if known else 512
            return print_plan(config, list(runs_of(args, config, root).values()), longest)
        if embedded:
            runs_of(args, EMBEDDED_CONFIG, root)  # a bad option should not cost the minutes of teaching
            open_base(path, task, args)
        config, tokenizer = Config.from_hf(read_json(path / "config.json")), tasks.Tokenizer(path)
        longest = longest_prompt(tokenizer, task)
        if longest + args.max_tokens > config.max_position_embeddings:
            raise ValueError(
                f"--max-tokens {args.max_tokens} after a prompt of {longest} exceeds the context of {config.max_position_embeddings}"
            )
        runs = runs_of(args, config, root)
        if torchrun and args.device == "cuda":
            torch.cuda.set_device(int(torchrun) % torch.cuda.device_count())  # a GPU for each
        model = Transformer.from_pretrained(path, dtype=DTYPES[args.dtype], device=args.device)

        def run_all(runs):
            folder = next(iter(runs)).parent
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "settings.lock", wait=True):
                claim_settings(runs)
            for settings in runs.values():
                settings["save_every"] = args.save_every  # not among those claimed: it changes no result
            if failed := sweep(runs, model, tokenizer, task):
                sys.exit(1 if PARENT else "\n".join(failed))

        if args.layer == "probe":
            return report(root, "probe", probe(model, tokenizer, task, next(iter(runs.values()))))  # the first seed's problems
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--jobs", "1"]
        environment = {**os.environ, "ONELAYER_PARENT": str(os.getpid()), "OMP_NUM_THREADS": str(threads)}
        searches = args.layer in ("search", "auto")  # in folders of their own, whatever is done in this one
        left = jobs if searches else sum(not is_done(folder) for folder in runs)
        with helping(command, environment, max(0, min(jobs, left) - 1)):
            if searches:
                found = search(args, config, root, run_all)
                report(root, "search", found)
                if args.layer == "search":
                    return
                args.layer = str(found["layer"])
                runs = runs_of(args, config, root)
            run_all(runs)
        if args.find_lr:
            print("rate        full training, sampled score on the validation panel, mean over seeds")
            for lr, score in mean_scores((folder, settings["lr"]) for folder, settings in runs.items()).items():
                print(f"{lr:<10g}  {score:.3f}")
    except (ValueError, OSError) as error:
        fail(error)
    print(f"{len(runs)} runs done in {root}" + (" (a smoke test: too short for its figures to mean much)" if args.quick else ""))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130 if PARENT else "\nstopped; the same command carries on from here")
