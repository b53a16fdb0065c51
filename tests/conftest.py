"""What several test files share: a tiny random model, and where real weights and data may be
found."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch, as in train.py

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(1)

from model import Config, Transformer  # noqa: E402

TINY = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=128,
)  # fmt: skip


def tiny(seed=0, **changes):
    """A random model whose logits differ enough between tokens for tests to see."""
    torch.manual_seed(seed)
    model = Transformer(Config(**{**TINY, **changes}))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:  # norms start at 1 and biases at 0, which would hide mistakes
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def from_environment(variable, what):
    """A folder named by an environment variable; skips the test where it is unset."""
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to {what}")
    return Path(os.environ[variable])


@pytest.fixture
def real_weights():
    return from_environment(
        "ONELAYER_WEIGHTS", "a folder with qwen2.5-coder-0.5b-instruct and smollm2-135m-instruct"
    )


@pytest.fixture
def real_data():
    return from_environment(
        "ONELAYER_DATA", "a folder with gsm8k_train.jsonl, math500.json and mbpp.jsonl"
    )
