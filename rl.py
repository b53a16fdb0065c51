"""All that lies between a prompt and a changed weight.

    rollout             prompts -> completions and their log-probabilities
    compute_advantages  rewards -> how good each completion was: GRPO, Dr. GRPO, GiGPO
    logprobs_of         completions -> their log-probabilities again, now with a graph
    policy_loss         the clipped surrogate
    update              one optimizer step, or a few, on what trains

A prompt is run once for all its completions. Layers below the first that trains (`start`) never
change: what enters it is kept while sampling, and training begins there.
"""

import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from model import KVCache, SharedPrefix, causal, recomputed

# ---- Sampling a batch


@dataclass
class Rollout:
    """B completions of prompts; from `rollout`, prompt-major."""

    prompts: list = ()  # B lists of token ids
    completions: list = ()  # B lists of ids, the ending one included
    logprobs: list = ()  # B lists: of the distribution sampled from
    truncated: list = ()  # B bools: no ending token came
    # What entered layer `start` > 0; a completion's last token predicts nothing.
    prompt_hidden: list = ()  # B tensors (length, D), the same of equal prompts
    hidden: list = ()  # B tensors (length - 1, D)
    # Where episodes were played:
    episode: list = ()  # B indices
    anchor: list = ()  # B hashables: the state that is answered
    reward: list = ()  # B floats: what was earned at once

    def append(self, other):
        """Add another rollout of the same `start`."""
        for name, more in vars(other).items():
            setattr(self, name, [*getattr(self, name), *more])


@torch.no_grad()
def rollout(
    model, prompts, *, group_size, max_new_tokens, temperature, eos_id, generator=None, start=0,
    budget=None,
):  # fmt: skip
    """Sample `group_size` completions of each of the prompts (lists of token ids) -> Rollout.

    eos_id: one id that ends a completion, or several; start: keep what enters this layer; budget:
    see `within_budget`. ValueError for an empty prompt or one too long for the model.
    """
    length, context = max(map(len, prompts)) + max_new_tokens, model.config.max_position_embeddings
    if not all(prompts):
        raise ValueError("an empty prompt: it needs a token")
    if length > context:
        raise ValueError(f"{length} tokens, --max-tokens included, exceed the context of {context}")
    device = model.lm_head.weight.device
    ends = torch.tensor(eos_id, device=device)
    prompts = [tuple(prompt) for prompt in prompts for _ in range(group_size)]
    # Drawn for all: what is sampled does not depend on how the batch is split.
    uniform = 1 - torch.rand(max_new_tokens, len(prompts), generator=generator, device=device).T

    def sample_all(positions):
        out, size = Rollout(), max(1, positions // length)
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size], uniform[i : i + size]
            out.append(Decoding(model, *part, temperature, ends, start).run())
        return out

    return within_budget(budget, "sampling", sample_all)


