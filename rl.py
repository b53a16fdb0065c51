"""Rollouts, advantages, the clipped loss and one update: everything between a prompt and a changed weight.

    rollout            prompts -> completions and the log-probabilities they were sampled with
    play               episodes of one turn or many -> the same, with what each turn earned
    advantages         rewards -> how good each turn was (GRPO, Dr. GRPO, GiGPO)
    score              completions -> log-probabilities again, this time with a graph
    policy_loss        the clipped surrogate, as GRPO, Dr. GRPO or per token
    update             one optimizer step (or a few) on the parameters that train

Both passes over the model have one shape: each prompt is run once and shared by its group, then the completions follow, and
those of one prompt that are equal (so far, in sampling) are run once too. So a training pass handles P prompts and at most
P * G completions, not P * G copies of both; and since layers below the first trained one (`start`) never change, the hidden
states that enter it during sampling are kept, and training begins there.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.utils.checkpoint import checkpoint

from model import KVCache, Prefix, SharedPrefix


@dataclass
class Rollout:
    """P prompts and B completions of them; from `rollout`, G of each prompt, prompt-major: B = P * G."""

    prompts: list = field(default_factory=list)  # P lists of token ids
    prompt_of: list = field(default_factory=list)  # B indices: the prompt that each completion answers
    completions: list = field(default_factory=list)  # B lists of token ids, the ending token included where one was sampled
    logprobs: list = field(default_factory=list)  # the same shape: natural log, of the distribution sampled from
    truncated: list = field(default_factory=list)  # B bools: cut at max_new_tokens, no ending token
    prompt_hidden: list = field(default_factory=list)  # P tensors (len, D): the states that entered layer `start` > 0 ...
    hidden: list = field(default_factory=list)  # ... and B tensors (len - 1, D): a completion's last token predicts nothing
    # Of a rollout in which episodes were played (`play`), for each completion:
    episode: list = field(default_factory=list)  # the index of its episode
    anchor: list = field(default_factory=list)  # the state it answered to, any hashable
    reward: list = field(default_factory=list)  # what it earned at once

    def extend(self, other):
        """Append another rollout of the same model and `start`. A prompt that is here already is not kept twice."""
        place = {tuple(prompt): p for p, prompt in enumerate(self.prompts)}
        for p, prompt in enumerate(other.prompts):
            if tuple(prompt) not in place:
                place[tuple(prompt)] = len(self.prompts)
                self.prompts.append(prompt)
                self.prompt_hidden += other.prompt_hidden[p : p + 1]
        self.prompt_of += [place[tuple(other.prompts[p])] for p in other.prompt_of]
        for name in vars(self).keys() - {"prompts", "prompt_hidden", "prompt_of"}:
            getattr(self, name).extend(getattr(other, name))


def pad(rows, device, dtype=torch.long):
    """Ragged lists (of `dtype`) or tensors -> a right-padded tensor (N, T, ...) and its mask (N, T), True on what is real."""
    rows = [row if isinstance(row, torch.Tensor) else torch.tensor(row, dtype=dtype) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return padded, torch.arange(padded.shape[1], device=device) < lengths[:, None]


def causal(T, device):
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def sample(logits, temperature, uniform):
    """One token a row from softmax(logits / temperature), by inverting its distribution function at `uniform` in (0, 1].

    logits (B, V), uniform (B,) -> tokens (B,), logprobs (B,). Temperature 0 takes the likeliest token, with log-probability 0.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(uniform)
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = logprobs.exp().cumsum(-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None])  # never one of probability 0
    token = token.clamp(max=logits.shape[-1] - 1)  # beyond only where logits are not finite, which `rollout` reports
    return token[:, 0], logprobs.gather(1, token)[:, 0]


# For each device: after how many steps we look at what has ended (asking makes a GPU wait), and by how many slots the part of
# the cache that attention reads grows. Between two such changes a GPU does the same on the same memory, so it replays a graph.
STRIDES = {"cpu": (1, 1), "cuda": (16, 256)}


