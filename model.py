"""The decoder of Qwen2, Qwen3 and Llama, from scratch, in one file.

Parameter names are Hugging Face's own, so a checkpoint loads without renaming and what we save opens in `transformers`.
The three families differ in four fields of `Config`: biases on q/k/v (Qwen2), a norm on each head's q and k (Qwen3), RoPE
scaling (Llama 3) and a head tied to the embedding. Left out on purpose: dropout, sliding windows, mixtures of experts.

What training one layer needs is that a forward pass can be cut in two: `run_layers(x, ..., start=k)` takes the hidden states
that enter layer k, so whatever lies below k is computed once and never again. Its `cache` says which keys each position sees:

    None           only those of this pass
    KVCache        those stored by earlier passes too: preallocated and written in place, for generation
    SharedPrefix   the prompt's, computed once and shared by all its completions; keeps the graph, for training
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

# cuDNN's attention, which torch 2.11 and later prefer on an H100, plans anew for each shape it meets, and its backward pass under
# a mask can be NaN (pytorch/pytorch#196678). Without it the memory-efficient kernel runs.
torch.backends.cuda.enable_cudnn_sdp(False)


SUPPORTED = {  # what a config.json may say in these fields
    "model_type": ("qwen2", "qwen3", "llama"), "hidden_act": ("silu",), "use_sliding_window": (False,),
    "attention_bias": (False,), "mlp_bias": (False,), "partial_rotary_factor": (1,), "rope_type": ("default", "llama3"),
}  # fmt: skip
DEFAULTS = {  # what it means where it says nothing
    "hidden_act": "silu", "use_sliding_window": False, "attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 1,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA3 = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"


@dataclass
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    model_type: str = "qwen3"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: dict | None = None  # Llama 3's; None: plain RoPE
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4096

    qkv_bias = property(lambda self: self.model_type == "qwen2")
    qk_norm = property(lambda self: self.model_type == "qwen3")

    @classmethod
    def from_hf(cls, hf):
        """The Config of a Hugging Face `config.json`, given as a dict. ValueError names a field we do not support."""

        def need(fine, field, supported):
            if not fine:
                raise ValueError(f"config.json: {field} is {hf.get(field)!r}; supported: {supported}")

        for field in ("rope_scaling", "rope_parameters"):  # where transformers 4 and 5 keep what else there is of RoPE
            need(isinstance(hf.get(field) or {}, dict), field, "an object or null")
            hf = {**hf, **(hf.get(field) or {})}
        hf = {field: value for field, value in hf.items() if value is not None}
        hf = {"rope_type": hf.get("type", "default"), "num_key_value_heads": hf.get("num_attention_heads"), **DEFAULTS, **hf}
        for field, supported in SUPPORTED.items():
            need(hf.get(field) in supported, field, ", ".join(map(str, supported)))
        kinds = hf.get("layer_types", [])
        full = isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)
        need(full, "layer_types", "full_attention throughout")
        numbers = {field.name: field.type for field in fields(cls) if field.type in (int, float)}
        scaling = dict.fromkeys(LLAMA3, float) if hf["rope_type"] == "llama3" else {}
        for field, kind in (numbers | scaling).items():
            if field == "head_dim" and field not in hf:  # the sizes before it are known to be numbers
                hf[field], rest = divmod(hf["hidden_size"], hf["num_attention_heads"])
                need(rest == 0, "hidden_size", "a multiple of num_attention_heads where head_dim is not given")
            value = hf.get(field)
            fine = isinstance(value, (int, kind)) and not isinstance(value, bool) and 0 < value < float("inf")
            need(fine, field, f"a positive {'whole number' if kind is int else 'number'}")
        groups = hf["num_attention_heads"] % hf["num_key_value_heads"] == 0
        need(groups, "num_key_value_heads", "a divisor of num_attention_heads")
        need(hf["head_dim"] % 2 == 0, "head_dim", "an even number")
        need(not scaling or hf["low_freq_factor"] < hf["high_freq_factor"], "low_freq_factor", "less than high_freq_factor")
        return cls(
            **{field: hf[field] for field in numbers},
            model_type=hf["model_type"],
            rope_scaling={field: hf[field] for field in scaling} or None,
            tie_word_embeddings=bool(hf.get("tie_word_embeddings")),
        )

    def to_hf(self):
        """The dict that `transformers` (4 and 5) reads back."""
        hf = asdict(self)
        if self.rope_scaling:
            hf["rope_scaling"] = {"rope_type": "llama3", **self.rope_scaling}
        return {"architectures": [f"{self.model_type.capitalize()}ForCausalLM"], "hidden_act": "silu", **hf}


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rope_tables(config, positions):
    """cos and sin of RoPE's angles at `positions` (B, T): two tensors (B, 1, T, head_dim). RoFormer, arXiv 2104.09864."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    frequency = config.rope_theta**-exponent  # (head_dim / 2,)
    if config.rope_scaling:  # Llama 3: long wavelengths are stretched by `factor`, short ones kept, those between blended
        s = config.rope_scaling
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        keep = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
        keep = keep.clamp(0, 1)
        frequency = keep * frequency + (1 - keep) * frequency / s["factor"]
    angle = positions[:, None, :, None].float() * frequency  # (B, 1, T, head_dim / 2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps)

    def forward(self, x, rope, mask, extend):
        """x (B, T, D) -> (B, T, D). `extend` turns this pass's keys and values into all that its queries may see."""
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.config.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)  # per head, before RoPE
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        k, v = extend(k, v)  # (B, kv_heads, S, head_dim)
        # Query heads that share a key head become more query rows of that head: no copy of k and v is made.
        out = F.scaled_dot_product_attention(q.reshape(B, k.shape[1], -1, self.config.head_dim), k, v, attn_mask=mask)
        return self.o_proj(out.reshape(B, -1, T, self.config.head_dim).transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rope, mask, extend):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, extend)
        return x + self.mlp(self.post_attention_layernorm(x))