class Decoding:
    """Completions while they are sampled.

    A row of the batch stands for all completions of a prompt that are equal so far: at first there
    is one row a prompt, and where two completions part, so do their rows (on a GPU, all at once).
    """

    def __init__(self, model, prompts, uniform, temperature, ends, start):
        """Run B prompts (tuples), equal ones once, and choose first tokens by uniform (B, N)."""
        self.model, self.uniform, self.temperature = model, uniform, temperature
        self.ends, self.start, (B, N) = ends, start, uniform.shape
        self.out = Rollout(list(map(list, prompts)))
        prompts, prompt_of = distinct(prompts)
        tokens, real = pad(prompts, uniform.device)  # (P, Tp)
        (P, Tp), x = tokens.shape, model.model.embed_tokens(tokens)  # (P, Tp, D)
        self.tokens, self.logprobs = tokens.new_zeros(B, N), uniform.new_zeros(B, N)
        self.hidden = x.new_empty(B, N if start else 0, x.shape[2])
        self.alive = torch.arange(B, device=x.device)  # (A,): completions still sampled,
        self.row = torch.tensor(prompt_of, device=x.device)  # (A,): and the row that each is in
        self.lead = self.alive.new_zeros(P)  # (rows,): one completion of each row, see `regroup`
        self.now = tokens.new_zeros(1)  # the index of the newest tokens
        self.real = real[self.row]  # (B, Tp): where a prompt has a token, not padding
        self.masked = STRIDES[x.device.type][1] > 1 or not real.all()  # else nothing is hidden

        self.cache = KVCache(model.config, P, Tp + N, x.dtype, x.device)
        self.cache.slots, self.cache.span = slice(0, Tp), Tp
        positions, mask = causal(Tp, x.device)
        x = model.run_layers(x, positions, mask, self.cache, stop=start)
        if start:
            self.out.prompt_hidden = [x[p, : len(prompts[p])] for p in prompt_of]
        x = model.run_layers(x, positions, mask, self.cache, start=start)
        self.choose(x[positions == real.sum(1, keepdim=True) - 1])

    def choose(self, x):
        """x (rows, D), what left the last layer at the newest tokens -> the next tokens."""
        logits, at = self.model.logits(x)[self.row], (self.alive, self.now)
        self.tokens[at], self.logprobs[at] = sample(logits, self.temperature, self.uniform[at])

    def step(self):
        """Run the newest tokens and choose the next: all that changes is written in place."""
        real, N, mask = self.real[self.lead], self.tokens.shape[1], None  # (rows, Tp)
        if self.masked:
            made = torch.arange(N, device=real.device).expand(len(real), N) <= self.now  # (rows, N)
            mask = torch.cat([real, made], dim=1)[:, None, None, : self.cache.span]
        where = real.sum(1, keepdim=True) + self.now, mask, self.cache
        self.cache.slots = self.now + real.shape[1]
        x = self.model.model.embed_tokens(self.tokens[self.lead, self.now])[:, None]  # (rows, 1, D)
        x = self.model.run_layers(x, *where, stop=self.start)
        if self.start:
            self.hidden[self.alive, self.now] = x[self.row, 0]
        x = self.model.run_layers(x, *where, start=self.start)
        self.now += 1
        self.choose(x[:, 0])

    def run(self):
        """Step until all have ended (STRIDES: how often we ask)."""
        stride, block = STRIDES[self.now.device.type]
        Tp, N = self.cache.span, self.uniform.shape[1]
        for t in range(1, N):
            span = -(-(Tp + t) // block) * block
            changed = span != self.cache.span
            if (t - 1) % stride == 0:
                ended = torch.isin(self.tokens[self.alive, :t], self.ends).any(1)
                if ended.all():
                    break
                changed |= self.regroup((~ended).nonzero()[:, 0], share=stride == 1)
            if changed:
                self.cache.span, step = span, self.step
            elif step == self.step and N - t > stride:  # after one plain step, if it pays
                step = captured(self.step)
            step()
        return self.result()

    def regroup(self, going, share):
        """Part rows whose newest tokens differ, or all if not `share`; drop what is not `going`.

        Returns whether rows were moved. That costs about a step: only where rows must part or a
        quarter can go.
        """
        alive, row = self.alive[going], self.row[going]
        self.lead[row] = alive
        token, vocab = self.tokens[alive, self.now], self.model.config.vocab_size
        group = row * vocab + token if share else alive  # a new row for each row and token
        branches, place = group.unique(return_inverse=True)
        move = len(branches) > len(row.unique()) or len(branches) <= 0.75 * len(self.lead)
        if move:
            self.cache.keep(torch.empty_like(branches).scatter_(0, place, row))
            self.lead = torch.empty_like(branches).scatter_(0, place, alive)
            self.alive, self.row = alive, place
        return move

    def result(self):
        if not self.logprobs.isfinite().all():
            raise FloatingPointError("a log-probability at sampling is not finite")
        hit = torch.isin(self.tokens, self.ends)
        lengths = torch.where(hit.any(1), hit.int().argmax(1) + 1, hit.shape[1]).tolist()
        self.out.truncated = (~hit.any(1)).tolist()
        self.out.completions = [row[:n] for row, n in zip(self.tokens.tolist(), lengths)]
        self.out.logprobs = [row[:n] for row, n in zip(self.logprobs.tolist(), lengths)]
        if self.start:
            self.out.hidden = [row[: n - 1] for row, n in zip(self.hidden, lengths)]
        return self.out


def sample(logits, temperature, uniform):
    """One token a row from softmax(logits / temperature): its distribution function, inverted.

    logits (B, V), uniform (B,) in (0, 1] -> tokens (B,), the first whose cumulative probability
    reaches `uniform`, and their log-probabilities (B,). Temperature 0 takes the likeliest token,
    and calls its log-probability 0.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(uniform)
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = logprobs.exp().cumsum(-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None])  # (B, 1)
    token = token.clamp(max=logits.shape[-1] - 1)  # beyond only where logits are not finite
    return token[:, 0], logprobs.gather(1, token)[:, 0]


# ---- Advantages

ALGORITHMS = {  # all that differs: the divisor, the weight of GiGPO's step level, the loss's mean
    "grpo": {"normalize": "std", "step_weight": 0.0, "aggregate": "sequence"},
    "dr_grpo": {"normalize": "none", "step_weight": 0.0, "aggregate": "constant"},
    "gigpo": {"normalize": "std", "step_weight": 1.0, "aggregate": "sequence"},
}


def group_advantages(rewards, normalize="std"):
    """How much better a completion did than its group: rewards (P, G) -> advantages (P, G).

    "std": GRPO, arXiv 2402.03300 section 4.1.2, (r - mean) / (std + 1e-6), sample standard
    deviation. "none": Dr. GRPO, arXiv 2503.20783, r - mean. A group without spread gets exactly 0.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    if normalize == "std":
        var = centered.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)
        centered = centered / (var.sqrt() + 1e-6)
    elif normalize != "none":
        raise ValueError(f'normalize is {normalize!r}; it must be "std" or "none"')
    spread = rewards.amax(1, keepdim=True) > rewards.amin(1, keepdim=True)
    return torch.where(spread, centered, 0.0)  # rounding of the mean must not pass for signal


