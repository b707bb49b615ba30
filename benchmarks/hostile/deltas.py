"""Deltas: what fine-tuning added, for whoever has the base."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import openwork as ow
from hostile.changes import damage, edit_tensor, edit_tree
from hostile.reader import Reader
from openwork.files import FileError
from openwork.files.delta import KEY, add_delta_, save_delta


def model(seed: int) -> nn.Module:
    """A base, or what was made of it: with weights, biases and the buffers of a norm."""
    g = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Linear(20, 12), nn.BatchNorm1d(12), nn.Linear(12, 5))
    with torch.no_grad():
        for p in (*made.parameters(), made[1].running_mean):
            p.copy_(torch.randn(p.shape, generator=g))
    return made


class Deltas(Reader):
    """A delta gives the bits of the tuned model, or is refused and the base as it was."""

    refusals = (FileError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base, tuned = model(0), model(1)
        self.before = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        self.sound, self.target = [], folder / "changed"
        for method in (ow.DARE(sparsity=0.9), ow.TIES(sparsity=0.8)):
            path = folder / method.name
            save_delta(path, self.base, tuned, method)
            self.sound.append(path)

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        path = chance.choice(self.sound)
        kind = chance.choice(["bytes", "header", "array", "array"])
        if kind == "bytes":
            kind, content = damage(path.read_bytes(), chance)
            self.target.write_bytes(content)
            return kind, [str(self.target)]
        arrays = load_file(path)
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[KEY])
        if kind == "header":
            header = edit_tree(header, chance)
        else:
            name = chance.choice(list(arrays))
            changed = edit_tensor(arrays[name], chance)
            small = not changed.is_meta and changed.nbytes <= changed.untyped_storage().nbytes()
            arrays[name] = changed.contiguous() if small else torch.zeros(0)
        save_file(arrays, self.target, {KEY: json.dumps(header)})
        return kind, [str(self.target)]

    def read(self, chance: random.Random) -> None:
        self.base.load_state_dict(self.before)
        try:
            add_delta_(self.base, self.target)
        except FileError:
            assert all(torch.equal(t, self.before[name]) for name, t in self.base.state_dict().items())
            raise