def captured(step):
    """A function that has the GPU do again what `step` does: its kernels, as one CUDA graph, without Python between them.

    Here they are recorded, not run. A replay works on the memory of the recording: `step` may ask for no value, what the next
    step needs it must write in place, and the graph is of no use once one of its tensors has been replaced. Drop it before the
    next one is captured, as they share a stream. `step` must have run on tensors of these shapes: a kernel cannot be loaded
    while it is recorded.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def rollout(
    model, prompts, *, group_size, max_new_tokens, temperature, eos_id, generator=None, start=0, token_budget=None
):  # fmt: skip
    """Sample `group_size` completions of every prompt.

    prompts: non-empty token lists of any lengths. eos_id: the id that ends a completion, or several. `start`: keep the hidden
    states that enter this layer, for `score`. All in one batch, or in as few as keep the cache at `token_budget` positions (or
    one prompt). Returns a Rollout. ValueError for an empty prompt or one too long for the model, FloatingPointError where the
    model's log-probabilities are not finite.
    """
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("a prompt is empty: it needs at least one token")
    if longest + max_new_tokens > model.config.max_position_embeddings:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{model.config.max_position_embeddings}: lower --max-tokens or shorten the prompt"
        )
    G, B = group_size, len(prompts) * group_size
    at_once = len(prompts) if token_budget is None else max(1, token_budget // (G * (longest + max_new_tokens)))
    if at_once < len(prompts):
        whole = Rollout()
        for first in range(0, len(prompts), at_once):
            part = prompts[first : first + at_once]
            whole.extend(rollout(
                model, part, group_size=G, max_new_tokens=max_new_tokens, temperature=temperature, eos_id=eos_id,
                generator=generator, start=start,
            ))  # fmt: skip
        return whole
    ends = torch.tensor([eos_id] if isinstance(eos_id, int) else sorted(eos_id), device=device)
    place = {}  # prompts that are equal (episodes may come to one state) are one
    prompt_of = [place.setdefault(tuple(prompt), len(place)) for prompt in prompts for _ in range(G)]
    prompts = [list(prompt) for prompt in place]
    out = Rollout(prompts, prompt_of)

    # Prefill: every prompt once for all of its completions.
    prompt, real = pad(prompts, device)  # (P, Tp)
    P, Tp = prompt.shape
    size = Tp + max_new_tokens
    cache = KVCache(model.config, P, size, dtype, device)
    cache.slots, cache.span = slice(0, Tp), Tp
    positions = torch.arange(Tp, device=device)[None]
    x = model.model.embed_tokens(prompt)  # (P, Tp, D)
    x = model.run_layers(x, positions, causal(Tp, device)[None, None], cache, stop=start)
    if start:
        out.prompt_hidden = [row[: len(prompt)] for row, prompt in zip(x, prompts)]
    x = model.run_layers(x, positions, causal(Tp, device)[None, None], cache, start=start)
    position = real.sum(1)[:, None]  # (P, 1): of the next token
    x = x.gather(1, (position - 1)[..., None].expand(-1, -1, x.shape[2]))  # (P, 1, D): at each prompt's last token

    # Decode. A row of the batch stands for all completions of a prompt that are equal so far: at first there is one row a
    # prompt, and where two of its completions part, so do their rows. Slots of the cache are the same for all rows.
    every, block = STRIDES[device.type]
    mask = None
    if block > 1 or not real.all():  # slots not filled yet, or padding between a prompt and what follows it
        mask = torch.cat([real, real.new_zeros(P, max_new_tokens)], dim=1)[:, None, None, :]  # (P, 1, 1, size)
    tokens = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(B, max_new_tokens, device=device)
    hidden = torch.empty(B, max_new_tokens if start else 0, model.config.hidden_size, dtype=dtype, device=device)
    alive = torch.arange(B, device=device)  # the completions that have not ended ...
    row = torch.tensor(prompt_of, device=device)  # ... the row that each of them continues ...
    token = torch.zeros(B, dtype=torch.long, device=device)  # ... its newest token ...
    ended = torch.zeros(B, dtype=torch.bool, device=device)  # ... and whether it has ended, since we last looked
    now = torch.zeros(1, dtype=torch.long, device=device)  # the newest tokens' index
    slot = now + Tp  # where in the cache they go
    # Numbers are drawn for all completions and steps, so what one samples does not depend on which others have ended.
    uniform = 1 - torch.rand(max_new_tokens, B, generator=generator, device=device)

    def draw(x):  # x (rows, D), the states at the newest tokens -> the next ones
        new, logprob = sample(model.lm_head(model.model.norm(x))[row], temperature, uniform[now, alive])
        tokens[alive, now], logprobs[alive, now] = new, logprob
        token.copy_(new)
        ended.logical_or_((new[:, None] == ends).any(1))

    def step():  # run the newest tokens and draw the next. What the next step needs is written in place: see `captured`
        if mask is not None:
            mask.index_fill_(3, slot, True)
        seen = None if mask is None else mask[..., : cache.span]
        x = torch.zeros_like(position).scatter_(0, row[:, None], token[:, None])  # (rows, 1): the token that each row ends in
        x = model.model.embed_tokens(x)  # (rows, 1, D)
        if start:
            x = model.run_layers(x, position, seen, cache, stop=start)
            hidden[alive, now] = x[row, 0]
        x = model.run_layers(x, position, seen, cache, start=start)
        for counter in (now, position, slot):
            counter += 1
        draw(x[:, 0])

    def regroup(going):  # go on with these completions alone; where those of a row have parted, so does the row
        nonlocal alive, row, token, ended, position, mask
        alive, row, token, ended = (values[going] for values in (alive, row, token, ended))
        # Who looks at every token sees which completions are still equal. Else each gets a row of its own.
        branch = row * model.config.vocab_size + token if every == 1 else alive
        branches, new_row = branch.unique(return_inverse=True)
        # Moving the cache costs about as much as a step: only where rows part, or many have ended.
        if len(branches) > len(row.unique()) or len(branches) <= 0.75 * len(position):
            origin = torch.empty_like(branches).scatter_(0, new_row, row)  # the old row that each new one goes on from
            cache.keep(origin)
            row, position, mask = new_row, position[origin], None if mask is None else mask[origin]

    draw(x[:, 0])
    cache.slots = slot
    # The first step on new tensors is run from Python, the second captured, and that graph does the others. On a CPU each step
    # is a first one.
    replay, warm = None, False
    for t in range(1, max_new_tokens):
        if (t - 1) % every == 0:
            going = (~ended).nonzero()[:, 0]
            if len(going) == 0:
                break
            if every == 1 or t == 1 or len(going) <= 0.75 * len(alive):  # or a new graph would not pay
                regroup(going)
                replay, warm = None, False
        span = min(-(-(Tp + t) // block) * block, size)  # the slots in use, up to whole blocks
        if span != cache.span:
            cache.see(span)
            replay, warm = None, False
            if block == 1:
                cache.slots = slice(span - 1, span)  # faster than `slot`, but in a graph it would not move
        if warm and replay is None and max_new_tokens - t > every:  # for fewer steps it would not pay
            replay = captured(step)
        (replay or step)()
        warm = True

    if not logprobs.isfinite().all():
        raise FloatingPointError("a log-probability at sampling is not finite")
    tokens = tokens[:, : now.item() + 1]
    hit = torch.isin(tokens, ends)
    lengths = torch.where(hit.any(1), hit.int().argmax(1) + 1, tokens.shape[1]).tolist()
    out.truncated = (~hit.any(1)).tolist()
    out.completions = [row[:n] for row, n in zip(tokens.tolist(), lengths)]
    out.logprobs = [row[:n] for row, n in zip(logprobs.tolist(), lengths)]
    if start:
        out.hidden = [row[: n - 1] for row, n in zip(hidden, lengths)]
    return out


def play(model, tokenizer, episodes, *, group_size, **options):
    """Play episodes to their end, one turn of all that still go on at a time; every turn is one completion of the Rollout.

    An episode has `prompt`, `anchor`, `done` and `step(text)` -> reward; a question is one of a single turn. They stand in
    groups of `group_size` that begin alike, so that a group's first prompt is run once. `options`: those of `rollout`.
    """
    batch, alive = Rollout(), list(range(len(episodes)))
    with ThreadPoolExecutor() as pool:  # some rewards are verdicts of other processes
        while alive:
            same = 1 if batch.prompts else group_size
            turn = rollout(model, tokenizer.encode([episodes[i].prompt for i in alive[::same]]), group_size=same, **options)
            turn.episode, turn.anchor = alive, [episodes[i].anchor for i in alive]
            turn.reward = list(pool.map(lambda i, text: episodes[i].step(text), alive, tokenizer.decode(turn.completions)))
            batch.extend(turn)
            alive = [i for i in alive if not episodes[i].done]
    return batch


# ---------------------------------------------------------------------------------------------------- advantages

ALGORITHMS = {  # all that differs: what a group's spread is divided by, the weight of GiGPO's step level, how the loss averages
    "grpo": {"normalize": "std", "step_weight": 0.0, "aggregate": "sequence"},
    "dr_grpo": {"normalize": "none", "step_weight": 0.0, "aggregate": "constant"},
    "gigpo": {"normalize": "std", "step_weight": 1.0, "aggregate": "sequence"},
}


def advantages(batch, group_size, *, normalize, step_weight, discount=0.95):
    """How good each completion of a played Rollout was, for the training step: (B,).

    Without a step level, all of an episode's completions share the advantage of its total reward in its group of `group_size`.
    A question answered in one turn is a state that never comes again: there GiGPO's step level is 0, and GiGPO is GRPO.
    """
    total, following, step_return = {}, {}, [0.0] * len(batch.reward)
    for i in reversed(range(len(batch.reward))):  # an episode's turns stand in order: sum_t' discount^(t' - t) reward_t'
        episode = batch.episode[i]
        following[episode] = step_return[i] = batch.reward[i] + discount * following.get(episode, 0.0)
        total[episode] = total.get(episode, 0.0) + batch.reward[i]
    if not step_weight:
        groups = torch.tensor([total[episode] for episode in range(len(total))]).view(-1, group_size)
        return group_advantages(groups, normalize).flatten()[batch.episode]
    return gigpo_advantages(
        [total[episode] for episode in batch.episode], step_return, [episode // group_size for episode in batch.episode],
        batch.episode, batch.anchor, step_weight=step_weight, normalize=normalize,
    )  # fmt: skip


def group_advantages(rewards, normalize="std"):
    """How much better a completion did than its group: rewards (P, G) -> advantages (P, G).

    "std": GRPO, arXiv 2402.03300 section 4.1.2, (r - mean) / (std + 1e-6), sample standard deviation.
    "none": Dr. GRPO, arXiv 2503.20783, r - mean. A group without spread has nothing to tell and gets exactly 0.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    spread = rewards.amax(1, keepdim=True) > rewards.amin(1, keepdim=True)  # rounding of the mean must not pass for signal
    if normalize == "std":
        std = centered.square().sum(1, keepdim=True) / max(rewards.shape[1] - 1, 1)
        centered = centered / (std.sqrt() + 1e-6)
    elif normalize != "none":
        raise ValueError(f'normalize is {normalize!r}; it must be "std" or "none"')
    return torch.where(spread, centered, 0.0)


