"""How fast, how big: every claim about speed and memory as rows of one table. Not a test: nothing here can fail.

    python tests/bench.py [--only rollout] [--weights FOLDER] [--base runs/base] [--device cuda] [--rounds 5]

`theirs` is `transformers`' `generate`, or TRL's GRPOTrainer where `trl` is installed, on the same weights, prompts, lengths and
number of threads. Contestants run in turn, and a ratio is the median of the rounds' ratios: what else the machine does then
hits all of them alike. FOLDER (default $ONELAYER_WEIGHTS) holds qwen2.5-coder-0.5b-instruct and smollm2-135m-instruct.

The embedded model comes twice. Taught, as in training (--base, or taught here for a minute), many of its completions begin
alike, and `rl.rollout` runs them once. With random weights none do, and nothing ends them: all have the greatest length.
"""

import argparse
import contextlib
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
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # first: it sets how torch's threads wait

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip

import rl
import tasks
from model import Config, Transformer, read_json

TAUGHT, RANDOM = "embedded, taught", "embedded, random weights"
SMOL, QWEN = "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"
NEVER = [2**40]  # an ending token that no model has
BUDGET = 4096  # positions in a training pass, and four times as many in sampling, as on a CPU
QUESTIONS = [  # of unequal length, and answered at unequal length
    "What is 7 times 8?", "Name the largest planet of the solar system.", "Is 91 a prime number? Answer yes or no.",
    "Tom has 12 apples. He gives a third of them to Ann and eats two himself. How many apples does Tom have left?", "Say hello.",
    "Write one sentence about the sea.", "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take, if "
    "the clock at the station of departure is five minutes slow and the other one is right?", "Capital of France?",
]  # fmt: skip


class Skip(Exception):
    """Why rows of the table cannot be made here."""


# ---------------------------------------------------------------------------------------------------- the table


def row(what, ours, theirs, unit, target=""):
    """A row of the table, from figures of each round: medians, and the median of the rounds' ratios."""
    shown = (f"{median(figures):,.{0 if median(figures) >= 100 else 1}f} {unit}" for figures in (ours, theirs))
    line(what, *shown, f"{median(a / b for a, b in zip(ours, theirs)):.2f}", target)


def line(what, ours, theirs, ratio, target):
    print(f"{what:<68} | {ours:>13} | {theirs:>13} | {ratio:>7} | {target}", flush=True)


def rates(work, times):
    return [work / seconds for seconds in times]


def ms(times):
    return [1000 * seconds for seconds in times]


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


