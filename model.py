"""The decoder of Qwen2, Qwen3 and Llama, from scratch.

Parameters have Hugging Face's names, so a checkpoint loads as it is and what we save opens
in `transformers`. The families differ in `Config`: biases on q/k/v (Qwen2), a norm on each head's q
and k (Qwen3), RoPE scaling (Llama 3), a tied head. Left out: dropout, sliding
windows, mixtures of experts.

A pass can be cut in two: `run_layers(x, ..., start=k)` takes the states that enter layer k, so
what lies below is computed once. Its `cache` adds keys to those of the pass itself:

    None           none
    KVCache        of earlier passes: preallocated, written in place, for generation
    SharedPrefix   of the prompt: computed once for its completions, with a graph, for training
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    model_type: str = "qwen3"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e4
    rope_scaling: dict | None = None  # Llama 3's; None: plain RoPE
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4096

    qkv_bias = property(lambda self: self.model_type == "qwen2")
    qk_norm = property(lambda self: self.model_type == "qwen3")

    @classmethod
    def from_hf(cls, hf):
        """From a `config.json`'s dict. ValueError names a field that is not supported."""
        return cls(**supported_fields(hf))

    def to_hf(self):
        """The dict that `transformers` (4 and 5) reads back."""
        hf = {**asdict(self), "architectures": [f"{self.model_type.capitalize()}ForCausalLM"]}
        if self.rope_scaling:
            hf["rope_scaling"] = {"rope_type": "llama3", **self.rope_scaling}
        return hf | {"hidden_act": "silu"}