def gigpo_advantages(
    episode_return, step_return, group, trajectory, anchor, *, step_weight=1.0, normalize="none"
):
    """A = A_episode + step_weight * A_step of N environment steps -> (N,): GiGPO, arXiv 2505.10978.

    A_episode compares the total returns of a group's trajectories, each counted once; A_step the
    discounted returns that followed one and the same state (`anchor`, any hashable) in a group,
    and is 0 for a state met once. Both are normalized as in `group_advantages`.
    """

    def relative(keys, values):
        values = torch.as_tensor(values, dtype=torch.float32)
        keys, advantages = torch.tensor(distinct(keys)[1]), torch.zeros_like(values)
        for key in keys.unique():
            same = keys == key
            advantages[same] = group_advantages(values[None, same], normalize)[0]
        return advantages

    group = list(map(int, group))
    episodes, episode_of = distinct(zip(group, map(int, trajectory)))
    returns = list(dict(zip(episode_of, episode_return)).values())  # of each episode, once
    episode_level = relative([g for g, _ in episodes], returns)[episode_of]
    return episode_level + step_weight * relative(zip(group, anchor), step_return)


def compute_advantages(batch, group_size, *, normalize, step_weight, discount=0.95):
    """How good each completion of a played Rollout was: (B,).

    Without a step level, all completions of an episode share the advantage of its total reward.
    """
    episode, reward = torch.tensor(batch.episode), torch.tensor(batch.reward, dtype=torch.float64)
    total = episode.bincount(weights=reward)  # of each episode
    if not step_weight:
        return group_advantages(total.view(-1, group_size), normalize).flatten()[episode]
    following, step_return = [0.0] * len(total), [0.0] * len(reward)
    for i, e in reversed(list(enumerate(batch.episode))):  # sum discount^(t' - t) * reward, t' >= t
        following[e] = step_return[i] = batch.reward[i] + discount * following[e]
    return gigpo_advantages(
        total[episode], step_return, episode // group_size, episode, batch.anchor,
        step_weight=step_weight, normalize=normalize,
    )  # fmt: skip


# ---- The loss