def peak(measured, *arguments):
    """[MB] that `measured` needs beyond what its process held when it began; in a fresh process, as a peak never falls back."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(growth_of, (measured, arguments, (DEVICE, WEIGHTS, BASE, ROUNDS), torch.get_num_threads()))


def growth_of(measured, arguments, settings, threads):
    setup(*settings)
    torch.set_num_threads(threads)
    torch.ones(64, 64, device=DEVICE) @ torch.ones(64, 64, device=DEVICE)
    before = high_water()
    measured(*arguments)
    return [high_water() - before]


def high_water():
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as file:  # ru_maxrss of a new process begins with its parent's size
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10


# ---------------------------------------------------------------------------------------------------- the contestants


def setup(device, weights, base, rounds):
    """What all rows share; also called in the fresh processes that measure memory."""
    global DEVICE, WEIGHTS, BASE, ROUNDS, DTYPE
    DEVICE, WEIGHTS, BASE, ROUNDS = device, weights, base, rounds
    DTYPE = torch.bfloat16 if device == "cuda" else torch.float32  # as in train.py
    torch.manual_seed(0)


def ours(name):
    """A model, prompts as texts and as tokens, and the ids that end a completion (-1: nothing does)."""
    if name in (TAUGHT, RANDOM):
        torch.set_num_threads(1)  # as in train.py
        texts = [problem.prompt for problem in tasks.arithmetic().draw(0, 0, 32)]
        prompts = tasks.Tokenizer(BASE).encode(texts)
        if name == RANDOM:
            return random_model(), texts, prompts, NEVER
        return Transformer.from_pretrained(BASE, device=DEVICE, dtype=DTYPE), texts, prompts, [0]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not WEIGHTS or not (Path(WEIGHTS) / name / "config.json").exists():
        raise Skip(f"no {name}: name the folder that holds it by --weights or ONELAYER_WEIGHTS")
    tokenizer = tasks.Tokenizer(Path(WEIGHTS) / name)
    texts = [tokenizer.before + tokenizer.user.format(question) for question in QUESTIONS]
    model = Transformer.from_pretrained(Path(WEIGHTS) / name, device=DEVICE, dtype=DTYPE)
    return model, texts, tokenizer.encode(QUESTIONS), tokenizer.eos_ids


def random_model(**changes):
    torch.manual_seed(0)
    return Transformer(replace(train.EMBEDDED_CONFIG, **changes)).to(DEVICE, DTYPE)


def theirs(model):
    """The same model, opened by `transformers`."""
    if not importlib.util.find_spec("transformers"):
        raise Skip("transformers is not installed")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICE)


def generate(model, prompts, G, length, eos):
    """`generate` on a batch padded on the left. Returns the tokens it sampled, counted as `rollout` counts: the end included.

    It is not asked for log-probabilities, which `rollout` returns: in a training step they would cost it one more pass.
    """
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts for _ in range(G)], device=DEVICE)
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(G)], device=DEVICE)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=length, pad_token_id=0,
        eos_token_id=None if eos == NEVER else eos,
    )  # fmt: skip
    new = model.generate(input_ids=ids, attention_mask=real)[:, width:]
    hit = torch.isin(new, torch.tensor(eos, device=DEVICE))
    return torch.where(hit.any(1), hit.int().argmax(1) + 1, new.shape[1]).sum().item()


def sample(model, prompts, G, length, eos, start=0, budget=None):
    return rl.rollout(
        model, prompts, group_size=G, max_new_tokens=length, temperature=1.0, eos_id=eos, start=start,
        budget=budget and {"sampling": budget, "training": 0},
    )


def tokens_of(batch):
    return sum(map(len, batch.completions))


def train_pass(model, spec, batches):
    """Log-probabilities of a whole batch and their gradient in what `spec` trains, in the micro-batches of a training step."""
    _, start = train.freeze_all_but(model, spec)
    batch = batches[start]
    for part in rl.micro_batches(batch, range(len(batch.completions)), BUDGET):
        rl.logprobs_of(model, batch, part, 1.0, start)[0].sum().backward()
    model.zero_grad()
    return 1


def grpo_step(model, prompts, G, length, eos, spec, budget=BUDGET):
    """A function that makes one whole step and returns its tokens. Rewards are random, so no completion is left out."""
    trained, start = train.freeze_all_but(model, spec)
    optimizer = rl.Optimizer(trained)

    def step():
        train.freeze_all_but(model, spec)  # as contestants may share a model
        batch = sample(model, prompts, G, length, eos, start, 4 * budget)  # as in train.py
        advantages = rl.group_advantages(torch.rand(len(prompts), G)).flatten()
        rl.update(model, optimizer, batch, advantages, lr=1e-7, start=start, budget={"sampling": 4 * budget, "training": budget})
        return tokens_of(batch)

    return step


def trl_steps(model, name, texts, G, length, our_step):
    """Seconds a token of `our_step` and of TRL's, in turn inside TRL's own loop."""
    import datasets
    import transformers
    import trl

    if name in (TAUGHT, RANDOM):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(BASE) / "tokenizer.json"))
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        tokenizer.add_tokens("<never>")
        tokenizer.eos_token = tokenizer.pad_token if name == TAUGHT else "<never>"  # which the model cannot say
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(Path(WEIGHTS) / name)
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
            folder, per_device_train_batch_size=len(texts) * G, num_generations=G, max_completion_length=length,
            temperature=1.0, top_k=0, top_p=1.0, beta=0.0, loss_type="grpo", learning_rate=1e-7, max_steps=ROUNDS + 1,
            shuffle_dataset=False, gradient_checkpointing=False, use_cpu=DEVICE == "cpu", bf16=DEVICE == "cuda",
            optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = datasets.Dataset.from_dict({"prompt": texts})
        with contextlib.redirect_stdout(None):  # its summary
            trl.GRPOTrainer(model, reward, settings, data, processing_class=tokenizer, callbacks=[InTurn()]).train()
    return [seconds[1:] for seconds in times]


# ---------------------------------------------------------------------------------------------------- the claims


def rollout(name, P, G, length, target):
    """Sampling against `generate`. Where completions end at different times, what counts is tokens up to their ends a second."""
    model, _, prompts, eos = ours(name)
    other, prompts = theirs(model), prompts[:P]
    times = race(lambda: tokens_of(sample(model, prompts, G, length, eos)), lambda: generate(other, prompts, G, length, eos))
    row(f"rollout, {name}, {P} x {G} x {length}; generate", *(rates(1, t) for t in times), "tok/s", target)


def layers(name, P, G, length, every):
    """The training pass of layer k against that of all layers; and what the states kept by the rollout save."""
    model, _, prompts, _ = ours(name)
    L = model.config.num_hidden_layers
    kept = {k: sample(model, prompts[:P], G, length, NEVER, k) for k in range(0, L, every)}
    middle = max(k for k in kept if k <= L / 2)
    bare = {middle: replace(kept[middle], hidden=[], prompt_hidden=[])}
    contestants = [("full", kept), *((str(k), kept) for k in kept), (str(middle), bare)]
    full, *single, again = race(*(functools.partial(train_pass, model, *contestant) for contestant in contestants))
    for k, times in zip(kept, single):
        row(f"training pass, {name}, layer {k} of {L}; all", ms(times), ms(full), "ms", f"<= {(L - k) / L + 0.1:.2f}")
    times = single[list(kept).index(middle)]
    row(f"training pass, {name}, layer {middle}: states kept; computed again", ms(times), ms(again), "ms", "< 1")


def step(name, P, G, length):
    """A whole GRPO step of full training against TRL's."""
    if not all(map(importlib.util.find_spec, ("trl", "datasets"))):
        raise Skip("trl is not installed")
    model, texts, prompts, eos = ours(name)
    our_step = grpo_step(copy.deepcopy(model), prompts[:P], G, length, eos, "full")
    times = trl_steps(theirs(model), name, texts[:P], G, length, our_step)
    row(f"GRPO step, full, {name}, {P} x {G} x {length}; TRL", *(rates(1, t) for t in times), "tok/s", ">= 3")


