"""Train one layer by reinforcement learning, freeze the rest, and measure what it gives.

    python train.py --layer each        base, full training, the final norm, and each layer alone
    python train.py --layer 5           layer 5 alone, and nothing else
    python train.py --layer full --find-lr 2e-4,5e-4,1e-3      the best rate for full training
    python train.py --layer search      which layer seems best, for about a third of a sweep

The lesson is `freeze_all_but`, which decides what trains, and `Run`, which trains it. A run is a
folder under --runs: config.json (settings, versions), metrics.jsonl (a line a step), eval.json
(scores, outcomes, answers), examples.jsonl (what the model writes) and layer.safetensors (the
tensors that trained). A finished run is never done again; another carries on from its checkpoint.
"""

import argparse
import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch: idle threads then free the core

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import rl
import tasks
from model import Config, Transformer, read_json
from tasks import one_line

# ---- What trains


def layers_of(spec, num_layers, seed=0):
    """The layers that a SPEC of --layer names, in order: "5", "3,5", "mid-4", "random-4" (others
    for each seed), "boost-3,5"; none for "full", "base" and "norm". ValueError for another SPEC.
    """
    if spec in ("full", "base", "norm"):
        return []
    parts = spec.removeprefix("boost-").split(",")
    layers = [layer for layer in range(num_layers) if str(layer) in parts]
    if len(layers) == len(parts):
        return layers
    for k in range(1, num_layers + 1):
        if parts == [f"mid-{k}"]:  # the paper's Mid-k
            return list(range((num_layers - k) // 2, (num_layers + k) // 2))
        if parts == [f"random-{k}"]:
            return sorted(random.Random(f"layers {seed}").sample(range(num_layers), k))
    raise ValueError(
        f"--layer {spec}: this model has layers 0 to {num_layers - 1}; --help lists the rest"
    )


def freeze_all_but(model, spec, seed=0):
    """Freeze every parameter except those that `spec` trains: the paper's one change to RL.

    Returns the parameters that train, by name, and the first layer that a gradient reaches (for
    norm and base the number of layers). Nothing below it changes, so what enters it can be kept
    from sampling (`rl.logprobs_of`).
    """
    num_layers = model.config.num_hidden_layers
    layers = layers_of(spec, num_layers, seed)
    if spec.startswith(("full", "boost")):
        prefixes, start = ("",), 0
    elif spec == "norm":
        prefixes, start = ("model.norm.",), num_layers
    else:  # a layer's attention, MLP, biases and norms; nothing at all in the base
        prefixes = tuple(f"model.layers.{k}." for k in layers)
        start = min(layers, default=num_layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    return {name: p for name, p in model.named_parameters() if p.requires_grad}, start


# ---- One run

WARMUP = 5  # steps over which the learning rate rises
BOOST = 2  # times the learning rate, as in the paper: 1e-5 for 5e-6
SAVE_EVERY = 300  # seconds between checkpoints, which may be large


class Run:
    """One run: trains what settings["layer"] names, scores it, and leaves its files in `folder`.

    The base is a run of no steps. A checkpoint has to hold `step`, `log` (a line a step), `scores`
    (step -> evaluation), the optimizer and the random generator.
    """

    def __init__(self, model, tokenizer, task, folder, settings, budget=None):
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.folder, self.settings, self.budget = folder, settings, budget
        spec, seed = settings["layer"], settings["seed"]
        self.trained, self.start = freeze_all_but(model, spec, seed)
        self.untrained = {name: p.detach().clone() for name, p in self.trained.items()}
        layers = layers_of(spec, len(model.model.layers), seed) if "boost" in spec else []
        boosted = tuple(f"model.layers.{k}." for k in layers)
        factors = {name: BOOST for name in self.trained if name.startswith(boosted)}
        self.optimizer = rl.Optimizer(self.trained, factors)
        self.generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)
        self.steps = settings["steps"] if self.trained else 0
        self.step, self.log, self.scores = 0, [], {}
        self.save_at = time.monotonic() + SAVE_EVERY
        model.recompute = settings["recompute"]

    def train(self):
        """From the last checkpoint, if there is one, to eval.json. Ctrl-C saves a checkpoint."""
        self.load()
        thirds = {round(self.steps * third / 3) for third in (1, 2)} - {self.steps}
        steps, at = range(self.step, self.steps), {"initial": self.step, "total": self.steps}
        bar = tqdm(steps, self.folder.name, leave=False, **at)
        for _ in bar:
            end_early(self.save)
            line = self.train_step()
            bar.set_postfix(reward=line["reward"], length=line["length"], refresh=False)
            if self.step in thirds and self.settings["panel"] == "test":
                self.scores[self.step] = self.evaluate(self.task)
            if time.monotonic() >= self.save_at:
                self.save()
        self.scores[self.step] = self.evaluate(self.task)
        self.finish()

    def train_step(self):
        """One step of RL with verifiable rewards: ask, sample, grade, compare, move."""
        s, task = self.settings, self.task
        problems = task.draw(s["seed"], self.step, s["prompts"])
        episodes, batch = self.collect(
            task, problems, s["group"], s["temperature"], self.generator, self.start
        )
        algorithm = dict(rl.ALGORITHMS[s["algo"]])
        aggregate = algorithm.pop("aggregate")
        advantages = rl.compute_advantages(batch, s["group"], **algorithm)
        # Warm up, then fall to 0: the same rate and schedule for every run.
        lr = s["lr"] * min(1, (self.step + 1) / WARMUP) * (1 - self.step / self.steps)
        figures = rl.update(
            self.model, self.optimizer, batch, advantages, lr=lr, temperature=s["temperature"],
            start=self.start, aggregate=aggregate, clip=s["clip"], kl_coef=s["kl"],
            max_tokens=s["max_tokens"] * task.max_turns, reference=self.untrained,
            epochs=s["epochs"], budget=self.budget,
        )  # fmt: skip
        self.step += 1
        n = len(episodes)
        self.log.append({
            "step": self.step, "reward": sum(batch.reward) / n, "turns": len(batch.reward) / n,
            "accuracy": sum(episode.solved for episode in episodes) / n,
            **lengths_of(batch, episodes), "lr": lr, **figures,
        })  # fmt: skip
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(self.log[-1]) + "\n")
        if self.step % 10 == 0 and not any(line["signal"] for line in self.log[-10:]):
            say(
                f"{self.folder}: ten steps without a group with both right and wrong answers: "
                "try other problems, a larger --group or, if answers are cut short, --max-tokens"
            )
        return self.log[-1]

    def collect(self, task, problems, group_size, temperature, generator, start=0):
        """Play `group_size` episodes of each problem, a turn of each unfinished one at a time.

        Returns the episodes, at their end, and a Rollout of all their turns.
        """
        episodes = [task.begin(problem) for problem in problems for _ in range(group_size)]
        batch, going = rl.Rollout(), list(range(len(episodes)))
        with ThreadPoolExecutor() as pool:  # some rewards are the verdicts of other processes
            while going:
                prompts = self.tokenizer.encode([episodes[i].prompt for i in going])
                turn = rl.rollout(
                    self.model, prompts, group_size=1, max_new_tokens=self.settings["max_tokens"],
                    temperature=temperature, eos_id=self.tokenizer.eos_ids, generator=generator,
                    start=start, budget=self.budget,
                )  # fmt: skip
                turn.episode, turn.anchor = going, [episodes[i].anchor for i in going]
                texts = self.tokenizer.decode(turn.completions)
                turn.reward = list(pool.map(lambda i, text: episodes[i].step(text), going, texts))
                batch.append(turn)
                going = [i for i in going if not episodes[i].done]
        return episodes, batch

    def evaluate(self, task):
        """Score the model on a fixed panel, with the same random numbers every time.

        `samples` episodes a problem at the temperature of training, and the greedy one. `right`
        and `greedy` hold a digit a problem: how many of its samples solved it, and 0 or 1.
        """
        s, samples, text = self.settings, self.settings["samples"], self.tokenizer.tokens.decode
        problems = getattr(task, s["panel"])[: s["eval_problems"]]
        generator = torch.Generator(self.model.lm_head.weight.device).manual_seed(1)
        episodes, batch = self.collect(task, problems, samples, s["temperature"], generator)
        greedy, _ = self.collect(task, problems, 1, 0.0, generator)
        groups = [episodes[i : i + samples] for i in range(0, len(episodes), samples)]
        solved = ["".join(str(int(e.solved)) for e in group) for group in groups]  # such as "0110"
        examples = [{
            "prompt": text(batch.prompts[i], skip_special_tokens=False),
            "completion": text(batch.completions[i], skip_special_tokens=False),
            "reward": batch.reward[i], "answer": episodes[i].answer,
        } for i in range(0, len(episodes), samples)[:3]]  # fmt: skip
        return {
            "score": sum(e.solved for e in episodes) / len(episodes), "samples": samples,
            **lengths_of(batch, episodes),
            "right": "".join(str(outcomes.count("1")) for outcomes in solved),
            "greedy": "".join(str(int(e.solved)) for e in greedy), "solved": solved,
            "answers": [[e.answer for e in group] for group in groups], "examples": examples,
        }  # fmt: skip

    # What follows keeps the run's files.

    def save(self):
        """All that the rest of the run depends on, in one file."""
        log = json.dumps({"step": self.step, "log": self.log, "scores": self.scores})
        tensors = {"generator": self.generator.get_state(), **self.optimizer.tensors()}
        with written_beside(self.folder / "checkpoint.safetensors") as part:
            save_file(tensors, part, {"log": log})
        self.save_at = time.monotonic() + SAVE_EVERY

    def load(self):
        """Carry on from the checkpoint. A damaged one is named, and the run starts anew."""
        path = self.folder / "checkpoint.safetensors"
        if path.exists():
            try:
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}
                    there = json.loads(file.metadata()["log"])
                self.generator.set_state(tensors.pop("generator"))
                self.optimizer.load(tensors)
                self.scores = {int(step): found for step, found in there["scores"].items()}
                self.step, self.log = there["step"], there["log"]
            except SafetensorError as error:
                say(f"{path} is damaged ({error}): the run starts anew")
                path.unlink()
        write_json(self.folder / "metrics.jsonl", *self.log)

    def finish(self):
        """Write the run's files; eval.json comes last and says that the run is done."""
        if self.trained:
            with written_beside(self.folder / "layer.safetensors") as part:
                save_file(self.optimizer.masters, part)
        change = {}  # how far each layer moved: the norm over its tensors
        for name, master in self.optimizer.masters.items():
            part = name.split(".")[2] if ".layers." in name else name
            moved = (master.detach() - self.untrained[name].float()).norm().item()
            change[part] = math.hypot(change.get(part, 0.0), moved)
        also = {name: self.evaluate(task) for name, task in self.task.also.items()}
        examples = [{"step": at, **e} for at, f in self.scores.items() for e in f.pop("examples")]
        write_json(self.folder / "examples.jsonl", *examples)
        *before, last = self.scores
        write_json(self.folder / "eval.json", {
            "step": last, **self.scores[last], "also": also, "change": change,
            "before": {at: {k: self.scores[at][k] for k in ("right", "greedy")} for at in before},
        })  # fmt: skip
        (self.folder / "checkpoint.safetensors").unlink(missing_ok=True)