def gigpo_advantages(episode_return, step_return, group, trajectory, anchor, *, step_weight=1.0, normalize="none"):
    """Advantages of an agent's steps, one entry per environment step: lists or tensors of N -> (N,).

    A = A_episode + step_weight * A_step: GiGPO, arXiv 2505.10978. The episode level compares the total
    returns of a group's trajectories, each counted once; the step level compares the discounted returns that followed from
    one and the same state (`anchor`, any hashable) within a group. A state visited once gets A_step = 0.
    """

    def relative(keys, values):
        members = {}
        for i, key in enumerate(keys):
            members.setdefault(key, []).append(i)
        advantages = torch.zeros(len(values))
        for indices in members.values():
            advantages[indices] = group_advantages(values[None, indices], normalize)[0]
        return advantages

    episode_return = torch.as_tensor(episode_return, dtype=torch.float32)
    step_return = torch.as_tensor(step_return, dtype=torch.float32)
    group, trajectory = [int(g) for g in group], [int(t) for t in trajectory]
    first = {}  # (group, trajectory) -> one of its steps, which stands for the episode
    for i, key in enumerate(zip(group, trajectory)):
        first.setdefault(key, i)
    episodes = relative([g for g, _ in first], episode_return[list(first.values())])
    of_episode = dict(zip(first, episodes.tolist()))
    episode_level = torch.tensor([of_episode[key] for key in zip(group, trajectory)])
    return episode_level + step_weight * relative(list(zip(group, anchor)), step_return)


