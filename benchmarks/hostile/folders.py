"""Hugging Face folders in the sparse form: the configuration and the weights."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import torch
import transformers

import openwork as ow
from hostile.changes import damage, edit_tree
from hostile.reader import Reader
from hostile.sparse_files import mutate
from openwork import hf
from openwork.files import FileError


class Folders(Reader):
    """A folder is loaded as what it says, or refused; the model that comes out computes."""

    refusals = (FileError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        transformers.logging.set_verbosity(transformers.logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 40,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 30,
        }
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=False, **sizes)
        ).eval()
        found = ow.sparsify_(model, ow.Magnitude(sparsity=0.9))
        self.sound, self.target = folder / "sound", folder / "changed"
        hf.save(model, self.sound, storage="sparse", masks=found.masks)

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        shutil.rmtree(self.target, ignore_errors=True)
        shutil.copytree(self.sound, self.target)
        weights, config = self.target / "model.safetensors", self.target / "config.json"
        kind = chance.choice(["weights", "weights", "configuration", "bytes of configuration", "lost"])
        if kind == "weights":
            kind, name = mutate(self.sound / weights.name, weights, chance)
            return f"weights: {kind}", [
                str(self.target),
                re.sub("_(values|crow|col|bitmask)$", "", name or ""),
            ]
        if kind == "configuration":
            config.write_text(json.dumps(edit_tree(json.loads(config.read_text()), chance)))
        elif kind == "lost":
            chance.choice([weights, config]).unlink()
        else:
            config.write_bytes(damage(config.read_bytes(), chance)[1])
        return kind, [str(self.target)]

    def read(self, chance: random.Random) -> None:
        model = hf.load(self.target, dense=chance.random() < 0.3)
        with torch.no_grad():
            model(input_ids=torch.tensor([[1, 2, 3]]))