class KVCache:
    """Keys and values of every layer, preallocated: `size` positions for each of `batch` rows. Written in place, no graph.

    A pass writes at `slots`, a slice or index tensor, and sees the first `span`.
    """

    def __init__(self, config, batch, size, dtype, device):
        shape = (batch, config.num_key_value_heads, size, config.head_dim)
        self.layers = [[torch.empty(shape, dtype=dtype, device=device) for _ in "kv"] for _ in range(config.num_hidden_layers)]
        self.slots, self.span = slice(0, 0), 0

    def extend(self, layer, k, v):
        for stored, new in zip(self.layers[layer], (k, v)):
            stored[:, :, self.slots] = new
        return [stored[:, :, : self.span] for stored in self.layers[layer]]

    def see(self, span):
        """From now on show `span` slots. More than the next pass writes at once are set to 0: a masked NaN would still spread."""
        for stored in sum(self.layers, []) if span > self.span + 1 else ():
            stored[:, :, self.span : span] = 0
        self.span = span

    def keep(self, rows):
        """Go on with `rows` (an index tensor) in this order: one that is not among them is dropped, one may come several times."""
        for layer in self.layers:  # one at a time: no second cache in memory
            for i, stored in enumerate(layer):
                layer[i] = stored.new_empty(len(rows), *stored.shape[1:])
                seen = slice(0, self.span)  # the rest need not be copied; and `out` saves a second copy
                torch.index_select(stored[:, :, seen], 0, rows, out=layer[i][:, :, seen])


class Prefix:
    """Collects the prompts' keys and values, graph and all, while the prompts run through the layers once."""

    def __init__(self):
        self.layers = {}

    def extend(self, layer, k, v):
        self.layers[layer] = (k, v)
        return k, v


class SharedPrefix:
    """Lets completions attend to their prompts as if each stood before it: `rows` is the index of each one's prompt."""

    def __init__(self, prefix, rows):
        self.layers, self.rows = prefix.layers, rows

    def extend(self, layer, k, v):
        return [torch.cat([prompt[self.rows], new], dim=2) for prompt, new in zip(self.layers[layer], (k, v))]


