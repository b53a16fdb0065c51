"""What a GPU does otherwise than a CPU: on the GPU where there is one, and everywhere with a stand-
in for CUDA's graphs.

The stand-in holds rollout's captured step to the rules of a real capture. Recording changes
nothing; replaying runs the same
kernels on the same tensors and no line of Python; and a kernel that must tell the host a value is refused.
"""

import pytest
import torch
from conftest import tiny
from test_rl import PROMPTS, likes_to_end, only, rescored, sampled
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rl

WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "masked_select",
    "equal",
)  # for a value, or for how many there are
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        self.kernels, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for kernel, args, kwargs, recorded in self.kernels:
            for old, new in zip(recorded, tensors(kernel(*args, **kwargs))):
                if storage(old) not in {
                    storage(arg) for arg in tensors((args, kwargs))
                }:  # not a view, nor changed in place
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """In place of torch.cuda.graph(graph)."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.made, self.before = graph, {}, {}

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert not any(name in str(kernel) for name in WAITS), f"{kernel} makes the host wait"
        assert not (
            "index" in str(kernel) and any(t.dtype == torch.bool for t in tensors(args[1]))
        ), f"{kernel} counts a mask"
        for tensor in tensors((args, kwargs)):
            if (
                storage(tensor) not in self.made
            ):  # it was there before: as a kernel may write to it, note what it holds
                self.before.setdefault(storage(tensor), (tensor, tensor.untyped_storage().clone()))
        out = kernel(*args, **kwargs)
        for tensor in tensors(out):
            if storage(tensor) not in self.before:
                self.made[storage(tensor)] = (
                    tensor  # held, so that its memory is not given to another
                )
        self.graph.kernels.append((kernel, args, kwargs, tensors(out)))
        return out

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, content in self.before.values():  # recorded, not run
            tensor.untyped_storage().copy_(content)


@pytest.fixture
def graphs(monkeypatch):
    """Rollouts go the way of a GPU, on the CPU; holds the graphs they recorded."""
    recorded = []

    def new_graph():
        recorded.append(Graph())
        return recorded[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setitem(rl.STRIDES, "cpu", (4, 8))
    torch.use_deterministic_algorithms(
        True
    )  # which fills memory that nothing was written to with NaN
    yield recorded
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "prompts", [PROMPTS, [[5, 6, 7], [8, 9, 10]]], ids=["ragged", "of one length"]
)
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("group_size, temperature", [(6, 1.0), (1, 1.0), (2, 0)])
def test_a_replayed_step_is_the_step(graphs, monkeypatch, prompts, start, group_size, temperature):
    model, options = (
        likes_to_end(tiny()),
        {"group_size": group_size, "temperature": temperature, "start": start},
    )
    got = sampled(model, prompts, max_new_tokens=40, **options)
    assert sum(graph.replays for graph in graphs) >= 10
    monkeypatch.undo()
    expected = sampled(model, prompts, max_new_tokens=40, **options)
    assert got.completions == expected.completions and got.truncated == expected.truncated
    for name in ("logprobs", "hidden", "prompt_hidden"):
        for a, b in zip(getattr(got, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=2e-5)


def test_a_graph_is_recorded_only_where_the_batch_or_the_span_changes(graphs):
    model = tiny()
    sampled(model, [[5, 6, 7]], group_size=2, max_new_tokens=38, eos_id=999)
    # Slots 3 to 39, so spans 8, 16 ... 40: of each the first step runs, the second is recorded. Of
    # the last span there are only
    # slots 32 ... 39, and fewer than 4 steps are left after slot 36.
    assert [graph.replays for graph in graphs] == [4, 7, 7, 7, 7]


def test_what_is_short_is_not_recorded(graphs):
    sampled(tiny(), max_new_tokens=4, eos_id=999)
    assert graphs == []


def test_rows_that_ended_leave_when_they_are_a_quarter(graphs, monkeypatch):
    sizes, keep = [], rl.KVCache.keep
    monkeypatch.setattr(
        rl.KVCache, "keep", lambda cache, rows: sizes.append(len(rows)) or keep(cache, rows)
    )
    out = sampled(likes_to_end(tiny()), group_size=16, max_new_tokens=40)
    assert len({len(completion) for completion in out.completions}) > 5, (
        "ragged, or the test shows little"
    )
    assert (
        sizes[0] > 60
        and len(sizes) > 3
        and all(after <= 0.75 * before for before, after in zip(sizes, sizes[1:]))
    )


def test_the_stand_in_refuses_what_a_real_capture_would(graphs):
    x = torch.ones(3)
    for step in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero(), lambda: x.unique()):
        with pytest.raises(AssertionError):
            rl.captured(step)

    def count():
        x.add_(1)

    replay = rl.captured(count)
    assert x.tolist() == [1, 1, 1]
    replay()
    replay()
    assert x.tolist() == [3, 3, 3]


# --------------------------------------------------------------------------------------- on a GPU


@pytest.fixture
def spans(monkeypatch):
    """So small that a short completion sees several."""
    monkeypatch.setitem(rl.STRIDES, "cuda", (4, 16))


@gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_on_a_gpu_a_replayed_step_is_the_step(spans, monkeypatch, dtype, tolerance):
    model = likes_to_end(tiny()).to("cuda", dtype)
    captures, captured = [], rl.captured

    def samples(capture):
        monkeypatch.setattr(rl, "captured", capture)
        generator = torch.Generator("cuda").manual_seed(0)
        options = {
            "group_size": 16,
            "max_new_tokens": 60,
            "temperature": 1.0,
            "eos_id": 0,
            "start": 2,
        }
        return rl.rollout(model, PROMPTS, generator=generator, **options)

    got, expected = (
        samples(lambda step: captures.append(1) or captured(step)),
        samples(lambda step: step),
    )
    assert len(captures) > 3 and got.completions == expected.completions
    again, _ = rl.logprobs_of(model, got, list(range(64)), 1.0, 2)
    torch.testing.assert_close(again.cpu(), rl.pad(got.logprobs, "cpu")[0], rtol=0, atol=tolerance)


@gpu
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("start", [0, 2])
def test_a_gpu_samples_with_the_log_probabilities_of_a_cpu(spans, family, start):
    model = likes_to_end(tiny(model_type=family))
    generator = torch.Generator("cuda").manual_seed(0)
    out = rl.rollout(
        model.cuda(),
        PROMPTS,
        group_size=16,
        max_new_tokens=60,
        temperature=1.0,
        eos_id=0,
        generator=generator,
        start=start,
    )
    assert len({len(completion) for completion in out.completions}) > 5
    again, _ = rl.logprobs_of(model, out, list(range(64)), 1.0, start)
    torch.testing.assert_close(again.cpu(), rl.pad(out.logprobs, "cpu")[0], rtol=0, atol=1e-4)
    model.cpu()
    for i, (completion, logprobs) in enumerate(zip(out.completions, out.logprobs)):
        expected = rescored(model, PROMPTS[i // 16], completion, 1.0)
        torch.testing.assert_close(torch.tensor(logprobs), expected, rtol=0, atol=1e-4)


@gpu
def test_a_gpu_takes_the_greedy_answers_of_a_cpu(spans):
    model = tiny()
    expected = sampled(model, group_size=1, temperature=0, max_new_tokens=60)
    options = {"group_size": 1, "temperature": 0, "max_new_tokens": 60, "eos_id": 0}
    assert rl.rollout(model.cuda(), PROMPTS, **options).completions == expected.completions


@gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_an_update_on_a_gpu_is_that_of_a_cpu(dtype, tolerance):
    """One step on one batch: the same gradient, to rounding."""
    batch, norms = sampled(tiny(), group_size=4), []
    advantages = rl.group_advantages(torch.rand(4, 4)).flatten()
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        model = tiny().to(device, kind)
        optimizer = rl.Optimizer(only(model, 2))
        norms.append(
            rl.update(model, optimizer, batch, advantages.to(device), lr=1e-4)["grad_norm"]
        )
    assert norms[1] == pytest.approx(norms[0], rel=tolerance)
