"""Layers that read the same tensor, held as one weight: query, key and value of attention, gate and up of a perceptron.

Their rows are stacked, and one pass over the input computes all of them. The layers stay where they are in the model, whose code
calls them one after the other and knows nothing of it: the one that is called first computes the outputs of all and keeps those
of the others, with a copy of the input. A sibling that is called on an input of the same bits takes its own from there; on any
other input all are computed anew. So results depend on nothing but what each layer is given: not on the order of calls, on calls
left out, on what hooks or other threads do meanwhile, nor on whether memory was written to.

Comparing the input costs its bytes once. Whether that pays is for :func:`openwork.pack_` to measure.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from openwork.kernels.bits import same_bits
from openwork.kernels.execution import is_traced
from openwork.layouts.csr import CSR
from openwork.layouts.dense import activated
from openwork.layouts.layout import Layout
from openwork.layouts.stream import Stream


@dataclass(frozen=True, eq=False)
class Sibling:
    """One of the layers.

    Attributes:
        topology: its connections.
        values: its kept weights.
        bias: its bias, as the layer owns it.
        activation: what is applied to its outputs.
    """

    topology: CSR
    values: Tensor
    bias: Tensor | None
    activation: str


@dataclass
class _Kept:
    """What was computed in one pass: the input, and the outputs that nobody took so far."""

    x: Tensor
    inference: bool
    parts: list[Tensor | None]
    left: int


class _Local(threading.local):
    kept: _Kept | None = None


class Siblings:
    """Several weights with the same inputs in one layout.

    Args:
        members: the layers, in the order of the stacked rows.
        layout: how the stacked weight is held.
        batch: samples in a call, about.
    """

    def __init__(self, members: Sequence[Sibling], layout: type[Layout], batch: int) -> None:
        self.members, self.layout, self.batch = list(members), layout, batch
        self._sizes = [member.topology.shape[0] for member in members]
        self._local = _Local()
        self._held: Layout | None = None
        self._hold()

    def shares(self) -> list[Share]:
        """What takes the place of each layer's own layout."""
        return [Share(self, i) for i in range(len(self.members))]

    def taken(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """What is kept of one member's outputs for ``x [..., in]``, which nobody else will get; None if that is nothing."""
        kept: _Kept | None = self._local.kept
        if kept is None or is_traced(x) or (x.requires_grad and torch.is_grad_enabled()):
            return None
        if kept.inference is not torch.is_inference_mode_enabled():
            return None
        if not (self._has_bias(index, bias) and x.is_contiguous() and same_bits(kept.x, x)):
            return None
        y = kept.parts[index]
        kept.parts[index] = None
        kept.left -= 1
        if not kept.left:
            self._local.kept = None
        return y

    def outputs_of(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """The outputs of one member for contiguous ``x [..., in]``; those of the others are kept for them."""
        if is_traced(x, bias):  # whoever records operators is to see all of them, and nothing that is kept
            return self._alone(index, x, bias)
        if not self._has_bias(index, bias):
            self.members[index] = replace(self.members[index], bias=bias)
            self._hold_biases()
        parts = self._computed(x)
        y, parts[index] = parts[index], None
        assert y is not None
        kept = _Kept(x.clone(), torch.is_inference_mode_enabled(), parts, len(parts) - 1)
        self._local.kept = kept if x.is_cpu else None
        return y

    def replace(self, index: int, topology: CSR, values: Tensor, bias: Tensor | None) -> None:
        """Another state was loaded into one of the layers. The weight is stacked anew when it is needed."""
        self.members[index] = replace(self.members[index], topology=topology, values=values, bias=bias)
        self._held = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stacked weight."""
        return self._layout().nbytes

    def _computed(self, x: Tensor) -> list[Tensor | None]:
        """The outputs of all members for inputs ``[..., in]`` of one sample, or of several, which is rare."""
        y = self._layout().compute(x, self._bias, self._together)
        # What is cut off is nobody's view, as far as autograd goes: parts count their versions for themselves.
        parts = torch.unsafe_split_with_sizes(y, self._sizes, -1)
        if y.numel() != y.shape[-1]:
            parts = tuple(part.contiguous() for part in parts)
        if self._together != "none" or self._plain:
            return list(parts)
        return [activated(part, member.activation) for part, member in zip(parts, self.members, strict=True)]

    def _alone(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.split(self._layout().compute(x, None, "none"), self._sizes, -1)[index]
        return activated(y.clone() if bias is None else y + bias, self.members[index].activation)

    def _has_bias(self, index: int, bias: Tensor | None) -> bool:
        """Whether a layer's bias is the one that was stacked."""
        stamp, held = _stamp(bias), self.members[index].bias
        if stamp == self._stamps[index]:
            return True
        if bias is None or held is None or not torch.equal(bias, held):
            return False
        self.members[index], self._stamps[index] = replace(self.members[index], bias=bias), stamp
        return True

    def _layout(self) -> Layout:
        if self._held is None:
            self._hold()
        assert self._held is not None
        return self._held

    @torch.no_grad()
    def _hold(self) -> None:
        topology, values = stacked(self.members)
        cls = Stream if self.layout.unsuited(topology, values, self.batch) else self.layout
        self._held = cls.build(topology, values, self.batch)
        activations = {member.activation for member in self.members}
        self._plain = activations == {"none"}
        self._together = activations.pop() if len(activations) == 1 else "none"
        self._hold_biases()

    @torch.no_grad()
    def _hold_biases(self) -> None:
        self._stamps = [_stamp(member.bias) for member in self.members]
        self._bias = stacked_bias(self.members)
        self._local.kept = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what was kept for calls to come: that belongs to a thread of this process."""
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._stamps = [_stamp(member.bias) for member in self.members]
        self._local = _Local()


class Share(Layout):
    """The part of :class:`Siblings` that belongs to one layer."""

    name: ClassVar[str] = "siblings"

    def __init__(self, siblings: Siblings, index: int) -> None:
        self.siblings, self.index = siblings, index
        self.takes_any_axes = siblings.layout.takes_any_axes

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        return "one layer alone has no siblings"

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        raise TypeError("siblings are made together, as Siblings")

    def taken(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """The outputs for ``x`` if a sibling left them, else None."""
        return self.siblings.taken(self.index, x, bias)

    def renewed(self, topology: CSR, values: Tensor, bias: Tensor | None) -> Self:
        """For another state of the layer."""
        self.siblings.replace(self.index, topology, values, bias)
        return self

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return self.siblings.outputs_of(self.index, x, bias)

    def compute(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return self.siblings.outputs_of(self.index, x, bias)

    @property
    def nbytes(self) -> int:
        """Its part of the bytes of all."""
        kept = sum(member.topology.kept for member in self.siblings.members)
        mine = self.siblings.members[self.index].topology.kept
        return self.siblings.nbytes * mine // max(1, kept)


def stacked(members: Sequence[Sibling]) -> tuple[CSR, Tensor]:
    """The weight of all members, one below the other."""
    first = members[0].topology
    rows = sum(member.topology.shape[0] for member in members)
    crow, before = [first.crow.new_zeros(1)], 0
    for member in members:
        crow.append(member.topology.crow[1:] + before)
        before += member.topology.kept
    columns = torch.cat([member.topology.col for member in members])
    values = torch.cat([member.values for member in members])
    return CSR((rows, first.shape[1]), torch.cat(crow), columns), values


def stacked_bias(members: Sequence[Sibling]) -> Tensor | None:
    """The biases of all members, zeros for those without; None where none has any."""
    if all(member.bias is None for member in members):
        return None
    return torch.cat(
        [
            member.values.new_zeros(member.topology.shape[0]) if member.bias is None else member.bias.detach()
            for member in members
        ]
    )


def _stamp(bias: Tensor | None) -> tuple[int, int]:
    """Changes when a bias is replaced or written to."""
    return (0, 0) if bias is None else (bias.data_ptr(), 0 if bias.is_inference() else bias._version)
