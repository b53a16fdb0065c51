"""model.py against `transformers`, and its two kinds of cache against the plain forward pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY, tiny
from safetensors.torch import load_file, save_file

from model import Config, KVCache, Transformer

FAMILIES = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def reference(family, tied=False, rope_scaling=None, **changes):
    """A random `transformers` model."""
    make_config, make_model = FAMILIES[family]
    torch.manual_seed(1)
    sizes = {**TINY, **changes}
    if family == "qwen2":
        del sizes["head_dim"]
        sizes["hidden_size"] = 32
    rope = {"rope_parameters": {"rope_theta": 7000.0, **(rope_scaling or {"rope_type": "default"})}}
    model = make_model(make_config(**sizes, **rope, tie_word_embeddings=tied)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=1.0 if weight.dim() == 1 else 0.0, std=0.3)
    return model


def assert_same_logits(ours, theirs, vocab=61):
    tokens = torch.randint(0, vocab, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, got = theirs(tokens).logits.float(), ours(tokens)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_match_transformers(tmp_path, family, tied):
    theirs = reference(family, tied)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(Transformer.from_pretrained(tmp_path), theirs)


def test_llama3_rope_scaling_matches_transformers(tmp_path):
    theirs = reference("llama", rope_scaling=LLAMA3)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(Transformer.from_pretrained(tmp_path), theirs)


def test_shards_and_half_precision_match_transformers(tmp_path):
    theirs = reference("qwen3", tied=True).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()  # RoPE's tables in fp32
    assert_same_logits(Transformer.from_pretrained(tmp_path), theirs)


def test_a_tied_checkpoint_may_ship_its_head(tmp_path):
    theirs = reference("qwen2", tied=True)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": torch.randn(61, 32)}, tmp_path / "model.safetensors"
    )  # transformers ignores it too
    assert_same_logits(Transformer.from_pretrained(tmp_path), theirs)


def test_rope_theta_where_transformers_4_keeps_it(tmp_path):
    theirs = reference("qwen2")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_logits(Transformer.from_pretrained(tmp_path), theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_what_we_save_opens_in_transformers(tmp_path, family, tied):
    ours = tiny(
        model_type=family,
        tie_word_embeddings=tied,
        **({"hidden_size": 32} if family == "qwen2" else {}),
    )
    ours.save_pretrained(tmp_path)
    assert_same_logits(ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval())


def test_llama3_scaling_survives_saving(tmp_path):
    reference("llama", rope_scaling=LLAMA3).save_pretrained(tmp_path / "a")
    ours = Transformer.from_pretrained(tmp_path / "a")
    ours.save_pretrained(tmp_path / "b")
    assert_same_logits(
        ours, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    )


def test_cached_chunks_equal_the_full_pass():
    """Prefill, then chunks of several lengths: the causal mask of a chunk is aligned with its end,
    not its start."""
    model, tokens = tiny(), torch.randint(0, 61, (2, 20))
    cache, states = KVCache(model.config, 2, 20, torch.float32, "cpu"), []
    with torch.no_grad():
        for first, last in ((0, 7), (7, 8), (8, 13), (13, 20)):
            positions = torch.arange(first, last)[None]
            mask = torch.arange(last)[None, :] <= positions[0][:, None]
            x = model.model.embed_tokens(tokens[:, first:last])
            cache.slots, cache.span = slice(first, last), last
            states.append(model.run_layers(x, positions, mask[None, None], cache))
        logits = model.lm_head(model.model.norm(torch.cat(states, dim=1)))
        torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-5)


def test_a_pass_may_start_at_any_layer():
    model, tokens = tiny(), torch.randint(0, 61, (2, 9))
    positions, mask = torch.arange(9)[None], torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    for k in range(5):
        below = model.run_layers(model.model.embed_tokens(tokens), positions, mask, stop=k)
        above = model.run_layers(below, positions, mask, start=k)
        torch.testing.assert_close(model.lm_head(model.model.norm(above)), model(tokens))


def test_real_checkpoints_match_transformers(real_weights):
    for name in ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            real_weights / name, dtype=torch.float32
        ).eval()
        assert_same_logits(Transformer.from_pretrained(real_weights / name), theirs, vocab=40000)


BASE = dict(
    model_type="qwen3", vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip
REFUSED_CONFIGS = [
    ({"model_type": "qwen3_moe"}, "model_type"),
    ({"model_type": "gpt2"}, "model_type"),
    ({"model_type": None}, "model_type"),
    ({"model_type": ["qwen3"]}, "model_type"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_type"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic"}}, "rope_type"),
    (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope_theta": "large"}, "rope_theta"),
    ({"vocab_size": None}, "vocab_size"),
    ({"hidden_size": "24"}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": "two"}, "num_key_value_heads"),
    ({"head_dim": 7}, "head_dim"),
    ({"num_attention_heads": 2.5}, "num_attention_heads"),
]


@pytest.mark.parametrize("change, field", REFUSED_CONFIGS)
def test_unsupported_configurations_are_refused_by_field(change, field):
    with pytest.raises(ValueError, match=field) as error:
        Config.from_hf({**BASE, **change})
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def saved(folder):
    tiny().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def drop(folder):
    tensors = saved(folder)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def surplus(folder):
    save_file(
        {**saved(folder), "model.layers.4.mlp.up_proj.weight": torch.zeros(2, 2)},
        folder / "model.safetensors",
    )


def misshapen(folder):
    save_file({**saved(folder), "model.norm.weight": torch.zeros(25)}, folder / "model.safetensors")


def truncated(folder):
    saved(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def not_safetensors(folder):
    saved(folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04 this is no such file")


def no_weights(folder):
    saved(folder)
    (folder / "model.safetensors").unlink()


def pickle(folder):
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")


def missing_shard(folder):
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )


def broken_index(folder):
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def no_config(folder):
    saved(folder)
    (folder / "config.json").unlink()


def broken_config(folder):
    saved(folder)
    (folder / "config.json").write_text('{"model_type": ')


REFUSED_FOLDERS = [
    (drop, "model.layers.2.mlp.up_proj.weight is missing"), (surplus, "model.layers.4.mlp.up_proj.weight"),
    (misshapen, r"model.norm.weight.*\[25\].*\[24\]"), (truncated, "model.safetensors: "),
    (not_safetensors, "model.safetensors: "), (no_weights, "model.safetensors"), (pickle, "[.]bin must be converted"),
    (missing_shard, "model-00001-of-00002.safetensors"), (broken_index, "index.json"), (no_config, "config.json: "),
    (broken_config, "config.json: "),
]  # fmt: skip


@pytest.mark.parametrize(
    "damage, message", REFUSED_FOLDERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_damaged_checkpoints_are_refused_by_name(tmp_path, damage, message):
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        Transformer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


PUBLISHED = {  # parameters, the tied head counted once
    "Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen3-4B-Base": 4_022_468_096,
    "Qwen3-8B-Base": 8_190_735_360,
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_models_have_their_published_sizes(name):
    content = json.loads((Path(__file__).parent / "configs" / name / "config.json").read_text())
    with torch.device("meta"):
        ours = Transformer(Config.from_hf(content))
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**content)
        )
    assert sum(weight.numel() for weight in ours.parameters()) == PUBLISHED[name]
    assert {n: w.shape for n, w in ours.named_parameters()} == {
        n: w.shape for n, w in theirs.named_parameters()
    }


def test_loading_holds_one_copy_and_one_tensor(tmp_path):
    """A model of 64 MiB in 5 tensors of note, in a process of its own: the peak grows by its size
    and one tensor, no more."""
    config = dict(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=8,
    )
    Transformer(Config(**config, num_key_value_heads=8, head_dim=64)).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size / 2**20
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from model import Transformer\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); model = Transformer.from_pretrained(sys.argv[2]); print(peak() - before)"
    )
    argv = [sys.executable, "-c", script, str(Path(__file__).parent.parent), str(tmp_path)]
    grown = float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert grown < size + 8 + 16, (
        f"{grown:.0f} MiB for a model of {size:.0f} MiB whose largest tensor has 8"
    )
