"""The few parameters that repair most of what pruning has broken: biases, norms, the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openwork.finetune.adapters import Adapters, adapt_
from openwork.finetune.lora import Kind, LoRA
from openwork.weights import prunable

PLAIN = ("bias", "norm")
"""Parameters that are trained as they are."""

ADAPTED: tuple[Kind, ...] = ("mask_lora", "scale_lora", "lora_prune")
"""Kinds of low-rank update of the pruned weights whose merge keeps every zero."""


def check_subsets(train: Sequence[str], *, head: bool) -> None:
    """Raise ValueError unless ``train`` names subsets that go together."""
    known = (*PLAIN, *ADAPTED, *(("head",) if head else ()))
    if not train or isinstance(train, str):
        raise ValueError(f"train is a tuple of {', '.join(known)}; got {train!r}")
    for name in train:
        if name not in known:
            raise ValueError(f"train: {name!r} is none of {', '.join(known)}")
    if len(kinds := [name for name in train if name in ADAPTED]) > 1:
        raise ValueError(f"train: a weight has one low-rank update, and {' and '.join(kinds)} are two")


def plain(module: nn.Module, train: Sequence[str]) -> dict[str, nn.Parameter]:
    """The biases and the parameters of norms in a module, by name: whichever of the two ``train`` asks for."""
    found = {}
    for prefix, owner in module.named_modules():
        is_norm = isinstance(owner, _NORMS) or type(owner).__name__.endswith("Norm")
        for name, parameter in owner.named_parameters(recurse=False):
            kind = "norm" if is_norm else "bias" if name.startswith("bias") else None
            if kind in train:
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found


@dataclasses.dataclass(frozen=True)
class Subset:
    """What is trained of a module, and what it amounts to.

    Attributes:
        parameters: to give to an optimizer.
        trainable: how many numbers that are.
        of: parameters of the module.
        merge_: write low-rank updates into the weights.
    """

    parameters: list[nn.Parameter]
    trainable: int
    of: int
    merge_: Callable[[], None]

    @property
    def fraction(self) -> float:
        """Trained, of all parameters."""
        return self.trainable / self.of


@contextmanager
def training(
    module: nn.Module, train: Sequence[str], masks: Mapping[str, Tensor], lora: LoRA, head: str | None = None
) -> Iterator[Subset]:
    """Let only some parameters of a module train; afterwards adapters are off, and everything requires gradients as before.

    Args:
        module: a model or one of its blocks.
        train: names of subsets, see :func:`check_subsets`.
        masks: parameter name -> boolean mask ``[out, in, *kernel]`` of the pruned weights.
        lora: rank and scale of low-rank updates; its kind comes from ``train``.
        head: name of the weight of the output head, which gets a plain update if ``train`` has "head".

    Raises:
        ValueError: there is no such parameter in the module.
    """
    of = sum(p.numel() for p in module.parameters())
    chosen = plain(module, train)
    kinds = [kind for kind in ADAPTED if kind in train]
    pruned = {name: mask for name, mask in masks.items() if name in {w.name for w in prunable(module)}}
    wanted = [(p, p.requires_grad) for p in module.parameters()]
    adapters: list[Adapters] = []
    try:
        for p, _ in wanted:
            p.requires_grad_(False)
        if kinds and pruned:
            settings = dataclasses.replace(lora, kind=kinds[0])
            adapters.append(adapt_(module, settings, masks=masks, include=tuple(pruned)))
        if "head" in train and head is not None:
            whole = {head: torch.ones_like(module.get_parameter(head), dtype=torch.bool)}
            adapters.append(
                adapt_(module, dataclasses.replace(lora, kind="lora"), masks=whole, include=(head,))
            )
        parameters = [*chosen.values(), *(p for some in adapters for p in some.parameters())]
        if not parameters:
            raise ValueError(f"there is nothing to train: the module has no {', '.join(train)}")
        for p in parameters:
            p.requires_grad_(True)

        def merge() -> None:
            for some in reversed(adapters):
                some.merge_()
            adapters.clear()

        yield Subset(parameters, sum(p.numel() for p in parameters), of, merge)
    finally:
        for some in reversed(adapters):
            some.remove_()
        for p, flag in wanted:
            p.requires_grad_(flag)


_NORMS: tuple[Any, ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
