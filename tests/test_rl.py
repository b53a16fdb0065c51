"""rl.py against formulas written out, brute-force loops and float64."""

import math
import random
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny

import rl
import tasks
from model import causal
from rl import Optimizer, Rollout, group_advantages, logprobs_of, policy_loss, rollout, update
from train import Run

PROMPTS = [
    [5, 6, 7, 8],
    [9],
    [10, 11, 12, 13, 14, 15, 16],
    [17, 18],
]  # of unequal length; one of a single token


def sampled(
    model,
    prompts=PROMPTS,
    group_size=3,
    max_new_tokens=10,
    temperature=1.0,
    eos_id=0,
    seed=0,
    **more,
):
    generator = torch.Generator().manual_seed(seed)
    return rollout(
        model, prompts, group_size=group_size, max_new_tokens=max_new_tokens, temperature=temperature, eos_id=eos_id,
        generator=generator, **more,
    )  # fmt: skip


def rescored(model, prompt, completion, temperature):
    """Log-probabilities of a completion by one plain forward pass over that sequence alone."""
    logits = model(torch.tensor([prompt + completion]))[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def likes_to_end(model, eos=0):
    """Make `eos` likely, so that completions end at different times."""
    with torch.no_grad():
        model.lm_head.weight[eos] += 0.5 * torch.randn(24)
    return model


# ---------------------------------------------------------------------------------------- rollout


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_sampled_logprobs_are_those_of_a_plain_pass(family, temperature):
    model = likes_to_end(tiny(model_type=family, head_dim=6, tie_word_embeddings=False))
    out = sampled(model, group_size=8, temperature=temperature)
    assert len({len(completion) for completion in out.completions}) > 2, (
        "ragged, or the test shows little"
    )
    for i, (completion, logprobs) in enumerate(zip(out.completions, out.logprobs)):
        expected = rescored(model, PROMPTS[i // 8], completion, temperature)
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=2e-5)


def test_greedy_takes_the_likeliest_token_of_a_plain_pass():
    model = tiny()
    out = sampled(model, group_size=1, temperature=0, eos_id=60)
    for prompt, completion in zip(PROMPTS, out.completions):
        tokens = list(prompt)
        for token in completion:
            assert token == model(torch.tensor([tokens]))[0, -1].argmax()
            tokens.append(token)


def test_samples_follow_the_distribution():
    """Chi-square of 20,000 first tokens against the model's probabilities."""
    model = tiny()
    out = sampled(model, prompts=[[5, 6]], group_size=20000, max_new_tokens=1, temperature=0.8)
    counts = torch.bincount(torch.tensor([c[0] for c in out.completions]), minlength=61).double()
    expected = 20000 * (model(torch.tensor([[5, 6]]))[0, -1] / 0.8).softmax(-1).double()
    common = expected > 5
    chi2 = ((counts - expected) ** 2 / expected)[common].sum()
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())


def test_completions_end_at_the_first_ending_token_and_nowhere_else():
    out = sampled(
        likes_to_end(tiny()), prompts=[[5, 0, 7], [0, 0]], group_size=40, max_new_tokens=8
    )  # endings in the prompt
    assert any(out.truncated) and not all(out.truncated)
    for completion, cut in zip(out.completions, out.truncated):
        assert 1 <= len(completion) <= 8 and 0 not in completion[:-1]
        assert cut == (completion[-1] != 0) and (not cut or len(completion) == 8)


def test_several_ending_tokens():
    out = sampled(tiny(), eos_id=[3, 4, 20, 30, 40], max_new_tokens=30, group_size=20)
    assert {c[-1] for c, cut in zip(out.completions, out.truncated) if not cut} <= {
        3,
        4,
        20,
        30,
        40,
    }
    assert not any(token in (3, 4, 20, 30, 40) for c in out.completions for token in c[:-1])


@pytest.mark.parametrize("eos", [-1, 999])
def test_an_id_that_no_token_has_ends_nothing(eos):
    out = sampled(likes_to_end(tiny()), eos_id=eos, group_size=9, max_new_tokens=7)
    assert all(out.truncated) and {len(completion) for completion in out.completions} == {7}


def test_rows_that_leave_do_not_change_the_others():
    """What a row samples is the same whether or not ended rows left the batch before."""
    model = likes_to_end(tiny())
    ending, endless = (
        sampled(model, max_new_tokens=12),
        sampled(model, max_new_tokens=12, eos_id=999),
    )
    for a, b in zip(ending.completions, endless.completions):
        assert a == b[: len(a)]


@pytest.mark.parametrize("max_new_tokens, start", [(1, 0), (1, 2), (2, 2), (12, 0), (12, 2)])
def test_rows_that_completions_share_are_as_if_each_were_sampled_alone(
    monkeypatch, max_new_tokens, start
):
    """Token by token, one plain pass a token, with the numbers that `rollout` drew. Prompt 4 is
    prompt 0 again."""
    model, prompts, G = likes_to_end(tiny()), [*PROMPTS, PROMPTS[0]], 9
    model.lm_head.weight.data *= 2  # sharper, so that completions stay together for a while
    sizes, keep = [], rl.KVCache.keep
    monkeypatch.setattr(
        rl.KVCache, "keep", lambda cache, rows: sizes.append(len(rows)) or keep(cache, rows)
    )
    out = sampled(model, prompts, group_size=G, max_new_tokens=max_new_tokens, start=start)
    if max_new_tokens == 12:
        assert 4 < max(sizes) < 45 and len({len(completion) for completion in out.completions}) > 3
    assert out.prompts == [prompt for prompt in prompts for _ in range(G)]
    assert len(out.completions) == 45
    uniform = 1 - torch.rand(max_new_tokens, 45, generator=torch.Generator().manual_seed(0))
    for i, completion in enumerate(out.completions):
        tokens, alone, logprobs = list(prompts[i // G]), [], []
        while len(alone) < max_new_tokens and 0 not in alone:
            token, logprob = rl.sample(
                model(torch.tensor([tokens]))[:, -1], 1.0, uniform[len(alone), i : i + 1]
            )
            alone.append(token.item())
            tokens.append(token.item())
            logprobs.append(logprob.item())
        assert completion == alone and out.truncated[i] == (0 not in alone)
        torch.testing.assert_close(out.logprobs[i], logprobs, rtol=0, atol=2e-5)
        if start:  # the states of every position but the last token's, which predicts nothing
            positions = torch.arange(len(tokens))
            x = model.model.embed_tokens(torch.tensor([tokens]))
            x = model.run_layers(x, positions[None], causal(len(tokens), "cpu")[1], stop=start)[
                0, :-1
            ]
            kept = torch.cat([out.prompt_hidden[i], out.hidden[i]])
            torch.testing.assert_close(kept, x, rtol=0, atol=2e-5)


def test_sampling_in_parts_is_scored_alike():
    """A small budget samples row by row; what is kept still gives the log-probabilities of
    sampling."""
    model = likes_to_end(tiny())
    out = sampled(model, budget={"sampling": 1}, start=2)
    got, _ = logprobs_of(model, out, list(range(12)), 1.0, 2)
    torch.testing.assert_close(got, rl.pad(out.logprobs, "cpu")[0], rtol=0, atol=2e-5)


def test_bad_prompts_are_refused():
    with pytest.raises(ValueError, match="empty"):
        sampled(tiny(), prompts=[[1], []])
    with pytest.raises(ValueError, match="context of 128"):
        sampled(tiny(), prompts=[[1] * 120], max_new_tokens=9)


# ------------------------------------------------------------------------------------- advantages


def test_group_advantages_by_hand():
    rewards = [[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    std = torch.tensor(rewards, dtype=torch.float64).std(dim=1, keepdim=True)
    centered = torch.tensor(
        [[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]], dtype=torch.float64
    )
    torch.testing.assert_close(group_advantages(rewards), (centered / (std + 1e-6)).float())
    torch.testing.assert_close(group_advantages(rewards, "none"), centered.float())


@pytest.mark.parametrize("normalize", ["std", "none"])
def test_a_group_without_spread_gets_exactly_zero(normalize):
    for value in (0.0, 1.0, 0.1, 1 / 3):
        assert (group_advantages(torch.full((2, 7), value), normalize) == 0).all()
    assert (group_advantages([[1.0]], normalize) == 0).all()


def test_gigpo_by_hand():
    """Two trajectories in group 0, which share the state "a"; two in group 1, which share
    nothing."""
    got = rl.gigpo_advantages(
        episode_return=[10, 10, 10, 0, 0, 4, 8],
        step_return=[9.0, 9.5, 10.0, 1.0, 0.0, 4.0, 8.0],
        group=[0, 0, 0, 0, 0, 1, 1],
        trajectory=[0, 0, 0, 1, 1, 0, 1],  # numbered within its group
        anchor=["a", "b", "a", "a", "c", "a", "b"],
        step_weight=0.5,
    )
    # Episodes: group 0 has 10 and 0, mean 5 (each trajectory once: by steps it would be 6); group 1
    # has 4 and 8.
    # Steps: "a" in group 0 has 9, 10, 1, mean 20/3; all others are alone.
    third = 20 / 3
    expected = [5 + 0.5 * (9 - third), 5, 5 + 0.5 * (10 - third), -5 + 0.5 * (1 - third), -5, -2, 2]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_gigpo_normalised_by_brute_force():
    generator = torch.Generator().manual_seed(3)
    N = 60
    group, trajectory = (
        torch.randint(0, 3, (N,), generator=generator),
        torch.randint(0, 4, (N,), generator=generator),
    )
    anchor = torch.randint(0, 5, (N,), generator=generator).tolist()
    per_episode = torch.randn(3, 4, generator=generator)
    episode_return, step_return = (
        per_episode[group, trajectory],
        torch.randn(N, generator=generator),
    )
    got = rl.gigpo_advantages(
        episode_return, step_return, group, trajectory, anchor, normalize="std"
    )
    for i in range(N):
        there = sorted({int(trajectory[j]) for j in range(N) if group[j] == group[i]})
        episodes = per_episode[group[i], there].double()
        same = [j for j in range(N) if group[j] == group[i] and anchor[j] == anchor[i]]
        steps = step_return[same].double()
        expected = (episode_return[i] - episodes.mean()) / (episodes.std() + 1e-6)
        if len(same) > 1:
            expected += (step_return[i] - steps.mean()) / (steps.std() + 1e-6)
        assert abs(got[i] - expected) < 1e-4


# --------------------------------------------------------------------------------------- episodes


class Numbers:
    """A tokenizer of texts that are token ids with spaces between them."""

    eos_ids = [0]

    def encode(self, texts):
        return [list(map(int, text.split())) for text in texts]

    def decode(self, completions):
        return [" ".join(map(str, completion)) for completion in completions]


class Corridor:
    """An episode of `length` turns whose next prompt is the last two tokens said; pays the parity
    of what was said."""

    def __init__(self, name, length):
        self.prompt, self.length, self.said = f"{name} 7", length, []

    anchor = property(lambda self: len(self.said))
    done = property(lambda self: len(self.said) == self.length)

    def step(self, text):
        self.said.append(text)
        self.prompt = " ".join(["9", *text.split()[-2:]])
        return float(int(text.split()[0]) % 2)


def played(model, start=0):
    """Three groups of two episodes, collected as a run of train.py does."""
    lengths = iter(1 + (i * 7) % 4 for i in range(6))
    task = SimpleNamespace(begin=lambda name: Corridor(name, next(lengths)))
    run = SimpleNamespace(model=model, tokenizer=Numbers(), settings={"max_tokens": 2}, budget=None)
    generator = torch.Generator().manual_seed(0)
    return Run.collect(run, task, [5, 6, 7], 2, 1.0, generator, start)


@pytest.mark.parametrize("start", [0, 2])
def test_every_turn_of_every_episode_is_a_row(start):
    model = tiny()
    model.lm_head.weight.data[8:] = (
        -10 * model.lm_head.weight.data[:1]
    )  # few words, so that prompts come again
    episodes, batch = played(model, start)
    rows = {}
    for i, episode in enumerate(batch.episode):
        rows.setdefault(episode, []).append(i)
    assert sorted(rows) == list(range(6)) and len(batch.reward) == sum(e.length for e in episodes)
    for e, mine in rows.items():
        prompt = [5 + e // 2, 7]
        for turn, i in enumerate(mine):
            assert batch.prompts[i] == prompt and batch.anchor[i] == turn
            assert Numbers().decode([batch.completions[i]]) == [episodes[e].said[turn]]
            assert batch.reward[i] == batch.completions[i][0] % 2
            torch.testing.assert_close(
                torch.tensor(batch.logprobs[i]),
                rescored(model, prompt, batch.completions[i], 1.0),
                atol=1e-4,
                rtol=1e-4,
            )
            prompt = [9, *batch.completions[i][-2:]]
    assert len(batch.prompts) == len(batch.reward)


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
def test_the_gradient_of_played_episodes_is_that_of_plain_passes(aggregate):
    """Prompts that come again share one pass, also when they came in different turns."""
    model = tiny()
    model.lm_head.weight.data[8:] = -10 * model.lm_head.weight.data[:1]
    trained = only(model, 2)
    _, batch = played(model, 2)
    weights = torch.randn(len(batch.reward))
    wanted = torch.autograd.grad(
        plain_loss(model, batch, weights.tolist(), aggregate, 2), list(trained.values())
    )
    for budget in (1, 10, 10**6):
        got, _ = gradients(
            model,
            batch,
            weights,
            trained,
            2,
            aggregate=aggregate,
            max_tokens=2,
            budget={"training": budget},
        )
        for a, b in zip(got, wanted):
            assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7


@pytest.mark.parametrize("algo", rl.ALGORITHMS)
def test_advantages_of_turns_by_brute_force(algo):
    """Three groups of four episodes of up to five turns, in the order in which turns are played, in
    plain Python floats."""
    rng, G, discount = random.Random(0), 4, 0.95
    lengths = [rng.randint(1, 5) for _ in range(12)]
    order = [(turn, e) for turn in range(5) for e in range(12) if turn < lengths[e]]
    state, reward = (
        {key: rng.choice(values) for key in order} for values in ("abc", [0.0, -0.1, 10.0])
    )
    batch = Rollout(
        episode=[e for _, e in order],
        anchor=[state[key] for key in order],
        reward=[reward[key] for key in order],
    )
    settings = dict(rl.ALGORITHMS[algo])
    settings.pop("aggregate")
    got = rl.compute_advantages(batch, G, **settings)

    total = [sum(reward[t, e] for t in range(lengths[e])) for e in range(12)]
    later = {
        (t, e): sum(discount ** (u - t) * reward[u, e] for u in range(t, lengths[e]))
        for t, e in order
    }

    def relative(value, values):
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
        return (value - mean) / (1 if algo == "dr_grpo" else std + 1e-6)

    for i, (t, e) in enumerate(order):
        expected = relative(total[e], total[e // G * G : e // G * G + G])
        if algo == "gigpo":
            same = [
                later[key] for key in order if key[1] // G == e // G and state[key] == state[t, e]
            ]
            expected += relative(later[t, e], same) if max(same) > min(same) else 0
        assert abs(got[i] - expected) < 1e-4


def test_gigpo_on_questions_is_grpo():
    """A question is answered in one turn, and its state is its own: the step level never groups."""
    questions = [
        tasks.Question(tasks.Problem("?", "1"), lambda problem, text: (float(text), text))
        for _ in range(8)
    ]
    rewards = [question.step(text) for question, text in zip(questions, "10110000")]
    batch = Rollout(
        episode=list(range(8)), anchor=[question.anchor for question in questions], reward=rewards
    )
    grpo, gigpo = (
        rl.compute_advantages(batch, 4, normalize="std", step_weight=weight)
        for weight in (0.0, 1.0)
    )
    assert torch.equal(grpo, gigpo) and torch.equal(
        grpo, group_advantages(torch.tensor(rewards).view(2, 4)).flatten()
    )


# --------------------------------------------------------------------------------------- the loss


def written_out(logprobs, old, advantages, mask, aggregate, clip, max_tokens, ref, kl_coef):
    """policy_loss as loops over Python floats."""
    rows = []
    for b in range(len(logprobs)):
        terms = []
        for t in range(len(logprobs[b])):
            if not mask[b][t]:
                continue
            ratio, A = math.exp(logprobs[b][t] - old[b][t]), advantages[b]
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            r = math.exp(ref[b][t] - logprobs[b][t])
            terms.append(-min(ratio * A, clipped * A) + kl_coef * (r - math.log(r) - 1))
        rows.append(terms)
    if aggregate == "sequence":
        return sum(sum(terms) / len(terms) for terms in rows) / len(rows)
    total = sum(map(sum, rows))
    return (
        total / (len(rows) * max_tokens) if aggregate == "constant" else total / sum(map(len, rows))
    )


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("aggregate", ["sequence", "constant", "token"])
def test_loss_and_gradient_equal_the_formula(aggregate, kl_coef):
    generator = torch.Generator().manual_seed(4)
    B, T = 5, 6
    logprobs, old, ref = (
        -torch.rand(B, T, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    advantages = torch.tensor([1.5, -0.7, 0.0, -2.0, 0.4], dtype=torch.float64)
    mask = torch.arange(T) < torch.tensor([[6], [3], [1], [4], [5]])
    logprobs.requires_grad_(True)

    def ours(x):
        return policy_loss(
            x,
            old,
            advantages,
            mask,
            aggregate=aggregate,
            max_tokens=9,
            ref_logprobs=ref,
            kl_coef=kl_coef,
        )

    loss = ours(logprobs)
    plain = [x.tolist() for x in (logprobs, old, advantages, mask)]
    assert abs(loss.item() - written_out(*plain, aggregate, 0.2, 9, ref.tolist(), kl_coef)) < 1e-12
    (gradient,) = torch.autograd.grad(loss, logprobs)
    for b in range(B):
        for t in range(T):
            h = torch.zeros(B, T, dtype=torch.float64)
            h[b, t] = 1e-6
            assert abs((ours(logprobs + h) - ours(logprobs - h)) / 2e-6 - gradient[b, t]) < 1e-8


def test_clipping_stops_the_gradient_on_the_right_side_only():
    def gradient(ratio, advantage):
        logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
        policy_loss(
            logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1)
        ).backward()
        return logprobs.grad.item()

    assert gradient(1.3, 1.0) == 0 and gradient(0.7, -1.0) == 0  # already far enough the right way
    assert gradient(0.7, 1.0) < 0 and gradient(1.3, -1.0) > 0  # the wrong way: must be pulled back


def test_the_kl_term_pulls_towards_the_reference():
    """Expected gradient over samples of the policy is not zero, and a step along it lowers the
    divergence."""
    logits = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3]).log()
    probabilities = logits.log_softmax(-1)
    tokens = probabilities[
        :, None
    ]  # every token once, weighted by its probability: an exact expectation
    zeros = torch.zeros(3)
    loss = sum(
        probabilities[i].exp().detach()
        * policy_loss(
            tokens[[i]],
            tokens[[i]].detach(),
            zeros[[i]],
            torch.ones(1, 1),
            ref_logprobs=reference[[i]][:, None],
            kl_coef=1.0,
        )
        for i in range(3)
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() > 0.05

    def divergence(x):
        p = x.log_softmax(-1)
        return (p.exp() * (p - reference)).sum()

    assert divergence(logits - 0.1 * gradient) < divergence(logits)


def test_token_logprobs_in_chunks():
    x, weight = torch.randn(13, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    tokens = torch.randint(0, 50, (13,))
    expected = ((x @ weight.T) / 0.7).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    wanted = torch.autograd.grad(expected.square().sum(), [x, weight])
    for chunk in (1, 200, 10**9):
        got = rl.token_logprobs(x, weight, tokens, 0.7, chunk)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got.square().sum(), [x, weight]), wanted, rtol=1e-4, atol=1e-4
        )


# ----------------------------------------------------------------------------------------- update


def only(model, k):
    """Freeze all but layer k, the final norm (k = 4) or nothing ("full"). Returns name -> what
    trains."""
    model.requires_grad_(False)
    (
        model if k == "full" else model.model.norm if k == 4 else model.model.layers[k]
    ).requires_grad_(True)
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def gradients(model, batch, advantages, trained, start, **settings):
    """Gradients of one update: Adam's first moment after one step is 0.1 times the gradient,
    clipped to a norm of 1."""
    optimizer = Optimizer(trained)
    figures = update(model, optimizer, batch, advantages, lr=0.0, start=start, **settings)
    moments = [optimizer.tensors()[f"exp_avg.{name}"] for name in trained]
    return [moment / 0.1 * max(1, figures["grad_norm"]) for moment in moments], figures


def plain_rows(model, batch, advantages):
    """The clipped objective of each completion's tokens, by plain passes over single sequences."""
    rows = []
    for i, completion in enumerate(batch.completions):
        logprobs = rescored(model, batch.prompts[i], completion, 1.0)
        ratio = (logprobs - torch.tensor(batch.logprobs[i])).exp()
        rows.append(-torch.minimum(ratio * advantages[i], ratio.clamp(0.8, 1.2) * advantages[i]))
    return rows


def plain_loss(model, batch, advantages, aggregate, max_tokens):
    """The GRPO objective: no sharing, no cache, no micro-batch."""
    rows = plain_rows(model, batch, advantages)
    if aggregate == "sequence":
        return torch.stack([row.mean() for row in rows]).mean()
    total = torch.cat(rows).sum()
    return (
        total / (len(rows) * max_tokens) if aggregate == "constant" else total / sum(map(len, rows))
    )


@pytest.mark.parametrize("aggregate", ["sequence", "constant", "token"])
@pytest.mark.parametrize("k", ["full", 0, 2, 3, 4])
def test_gradient_equals_that_of_plain_full_passes(k, aggregate):
    """Sharing prompts, starting at layer k from kept states, skipping rows without signal: none
    changes the gradient."""
    model = likes_to_end(tiny(tie_word_embeddings=k != 0))
    start = 0 if k == "full" else k
    batch = sampled(model, start=start)
    advantages = torch.tensor([1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 2.0, -1.0, 0.3, 0.0, -0.2, 0.7])
    trained = only(model, k)
    wanted = torch.autograd.grad(
        plain_loss(model, batch, advantages.tolist(), aggregate, 10), list(trained.values())
    )
    for budget in (1, 25, 10**6):  # tokens a micro-batch: one row, a few, all
        model.recompute = budget == 25  # and whether inner activations are kept or computed again
        got, figures = gradients(
            model,
            batch,
            advantages,
            trained,
            start,
            aggregate=aggregate,
            max_tokens=10,
            budget={"training": budget},
        )
        assert figures["logprob_gap"] < 2e-5
        scale = max(g.abs().max() for g in wanted)
        for a, b in zip(got, wanted):
            assert (a - b).abs().max() <= 1e-5 * scale + 1e-7


@pytest.mark.parametrize("start", [0, 2])
def test_completions_that_come_again_are_run_once_and_count_each_time(start):
    model = tiny()
    trained = only(model, 2)
    batch = sampled(
        model, group_size=12, max_new_tokens=3, start=start, temperature=0.5, eos_id=range(5, 61)
    )
    pairs = set(zip(map(tuple, batch.prompts), map(tuple, batch.completions)))
    assert len(pairs) < 40 and len({p for p, _ in pairs}) == 4
    sizes = []
    model.model.layers[2].register_forward_hook(
        lambda layer, inputs, output: sizes.append(len(output))
    )
    rows = random.Random(0).sample(range(48), 48)  # in any order
    logprobs, mask = logprobs_of(model, batch, rows, 0.9, start)
    assert sizes == [4, len(pairs)]  # prompts, then completions
    plain = [
        rescored(model, batch.prompts[i], batch.completions[i], 0.9) for i in rows
    ]
    for got, real, wanted in zip(logprobs, mask, plain):
        torch.testing.assert_close(got[real], wanted, rtol=0, atol=2e-5)
    weights = torch.randn(48)
    wanted = torch.autograd.grad(
        sum(w * row.sum() for w, row in zip(weights, plain)), list(trained.values())
    )
    for a, b in zip(
        torch.autograd.grad((weights[:, None] * logprobs).sum(), list(trained.values())), wanted
    ):
        assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7


def test_the_ending_token_is_trained_also_when_it_is_the_padding():
    """A completion that is nothing but the ending token (id 0, what padding is filled with) still
    has a gradient."""
    model = tiny()
    batch = Rollout([[5, 6], [7]], [[0], [8, 9, 0]], [[-1.0], [-1.0, -1.0, -1.0]])
    logprobs, mask = logprobs_of(model, batch, [0, 1], 1.0)
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    torch.testing.assert_close(logprobs[0, :1], rescored(model, [5, 6], [0], 1.0))
    torch.testing.assert_close(logprobs[1], rescored(model, [7], [8, 9, 0], 1.0))
    trained = only(model, 2)
    got, _ = gradients(model, batch, torch.tensor([1.0, 0.0]), trained, 2)
    assert max(g.abs().max() for g in got) > 1e-4


def test_a_batch_without_signal_leaves_weights_and_adam_alone():
    model = tiny()
    optimizer = Optimizer(only(model, 1))
    batch = sampled(model, start=1)
    update(model, optimizer, batch, torch.randn(12), lr=1e-2, start=1)  # builds up momentum
    before = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    figures = update(model, optimizer, batch, torch.zeros(12), lr=1e-2, start=1)
    assert figures["signal"] == figures["grad_norm"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.tensors().items())


def test_a_batch_without_signal_is_still_pulled_to_the_reference():
    model = likes_to_end(tiny())
    trained = only(model, 2)
    reference = {name: p + 0.05 * torch.randn_like(p) for name, p in trained.items()}
    batch = sampled(model, start=2)
    optimizer, kl = Optimizer(trained), []
    for _ in range(4):
        options = dict(lr=3e-3, start=2, kl_coef=0.5, reference=reference)
        figures = update(model, optimizer, batch, torch.zeros(12), **options)
        assert figures["signal"] == 0 and figures["grad_norm"] > 0
        kl.append(figures["kl"])
    assert kl == sorted(kl, reverse=True) and kl[-1] < 0.8 * kl[0]


@pytest.mark.parametrize("k", [0, 2, 3])
def test_only_the_chosen_layer_moves(k):
    model = tiny()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    update(
        model, Optimizer(only(model, k)), sampled(model, start=k), torch.randn(12), lr=1e-2, start=k
    )
    moved = {
        name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])
    }
    assert moved == {name for name in before if name.startswith(f"model.layers.{k}.")}


def test_a_tiny_step_on_a_bf16_model_is_not_lost():
    """100 steps of 1e-6 on weights near 0.02, where bf16 has neighbours 1e-4 apart: the master
    moves, and so does the model."""
    weight = torch.nn.Parameter(torch.full((64, 64), 0.02).to(torch.bfloat16))
    start, optimizer = weight.detach().clone(), Optimizer({"w": weight})
    naive = weight.detach().clone()
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.collect_gradients()
        optimizer.step(1e-6)
        naive -= torch.tensor(1e-6, dtype=torch.bfloat16)
    assert torch.equal(naive, start), "bf16 alone loses every step"
    torch.testing.assert_close(
        optimizer.masters["w"].detach(), start.float() - 100e-6, rtol=0, atol=1e-6
    )
    assert (weight < start).all()


def test_the_reference_is_the_saved_layer_put_back():
    model = likes_to_end(tiny())
    trained = only(model, 2)
    saved = {name: parameter.detach().clone() for name, parameter in trained.items()}
    batch = sampled(model, start=2)
    untrained = logprobs_of(model, batch, list(range(12)), 1.0, 2)[0].detach()
    optimizer = Optimizer(trained)
    for _ in range(3):
        figures = update(
            model, optimizer, batch, torch.randn(12), lr=1e-2, start=2, kl_coef=0.1, reference=saved
        )
    now = logprobs_of(model, batch, list(range(12)), 1.0, 2)[0].detach()
    assert (now - untrained).abs().max() > 1e-3 and figures["kl"] > 0
    with rl.swapped(trained, saved):
        assert torch.equal(logprobs_of(model, batch, list(range(12)), 1.0, 2)[0], untrained)
    assert torch.equal(logprobs_of(model, batch, list(range(12)), 1.0, 2)[0], now)


def test_the_gradient_of_the_kl_penalty_is_that_of_plain_passes():
    """Also on rows whose advantage is 0; the reference differs from the model in the trained
    layer."""
    model = likes_to_end(tiny())
    trained = only(model, 2)
    batch = sampled(model, start=2)
    advantages = torch.tensor([1.0, -0.5, 0, 0, 0, 0, 2.0, -1.0, 0.3, 0, -0.2, 0.7])
    reference = {name: p.detach() + 0.05 * torch.randn_like(p) for name, p in trained.items()}

    def all_logprobs():
        pairs = zip(batch.prompts, batch.completions)
        return [rescored(model, prompt, completion, 1.0) for prompt, completion in pairs]

    with rl.swapped(trained, reference), torch.no_grad():
        ref = all_logprobs()
    kl = torch.stack(
        [((r - x).exp() - (r - x) - 1).mean() for r, x in zip(ref, all_logprobs())]
    ).mean()
    wanted = torch.autograd.grad(
        plain_loss(model, batch, advantages.tolist(), "sequence", 10) + 0.7 * kl,
        list(trained.values()),
    )
    for budget in (25, 10**6):
        got, figures = gradients(
            model,
            batch,
            advantages,
            trained,
            2,
            budget={"training": budget},
            kl_coef=0.7,
            reference=reference,
        )
        for a, b in zip(got, wanted):
            assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7
    assert figures["kl"] > 0


def test_several_updates_a_batch_are_clipped():
    model = likes_to_end(tiny())
    batch = sampled(model, start=1)
    figures = update(
        model, Optimizer(only(model, 1)), batch, torch.randn(12), lr=3e-2, start=1, epochs=6
    )
    assert figures["clipped"] > 0.05 and figures["logprob_gap"] < 2e-5


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_step_of_what_is_not_finite_is_not_taken(monkeypatch, epochs):
    """The last epoch's loss is NaN: the weights are those that the epochs before it left."""
    model, expected = tiny(), tiny()
    batch, advantages = sampled(model, start=3), torch.randn(12)
    if epochs == 2:
        update(expected, Optimizer(only(expected, 3)), batch, advantages, lr=1e-2, start=3)
    calls, loss = [], rl.policy_loss
    monkeypatch.setattr(
        rl,
        "policy_loss",
        lambda *a, **k: (
            calls.append(1) or loss(*a, **k) * (math.nan if len(calls) == epochs else 1)
        ),
    )
    with pytest.raises(FloatingPointError) as error:
        update(model, Optimizer(only(model, 3)), batch, advantages, lr=1e-2, start=3, epochs=epochs)
    assert "before" not in str(error.value)
    for a, b in zip(model.parameters(), expected.parameters()):
        assert torch.equal(a, b)


def test_a_gradient_that_is_not_finite_is_no_step():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = Optimizer({"w": weight})
    weight.grad = torch.tensor([1.0, math.inf, 0.0])
    with pytest.raises(FloatingPointError, match="norm"):
        optimizer.step(0.1)
    assert weight.tolist() == [1, 1, 1] and not optimizer.tensors()["exp_avg.w"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_adamw_written_out(dtype):
    """Against float64: betas .9 and .95, eps 1e-8, no weight decay, gradients clipped to a norm of
    1, a rate of its own."""
    names, generator = ("a", "b"), torch.Generator().manual_seed(0)
    parameters = {
        n: torch.nn.Parameter(torch.randn(50, generator=generator).to(dtype)) for n in names
    }
    optimizer = Optimizer(parameters, {"b": 3.0})
    w = {n: parameters[n].detach().double() for n in names}
    m, v = ({n: torch.zeros(50, dtype=torch.float64) for n in names} for _ in range(2))
    for step in range(1, 8):
        gradient = {n: (torch.randn(50, generator=generator) * 0.1 * step).to(dtype) for n in names}
        for n in names:
            parameters[n].grad = gradient[n].clone()
        optimizer.collect_gradients()
        norm = torch.cat([g.double() for g in gradient.values()]).norm().item()
        assert optimizer.step(0.01) == pytest.approx(norm, rel=1e-5)
        for n in names:
            g = gradient[n].double() * min(1, 1 / norm)
            m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.95 * v[n] + 0.05 * g**2
            hat_m, hat_v = m[n] / (1 - 0.9**step), v[n] / (1 - 0.95**step)
            w[n] -= 0.01 * (3 if n == "b" else 1) * hat_m / (hat_v.sqrt() + 1e-8)
    for n in names:
        torch.testing.assert_close(
            optimizer.masters[n].detach().double(), w[n], rtol=1e-5, atol=2e-6
        )
        torch.testing.assert_close(
            parameters[n].detach(), optimizer.masters[n].detach().to(dtype), rtol=0, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_goes_on_from_its_tensors(dtype):
    """Stored after three updates, loaded into a fresh model's optimizer: the same two updates after
    that, bit for bit."""

    def go_on(model, optimizer, steps):
        for step in steps:
            advantages = torch.randn(12, generator=torch.Generator().manual_seed(step))
            update(model, optimizer, batch, advantages, lr=1e-2, start=2)

    first, second = tiny().to(dtype), tiny().to(dtype)
    batch = sampled(first, start=2)
    one, two = Optimizer(only(first, 2)), Optimizer(only(second, 2))
    go_on(first, one, range(3))
    stored = {name: tensor.clone() for name, tensor in one.tensors().items()}
    assert {name.split(".")[0] for name in stored} == {"weight", "exp_avg", "exp_avg_sq", "step"}
    two.load(stored)
    for model, optimizer in ((first, one), (second, two)):
        go_on(model, optimizer, (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert all(torch.equal(a, two.tensors()[name]) for name, a in one.tensors().items())


@pytest.mark.parametrize("budget", [1, 17, 10**6])
def test_dr_grpo_divides_by_what_episodes_can_have(budget):
    """Episodes of one to four turns: the sum over all their tokens by episodes x tokens, however it
    is split."""
    model = tiny()
    trained = only(model, 2)
    _, batch = played(model, 2)
    assert len(batch.completions) > 6
    advantages = torch.randn(len(batch.completions))
    rows = plain_rows(model, batch, advantages.tolist())
    wanted = torch.autograd.grad(torch.cat(rows).sum() / (6 * 8), list(trained.values()))
    options = dict(aggregate="constant", max_tokens=8, budget={"training": budget})
    got, _ = gradients(model, batch, advantages, trained, 2, **options)
    for a, b in zip(got, wanted):
        assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7


# ----------------------------------------------------------------------------------------- memory

NO_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "cpu", "cublas", "cuda"])
def test_running_out_of_memory_is_told_from_other_errors(error):
    assert re.search(rl.OUT_OF_MEMORY, repr(error))
    assert not re.search(rl.OUT_OF_MEMORY, repr(RuntimeError("expected scalar type Float but found Half")))


def test_a_tensor_too_large_for_this_machine_is_out_of_memory():
    with pytest.raises((MemoryError, RuntimeError)) as error:
        torch.empty(2**60)
    assert re.search(rl.OUT_OF_MEMORY, repr(error.value))


@pytest.fixture
def little_memory():
    """limit, hook: with the hook on a layer, passes of more than limit[0] positions run out of
    memory.

    Those with a graph do so in their backward pass, when layers above have their gradients.
    """
    limit = [10**9]

    def check(x):
        if x.shape[0] * x.shape[1] > limit[0]:
            raise NO_MEMORY[1]

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            check(grad)
            return grad

    def hook(layer, args, output):
        if not torch.is_grad_enabled():
            check(output)
        return Fails.apply(output)

    return limit, hook


@pytest.mark.parametrize("start", [0, 2])
def test_sampling_goes_on_with_half_when_memory_runs_out(little_memory, capsys, start):
    """What is sampled is the same, to rounding, however small the parts."""
    model, prompts = likes_to_end(tiny()), [*PROMPTS, PROMPTS[0]]
    whole = sampled(model, prompts, start=start)
    limit, hook = little_memory
    model.model.layers[3].register_forward_hook(hook)
    budget, limit[0] = {"sampling": 400, "training": 400}, 14
    halved = sampled(model, prompts, start=start, budget=budget)
    assert budget["sampling"] in (100, 50) and budget["training"] == 400
    assert len(capsys.readouterr().err.splitlines()) in (2, 3)
    for parts in (halved, sampled(model, prompts, start=start, budget={"sampling": 1})):
        assert (parts.completions, parts.truncated) == (whole.completions, whole.truncated)
        for name in ("prompts", "prompt_hidden", "logprobs", "hidden"):
            got, wanted = getattr(parts, name), getattr(whole, name)
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(
                    torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=2e-5
                )
    limit[0] = 3
    with pytest.raises(MemoryError):
        sampled(model, prompts, start=start, budget=budget)
    with pytest.raises(RuntimeError):
        sampled(model, prompts, start=start)  # without a budget it is the caller's


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
def test_training_goes_on_with_half_when_memory_runs_out(little_memory, capsys, kl_coef):
    """In the middle of a backward pass: the gradient and the figures are those of one that did not
    fail."""
    model = likes_to_end(tiny())
    trained, batch, advantages = only(model, 2), sampled(model, start=2), torch.randn(12)
    options = dict(
        kl_coef=kl_coef, reference={name: p.detach() * 1.1 for name, p in trained.items()}
    )
    wanted, figures = gradients(model, batch, advantages, trained, 2, **options)
    limit, hook = little_memory
    model.model.layers[3].register_forward_hook(hook)
    budget, limit[0] = {"sampling": 300, "training": 300}, 40
    got, again = gradients(model, batch, advantages, trained, 2, budget=budget, **options)
    assert budget["training"] < 100 and budget["sampling"] == 300 and capsys.readouterr().err
    for a, b in zip(got, wanted):
        assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7
    assert again == pytest.approx(figures, rel=1e-4, abs=2e-5)
    limit[0] = 1
    with pytest.raises(MemoryError):
        gradients(model, batch, advantages, trained, 2, budget=budget, **options)


def test_what_succeeded_before_memory_ran_out_is_not_counted_twice(monkeypatch):
    model = likes_to_end(tiny())
    trained, batch, advantages = only(model, 2), sampled(model, start=2), torch.randn(12)
    wanted, _ = gradients(model, batch, advantages, trained, 2)
    calls, original = [], rl.logprobs_of

    def third_fails(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return original(*arguments)

    monkeypatch.setattr(rl, "logprobs_of", third_fails)
    got, _ = gradients(model, batch, advantages, trained, 2, budget={"training": 40})
    assert len(calls) > 6
    for a, b in zip(got, wanted):
        assert (a - b).abs().max() <= 1e-5 * max(g.abs().max() for g in wanted) + 1e-7