def lengths_of(batch, episodes):
    """The mean of the tokens written in an episode, and the share of episodes cut short."""
    lengths, truncated = [0] * len(episodes), [False] * len(episodes)
    for i, completion, cut in zip(batch.episode, batch.completions, batch.truncated):
        lengths[i] += len(completion)
        truncated[i] = episodes[i].out_of_steps or cut  # an episode's turns stand in order
    n = len(episodes)
    return {"length": sum(lengths) / n, "truncated": sum(truncated) / n}


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


# ---- Machinery: the lesson ends here. Sweeps, the embedded base, files, memory, command line.

HELPER = "ONE_LAYER_HELPER" in os.environ  # whether another train.py started us to share its runs
stop = threading.Event()  # set by Ctrl-C: save, and end


def end_early(save=lambda: None):
    """Save and stop, after Ctrl-C; or, in a helper, once its standard input is closed."""
    if stop.is_set() or HELPER and select.select([sys.stdin], [], [], 0)[0]:
        save()
        raise KeyboardInterrupt


def sweep(runs, prepare):
    """Do all `runs`, folder -> settings, beside other processes that may do so too.

    `prepare` makes a Run. Where one fails the others go on; the last lines say why.
    """
    claim(runs)
    with tqdm(total=len(runs), desc="sweep", smoothing=0) as bar:
        while left := [folder for folder in runs if not is_over(folder)]:
            end_early()
            for folder in left:
                with locked(folder / "lock") as mine:
                    if mine and not is_over(folder):
                        attempt(prepare, folder, runs[folder])
                bar.update(sum(map(is_over, runs)) - bar.n)
            time.sleep(0.1)  # where other processes hold all that is left
    failed = [path.read_text() for folder in runs if (path := folder / "error.txt").exists()]
    if failed:
        sys.exit(1 if HELPER else "\n".join(failed))