def logprobs_of(model, batch, rows, temperature, start=0):
    """Log-probabilities of the completions `rows` (R indices) of a Rollout, with a graph.

    Returns logprobs (R, T) and mask (R, T); what the mask leaves out is 0.
    """
    device = model.lm_head.weight.device
    pairs = [(tuple(batch.prompts[row]), tuple(batch.completions[row])) for row in rows]
    pairs, copy_of = distinct(pairs)  # equal completions of a prompt are run once: N <= R
    prompts, prompt_of = distinct(prompt for prompt, _ in pairs)
    prompts, real = pad(prompts, device)  # (P, Tp)
    tokens, mask = pad([completion for _, completion in pairs], device)  # (N, T)
    if start and batch.hidden:
        chosen = dict(zip(copy_of, rows)).values()  # for each of the N in turn, one of the rows
        x = pad([batch.hidden[row] for row in chosen], device)[0]  # (N, T - 1, D)
        chosen = dict(zip(prompt_of, chosen)).values()  # for each of the P, one of these
        prompt_x = pad([batch.prompt_hidden[row] for row in chosen], device)[0]  # (P, Tp, D)
    else:
        start, embed = 0, model.model.embed_tokens
        prompt_x, x = embed(prompts), embed(tokens[:, :-1])

    T, kv, (positions, seen) = tokens.shape[1], {}, causal(prompts.shape[1], device)
    prompt_x = model.run_layers(prompt_x, positions, seen, SharedPrefix(kv), start=start)
    lengths, prompt_of = real.sum(1, keepdim=True), torch.tensor(prompt_of, device=device)
    last = prompt_x[positions == lengths - 1]  # (P, D): what predicts the first tokens
    if T > 1:
        positions, own = causal(T - 1, device)
        seen = real[prompt_of][:, None, None].expand(-1, 1, T - 1, -1)  # the prompt, and `own`:
        seen = torch.cat([seen, own.expand(len(tokens), 1, -1, -1)], dim=3)  # (N, 1, T - 1, ...)
        positions = positions + lengths[prompt_of]  # (N, T - 1)
        x = model.run_layers(x, positions, seen, SharedPrefix(kv, prompt_of), start=start)
    x = model.model.norm(torch.cat([last[prompt_of][:, None], x], dim=1)[mask])
    logprobs = token_logprobs(x, model.lm_head.weight, tokens[mask], temperature)
    logprobs = torch.zeros(mask.shape, device=device).masked_scatter(mask, logprobs)  # (N, T)
    return logprobs[copy_of], mask[copy_of]


def kl_estimate(logprobs, ref_logprobs):
    """KL(pi || pi_ref) per token, never negative: GRPO, arXiv 2402.03300 eq. 4."""
    log_r = ref_logprobs - logprobs
    return log_r.exp() - log_r - 1


