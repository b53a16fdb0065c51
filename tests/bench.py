"""How fast, how big: every claim about speed and memory as rows of one table. Not a test: nothing here can fail.

    python tests/bench.py [--only rollout] [--weights FOLDER] [--device cuda] [--rounds 5]

FOLDER holds qwen2.5-coder-0.5b-instruct and smollm2-135m-instruct (default: $ONELAYER_WEIGHTS). `theirs` is `transformers`' `generate`,
or TRL's GRPOTrainer where `trl` is installed, on the same weights, prompts, lengths and number of threads. Contestants run in
turn, and a ratio is the median of the rounds' ratios: what else the machine does then hits all of them alike.
"""

import argparse
import copy
import functools
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # first: it sets how torch's threads wait

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip

import rl
import tasks
from model import KVCache, Transformer

SMOL, QWEN = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
BUDGET = 4096  # train.py's default --token-budget
QUESTIONS = [  # of unequal length, and answered at unequal length
    "What is 7 times 8?", "Name the largest planet of the solar system.", "Is 91 a prime number? Answer yes or no.",
    "Tom has 12 apples. He gives a third of them to Ann and eats two himself. How many apples does Tom have left?", "Say hello.",
    "Write one sentence about the sea.", "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take, if "
    "the clock at the station of departure is five minutes slow and the other one is right?", "Capital of France?",
]  # fmt: skip


class Skip(Exception):
    """Why rows of the table cannot be made here."""


def row(what, ours="ours", theirs="theirs", ratio="ratio", target="target"):
    print(f"{what:<66} | {ours:>14} | {theirs:>14} | {ratio:>7} | {target}", flush=True)


def race(*contestants):
    """Seconds per unit of work: one list for each contestant, of one figure a round. A contestant returns the work it did."""
    times = [[] for _ in contestants]
    for turn in range(ROUNDS + 1):
        for contestant, seconds in zip(contestants, times):
            synchronize()
            started = time.perf_counter()
            work = contestant()
            synchronize()
            if turn:  # the first is to warm up
                seconds.append((time.perf_counter() - started) / work)
    return times


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def over(numerators, denominators):
    return median(a / b for a, b in zip(numerators, denominators))


def seconds(times):
    return f"{1000 * median(times):.4g} ms"


def speed(times):
    return f"{1 / median(times):,.0f} tok/s"


# ---------------------------------------------------------------------------------------------------- models and prompts


def setup(device, weights, rounds, threads=None):
    """What all rows share; also called in the fresh processes that measure memory."""
    global DEVICE, WEIGHTS, ROUNDS, DTYPE
    DEVICE, WEIGHTS, ROUNDS = device, weights, rounds
    DTYPE = torch.bfloat16 if device == "cuda" else torch.float32  # as in train.py
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(0)


def embedded(**changes):
    """The embedded model with random weights, which are as fast as taught ones. Its config's `changes` are for growth."""
    torch.manual_seed(0)
    return Transformer(replace(train.EMBEDDED_CONFIG, **changes)).to(DEVICE, DTYPE)


def ours(name):
    """A model, prompts as texts and as tokens, and the ids that end a completion.

    The taught embedded model answers every question with five digits and the end, 6 tokens. Random weights would not, so
    here nothing ends a completion (-1) and its length is the limit.
    """
    if name == "embedded":
        torch.set_num_threads(1)  # as in train.py
        task = tasks.arithmetic()
        texts = [problem.prompt for problem in task.draw(0, 0, 32)]
        return embedded(), texts, [e.ids for e in tasks.embedded_tokenizer(task.vocabulary).encode_batch(texts)], [-1]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = weights(name)
    tokenizer = tasks.Tokenizer(folder)
    texts = [tokenizer.prompt(question) for question in QUESTIONS]
    model = Transformer.from_pretrained(folder, device=DEVICE, dtype=DTYPE)
    return model, texts, tokenizer.encode(texts), tokenizer.eos_ids


def weights(name):
    if not WEIGHTS or not (Path(WEIGHTS) / name / "config.json").exists():
        raise Skip(f"no {name}: name the folder that holds it by --weights or ONELAYER_WEIGHTS")
    return Path(WEIGHTS) / name


