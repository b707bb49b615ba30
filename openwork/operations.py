"""What a run is made of: every operation on tensors, seen while it happens.

Which layers make and read a tensor is not guessed from names: :class:`Operations` shows a subclass every operation of one run,
and the sets below say which of them leave the channels of a tensor (its last axis) where they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

HOMOGENEOUS = {
    F.relu, torch.relu, Tensor.relu, F.dropout, Tensor.contiguous, Tensor.to, Tensor.float, Tensor.double, Tensor.clone,
    Tensor.type_as,
}  # fmt: skip
"""Functions of single elements that commute with a positive scale of each channel."""

ELEMENTWISE = HOMOGENEOUS | {
    F.gelu, F.silu, F.tanh, torch.tanh, Tensor.tanh, F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.elu, F.leaky_relu, F.relu6,
    F.hardswish, F.mish, F.softplus, torch.square, Tensor.square, torch.pow, Tensor.pow, Tensor.__pow__, torch.erf, Tensor.erf,
    torch.exp, Tensor.exp, Tensor.neg, torch.neg, Tensor.__neg__,
}  # fmt: skip
"""Functions of single elements: they commute with any order of the channels."""

PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
"""Of two tensors, element by element."""

OF_TWO = PRODUCTS | {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, torch.div, Tensor.div,
    Tensor.__truediv__,
}  # fmt: skip
"""Functions of two tensors, element by element."""

_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten}


def keeps_channels(func: Any, x: Tensor, out: Tensor) -> bool:
    """Whether an operation gives the elements of ``x`` another shape, and leaves the last axis as it is."""
    return func in _RESHAPES and out.shape[-1:] == x.shape[-1:]


@dataclass(frozen=True)
class Reader:
    """A linear layer's weight, and the axis of it along which the channels of its input lie."""

    name: str
    weight: nn.Parameter
    axis: int

    def matrix(self) -> Tensor:
        """The weight ``[out, in]``, detached."""
        weight = self.weight.detach()
        return weight if self.axis == 1 else weight.T


class Operations(TorchFunctionMode):
    """While this is entered, every operation is shown to :meth:`note`; the run itself is not changed.

    Args:
        names: of the parameters, by identity.

    Attributes:
        uses: how many operations take each of those parameters.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: Counter[int] = Counter()
        self._alive: list[Tensor] = []  # an id means a tensor only while that lives

    @abstractmethod
    def note(self, func: Any, tensors: list[Tensor], results: list[Tensor]) -> None:
        """One operation that takes ``tensors`` and gives ``results``, in order of appearance; neither is empty."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        tensors, results = tensors_in((list(args), kwargs)), tensors_in(result)
        self._alive += [*tensors, *results]
        if tensors and results:
            self.uses.update(id(x) for x in tensors if id(x) in self.names)
            self.note(func, tensors, results)
        return result

    def parameters_among(self, tensors: Sequence[Tensor]) -> list[nn.Parameter]:
        """Those of ``tensors`` that have a name."""
        return [x for x in tensors if isinstance(x, nn.Parameter) and id(x) in self.names]


def tensors_in(structure: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [x for x in tree_leaves(structure) if isinstance(x, Tensor)]
