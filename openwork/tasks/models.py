"""The small models by name, with the sizes they are used at here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from torch import nn

from openwork.tasks.convnet import conv_small
from openwork.tasks.gpt import gpt_small
from openwork.tasks.mlp import lenet_300_100, mlp
from openwork.tasks.resnet import resnet20

MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp((64, 1000, 1000, 10)),
    "lenet_300_100": lenet_300_100,
    "conv_small": conv_small,
    "resnet20": resnet20,
    "gpt_small": gpt_small,
}


def model(name: str) -> nn.Module:
    """A small model with freshly drawn weights.

    Args:
        name: one of :data:`MODELS`.

    Raises:
        ValueError: no model is called so.
    """
    key = name.strip().lower().replace("-", "_")
    if key in MODELS:
        return MODELS[key]()
    near = difflib.get_close_matches(key, MODELS, n=1)
    error = ValueError(
        f"no model is called {name!r}; there are {', '.join(MODELS)}, or write package.module:factory"
    )
    if near:
        error.add_note(f"did you mean {near[0]}?")
    raise error