def theirs(model):
    """The same model, opened by `transformers`."""
    if not importlib.util.find_spec("transformers"):
        raise Skip("transformers is not installed")
    import transformers

    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICE)


def generate(model, prompts, G, max_new_tokens, eos):
    """`generate` on a batch padded on the left. Returns the tokens it sampled, counted as `rollout` counts: the end included.

    It is not asked for log-probabilities, which `rollout` returns: in a training step they would cost it one more pass.
    """
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts for _ in range(G)], device=DEVICE)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(G)], device=DEVICE)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens, pad_token_id=0,
        eos_token_id=None if eos == [-1] else eos,
    )  # fmt: skip
    new = model.generate(input_ids=ids, attention_mask=real)[:, width:]
    hit = torch.isin(new, torch.tensor(eos, device=DEVICE))
    return torch.where(hit.any(1), hit.int().argmax(1) + 1, new.shape[1]).sum().item()


def sample(model, prompts, G, max_new_tokens, eos, start=0, budget=None):
    return rl.rollout(
        model, prompts, group_size=G, max_new_tokens=max_new_tokens, temperature=1.0, eos_id=eos, start=start, token_budget=budget
    )  # fmt: skip


def tokens_of(batch):
    return sum(map(len, batch.completions))


def train_pass(model, batch, start):
    """Log-probabilities of the whole batch and their gradient, in the micro-batches of a training step."""
    for part in rl.micro_batches(batch, range(len(batch.completions)), BUDGET):
        rl.score(model, batch, part, 1.0, start)[0].sum().backward()
    model.zero_grad()
    return 1


def grpo_step(model, prompts, G, max_new_tokens, eos, spec, optimizer=None):
    """One whole step. Rewards are random, so every group has a signal and no completion is left out of the training pass."""
    names, start = train.choose(model, spec)
    optimizer = optimizer or rl.Optimizer(p for p in model.parameters() if p.requires_grad)
    batch = sample(model, prompts, G, max_new_tokens, eos, start)
    advantages = rl.group_advantages(torch.rand(len(prompts), G)).flatten()
    rl.update(model, optimizer, batch, advantages, lr=1e-7, start=start, token_budget=BUDGET)
    return batch


# ---------------------------------------------------------------------------------------------------- memory