# ---------------------------------------------------------------------------------------------------- the loss


CHUNK = 2**25  # logits that exist at a time in a training pass: 128 MiB in fp32


def token_logprobs(x, weight, tokens, temperature, chunk=CHUNK):
    """log softmax(x @ weight.T / temperature) at `tokens`: x (N, D), weight (V, D), tokens (N,) -> (N,), in fp32.

    At most `chunk` logits exist at a time; with more than one chunk, the backward pass computes them again.
    """

    def some(x, tokens):
        logits = (x @ weight.T).float() / temperature
        return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)

    size = max(1, chunk // len(weight))
    if len(x) <= size:
        return some(x, tokens)
    parts = zip(x.split(size), tokens.split(size))
    return torch.cat([checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def score(model, batch, rows, temperature, start=0):
    """Log-probabilities of the completions `rows` (a list of indices) of a Rollout, with a graph through layers start...

    Returns logprobs (R, T) and mask (R, T); what the mask leaves out is 0.
    """
    device = model.lm_head.weight.device
    pairs = [(batch.prompt_of[row], tuple(batch.completions[row])) for row in rows]
    distinct = dict(zip(pairs, rows))  # equal completions of a prompt are run once: N <= R of them
    place = {pair: i for i, pair in enumerate(distinct)}
    again = torch.tensor([place[pair] for pair in pairs], device=device)  # (R,): which of the N each row is
    which = sorted({p for p, _ in distinct})  # the prompts these rows need
    prompt_of = torch.tensor([which.index(p) for p, _ in distinct], device=device)  # (N,)
    prompts, real = pad([batch.prompts[p] for p in which], device)  # (P, Tp)
    tokens, mask = pad([completion for _, completion in distinct], device)  # (N, T)
    if start and batch.hidden:
        prompt_x = pad([batch.prompt_hidden[p] for p in which], device)[0]  # (P, Tp, D)
        x = pad([batch.hidden[row] for row in distinct.values()], device)[0]  # (N, T - 1, D)
    else:
        prompt_x, x, start = model.model.embed_tokens(prompts), model.model.embed_tokens(tokens[:, :-1]), 0

    (P, Tp), (N, T) = prompts.shape, tokens.shape
    prefix = Prefix()
    positions = torch.arange(Tp, device=device)[None]
    prompt_x = model.run_layers(prompt_x, positions, causal(Tp, device)[None, None], prefix, start=start)
    last = prompt_x[torch.arange(P, device=device), real.sum(1) - 1]  # (P, D): what predicts each first token
    if T > 1:  # or there is nothing to run
        positions = real.sum(1)[prompt_of][:, None] + torch.arange(T - 1, device=device)  # (N, T - 1)
        own = causal(T - 1, device).expand(N, -1, -1)
        seen = torch.cat([real[prompt_of][:, None, :].expand(-1, T - 1, -1), own], dim=2)
        x = model.run_layers(x, positions, seen[:, None], SharedPrefix(prefix, prompt_of), start=start)
    x = torch.cat([last[prompt_of][:, None], x], dim=1)  # (N, T, D)
    logprobs = token_logprobs(model.model.norm(x[mask]), model.lm_head.weight, tokens[mask], temperature)
    return torch.zeros(mask.shape, device=device).masked_scatter(mask, logprobs)[again], mask[again]


def policy_loss(
    logprobs, old_logprobs, advantages, mask, *, aggregate="sequence", clip=0.2, max_tokens=None, ref_logprobs=None, kl_coef=0.0
):
    """The clipped surrogate to be minimised: (B, T), (B, T), (B,), (B, T) -> a scalar.

    Per token -min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A) + kl_coef * KL, then over the batch:
        "sequence"  mean over a response's tokens, then over responses: GRPO, arXiv 2402.03300 eq. 3
        "constant"  sum / (B * max_tokens): Dr. GRPO, arXiv 2503.20783; long answers weigh no less per token
        "token"     sum / number of tokens
    KL to the reference by the estimator r - log r - 1 with r = pi_ref / pi (GRPO eq. 4): never negative.
    """
    ratio = (logprobs - old_logprobs).exp()
    advantages = advantages[:, None]
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)  # (B, T)
    if kl_coef:
        log_r = ref_logprobs - logprobs
        loss = loss + kl_coef * (log_r.exp() - log_r - 1)
    mask = mask.to(loss.dtype)
    if aggregate == "sequence":
        return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    if aggregate == "constant":
        return (loss * mask).sum() / (len(loss) * max_tokens)
    if aggregate == "token":
        return (loss * mask).sum() / mask.sum().clamp(min=1)
    raise ValueError(f'aggregate is {aggregate!r}; it must be "sequence", "constant" or "token"')


# ---------------------------------------------------------------------------------------------------- one update


class Optimizer:
    """AdamW on fp32 copies ("masters") of parameters that the model may hold in bf16.

    A bf16 weight of 0.02 has neighbours 1e-4 away: an Adam step of 1e-6 would round to nothing. So steps and gradients add up
    in fp32, and the model computes with the master rounded. In an fp32 model the masters are the parameters themselves.
    """

    def __init__(self, parameters, factors=None):
        """factors: what the learning rate is multiplied with, for each parameter; 1 where it is left out."""
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float()) for p in self.parameters]
        groups = {}
        for master, factor in zip(self.masters, factors or [1.0] * len(self.masters)):
            groups.setdefault(factor, {"params": [], "factor": factor})["params"].append(master)
        self.adam = torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def collect_gradients(self):
        """Move what `backward` left on the model to the masters, where it adds up over micro-batches."""
        for parameter, master in zip(self.parameters, self.masters):
            if parameter is not master and parameter.grad is not None:
                master.grad = parameter.grad.float() if master.grad is None else master.grad.add_(parameter.grad)
                parameter.grad = None

    def step(self, lr, max_norm=1.0):
        """One step; returns the gradient's norm before clipping. FloatingPointError, weights untouched, if it is not finite."""
        norm = torch.nn.utils.clip_grad_norm_(self.masters, max_norm).item()
        if not norm < float("inf"):
            self.adam.zero_grad()
            raise FloatingPointError(f"the gradient's norm is {norm}")
        for group in self.adam.param_groups:
            group["lr"] = lr * group["factor"]
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters):
                if parameter is not master:
                    parameter.copy_(master)
        return norm