class Decoder(nn.Module):
    """Holds the parameters that Hugging Face names `model.*`."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.recompute = False  # keep only each layer's input for the backward pass and compute the rest again
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    def init_weights(self):
        """1/sqrt(fan_in), what adds to the residual stream smaller by the depth: what our embedded base starts from."""
        depth = math.sqrt(2 * self.config.num_hidden_layers)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = weight.shape[1] ** -0.5
                nn.init.normal_(weight, std=std / depth if name.endswith(("o_proj.weight", "down_proj.weight")) else std)
            elif name.endswith(".bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        """tokens (B, T) int64 -> logits (B, T, vocab_size)."""
        B, T = tokens.shape
        positions = torch.arange(T, device=tokens.device)[None]  # (1, T)
        mask = positions[:, None, None, :] <= positions[:, None, :, None]  # (1, 1, T, T): each sees itself and what came before
        x = self.run_layers(self.model.embed_tokens(tokens), positions, mask)
        return self.lm_head(self.model.norm(x))

    def run_layers(self, x, positions, mask, cache=None, start=0, stop=None):
        """Hidden states entering layer `start` -> those leaving layer `stop - 1`; the defaults run the whole stack.

        x (B, T, D); positions (B or 1, T); mask (B or 1, 1, T, S), True where a query may look, or None for everywhere.
        """
        rope = [table.to(x.dtype) for table in rope_tables(self.config, positions)]
        if mask is not None:  # once for all layers: as what is added to the scores, and for each head that shares a key head
            shared, width = self.config.num_attention_heads // self.config.num_key_value_heads, mask.shape[-1]
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, float("-inf"))
            mask = F.pad(mask, (0, -width % 8)).repeat(1, 1, shared, 1)[..., :width]  # a GPU would copy unaligned rows, per layer
        for i in range(self.config.num_hidden_layers)[start:stop]:
            extend = (lambda k, v, i=i: cache.extend(i, k, v)) if cache else lambda k, v: (k, v)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self.model.layers[i], x, rope, mask, extend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self.model.layers[i](x, rope, mask, extend)
        return x

    @classmethod
    def from_pretrained(cls, path, *, dtype=torch.float32, device="cpu"):
        """Open a Hugging Face folder: `config.json` and `model.safetensors`, or shards with `model.safetensors.index.json`.

        Tensor by tensor from a memory map: the peak is the model plus one tensor. ValueError or FileNotFoundError, one line,
        names the file and the field or tensor that is wrong.
        """
        path = Path(path)
        config = Config.from_hf(read_json(path / "config.json"))
        with torch.device("meta"):  # shapes without memory
            model = cls(config)
        wanted = dict(model.named_parameters())
        loaded = {}
        for file in weight_files(path):
            try:
                with safe_open(file, framework="pt") as tensors:
                    names = list(tensors.keys())
                for name in names:
                    if name == "lm_head.weight" and config.tie_word_embeddings:
                        continue  # some tied checkpoints ship the head all the same
                    if name not in wanted:
                        raise ValueError(
                            f"{file}: tensor {name} does not belong to a {config.model_type} model of this config.json"
                        )
                    with safe_open(file, framework="pt") as tensors:  # opened for each: what is mapped stays one tensor
                        tensor = tensors.get_tensor(name)
                    if tensor.shape != wanted[name].shape:
                        shapes = f"{list(tensor.shape)}; config.json asks for {list(wanted[name].shape)}"
                        raise ValueError(f"{file}: tensor {name} has shape {shapes}")
                    loaded[name] = tensor.to(device=device, dtype=dtype, copy=True)
            except SafetensorError as error:
                raise ValueError(f"{file}: not a whole safetensors file ({error}); download it again") from None
        missing = sorted(set(wanted) - set(loaded))
        if missing:
            raise ValueError(f"{path}: tensor {missing[0]} is missing from the weights ({len(missing)} missing in all)")
        model.load_state_dict(loaded, strict=False, assign=True)  # checked above; a tied head is not a tensor of its own
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    def save_pretrained(self, path):
        """Write `config.json` and `model.safetensors`; `transformers` opens the folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.detach().contiguous() for name, weight in self.named_parameters()}  # a tied head counts once
        dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        save_file(tensors, path / "model.safetensors.part", metadata={"format": "pt"})
        os.replace(path / "model.safetensors.part", path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({**self.config.to_hf(), "torch_dtype": dtype}, indent=1))


def weight_files(path):
    """The safetensors files of a checkpoint folder: one, or the shards its index names."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index}: weight_map is missing or damaged; it should name the file of each tensor")
        files = sorted({path / name for name in names.values()})
        for file in files:
            if not file.exists():
                raise FileNotFoundError(f"{file}: a shard that {index.name} names is missing")
        return files
    if pickles := sorted(path.glob("*.bin")):
        raise ValueError(
            f"{pickles[0]}: pickled weights can run code when opened and are not supported; convert them with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise FileNotFoundError(f"{path}: holds neither model.safetensors nor model.safetensors.index.json")


def read_json(path, field=None, kind=dict):
    """The JSON object in a file, or its `field`, which must be a `kind`; otherwise one line that names the file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; --model wants a folder in Hugging Face format")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}; it must be a JSON object")
    if field is None:
        return value
    if not isinstance(value.get(field), kind):
        raise ValueError(f"{path}: {field} is missing or not a {kind.__name__}, so it is damaged or not this program's")
    return value[field]