def saved(name, P, G, length):
    """What training the middle layer saves of our own whole step: time, and peak memory with the weights but not the libraries."""
    model, _, prompts, eos = ours(name)
    specs = str(model.config.num_hidden_layers // 2), "full"
    what = f"GRPO step, {name}, layer {specs[0]}; full"
    times = race(*(grpo_step(model, prompts[:P], G, length, eos, spec) for spec in specs))
    row(f"{what}: time a token", *([1e6 * seconds for seconds in t] for t in times), "µs")
    del model
    row(f"{what}: peak memory", *(peak(two_steps, name, P, G, length, spec) for spec in specs), "MB")


def two_steps(name, P, G, length, spec):
    model, _, prompts, _ = ours(name)
    one_step = grpo_step(model, prompts[:P], G, length, NEVER, spec)
    for _ in range(2):  # in the second, Adam has its state
        one_step()


def precision(name, P, G, length):
    """What bf16 gives on this machine, part by part, and what it costs in accuracy; then what a shared prompt saves in training."""
    model, _, prompts, eos = ours(name)
    half, model, prompts = copy.deepcopy(model).bfloat16(), model.float(), prompts[:P]
    middle = model.config.num_hidden_layers // 2
    times = race(*(functools.partial(lambda m: tokens_of(sample(m, prompts, G, length, eos)), m) for m in (half, model)))
    row(f"rollout, {name}, {P} x {G} x {length}, bf16; fp32", *(rates(1, t) for t in times), "tok/s")
    for spec, start in (("full", 0), (str(middle), middle)):
        batches = {m: {start: sample(m, prompts, G, length, eos, start)} for m in (half, model)}
        times = race(*(functools.partial(train_pass, m, spec, batches[m]) for m in (half, model)))
        row(f"training pass, {name}, {'layer ' * (spec != 'full')}{spec}, bf16; fp32", *map(ms, times), "ms")
    batch = batches[model][middle]  # fp32's samples, scored by both, from the bottom
    bare = replace(batch, hidden=[], prompt_hidden=[])
    rows = list(range(len(batch.completions)))
    with torch.no_grad():
        (low, mask), (full, _) = (rl.logprobs_of(m, bare, rows, 1.0) for m in (half, model))
    gap = (low - full)[mask].abs()
    what = f"log-probabilities, {name}, bf16 less fp32: mean; largest"
    line(what, f"{gap.mean():.4f}", f"{gap.max():.4f}", "", "")

    def alone():
        with mock.patch.object(rl, "distinct", lambda items: (each := list(items), list(range(len(each))))):
            return shared()

    shared = functools.partial(train_pass, model, str(middle), {middle: batch})
    what = "equal prompts and completions shared; each its own"
    row(f"training pass, {name}, layer {middle}: {what}", *map(ms, race(shared, alone)), "ms")


def vocabulary():
    """Log-probabilities over Qwen's vocabulary: memory goes with the chunk, not with the tokens. Beyond that of one token."""
    least = peak(qwen_logprobs, 1, rl.CHUNK)[0]
    chunk, more_tokens, twice, plain = (
        [peak(qwen_logprobs, N, chunk)[0] - least]
        for N, chunk in ((1024, rl.CHUNK), (4096, rl.CHUNK), (1024, 2 * rl.CHUNK), (1024, None))
    )
    what = "log-probabilities, 151,936 words"
    row(f"{what} x 1,024: peak; log_softmax", chunk, plain, "MB")
    row(f"{what}: 4,096 tokens; 1,024", more_tokens, chunk, "MB", "~ 1")
    row(f"{what}: twice the chunk; the chunk", twice, chunk, "MB", "~ 2")


def qwen_logprobs(N, chunk):
    weight = torch.full((151936, 896), 0.01, device=DEVICE, dtype=DTYPE)
    x = torch.full((N, 896), 0.01, device=DEVICE, dtype=DTYPE, requires_grad=True)
    tokens = torch.zeros(N, dtype=torch.long, device=DEVICE)
    if chunk:
        rl.token_logprobs(x, weight, tokens, 1.0, chunk).sum().backward()
    else:
        F.log_softmax((x @ weight.T).float(), dim=-1).gather(1, tokens[:, None]).sum().backward()


def growth(size, least):
    """How a step's time grows: each size against half of it, a middle-sized random model, all layers trained."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def a_step(value):
        sizes = {"prompts": 8, "length": 32, "num_hidden_layers": 4, "vocab_size": 2048, size: value}
        prompts, length = [[1] * 15 + [i + 2] for i in range(sizes.pop("prompts"))], sizes.pop("length")
        one_step = grpo_step(
            random_model(hidden_size=256, intermediate_size=768, head_dim=64, **sizes), prompts, 8, length, NEVER, "full"
        )
        return lambda: bool(one_step())  # the time of the step, not of a token

    times = race(*(a_step(factor * least) for factor in (1, 2, 4)))
    for i in (1, 2):
        what = f"GRPO step, {size} {2**i * least:,}; {2**i * least // 2:,}"
        row(what, ms(times[i]), ms(times[i - 1]), "ms", "<= 2 and a little")


def machine(name, P, G, length):
    """Arithmetic that counts as part of the model, a second, against a big matrix product; bytes that decoding reads against a copy."""
    model, _, prompts, _ = ours(name)
    c, L, prompts = model.config, model.config.num_hidden_layers, prompts[:P]
    batches = {k: sample(model, prompts, G, length, NEVER, k) for k in (0, L // 2)}
    wide = 2048 if DEVICE == "cpu" else 8192
    a, b = torch.randn(2, wide, wide, device=DEVICE, dtype=DTYPE)
    big = torch.randn(2**27, device=DEVICE)
    product, copying, roll, full, single = race(
        lambda: bool(len(a @ b)), lambda: bool(len(big.clone())), lambda: bool(sample(model, prompts, G, length, NEVER)),
        lambda: train_pass(model, "full", batches), lambda: train_pass(model, str(L // 2), batches),
    )  # fmt: skip
    # FLOPs of a forward pass through a layer and through the head, prompts once. A backward pass is as many for the gradient of
    # the states, and as many again for that of the weights.
    seen = sum(len(p) ** 2 / 2 + G * sum(len(p) + t for t in range(length)) for p in prompts)  # pairs of positions
    weights = 2 * sum(p.numel() for p in model.model.layers[0].parameters())
    layer = weights * sum(len(p) + G * length for p in prompts) + 4 * seen * c.num_attention_heads * c.head_dim
    head = 2 * P * G * length * c.vocab_size * c.hidden_size
    counts = {"rollout": L * layer + head, "training, full": 3 * (L * layer + head)}
    counts[f"training, layer {L // 2}"] = (2 * (L - L // 2) + 1) * layer + 2 * head
    for (what, count), times in zip(counts.items(), (roll, full, single)):
        what = f"{what}, {name}; matrix product"
        row(what, rates(count / 1e9, times), rates(2 * wide**3 / 1e9, product), "GFLOP/s")
    size = model.lm_head.weight.element_size()
    read = length * sum(p.numel() for p in model.parameters()) + 2 * seen * L * c.num_key_value_heads * c.head_dim
    what = f"rollout, {name}: weights and cache read; copy"
    row(what, rates(read * size / 1e9, roll), rates(8 * big.numel() / 1e9, copying), "GB/s")


def shaped(name):
    """A random model of the shape of tests/configs/NAME: made where and in what it computes, so an 8B one needs no 32 GB first."""
    with torch.device("meta"):
        model = Transformer(Config.from_hf(read_json(Path(__file__).parent / "configs" / name / "config.json")))
    model = model.to(DTYPE).to_empty(device=DEVICE)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.init_weights()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
    return model


def large(name, P, G, prompt, length, budget):
    """On a GPU: decoding with graphs, without, and against the memory's bandwidth; memory of training the middle layer against --plan."""
    if DEVICE != "cuda":
        raise Skip("wants --device cuda")
    model = shaped(name)
    c, middle = model.config, model.config.num_hidden_layers // 2
    prompts = torch.randint(c.vocab_size, (P, prompt)).tolist()
    big, captured = torch.randn(2**28, device=DEVICE), rl.captured

    def decode(capture, new):
        rl.captured = capture
        sample(model, prompts, G, new, NEVER)
        rl.captured = captured
        return P * G * new

    copying, graphs, none, prefill = race(
        lambda: bool(len(big.clone())), lambda: decode(captured, length), lambda: decode(lambda step: step, length),
        lambda: bool(decode(captured, 1)),
    )  # fmt: skip
    what = f"decoding, {name} (random), {P} x {G} x {length}"
    row(f"{what}: graphs; none", rates(1, graphs), rates(1, none), "tok/s")
    seconds = [P * G * length * t - p for t, p in zip(graphs, prefill)]
    cache = P * G * (length - 1) * (prompt + length / 2) * 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
    weights = sum(p.numel() for p in model.model.layers.parameters()) + model.lm_head.weight.numel()
    read = ((length - 1) * weights + cache) * model.lm_head.weight.element_size()
    row(f"{what}: weights and cache read; copy", rates(read / 1e9, seconds), rates(8 * big.numel() / 1e9, copying), "GB/s")
    model = big = None
    torch.cuda.empty_cache()  # the next needs the room
    argv = f"--model . --plan --recompute --layer {middle} --group {G} --max-tokens {length} --prompts {P}"
    argv += f" --device {DEVICE} --dtype {({kind: name for name, kind in train.DTYPES.items()})[DTYPE]}"
    settings = {**vars(train.parse(argv.split())), "layer": str(middle), "seed": 0, "panel": "test"}
    _, found = train.account(c, settings, prompt, None)
    expected = found["expected peak, GiB"] * 2**30
    needed = peak(two_large_steps, name, P, G, prompt, length, budget)
    row(f"GRPO step, {name} (random), layer {middle}: peak; --plan", needed, [expected / 2**20], "MB", "<= 1")


def two_large_steps(name, P, G, prompt, length, budget):
    model = shaped(name)
    model.recompute = True
    prompts = torch.randint(model.config.vocab_size, (P, prompt)).tolist()
    one_step = grpo_step(model, prompts, G, length, NEVER, str(model.config.num_hidden_layers // 2), budget)
    for _ in range(2):  # in the second, Adam has its state
        one_step()


# ---------------------------------------------------------------------------------------------------- the command line

CLAIMS = {  # prompts x samples x greatest length; a claim is made for each of its cases
    rollout: [
        (TAUGHT, 32, 16, 6, ">= 5"), (RANDOM, 32, 16, 6, ""), (SMOL, 8, 8, 64, ">= 2.5"), (QWEN, 2, 4, 16, ""),
        *((RANDOM, 32, 16, length, ">= 1") for length in (16, 64, 256)), (RANDOM, 2, 16, 256, ">= 1"),
    ],
    layers: [(RANDOM, 32, 16, 6, 1), (SMOL, 4, 8, 32, 10)],
    step: [(TAUGHT, 32, 16, 6), (RANDOM, 32, 16, 6), (SMOL, 2, 8, 32)],
    saved: [(TAUGHT, 32, 16, 6), (SMOL, 2, 8, 32)],
    precision: [(QWEN, 8, 8, 10)],
    vocabulary: [()],
    growth: [("prompts", 8), ("length", 32), ("num_hidden_layers", 4), ("vocab_size", 2048)],
    machine: [(SMOL, 2, 8, 64)],
    large: [("Qwen3-1.7B-Base", 4, 16, 512, 512, 16384), ("Qwen3-8B-Base", 4, 16, 512, 512, 16384)],
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=[claim.__name__ for claim in CLAIMS], help="one group of rows")
    parser.add_argument("--weights", default=os.environ.get("ONELAYER_WEIGHTS"), help="folder of the real checkpoints")
    parser.add_argument("--base", help="a taught embedded model, such as runs/base of train.py (default: teach one for a minute)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="times that each contestant runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = args.base or Path(folder) / "base"
        if not args.base and args.only != "large":
            train.teach_base(base, tasks.arithmetic(), 0, 250, 256)
        setup(args.device, args.weights, base, args.rounds)
        line("what", "ours", "theirs", "ratio", "target")
        for claim, cases in CLAIMS.items():
            for case in cases if args.only in (None, claim.__name__) else ():
                try:
                    claim(*case)
                except Skip as reason:
                    print(f"{claim.__name__}, {', '.join(map(str, case))}: skipped: {reason}", flush=True)


if __name__ == "__main__":
    main()