def micro_batches(batch, rows, token_budget):
    """Split `rows` into runs of at most `token_budget` positions each, padding and shared prompts counted (or of one row)."""
    part, longest, prompts = [], 0, {}
    for row in rows:
        prompt = batch.prompt_of[row]
        length = max(longest, len(batch.completions[row]))
        grown = {**prompts, prompt: len(batch.prompts[prompt])}
        if part and (len(part) + 1) * length + len(grown) * max(grown.values()) > token_budget:
            yield part
            part, length, grown = [], len(batch.completions[row]), {prompt: len(batch.prompts[prompt])}
        part, longest, prompts = [*part, row], length, grown
    if part:
        yield part


def update(
    model, optimizer, batch, advantages, *, lr, temperature=1.0, start=0, aggregate="sequence", clip=0.2, max_tokens=None,
    kl_coef=0.0, reference=None, epochs=1, token_budget=16384,
):  # fmt: skip
    """Improve the trained parameters on one Rollout whose completions earned `advantages` (B,). Returns figures for the log.

    Rows of advantage 0 add nothing to the gradient and are not run (unless a KL term wants them), but count in every mean. A
    batch without any signal leaves the weights, and Adam's state, as they were. `reference`: the trained tensors as they were
    before training, for the KL term. FloatingPointError, before the weights are touched, for a loss or gradient not finite.
    """
    B = len(batch.completions)
    signal = [row for row in range(B) if advantages[row] != 0]
    figures = {"signal": len(signal) / B, "loss": 0.0, "grad_norm": 0.0, "clipped": 0.0, "kl": 0.0, "logprob_gap": 0.0}
    if not signal:
        return figures
    rows = sorted(range(B) if kl_coef else signal, key=batch.prompt_of.__getitem__)  # those of one prompt share its pass
    parts = list(micro_batches(batch, rows, token_budget))
    device = model.lm_head.weight.device
    old = [pad([batch.logprobs[row] for row in part], device, torch.float32)[0] for part in parts]
    ref = [None] * len(parts)
    if kl_coef:
        with torch.no_grad(), swapped(optimizer.parameters, reference):
            ref = [score(model, batch, part, temperature, start)[0] for part in parts]
    all_tokens = sum(len(completion) for completion in batch.completions)
    for epoch in range(epochs):
        for part, old_logprobs, ref_logprobs in zip(parts, old, ref):
            logprobs, mask = score(model, batch, part, temperature, start)
            # A micro-batch counts by its share of the whole batch, so the gradient does not depend on how it was split.
            share = mask.sum().item() / all_tokens if aggregate == "token" else len(part) / B
            loss = share * policy_loss(
                logprobs, old_logprobs, torch.as_tensor(advantages, device=device)[part], mask, aggregate=aggregate, clip=clip,
                max_tokens=max_tokens, ref_logprobs=ref_logprobs, kl_coef=kl_coef,
            )  # fmt: skip
            if not torch.isfinite(loss):
                optimizer.adam.zero_grad()
                raise FloatingPointError(f"the loss is {loss.item()}")
            loss.backward()
            optimizer.collect_gradients()
            with torch.no_grad():
                gap = (logprobs - old_logprobs)[mask]
                if epoch == 0:  # same weights as at sampling: any difference is rounding, or a bug
                    figures["logprob_gap"] = max(figures["logprob_gap"], gap.abs().max().item())
                figures["clipped"] += ((gap.exp() - 1).abs() > clip).sum().item() / all_tokens / epochs
                if kl_coef:
                    log_r = (ref_logprobs - logprobs)[mask]
                    figures["kl"] += (log_r.exp() - log_r - 1).sum().item() / all_tokens / epochs
                figures["loss"] += loss.item() / epochs
        figures["grad_norm"] = optimizer.step(lr)
    return figures


@contextmanager
def swapped(parameters, tensors):
    """Within this block `parameters` hold the values of `tensors`: the KL reference is the model with one layer put back."""
    trained = [parameter.data for parameter in parameters]
    for parameter, tensor in zip(parameters, tensors):
        parameter.data = tensor
    try:
        yield
    finally:
        for parameter, tensor in zip(parameters, trained):
            parameter.data = tensor