def peak(measured, *arguments):
    """MB that `measured` needs beyond what its process held when it began, in a fresh process: the peak never falls back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(growth_of, (measured, arguments, (DEVICE, WEIGHTS, ROUNDS, torch.get_num_threads())))


def growth_of(measured, arguments, settings):
    setup(*settings)
    torch.ones(64, 64, device=DEVICE) @ torch.ones(64, 64, device=DEVICE)
    before = high_water()
    measured(*arguments)
    return high_water() - before


def high_water():
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as file:  # ru_maxrss of a new process begins with its parent's size
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10


# ---------------------------------------------------------------------------------------------------- the claims


def rollout():
    """Sampling against `generate`. Where completions end at different times, what counts is tokens up to their ends a second."""
    cases = [("embedded", 32, 16, 6, "5"), (SMOL, 8, 8, 64, "2.5"), (QWEN, 4, 4, 32, "")]
    for name, P, G, length, target in cases:
        with skipping(name):
            model, _, prompts, eos = ours(name)
            other, prompts = theirs(model), prompts[:P]
            mine, their = race(
                lambda: tokens_of(sample(model, prompts, G, length, eos)), lambda: generate(other, prompts, G, length, eos)
            )
            what = f"rollout, {name}, {P} x {G}, at most {length}"
            row(what, speed(mine), speed(their), f"{over(their, mine):.2f}", target and f">= {target}")


def lengths():
    """Never slower than `generate`, at any length: the embedded model, and fewer rows where they are long."""
    model, _, prompts, eos = ours("embedded")
    other = theirs(model)
    for P, length in ((32, 4), (32, 16), (32, 32), (32, 64), (32, 128), (32, 256), (2, 256)):
        mine, their = race(
            lambda: tokens_of(sample(model, prompts[:P], 16, length, eos)),
            lambda: generate(other, prompts[:P], 16, length, eos),
        )
        row(f"rollout, embedded, {P} x 16, exactly {length}", speed(mine), speed(their), f"{over(their, mine):.2f}", ">= 1")


def layers():
    """The training pass of layer k against that of all layers; and what the states kept by the rollout save."""
    for name, P, G, length, step in (("embedded", 32, 16, 6, 1), (SMOL, 4, 8, 32, 7)):
        with skipping(name):
            model, _, prompts, eos = ours(name)
            L = model.config.num_hidden_layers
            ks = range(0, L, step)
            kept = {k: sample(model, prompts[:P], G, length, [-1], k) for k in ks}
            bare = replace(kept[L // step // 2 * step], hidden=[], prompt_hidden=[])

            def one(spec, batch):
                _, start = train.choose(model, str(spec))
                return train_pass(model, batch, start)

            middle = L // step // 2 * step
            full, above, *single = race(
                lambda: one("full", kept[0]), lambda: one(middle, bare),
                *(functools.partial(one, k, kept[k]) for k in ks),
            )  # fmt: skip
            for k, times in zip(ks, single):
                what = f"training pass, {name}, layer {k} of {L} / all"
                row(what, seconds(times), seconds(full), f"{over(times, full):.2f}", f"<= {(L - k) / L + 0.1:.2f}")
            what = f"training pass, {name}, layer {middle}: states kept / computed again"
            row(what, seconds(single[middle // step]), seconds(above), f"{over(single[middle // step], above):.2f}", "< 1")


def step():
    """A whole GRPO step of full training against TRL's, in turn inside TRL's own loop; per completion token."""
    if not all(map(importlib.util.find_spec, ("trl", "datasets"))):
        raise Skip("trl is not installed")
    for name, P, G, length, accumulate in (("embedded", 32, 16, 6, 1), (SMOL, 4, 8, 64, 2)):
        with skipping(name):
            model, texts, prompts, eos = ours(name)
            other = theirs(model)
            train.choose(model, "full")
            optimizer = rl.Optimizer(model.parameters())
            mine, their = against_trl(
                other, name, texts[:P], G, length, accumulate,
                lambda: tokens_of(grpo_step(model, prompts[:P], G, length, eos, "full", optimizer)),
            )  # fmt: skip
            row(f"GRPO step, full training, {name}, {P} x {G}, {length}; TRL", speed(mine), speed(their), f"{over(their, mine):.2f}", ">= 3")


def against_trl(model, name, texts, G, length, accumulate, our_step):
    """Times per token of `our_step` and of TRL's. `accumulate`: micro-batches of its training pass, so that it fits in memory."""
    import datasets
    import transformers
    import trl

    if name == "embedded":  # the end is a token the model does not have: as in `ours`, every completion has full length
        tokenizer = tasks.embedded_tokenizer(tasks.arithmetic().vocabulary)
        tokenizer.add_special_tokens(["<never>"])
        first = tokenizer.id_to_token(0)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<never>", pad_token=first)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights(name))
    done, times = [], ([], [])

    def reward(completion_ids, **_):
        done.append(sum(map(len, completion_ids)))
        return torch.rand(len(completion_ids)).tolist()

    class InTurn(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            synchronize()
            now = time.perf_counter()
            times[1].append((now - self.started) / done[-1])
            work = our_step()
            synchronize()
            times[0].append((time.perf_counter() - now) / work)

    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            folder, per_device_train_batch_size=len(texts) * G // accumulate, gradient_accumulation_steps=accumulate,
            num_generations=G, max_completion_length=length, temperature=1.0, top_k=0, top_p=1.0, beta=0.0, loss_type="grpo",
            learning_rate=1e-7, max_steps=ROUNDS + 1, shuffle_dataset=False, gradient_checkpointing=False, use_cpu=DEVICE == "cpu",
            bf16=DEVICE == "cuda", optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model, reward, settings, datasets.Dataset.from_dict({"prompt": texts}), processing_class=tokenizer, callbacks=[InTurn()]
        )
        trainer.train()
    return [seconds[1:] for seconds in times]


