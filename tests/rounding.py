"""How much of each layer's own move a bf16 model shows: python tests/rounding.py MODEL RUNS

A run trains fp32 masters, and the model computes with their rounding. Printed for each single-layer run: the move as rounded,
projected on the move of the masters (`layer.safetensors` less the checkpoint), 1 if nothing is lost.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file

from model import Transformer

base = dict(Transformer.from_pretrained(sys.argv[1], dtype=torch.bfloat16).named_parameters())
for k in range(len(base)):
    for path in sorted(Path(sys.argv[2]).glob(f"layer-{k}-seed-*/layer.safetensors")):
        shown = moved = 0.0
        for name, master in load_file(path).items():
            start, move = base[name].detach().float(), master - base[name].detach().float()
            shown += ((master.bfloat16().float() - start) * move).sum().item()
            moved += move.square().sum().item()
        print(f"{path.parent.name}  {shown / moved:.2f}")