def attempt(prepare, folder, settings):
    """Do one run; if it fails, leave the reason in its folder, where every process finds it."""
    run = None
    try:
        run = prepare(folder, settings)
        run.train()
    except (FloatingPointError, MemoryError, ValueError, torch.OutOfMemoryError) as error:
        at = f"after {run.step} of {run.steps} steps" if run else "before the first step"
        line = one_line(f"{folder}: stopped {at}: {error}")
        (folder / "error.txt").write_text(line)
        say(line)
    finally:  # the next run starts from the same base
        for name, parameter in run.trained.items() if run else ():
            parameter.data.copy_(run.untrained[name])
            parameter.grad = None  # of a step cut short


def is_over(folder):
    """Whether a run is done or failed. eval.json is its last file, and then its checkpoint goes."""
    done = (folder / "eval.json").exists() and not (folder / "checkpoint.safetensors").exists()
    return done or (folder / "error.txt").exists()


@contextlib.contextmanager
def helping(helpers, argv):
    """Within this block `helpers` more processes run the same command, and so share its runs.

    They end when their standard input closes: when we close it, or are killed.
    """
    options = {
        "env": os.environ | {"ONE_LAYER_HELPER": "1", "TQDM_DISABLE": "1"},
        "stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL,
        "start_new_session": True,  # Ctrl-C is for us alone
    }  # fmt: skip
    command = [sys.executable, __file__, *(argv or sys.argv[1:])]
    helpers = [subprocess.Popen(command, **options) for _ in range(helpers)]
    try:
        yield
    finally:
        for helper in helpers:
            helper.stdin.close()
        for helper in helpers:
            helper.wait()