def policy_loss(
    logprobs, old_logprobs, advantages, mask, *, aggregate="sequence", clip=0.2, max_tokens=None,
    ref_logprobs=None, kl_coef=0.0,
):  # fmt: skip
    """The clipped surrogate, to be minimised: (B, T), (B, T), (B,), (B, T) -> a scalar.

    Of a token, -min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) + kl_coef * KL with the ratio
    pi / pi_old; of the batch:
        "sequence"  mean over a completion's tokens, then over completions: GRPO, 2402.03300 eq. 3
        "constant"  sum / (B * max_tokens): Dr. GRPO, 2503.20783
        "token"     sum / number of tokens
    """
    ratio, advantages = (logprobs - old_logprobs).exp(), advantages[:, None]
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)  # (B, T)
    if kl_coef:
        loss = loss + kl_coef * kl_estimate(logprobs, ref_logprobs)
    loss = loss * mask
    if aggregate == "sequence":
        return (loss.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if aggregate == "constant":
        return loss.sum() / (len(loss) * max_tokens)
    if aggregate == "token":
        return loss.sum() / mask.sum().clamp(min=1)
    raise ValueError(f'aggregate is {aggregate!r}; it must be "sequence", "constant" or "token"')


# ---- One update


def update(
    model, optimizer, batch, advantages, *, lr, temperature=1.0, start=0, aggregate="sequence",
    clip=0.2, max_tokens=None, kl_coef=0.0, reference=None, epochs=1, budget=None,
):  # fmt: skip
    """Train on a Rollout whose completions earned `advantages` (B,) -> figures.

    max_tokens: the most that an episode can have; reference: name -> what trains, as it was before
    training; budget: see `within_budget`. Without signal and KL term nothing changes, not even
    Adam's state. FloatingPointError: a step is not finite; it is not taken, and those of earlier
    epochs stay.
    """
    advantages = torch.as_tensor(advantages, device=model.lm_head.weight.device)
    signal = advantages.nonzero()[:, 0].tolist()
    figures = {"signal": len(signal) / len(advantages)}
    figures |= dict.fromkeys(("loss", "grad_norm", "clipped", "kl", "logprob_gap"), 0.0)
    rows = range(len(advantages)) if kl_coef else signal  # others have no gradient
    prompt_of = distinct(map(tuple, batch.prompts))[1]
    rows = sorted(rows, key=prompt_of.__getitem__)  # those of one prompt share its pass
    tokens = sum(map(len, batch.completions))
    whole = len(advantages)  # the mean is over all completions, or
    if aggregate == "constant" and batch.episode:  # over episodes, of one turn or more
        whole = len(set(batch.episode))

    def gradient(positions):
        optimizer.zero_grad()  # what a pass that ran out of memory may have left
        passed = []
        for part in micro_batches(batch, rows, positions):
            logprobs, mask = logprobs_of(model, batch, part, temperature, start)
            ref = current = logprobs.detach()
            old = pad([batch.logprobs[i] for i in part], mask.device)[0]
            if kl_coef:
                with torch.no_grad(), swapped(optimizer.parameters, reference):
                    ref = logprobs_of(model, batch, part, temperature, start)[0]
            loss = policy_loss(
                logprobs, old, advantages[part], mask, aggregate=aggregate, clip=clip,
                max_tokens=max_tokens, ref_logprobs=ref, kl_coef=kl_coef,
            )  # fmt: skip
            share = mask.sum() / tokens if aggregate == "token" else len(part) / whole
            loss = share * loss
            loss.backward()
            optimizer.collect_gradients()
            gap, kl = (current - old)[mask], kl_estimate(current, ref)[mask]
            passed.append((loss.detach()[None], gap, kl))
        return map(torch.cat, zip(*passed))

    for epoch in range(epochs if rows else 0):
        losses, gap, kl = within_budget(budget, "training", gradient)
        figures["grad_norm"] = optimizer.step(lr)
        figures["loss"] += losses.sum().item() / epochs
        figures["clipped"] += ((gap.exp() - 1).abs() > clip).sum().item() / tokens / epochs
        figures["kl"] += kl.sum().item() / tokens / epochs
        if epoch == 0:  # the weights of sampling: a gap is rounding, or a bug
            figures["logprob_gap"] = gap.abs().max().item()
    return figures


class Optimizer:
    """AdamW, arXiv 1711.05101, on fp32 copies ("masters") of what the model may hold in bf16.

    A bf16 weight of 0.02 has neighbours 1e-4 away: a step of 1e-6 would round to nothing. So steps
    and gradients add up in fp32, and the model gets the masters rounded. Those of an fp32 model
    are its parameters themselves.
    """

    def __init__(self, parameters, factors=None):
        """parameters: name -> Parameter; factors: name -> what its learning rate is times (1)."""
        self.parameters, self.masters, groups = parameters, {}, {1.0: []}
        for name, p in parameters.items():
            fp32 = p.dtype == torch.float32
            self.masters[name] = p if fp32 else torch.nn.Parameter(p.detach().float())
            groups.setdefault((factors or {}).get(name, 1.0), []).append(self.masters[name])
        groups = [{"params": masters, "factor": factor} for factor, masters in groups.items()]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        for m in self.masters.values():  # what AdamW would make in its first step
            moments = {name: torch.zeros_like(m) for name in ("exp_avg", "exp_avg_sq")}
            self.adam.state[m] = {"step": torch.zeros((), device=m.device), **moments}

    def tensors(self):
        """What a checkpoint holds: "weight.NAME", "exp_avg.NAME" ... -> tensor."""
        states = {n: {"weight": m.detach(), **self.adam.state[m]} for n, m in self.masters.items()}
        return {f"{kind}.{name}": t for name, state in states.items() for kind, t in state.items()}

    def load(self, tensors):
        """Go on from such tensors."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.round()

    @torch.no_grad()
    def round(self):
        for name, p in self.parameters.items():
            p.copy_(self.masters[name])

    def zero_grad(self):
        for p in (*self.parameters.values(), *self.masters.values()):
            p.grad = None

    def collect_gradients(self):
        """Move what a backward pass left on the model to the masters, where it adds up."""
        for name, p in self.parameters.items():
            m = self.masters[name]
            if p is not m and p.grad is not None:
                m.grad = p.grad.float() if m.grad is None else m.grad.add_(p.grad)
                p.grad = None

    def step(self, lr):
        """One step with the gradient clipped to a norm of 1. Returns the norm that it had."""
        norm = torch.nn.utils.clip_grad_norm_(list(self.masters.values()), 1.0).item()
        if not norm < float("inf"):
            raise FloatingPointError(f"the gradient's norm is {norm}: no step was taken on it")
        for group in self.adam.param_groups:
            group["lr"] = lr * group["factor"]
        self.adam.step()
        self.zero_grad()
        self.round()
        return norm


# ---- Machinery: the lesson ends here. Memory, graphs, padding.

# What Python's and torch's exceptions say.
OUT_OF_MEMORY = "MemoryError|(out of|not enough|allocate) memory|ALLOC_FAILED"


def within_budget(budget, kind, work):
    """work(positions at a time), once more with half as many whenever memory runs out.

    budget: {"sampling": positions, "training": positions}, where that of `kind` is halved in place;
    None: no limit, no second try. MemoryError where not even one completion and its prompt fit.
    """
    while True:
        try:
            return work(budget[kind] if budget else sys.maxsize)
        except (MemoryError, RuntimeError) as error:
            if not budget or not re.search(OUT_OF_MEMORY, repr(error)):
                raise
            if budget[kind] <= 1:
                raise MemoryError(f"{kind}: no memory for one completion at a time") from None
        budget[kind] //= 2  # not in `except`: there the error keeps what was computed
        torch.cuda.empty_cache()
        line = f"out of memory: {kind} goes on with {budget[kind]:,} positions at a time"
        tqdm.write(line, file=sys.stderr)


def micro_batches(batch, rows, positions):
    """Halve `rows` until each part has at most `positions`, or is one row -> the parts.

    Counted are the padded completions and, once for each prompt, the padded prompts.
    """
    prompts = {tuple(batch.prompts[row]) for row in rows}
    longest = max(len(batch.completions[row]) for row in rows)
    if len(rows) == 1 or len(rows) * longest + len(prompts) * max(map(len, prompts)) <= positions:
        return [rows]
    middle = len(rows) // 2
    halves = rows[:middle], rows[middle:]
    return [part for half in halves for part in micro_batches(batch, half, positions)]


# After how many steps we look at what has ended (asking makes a GPU wait), and by how many slots
# the part of the cache that attention reads grows. In between, a GPU replays a graph.
STRIDES = {"cpu": (1, 1), "cuda": (16, 256)}


def captured(step):
    """Record what `step` does as a CUDA graph -> a function that has the GPU do it, without Python.

    A replay uses the recording's tensors: `step` asks for no value and writes in place. It must
    have run before, to load kernels. Drop the graph once a tensor is replaced.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


CHUNK = 2**25  # logits that exist at a time in a training pass: 128 MiB in fp32


def token_logprobs(x, weight, tokens, temperature, chunk=CHUNK):
    """log softmax(x @ weight.T / temperature) at `tokens`, in fp32.

    x (N, D), weight (V, D), tokens (N,) -> (N,). More than `chunk` logits are made in parts, and
    once more in the backward pass.
    """

    def some(x, tokens):
        logits = (x @ weight.T).float() / temperature
        return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)

    size = max(1, chunk // len(weight))
    if len(x) <= size:
        return some(x, tokens)
    parts = zip(x.split(size), tokens.split(size))
    return torch.cat([recomputed(some, *part) for part in parts])


def distinct(items):
    """The distinct ones of hashable items, in order; and of each item, the index among them."""
    place = {}
    indices = [place.setdefault(item, len(place)) for item in items]
    return list(place), indices


def pad(rows, device):
    """Lists or tensors -> right-padded (N, T, ...), and mask (N, T): what is real."""
    rows = [torch.as_tensor(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return padded, torch.arange(padded.shape[1], device=device) < lengths[:, None]


@contextmanager
def swapped(parameters, tensors):
    """Within this block parameters and `tensors` trade places: the model is its KL reference."""

    def swap():
        for name, p in parameters.items():
            p.data, tensors[name] = tensors[name], p.data

    swap()
    try:
        yield
    finally:
        swap()