def rope_tables(config, positions):
    """cos and sin of the angles of RoPE, arXiv 2104.09864, eq. 15.

    positions (B, T) -> two tensors (B, 1, T, head_dim).
    """
    dims = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = config.rope_theta ** -(dims / config.head_dim)  # (head_dim / 2,)
    if s := config.rope_scaling:  # Llama 3 stretches long wavelengths, keeps short, blends between
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        keep = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        keep = keep.clamp(0, 1)
        frequency = keep * frequency + (1 - keep) * frequency / s["factor"]
    angle = positions[:, None, :, None].float() * frequency  # (B, 1, T, head_dim / 2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """RoPE, arXiv 2104.09864 eq. 34, in pairs i, i + head_dim / 2: x (B, heads, T, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def causal(T, device):
    """Positions (1, T), and the mask (1, 1, T, T) by which each sees itself and those before."""
    positions = torch.arange(T, device=device)[None]
    return positions, positions[:, None, None, :] <= positions[:, None, :, None]


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share a key head: arXiv 2305.13245."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        D, bias = config.hidden_size, config.qkv_bias
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(D, q_size, bias=bias)
        self.k_proj = nn.Linear(D, kv_size, bias=bias)
        self.v_proj = nn.Linear(D, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, D, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x, rope, mask, cache):
        """x (B, T, D) -> (B, T, D); rope: cos and sin; mask: of `score_mask`."""
        B, T, _ = x.shape
        head_dim = self.config.head_dim
        q, k, v = (p(x).view(B, T, -1, head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)  # per head, before RoPE
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, kv_heads, S, head_dim): S keys to look at
        # Query heads that share a key head become more rows of that head: k and v are not copied.
        q = q.reshape(B, k.shape[1], -1, head_dim)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(out.reshape(B, -1, T, head_dim).transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: arXiv 2002.05202, eq. 6."""

    def __init__(self, config):
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, inner, bias=False)
        self.up_proj = nn.Linear(D, inner, bias=False)
        self.down_proj = nn.Linear(inner, D, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """One transformer layer, all that trains when one layer trains.

    x + attention(norm(x)), then x + MLP(norm(x)), norm: RMSNorm, arXiv 1910.07467 eq. 4.
    """

    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rope, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Holds the parameters that Hugging Face names `model.*`."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in layers)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.recompute = False  # True: less memory and more time in training, see `recomputed`
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    def init_weights(self):
        """std 1 / sqrt(fan_in); of what adds to the residual stream, / sqrt(2 layers)."""
        depth = math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 / scale)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        """tokens (B, T) int64 -> logits (B, T, vocab_size)."""
        x = self.model.embed_tokens(tokens)  # (B, T, D)
        return self.logits(self.run_layers(x, *causal(tokens.shape[1], tokens.device)))

    def logits(self, x):
        """What leaves the last layer (..., D) -> (..., vocab_size)."""
        return self.lm_head(self.model.norm(x))

    def run_layers(self, x, positions, mask, cache=None, start=0, stop=None):
        """States that enter layer `start` -> those that leave layer `stop - 1`; by default all.

        x (B, T, D) -> (B, T, D); positions (B or 1, T); mask (B or 1, 1, T, S), True where a query
        may look, or None for everywhere; cache: see the top of this file.
        """
        rope = [table.to(x.dtype) for table in rope_tables(self.config, positions)]
        if mask is not None:
            mask = score_mask(self.config, mask, x.dtype)
        for layer in list(self.model.layers)[start:stop]:
            if self.recompute and torch.is_grad_enabled():
                layer = partial(recomputed, layer)
            x = layer(x, rope, mask, cache)
        return x

    @classmethod
    def from_pretrained(cls, path, *, dtype=torch.float32, device="cpu"):
        """Open a Hugging Face folder; the peak of memory is the model and one tensor more.

        ValueError or FileNotFoundError, one line, names the file and what is wrong with it.
        """
        config = Config.from_hf(read_json(Path(path) / "config.json"))
        with torch.device("meta"):  # shapes without memory
            model = cls(config)
        tensors = load_tensors(model, Path(path), dtype, device)
        model.load_state_dict(tensors, strict=False, assign=True)  # `load_tensors` was strict
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    def save_pretrained(self, path):
        """Write `config.json` and `model.safetensors`; `transformers` opens the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().contiguous() for name, p in self.named_parameters()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        dtype = {"torch_dtype": str(self.lm_head.weight.dtype).removeprefix("torch.")}
        (path / "config.json").write_text(json.dumps(self.config.to_hf() | dtype, indent=1))


# ---- Machinery: the lesson ends here. Attention masks, caches, and Hugging Face's files.

# On an H100 the default, whose backward pass under a mask can be NaN (pytorch/pytorch#196678).
torch.backends.cuda.enable_cudnn_sdp(False)

# Keeps a function's inputs alone, and computes the rest again to go backward.
recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def score_mask(config, mask, dtype):
    """(B, 1, T, S) -> what is added to scores, 0 or -inf: (B, 1, heads / kv_heads * T, S)."""
    shared, S = config.num_attention_heads // config.num_key_value_heads, mask.shape[-1]
    mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
    # Rows begin at multiples of 8, or a GPU would copy the mask in every layer.
    return F.pad(mask, (0, -S % 8)).repeat(1, 1, shared, 1)[..., :S]


class KVCache:
    """Keys and values of every layer: `size` positions for each of `batch` rows, no graph.

    A pass writes at `slots`, a slice or index tensor, and sees the first `span`.
    """

    def __init__(self, config, batch, size, dtype, device):
        shape = (batch, config.num_key_value_heads, size, config.head_dim)
        zeros = partial(torch.zeros, shape, dtype=dtype, device=device)  # a masked NaN would spread
        self.layers = [[zeros(), zeros()] for _ in range(config.num_hidden_layers)]
        self.slots, self.span = slice(0, 0), 0

    def update(self, layer, k, v):
        for stored, new in zip(self.layers[layer], (k, v)):
            stored[:, :, self.slots] = new
        return [stored[:, :, : self.span] for stored in self.layers[layer]]

    def keep(self, rows):
        """Go on with `rows`, an index tensor; some may come several times."""
        for layer in self.layers:
            layer[:] = [stored.index_select(0, rows) for stored in layer]


class SharedPrefix:
    """Prompts are run once, and each completion sees its own, `prompt_of` (B,), before it.

    Without `prompt_of`, in the prompts' own pass, it fills `layers`: keys and values with graph.
    """

    def __init__(self, layers, prompt_of=None):
        self.layers, self.prompt_of = layers, prompt_of

    def update(self, layer, k, v):
        if self.prompt_of is None:
            self.layers[layer] = k, v
            return k, v
        prompt_k, prompt_v = (stored[self.prompt_of] for stored in self.layers[layer])
        return torch.cat([prompt_k, k], dim=2), torch.cat([prompt_v, v], dim=2)


SUPPORTED = {  # what config.json may say; the first of each is meant where it says nothing
    "model_type": ("qwen2", "qwen3", "llama"), "hidden_act": ("silu",),
    "use_sliding_window": (False,), "attention_bias": (False,), "mlp_bias": (False,),
    "partial_rotary_factor": (1,), "rope_type": ("default", "llama3"),
}  # fmt: skip
LLAMA3 = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"


def supported_fields(hf):
    """A config.json's dict -> what `Config` takes. ValueError names a field that is wrong."""

    def need(fine, field, supported):
        if not fine:
            raise ValueError(f"config.json: {field} is {hf.get(field)!r}; supported: {supported}")

    for field in ("rope_scaling", "rope_parameters"):  # of transformers 4 and 5
        need(isinstance(hf.get(field) or {}, dict), field, "an object or null")
        hf = {**hf, **(hf.get(field) or {})}
    hf = {"model_type": None} | {field: value for field, value in hf.items() if value is not None}
    hf.setdefault("rope_type", hf.get("type", "default"))
    hf.setdefault("num_key_value_heads", hf.get("num_attention_heads"))
    for field, values in SUPPORTED.items():
        need(hf.get(field, values[0]) in values, field, ", ".join(map(str, values)))
    numbers = {f.name: f.type for f in fields(Config) if f.type in (int, float)}
    scaling = LLAMA3 if hf["rope_type"] == "llama3" else ()
    for field, kind in (numbers | dict.fromkeys(scaling, float)).items():
        if field == "head_dim":  # the sizes before it are numbers by now
            hf.setdefault(field, hf["hidden_size"] // hf["num_attention_heads"])
        value = hf.setdefault(field, getattr(Config, field, None))
        fine = type(value) in (int, kind) and 0 < value < math.inf
        need(fine, field, f"a positive {'whole number' if kind is int else 'number'}")
    shared = hf["num_attention_heads"] % hf["num_key_value_heads"] == 0
    need(shared, "num_key_value_heads", "a divisor of num_attention_heads")
    need(hf["head_dim"] % 2 == 0, "head_dim", "an even number")
    full = ["full_attention"] * hf["num_hidden_layers"]
    need(hf.get("layer_types", full) == full, "layer_types", "full_attention throughout")
    hf["rope_scaling"] = {field: hf[field] for field in scaling} or None
    hf["tie_word_embeddings"] = bool(hf.get("tie_word_embeddings"))
    return {f.name: hf[f.name] for f in fields(Config)}


def load_tensors(model, path, dtype, device):
    """Name -> tensor of every parameter of `model`, from the files in a folder."""
    wanted, loaded = {name: list(p.shape) for name, p in model.named_parameters()}, {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = set(tensors.keys())
            if model.config.tie_word_embeddings:
                names.discard("lm_head.weight")  # which some ship all the same
            for name in names:
                with safe_open(file, framework="pt") as tensors:  # anew: one is mapped at a time
                    tensor = tensors.get_tensor(name)
                if list(tensor.shape) != wanted.get(name):
                    shapes = f"{list(tensor.shape)}; config.json asks for {wanted.get(name)}"
                    raise ValueError(f"{file}: tensor {name} has shape {shapes}")
                loaded[name] = tensor.to(device=device, dtype=dtype, copy=True)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged ({error}); download it again") from None
    if missing := sorted(wanted.keys() - loaded.keys()):
        raise ValueError(f"{path}: tensor {missing[0]} is missing from the weights")
    return loaded


def weight_files(path):
    """The safetensors files of a checkpoint folder: one, or those that its index names."""
    one, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if one.exists():
        return [one]
    if not index.exists():
        why = f"holds neither {one.name} nor {index.name}; a .bin must be converted first"
        raise FileNotFoundError(f"{path}: {why}")
    shards = read_json(index).get("weight_map")  # tensor -> file
    if not isinstance(shards, dict):
        raise ValueError(f"{index}: weight_map does not name the file of each tensor")
    return sorted({path / str(name) for name in shards.values()})


def read_json(path):
    """The dict in a JSON file. ValueError or FileNotFoundError, one line, names the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}; it must be a JSON object")
    return value