def search(args, config, digests, prepare):
    """Find a layer for less than a sweep costs: train all for a few steps, the better half anew for
    twice as many, and so on; the last round has half of --steps. Scored on the validation panel.

    Returns {"layer", "rounds": [{"steps", "scores"}], "steps": of all rounds and seeds, "seeds"}.
    """
    layers, rounds = list(map(str, range(config.num_hidden_layers))), []
    while len(layers) > 1:
        steps = max(1, args.steps >> (len(layers) - 1).bit_length())
        changed = {"runs": args.runs / f"search-{steps}", "steps": steps, "find_lr": [args.lr]}
        runs = runs_of(argparse.Namespace(**(vars(args) | changed)), config, digests, layers)
        sweep(runs, prepare)
        scores = mean_scores(runs, "layer")
        rounds.append({"steps": steps, "scores": scores})
        layers = list(scores)[: (len(layers) + 1) // 2]
    total = sum(r["steps"] * len(r["scores"]) for r in rounds) * len(args.seeds)
    return {"layer": int(layers[0]), "rounds": rounds, "steps": total, "seeds": args.seeds}


def mean_scores(runs, setting):
    """The mean score of finished runs that agree in this setting, the best first."""
    found = {}
    for folder, settings in runs.items():
        path = folder / "eval.json"
        score = read_json(path).get("score") if path.exists() else None
        if not isinstance(score, float):
            raise ValueError(f"{path}: no score; first run --layer each")
        found.setdefault(settings[setting], []).append(score)
    means = {value: sum(scores) / len(scores) for value, scores in found.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


# ---- The embedded base

EMBEDDED_CONFIG = Config(
    vocab_size=16, hidden_size=48, intermediate_size=128, num_hidden_layers=8,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=1e4,
    max_position_embeddings=512,
)  # fmt: skip


def teach_base(path, task, seed, steps, batch):
    """Teach a tiny Qwen3 from demonstrations, `batch` a step, and save it as a Hugging Face folder.

    Always with two threads, so that its weights do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    words = tasks.embedded_tokenizer(task.vocabulary)
    torch.manual_seed(seed)
    model = Transformer(replace(EMBEDDED_CONFIG, vocab_size=words.get_vocab_size()))
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng, shown = random.Random(f"demonstrations {seed}"), []
    bar = tqdm(range(steps), "teaching the base", leave=False)
    for step in bar:
        end_early()
        while len(shown) < batch:
            shown += task.demonstrate(rng)
        now, shown = shown[:batch], shown[batch:]
        prompts, answers = ([e.ids for e in words.encode_batch(list(text))] for text in zip(*now))
        tokens, real = rl.pad([p + a + [0] for p, a in zip(prompts, answers)], "cpu")  # (B, T)
        starts = torch.tensor([[len(prompt)] for prompt in prompts])
        is_answer = real & (torch.arange(tokens.shape[1]) >= starts)
        logits = model(tokens[:, :-1])[is_answer[:, 1:]]  # (answer tokens, vocab)
        loss = F.cross_entropy(logits, tokens[:, 1:][is_answer[:, 1:]])  # prompts are not learnt
        # Warm up, hold, and come down over the last 30 %.
        rate = 3e-3 * min(1, (step + 1) / 50) * min(1, max(0.05, (1 - step / steps) / 0.3))
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        bar.set_postfix(loss=loss.item(), refresh=False)
    torch.set_num_threads(threads)
    with written_beside(path) as part:
        model.save_pretrained(part)
        (part / "tokenizer.json").write_text(words.to_str(pretty=True))
        (part / "generation_config.json").write_text('{"eos_token_id": 0}')


# ---- Files


def say(text):
    tqdm.write(one_line(text), sys.stderr)  # past the progress bars


@contextlib.contextmanager
def written_beside(path):
    """Yield a name to write to, and rename that file or folder to `path`: nobody finds half of it.

    Only one process at a time may write a `path`. OSError names what cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    try:
        part.mkdir(parents=True)
        yield part / path.name
        os.replace(part / path.name, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written ({error}): make room, or go elsewhere") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path, *values):
    with written_beside(path) as part:
        part.write_text("".join(json.dumps(value) + "\n" for value in values))


@contextlib.contextmanager
def locked(path, wait=False):
    """Hold the lock file `path` for a block; yields False where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield True
        except BlockingIOError:
            yield False


def claim(runs):
    """Write each run's config.json, unless the folder holds runs that were made otherwise.

    Side by side may stand runs of other layers and seeds (and, compared by --find-lr, rates), and
    of nothing else that differs. ValueError names the setting that does.
    """
    root, ours = next(iter(runs)).parent, next(iter(runs.values()))
    failed, git = subprocess.getstatusoutput(f"git -C '{Path(__file__).parent}' rev-parse HEAD")
    versions = {"torch": torch.__version__, "git": None if failed else git, "python": sys.version}
    with locked(root / "settings.lock", wait=True):
        for path in sorted(root.glob("*-seed-*/config.json")):
            there, free = read_json(path).get("settings"), {"layer", "seed"}
            there = there if isinstance(there, dict) else {}
            if "validation" in (there.get("panel"), ours["panel"]):
                free |= {"lr", "panel"}
            for name in sorted(ours.keys() - free):
                if there.get(name) != ours[name]:
                    raise ValueError(
                        f"{path} was made with {name} = {there.get(name)!r}, and this command "
                        f"says {ours[name]!r}: use another --runs"
                    )
        for folder, settings in runs.items():
            if not (folder / "config.json").exists():
                write_json(folder / "config.json", {"settings": settings, "versions": versions})
            if not HELPER:  # a new command tries again what failed
                (folder / "error.txt").unlink(missing_ok=True)


def digests_of(task, path):
    """Short names for what the problems and the weights of a checkpoint are."""
    problems = [*task.test, *task.validation, *(task.train or task.draw(0, 0, 100))]
    text = "\0".join(f"{p.prompt}\n{p.answer}" for p in problems)
    problems, weights = hashlib.sha256(text.encode(errors="replace")), hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with open(file, "rb") as content:
            weights.update(hashlib.file_digest(content, "sha256").digest())
    return {"problems": problems.hexdigest()[:16], "weights": weights.hexdigest()[:16]}


def merge(run, out):
    """Write the whole checkpoint that a run evaluated: its model, with what trained in place."""
    settings = read_json(run / "config.json")["settings"]
    source, ignored = run.parent / settings["model"], (".*", "*.safetensors*", "*.bin")
    model = Transformer.from_pretrained(source, dtype=DTYPES[settings["dtype"]])
    try:
        model.load_state_dict(load_file(run / "layer.safetensors"), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{run}/layer.safetensors does not fit {source} ({error})") from None
    with written_beside(out) as part:
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(*ignored))
        model.save_pretrained(part)
    return f"written: {out}"


# ---- Memory and work


def account(config, settings, prompt_length, memory, turns=1):
    """The memory and work of one run, from shapes alone -> (budget, figures for --plan).

    memory: bytes to stay within, or None. Activations are what autograd keeps: about 8 vectors of
    the residual's width a layer, 3 of the heads', 3 of the MLP's. Answers are as long as may be,
    as are episodes, of `turns`.
    """
    with torch.device("meta"):
        model = Transformer(config)
    trained, start = freeze_all_but(model, settings["layer"], settings["seed"])
    total, trains = count(model.parameters()), count(trained.values())
    L, D, V = config.num_hidden_layers, config.hidden_size, config.vocab_size
    size, again, s = DTYPES[settings["dtype"]].itemsize, settings["recompute"], settings
    steps, group, new = s["steps"] * (trains > 0), s["group"], s["max_tokens"]
    kv = 2 * config.num_key_value_heads * config.head_dim
    inner = 8 * D + 3 * (config.num_attention_heads * config.head_dim + kv)
    inner += 3 * config.intermediate_size  # numbers that a layer keeps of a token
    row = prompt_length + new  # tokens
    step = turns * s["prompts"] * (group * new + prompt_length)
    state = trains * ((12 if size == 4 else 18) + size)  # masters, gradients, Adam, untrained copy
    state += size * D * step * (0 < start and steps > 0)  # what enters the layer, from sampling
    # Of a GPU: context, libraries, graphs and what lies between tensors.
    fixed = size * total + state + (15 if s["device"] == "cuda" else 4) * 10**8
    fixed += 16 * min(rl.CHUNK, step * V) * (steps > 0)  # logits
    cost = {  # bytes a position, and the fewest positions
        "sampling": (size * L * kv + 16 * V // row, group * row),
        "training": (size * ((L - start) * (D if again else inner) + inner * again) or 1, row),
    }
    budget, peak = {"sampling": 16384, "training": 4096}, fixed  # positions at a time
    for phase, (each, least) in cost.items():
        if memory is not None:  # a tenth is left for what this account does not know
            budget[phase] = max(least, int((0.9 * memory - fixed) / each))
        peak = max(peak, fixed + each * max(least, min(budget[phase], step)))

    product = total - V * D * (not config.tie_word_embeddings)  # less the embedding
    asked = s["eval_problems"] * (3 if steps else 1)
    answers = turns * (steps * s["prompts"] * group + asked * (s["samples"] + 1))
    sampled = answers * new + turns * (steps * s["prompts"] + 2 * asked) * prompt_length
    passes = (4 + 2 * again) * product * (L - start) / L + 2 * trains  # FLOPs a token trained on
    return budget, {
        "parameters, millions": total / 1e6, "of these train, millions": trains / 1e6,
        "weights, GiB": size * total / 2**30, "what trains, GiB": state / 2**30,
        "expected peak, GiB": peak / 2**30, "answers, thousands": answers / 1e3,
        "tokens sampled, millions": answers * new / 1e6,
        "sampling, PFLOP": 2 * product * sampled / 1e15,
        "training, PFLOP": s["epochs"] * steps * step * passes / 1e15,
    }  # fmt: skip


def plan_of(args, path, config):
    """What --plan prints: memory and work of the first run of each kind, and the hours of all."""
    longest, turns, assumed, kinds, hours = 512, 1, " (assumed)", {}, 0.0
    if (path / "tokenizer.json").exists():
        (task, _, longest), assumed = open_task(args, path, config), ""
        turns = task.max_turns
    runs = runs_of(args, config, {})
    for settings in runs.values():
        _, found = account(config, settings, longest, args.memory, turns)
        found["hours"] = (found["sampling, PFLOP"] + found["training, PFLOP"]) / args.tflops / 3.6
        hours += found["hours"]
        kind = "one layer" if settings["layer"].isdecimal() else settings["layer"]
        kinds.setdefault(kind, found)
    lines = [f"{'':26}" + "".join(f"{kind:>12}" for kind in kinds)]
    for name in found:
        lines.append(f"{name:26}" + "".join(f"{found[name]:>12,.2f}" for found in kinds.values()))
    lines.append(f"{len(runs)} runs, {hours:.1f} hours at {args.tflops:g} TFLOP/s, with prompts of "
                 f"{longest} tokens{assumed}, on {args.device} in {args.dtype}.")  # fmt: skip
    most = (args.memory or math.inf) / 2**30
    lines += [f"{k} does not fit" for k in kinds if kinds[k]["expected peak, GiB"] > most]
    return "\n".join(lines)


# ---- The command line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOY = {"steps": 120, "lr": 5e-4, "group": 16, "prompts": 32, "max_tokens": 6, "seeds": [0, 1, 2],
       "eval_problems": 1000, "teach_steps": 700, "teach_batch": 256}  # fmt: skip
PRESETS = {  # for each task of the embedded model
    "math": TOY,
    "math-short": TOY,
    "code": {**TOY, "max_tokens": 12, "eval_problems": 500, "teach_steps": 600},
    "household": {**TOY, "max_tokens": 4, "eval_problems": 200, "teach_batch": 128,
                  "steps": 50, "prompts": 8, "group": 8},
}  # fmt: skip
NOT_SETTINGS = "runs base seeds find_lr jobs memory tflops plan merge out".split()


def fail(message):
    """What argparse does about a bad option; `main` makes one line of it."""
    raise ValueError(message)


def number(kind, low, high=2**32 - 1):
    """An argparse type: a number of this kind from `low` to `high`."""

    def read(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__} from {low} to {high}")

    return read


def several(read):
    """An argparse type: values with commas between them."""
    return lambda text: [read(part) for part in text.split(",")]


def command_line():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = fail
    some, positive, seed = number(int, 1), number(float, 1e-12), number(int, 0)
    for name, kind, default, text in (  # the defaults are those of a checkpoint
        ("layer", str, "each", "5 | 3,5 | full | norm | base | mid-4 | top-4 | random-4 | each "
                               "| every-4 | pairs | search"),
        ("model", Path, None, "Hugging Face checkpoint (default: the embedded model)"),
        ("task", str, "math", "math | math-short | code | household | a file of problems | a .py"),
        ("instruction", str, tasks.INSTRUCTION, "what every question of a file ends with"),
        ("also", several(str), [], "tasks to score on too: a.jsonl,household; of math sub,max,min"),
        ("algo", tuple(rl.ALGORITHMS), "grpo", None),
        ("runs", Path, Path("runs"), "folder for the runs"),
        ("seeds", several(seed), [0], "one run each"),
        ("find-lr", several(positive), [], "with --layer full: rates to score on validation"),
        ("steps", some, 200, "optimizer steps of a run"),
        ("lr", positive, 5e-6, "learning rate"),
        ("prompts", some, 32, "problems a step"),
        ("group", number(int, 2), 8, "completions a problem"),
        ("max-tokens", some, 1024, "longest completion"),
        ("temperature", positive, 1.0, "of sampling"),
        ("clip", positive, 0.2, "range of the ratio"),
        ("kl", number(float, 0), 0.0, "weight of the KL term"),
        ("epochs", some, 1, "updates a batch"),
        ("eval-problems", some, 256, "problems scored on"),
        ("samples", number(int, 1, 9), 4, "completions of each of them"),
        ("base-seed", seed, 0, "seed of the embedded model"),
        ("jobs", some, None, "processes (embedded model: one a core)"),
        ("memory", positive, None, "GiB (default: what is free on the GPU)"),
        ("tflops", positive, 10.0, "speed that --plan assumes"),
        ("device", ("cpu", "cuda"), None, "default: of a checkpoint cuda, if there is one"),
        ("dtype", tuple(DTYPES), None, "default: bf16 on cuda, else fp32"),
        ("merge", Path, None, "a finished run, to be written whole to --out"),
        ("out", Path, Path("merged"), "new folder for --merge"),
        ("recompute", bool, False, "less memory, more time"),
        ("plan", bool, False, "print memory and work, and stop"),
    ):  # fmt: skip
        kind = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        kind = {"action": "store_true"} if default is False else kind
        parser.add_argument(f"--{name}", default=default, help=text, **kind)
    text = "train everything, and these layers (3,5 | top-4) at twice the rate"
    parser.add_argument("--boost", dest="layer", type="boost-{}".format, help=text)
    return parser


def parse(argv):
    """The command line as a Namespace, checked as far as no file is needed for it."""
    parser, cuda = command_line(), torch.cuda.is_available()
    args = parser.parse_args(argv)
    if args.model and not args.model.is_dir():
        fail(f"--model {args.model}: no such folder; hf download NAME --local-dir DIR makes one")
    if not args.model:
        if args.task not in PRESETS:
            fail(f"--task {args.task} needs --model; without it there are {', '.join(PRESETS)}")
        parser.set_defaults(**PRESETS[args.task])
    args = parser.parse_args(argv)
    args.device = args.device or ("cuda" if cuda and args.model else "cpu")
    args.dtype = args.dtype or ("bf16" if args.device == "cuda" else "fp32")
    args.base = f"base-{args.task}-{args.base_seed}"
    if args.find_lr and args.layer != "full":
        fail("--find-lr goes with --layer full, whose best rate is then every layer's")
    if args.device == "cuda" and not cuda and not args.plan:
        fail("--device cuda: CUDA is not available; use --device cpu")
    if args.memory:
        args.memory *= 2**30
    if args.device == "cuda" and cuda:  # each process of torchrun has its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        args.memory = args.memory or torch.cuda.mem_get_info()[0]
    return args


def specs_of(args, num_layers):
    """What --layer asks for, one SPEC a run; "top-4" as the layers that it stands for."""
    each, spec = list(map(str, range(num_layers))), args.layer
    if spec == "pairs":
        return list(map(",".join, itertools.combinations(each, 2)))
    for k in range(1, num_layers + 1):
        if spec == f"every-{k}" or spec in ("each", "search"):
            return ["base", "full", "norm", *dict.fromkeys([*each[::k], each[-1]])]
        if spec in (f"top-{k}", f"boost-top-{k}"):
            runs = {args.runs / f"layer-{layer}-seed-{seed}": {"layer": layer}
                    for layer in each for seed in args.seeds}  # fmt: skip
            best = list(mean_scores(runs, "layer"))[:k]
            spec = spec.replace(f"top-{k}", ",".join(best))
    layers_of(spec, num_layers)  # ValueError where it is none
    return [spec]


def runs_of(args, config, digests, specs=None):
    """The runs a command asks for: folder -> settings. ValueError for a --layer without sense."""
    shared = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    shared |= {
        "model": str(args.model.resolve()) if args.model else args.base,
        "panel": "validation" if args.find_lr else "test",
        "num_layers": config.num_hidden_layers, **digests,
    }  # fmt: skip
    specs, runs = specs or specs_of(args, config.num_hidden_layers), {}
    for seed, spec, lr in itertools.product(args.seeds, specs, args.find_lr or [args.lr]):
        if spec != "base" or seed == args.seeds[0]:  # nothing trains in the base
            name = f"layer-{spec}" if spec[0].isdecimal() else spec
            name += f"-lr-{lr:g}" * bool(args.find_lr) + f"-seed-{seed}"
            runs[args.runs / name] = {**shared, "layer": spec, "seed": seed, "lr": lr}
    return runs


def open_task(args, path, config):
    """The task, its tokenizer and its longest prompt in tokens. The base is taught if need be."""
    task = tasks.load_task(args.task, not args.model, args.instruction)
    task.also = {}
    for name in args.also:
        task.also[Path(name).name] = tasks.load_task(name, not args.model, args.instruction)
    if not args.model:
        with locked(args.runs / "base.lock", wait=True):
            if not path.exists():
                teach_base(path, task, args.base_seed, args.teach_steps, args.teach_batch)
    tokenizer = tasks.Tokenizer(path)
    prompts = []
    for each in (task, *task.also.values()):  # worlds start slowly
        few = 8 if each.max_turns > 1 else None
        problems = [*each.test, *each.validation, *each.train][:few]
        prompts += [each.begin(problem).prompt for problem in problems]
    longest = max(map(len, tokenizer.encode(prompts)))
    if longest + args.max_tokens > config.max_position_embeddings:
        raise ValueError(
            f"--max-tokens {args.max_tokens} after a prompt of {longest} tokens "
            f"exceeds the context of {config.max_position_embeddings}"
        )
    return task, tokenizer, longest


def run_command(args, argv):
    """Everything that a command does; ValueError or OSError, one line, if it cannot."""
    if args.merge:
        return merge(args.merge, args.out)
    path = args.model or args.runs / args.base
    jobs = args.jobs or (1 if args.model else torch.get_num_threads())
    # One thread for the embedded model, so that its figures do not depend on the cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs) if args.model else 1)
    config = Config.from_hf(read_json(path / "config.json")) if args.model else EMBEDDED_CONFIG
    if args.plan:
        return plan_of(args, path, config)
    runs_of(args, config, {})  # a bad --layer should not cost the minutes of teaching
    task, tokenizer, longest = open_task(args, path, config)
    digests = digests_of(task, path)
    model = Transformer.from_pretrained(path, dtype=DTYPES[args.dtype], device=args.device)

    def prepare(folder, settings):
        budget, _ = account(model.config, settings, longest, args.memory, task.max_turns)
        return Run(model, tokenizer, task, folder, settings, budget)

    runs = runs_of(args, config, digests)
    with helping(0 if HELPER else min(jobs, len(runs)) - 1, argv):
        if args.layer == "search":
            found = search(args, config, digests, prepare)
            with locked(args.runs / "settings.lock", wait=True):
                write_json(args.runs / "search.json", found)
            return f"found: layer {found['layer']}"
        sweep(runs, prepare)
    if args.find_lr:
        rates = ", ".join(f"{lr:g} {score:.3f}" for lr, score in mean_scores(runs, "lr").items())
        return f"mean score on the validation panel: {rates}"
    return f"{len(runs)} runs done in {args.runs}"


def on_interrupt(*_):
    """The first Ctrl-C lets the step end, and saves; a second stops at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop.set()


def main(argv=None):
    try:
        print(run_command(parse(argv), argv))
    except (ValueError, OSError) as error:
        if not HELPER:  # who started it says the same
            print(f"train.py: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        main()
    except KeyboardInterrupt:
        if not HELPER:
            say("stopped; the same command carries on from here")
        sys.exit(130)
