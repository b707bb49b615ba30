"""Where a scale of a tensor can hide: divided into what makes the tensor, multiplied into what reads it.

A linear layer computes the same from ``x / s`` with its columns times ``s``, for any positive ``s`` of each channel. Nothing is
left over where the division can be folded into the layer that makes ``x``: the weight and bias of a norm, or the rows of a linear
layer, also behind a ReLU and on one side of a product of gates.

What makes and what reads a tensor is seen, not guessed from names: :class:`Watching` records every operation of one run. A tensor
that something else reads as well (a residual connection, the output of the model) cannot be scaled, and neither can one whose
layer takes part in the run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.operations import HOMOGENEOUS, PRODUCTS, Operations, Reader, keeps_channels, tensors_in

_NORMS = {F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm}


@dataclass(frozen=True)
class Fold:
    """A tensor whose channels can be scaled.

    Attributes:
        name: of the parameter that makes it.
        makers: parameters whose first (or only) axis, or last where ``transposed``, are its channels.
        readers: all that reads it.
        transposed: the makers are a weight ``[in, out]`` and a bias.
    """

    name: str
    makers: tuple[nn.Parameter, ...]
    readers: tuple[Reader, ...]
    transposed: bool = False

    @property
    def channels(self) -> int:
        """How many the tensor has."""
        return self.readers[0].weight.shape[self.readers[0].axis]

    @torch.no_grad()
    def scale_(self, s: Tensor) -> None:
        """Divide the tensor by ``s [channels]``, and let the readers multiply by it. Zeros stay zeros.

        Raises:
            ValueError: a scale is not positive and finite; nothing has changed then.
        """
        if s.shape != (self.channels,) or not bool((s.isfinite() & (s > 0)).all()):
            raise ValueError(f"{self.name} has {self.channels} channels, each scaled by a positive number")
        for maker in self.makers:
            by = s.to(maker.dtype)
            maker.div_(by if maker.dim() == 1 or self.transposed else by.unsqueeze(1))
        for reader in self.readers:
            by = s.to(reader.weight.dtype)
            reader.weight.mul_(by if reader.axis == 1 else by.unsqueeze(1))


@dataclass(frozen=True)
class _Made:
    makers: tuple[nn.Parameter, ...]
    transposed: bool


class Watching(Operations):
    """Records what makes and what reads every tensor in a run, see :func:`folds`; the run itself is not changed.

    Args:
        names: of the parameters.
        reads: called with the parameter and the input ``[..., in]`` of every linear layer, if given.
    """

    def __init__(
        self, names: Mapping[int, str], reads: Callable[[nn.Parameter, Tensor], None] | None = None
    ) -> None:
        super().__init__(names)
        self.reads = reads
        self.made: dict[int, _Made] = {}
        self.linear: dict[int, list[Reader]] = {}
        self.through: dict[int, list[Tensor]] = {}
        self.elsewhere: set[int] = set()

    def note(self, func: Any, tensors: list[Tensor], results: list[Tensor]) -> None:
        x, out = tensors[0], results[0]
        own = tuple(self.parameters_among(tensors[1:]))
        if func is F.linear and own and len(own) == len(tensors) - 1 and out is not x:
            self._read(x, own[0], 1)
            self.made[id(out)] = _Made(own, False)
        elif func is torch.addmm and len(tensors) == 3 and id(tensors[2]) in self.names:
            bias, x, weight = tensors
            self._read(x, weight, 0)
            if isinstance(bias, nn.Parameter) and isinstance(weight, nn.Parameter):
                self.made[id(out)] = _Made((weight, bias), True)
        elif func in _NORMS and own and all(p.shape == x.shape[-1:] for p in own):
            self.elsewhere.add(id(x))
            self.made[id(out)] = _Made(own, False)
        elif func in PRODUCTS and len(tensors) == 2 and (p := _gain(tensors, self.names)) is not None:
            self.elsewhere.update(id(t) for t in tensors if t is not p)
            self.made[id(out)] = _Made((p,), False)
        elif func in PRODUCTS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape == out.shape:
            # either factor may carry the scale: the one that a linear layer made
            for t in tensors:
                (
                    self.through.setdefault(id(t), []).append(out)
                    if id(t) in self.made
                    else self.elsewhere.add(id(t))
                )
        elif func in HOMOGENEOUS or keeps_channels(func, x, out):
            if out is not x:
                self.through.setdefault(id(x), []).append(out)
        else:
            self.elsewhere.update(id(t) for t in tensors if id(t) not in self.names)

    def _read(self, x: Tensor, weight: Tensor, axis: int) -> None:
        assert isinstance(weight, nn.Parameter)
        self.linear.setdefault(id(x), []).append(Reader(self.names[id(weight)], weight, axis))
        if self.reads is not None:
            self.reads(weight, x)

    def folds(self, outputs: Any) -> list[Fold]:
        """What can be scaled, once the run is over.

        Args:
            outputs: what the run returned.
        """
        self.elsewhere.update(id(x) for x in tensors_in(outputs))
        found: list[Fold] = []
        taken: set[int] = set()
        for key, made in self.made.items():
            readers = self._readers(key)
            if not readers or taken & {id(r.weight) for r in readers}:
                continue  # of two makers of a product, one is scaled
            if any(self.uses[id(p)] != 1 for p in (*made.makers, *(r.weight for r in readers))):
                continue
            width = made.makers[0].shape[-1 if made.transposed else 0]
            if all(r.weight.shape[r.axis] == width for r in readers):
                taken |= {id(r.weight) for r in readers}
                found.append(
                    Fold(self.names[id(made.makers[0])], made.makers, tuple(readers), made.transposed)
                )
        return found

    def _readers(self, key: int) -> list[Reader] | None:
        """All linear layers that read a tensor, behind what leaves its channels alone; None where anything else does."""
        if key in self.elsewhere:
            return None
        readers = list(self.linear.get(key, []))
        for further in self.through.get(key, []):
            behind = self._readers(id(further))
            if behind is None:
                return None
            readers += behind
        return readers


def _gain(tensors: list[Tensor], names: Mapping[int, str]) -> nn.Parameter | None:
    """The parameter of a product ``gain * x`` over the last axis, as norms written by hand have it."""
    for p, x in (tensors, tensors[::-1]):
        if (
            isinstance(p, nn.Parameter)
            and id(p) in names
            and p.dim() == 1
            and p.shape == x.shape[-1:]
            and x.dim() > 1
        ):
            return p
    return None


def folds(module: nn.Module, run: Callable[[], Any]) -> list[Fold]:
    """The tensors inside ``module`` whose channels can be scaled without a trace.

    Args:
        module: whose parameters may be scaled; in evaluation mode.
        run: calls it on some input, and returns all that it returns.
    """
    watching = Watching({id(p): name for name, p in module.named_parameters()})
    with torch.no_grad(), watching:
        outputs = run()
    return watching.folds(outputs)