def saved():
    """What training the middle layer saves of our own whole step: time, and peak memory with the weights but not the libraries."""
    for name, P, G, length in (("embedded", 32, 16, 6), (SMOL, 4, 8, 64)):
        with skipping(name):
            model, _, prompts, eos = ours(name)
            middle = str(model.config.num_hidden_layers // 2)
            one, full = race(
                *(functools.partial(lambda spec: bool(grpo_step(model, prompts[:P], G, length, [-1], spec)), spec) for spec in (middle, "full"))
            )
            del model
            what = f"GRPO step, {name}, layer {middle} / full"
            row(f"{what}: time", seconds(one), seconds(full), f"{over(one, full):.2f}")
            one, full = (peak(step_alone, name, P, G, length, spec) for spec in (middle, "full"))
            row(f"{what}: peak memory", f"{one:.0f} MB", f"{full:.0f} MB", f"{one / full:.2f}")


def step_alone(name, P, G, length, spec):
    model, _, prompts, eos = ours(name)
    optimizer = train.choose(model, spec) and rl.Optimizer(p for p in model.parameters() if p.requires_grad)
    for _ in range(2):  # from the second on, Adam has its state
        grpo_step(model, prompts[:P], G, length, [-1], spec, optimizer)


def vocabulary():
    """Log-probabilities over Qwen's vocabulary: memory goes with the chunk, not with the tokens; and the result with neither."""
    plain = {N: peak(qwen_logprobs, N, None) for N in (256, 1024)}
    chunked = {N: peak(qwen_logprobs, N, rl.CHUNK) for N in (256, 1024, 4096)}
    quarter = peak(qwen_logprobs, 1024, rl.CHUNK // 4)
    for N, MB in plain.items():
        row(f"log-probabilities, 151,936 x {N} tokens: peak; log_softmax", f"{chunked[N]:.0f} MB", f"{MB:.0f} MB", f"{chunked[N] / MB:.2f}")
    row("  4,096 tokens / 1,024", f"{chunked[4096]:.0f} MB", f"{chunked[1024]:.0f} MB", f"{chunked[4096] / chunked[1024]:.2f}", "~ 1")
    row("  a quarter of the chunk / the chunk", f"{quarter:.0f} MB", f"{chunked[1024]:.0f} MB", f"{quarter / chunked[1024]:.2f}", "~ 0.25")

    model = embedded(vocab_size=151936, num_hidden_layers=1)
    batch = sample(model, [[1, 2, 3], [4]], 4, 24, [-1])
    gradients = []
    for budget in (64, 16384):
        for part in rl.micro_batches(batch, range(8), budget):
            rl.score(model, batch, part, 1.0)[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        model.zero_grad()
    apart = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    row("  gradient, token budget of 64 and of 16,384: relative difference", f"{apart:.1e}", target="rounding")


def qwen_logprobs(N, chunk):
    weight = torch.full((151936, 896), 0.01, device=DEVICE, dtype=DTYPE)
    x = torch.full((N, 896), 0.01, device=DEVICE, dtype=DTYPE, requires_grad=True)
    tokens = torch.zeros(N, dtype=torch.long, device=DEVICE)
    if chunk:
        rl.token_logprobs(x, weight, tokens, 1.0, chunk).sum().backward()
    else:
        F.log_softmax((x @ weight.T).float(), dim=-1).gather(1, tokens[:, None]).sum().backward()


def growth():
    """How a step's time grows: each size against half of it, a middle-sized random model, all layers trained."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    base = {"prompts": 8, "length": 32, "num_hidden_layers": 4, "vocab_size": 2048}

    def a_step(prompts, length, **config):
        model = embedded(hidden_size=256, intermediate_size=768, head_dim=64, **config)
        return lambda: bool(grpo_step(model, [[1] * 16] * prompts, 8, length, [-1], "full"))

    for size, start in base.items():
        values = [start * factor for factor in (1, 2, 4)]
        times = race(*(a_step(**{**base, size: value}) for value in values))
        for i in (1, 2):
            what = f"GRPO step, {size} {values[i]:,} / {values[i - 1]:,}"
            row(what, seconds(times[i]), seconds(times[i - 1]), f"{over(times[i], times[i - 1]):.2f}", "<= 2 and a little")


def machine():
    """Arithmetic that counts as part of the model, a second, against a big matrix product; bytes that decoding reads against a copy."""
    for name, P, G, length in ((SMOL, 8, 8, 64), (QWEN, 4, 4, 32)):
        with skipping(name):
            model, _, prompts, eos = ours(name)
            prompts, L = prompts[:P], model.config.num_hidden_layers
            batches = {k: sample(model, prompts, G, length, [-1], k) for k in (0, L // 2)}
            forward, decode, cache = work(model, prompts, G, length)

            def train_one(spec):
                return train_pass(model, batches[start], start) if (start := train.choose(model, spec)[1]) in batches else 0

            a, b = torch.randn(2, 2048, 2048, device=DEVICE, dtype=DTYPE)
            big, copied = torch.randn(2**27, device=DEVICE), torch.empty(2**27, device=DEVICE)
            product, copying, roll, full, single = race(
                lambda: bool(len(a @ b)), lambda: bool(len(copied.copy_(big))),
                lambda: bool(sample(model, prompts, G, length, [-1])), lambda: train_one("full"), lambda: train_one(str(L // 2)),
            )  # fmt: skip
            gflops = [2 * 2048**3 / 1e9 / t for t in product]
            of_layers, head, one_layer = forward
            for what, count, times in (
                ("rollout", decode, roll),
                ("training pass, full", 3 * (of_layers + head), full),
                (f"training pass, layer {L // 2}", (2 * of_layers * (L - L // 2) / L + 2 * head + one_layer), single),
            ):
                rates = [count / 1e9 / t for t in times]
                what = f"{what}, {name}: GFLOP/s; matrix product"
                row(what, f"{median(rates):.0f}", f"{median(gflops):.0f}", f"{over(rates, gflops):.2f}")
            read = length * sum(p.numel() * p.element_size() for p in model.parameters()) + cache
            rates, limits = [read / 1e9 / t for t in roll], [2 * big.numel() * 4 / 1e9 / t for t in copying]
            row(f"rollout, {name}: GB/s read; copy", f"{median(rates):.1f}", f"{median(limits):.1f}", f"{over(rates, limits):.2f}")


def work(model, prompts, G, length):
    """FLOPs of a forward training pass (layers, head, and of one layer), FLOPs of a rollout, bytes of the cache that it reads."""
    c = model.config
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    head = len(prompts) * G * length * 2 * c.vocab_size * c.hidden_size
    tokens = sum(len(p) - 1 + G * length for p in prompts)
    seen = sum(len(p) * (len(p) - 1) / 2 + G * sum(len(p) + t for t in range(length)) for p in prompts)  # pairs of positions
    one_layer = 2 * layer * tokens + 4 * seen * c.num_attention_heads * c.head_dim
    element = model.lm_head.weight.element_size()
    decoded = sum(G * sum(len(p) + t for t in range(length)) for p in prompts)
    cache = decoded * 2 * c.num_key_value_heads * c.head_dim * element * c.num_hidden_layers
    of_layers = one_layer * c.num_hidden_layers
    return (of_layers, head, one_layer), of_layers + head, cache


# ---------------------------------------------------------------------------------------------------- the command line

CLAIMS = {claim.__name__: claim for claim in (rollout, lengths, layers, step, saved, vocabulary, growth, machine)}


class skipping:
    """Goes on after a Skip, with a row that says why."""

    def __init__(self, what):
        self.what = what

    def __enter__(self):
        pass

    def __exit__(self, kind, reason, _):
        if kind is Skip:
            print(f"{self.what}: skipped: {reason}", flush=True)
        return kind is Skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=CLAIMS, help="one group of rows")
    parser.add_argument("--weights", default=os.environ.get("ONELAYER_WEIGHTS"), help="folder of the real checkpoints")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="times that each contestant runs")
    args = parser.parse_args()
    setup(args.device, args.weights, args.rounds)
    row("what")
    for name in [args.only] if args.only else CLAIMS:
        with skipping(name):
            CLAIMS[name]()


if __name__ == "__main__":
    main()
