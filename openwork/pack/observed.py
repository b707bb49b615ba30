"""What the layers of a model see in one run: how many samples, of which size, and who reads the same tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openwork.dataflow import identity_of
from openwork.layouts.conv import unsuited
from openwork.layouts.packed_conv1d import is_conv1d
from openwork.scores import run


@dataclass(frozen=True)
class Use:
    """What one layer sees.

    Attributes:
        samples: rows of inputs, or images; more than none.
        size: rows and columns of an image.
        tensor: equal for layers that read the same tensor.
        calls: how often it is called.
    """

    samples: int
    size: tuple[int, int]
    tensor: tuple[Any, ...]
    calls: int = 1


def observed(model: nn.Module, example_inputs: Any) -> tuple[Any, dict[str, Use]]:
    """The outputs of the model, and what each of its layers saw in the last of its calls."""
    seen: dict[str, Use] = {}
    names = {
        id(module): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or is_conv1d(module)
        or (isinstance(module, nn.Conv2d) and not unsuited(module))
    }
    alive: list[Tensor] = []  # an address identifies a tensor only while that is not freed

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        name = names[id(module)]
        samples, size = x.numel() // max(1, x.shape[-1]), (0, 0)
        if isinstance(module, nn.Conv2d):
            samples, size = (x.shape[0] if x.dim() == 4 else 1), (x.shape[-2], x.shape[-1])
        else:
            alive.append(x)
        calls = seen[name].calls + 1 if name in seen else 1
        seen[name] = Use(samples, size, identity_of(x), calls)

    listened = [m for m in model.modules() if id(m) in names]
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in listened]
    try:
        return run(model, example_inputs), {name: use for name, use in seen.items() if use.samples}
    finally:
        for handle in handles:
            handle.remove()


def readers(uses: Mapping[str, Use]) -> list[list[str]]:
    """Layers that read the same tensor, once each, in the order of their calls; those that read alone are left out."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, use in uses.items():
        if use.calls == 1:
            groups.setdefault(use.tensor, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def check_inputs(inputs: Any) -> None:
    """Raise TypeError unless there is a tensor among the example inputs."""
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise TypeError(
            "example_inputs is what the model is called with, a tensor, a tuple of arguments or a dict of keyword arguments: it "
            f"decides what is measured. Found {type(inputs).__name__} without any tensor; pass a batch as the model will see it."
        )


def samples_of(inputs: Any) -> int:
    """The size of batch of the example inputs: the first axis of the first tensor."""
    if isinstance(inputs, Tensor):
        return max(1, inputs.shape[0]) if inputs.dim() else 1
    parts = (
        inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, (tuple, list)) else ()
    )
    return next((samples_of(part) for part in parts if isinstance(part, Tensor)), 1)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among nested outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return [t for part in outputs for t in tensors_of(part)] if isinstance(outputs, (tuple, list)) else []
