"""Where the channels of a tensor can change places: their order belongs to nobody but the layers that make and read it.

The hidden channels of a perceptron have no order: with the rows of what makes them and the columns of what reads them exchanged
alike, the network computes the same, through any function of single elements and through products and sums of two such tensors
(gates).

What makes and what reads a tensor is seen in a run, as in :mod:`openwork.folding`. The order is tied where anything else
touches the tensor: a residual connection, a norm, attention (whose heads are runs of channels, see :mod:`openwork.heads`), the
inputs and outputs of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.operations import ELEMENTWISE, OF_TWO, Operations, Reader, keeps_channels, tensors_in


@dataclass(frozen=True)
class Maker:
    """A parameter that makes channels, and the axis of it along which they lie."""

    name: str
    parameter: nn.Parameter
    axis: int


@dataclass(frozen=True)
class Channels:
    """Channels in no order.

    Attributes:
        name: of the first weight that makes them.
        makers: every parameter whose rows they are, biases included.
        readers: every weight whose columns they are.
    """

    name: str
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]

    @property
    def channels(self) -> int:
        """How many they are."""
        return self.readers[0].weight.shape[self.readers[0].axis]

    def parameters(self) -> list[tuple[str, nn.Parameter, int]]:
        """(name, parameter, axis of the channels) of all that makes and reads them."""
        return [
            *((m.name, m.parameter, m.axis) for m in self.makers),
            *((r.name, r.weight, r.axis) for r in self.readers),
        ]

    @torch.no_grad()
    def reorder_(self, order: Tensor) -> None:
        """Put channel ``order[j]`` in place ``j``, exactly: values move and none is computed.

        Raises:
            ValueError: ``order`` is no permutation of the channels; nothing has changed then.
        """
        if not torch.equal(order.sort().values.cpu(), torch.arange(self.channels)):
            raise ValueError(
                f"{self.name} has {self.channels} channels, and an order names each of them once"
            )
        for _, parameter, axis in self.parameters():
            parameter.copy_(parameter.index_select(axis, order.to(parameter.device)))


class _Tracing(Operations):
    """Sees which tensors of a run have one order of channels in common."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names)
        self.alike: dict[int, int] = {}
        self.tied: set[int] = set()
        self.makers: dict[int, list[tuple[nn.Parameter, int]]] = {}
        self.readers: dict[int, list[Reader]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = [(x, x._version) for x in tensors_in((list(args), dict(kwargs or {})))]
        result = super().__torch_function__(func, types, args, kwargs)
        self.tied.update(id(x) for x, version in before if x._version != version)  # changed in place
        return result

    def note(self, func: Any, tensors: list[Tensor], results: list[Tensor]) -> None:
        x, out = tensors[0], results[0]
        own = self.parameters_among(tensors[1:])
        if func is F.linear and own and len(own) == len(tensors) - 1:
            self._product(x, own[0], 1, out, [(p, 0) for p in own])
        elif (
            func is torch.addmm and len(tensors) == 3 and _is(tensors[2], own) and isinstance(x, nn.Parameter)
        ):
            self._product(tensors[1], own[0], 0, out, [(own[0], 1), (x, 0)])
        elif (
            (func in ELEMENTWISE and len(tensors) == 1)
            or keeps_channels(func, x, out)
            or (func in OF_TWO and len(tensors) == 1)
        ):
            self._same(x, out)
        elif func in OF_TWO and tensors[0].shape == tensors[1].shape == out.shape:
            self._same(x, out)
            self._same(tensors[1], out)
        else:
            self.tied.update(id(t) for t in (*tensors, *results) if id(t) not in self.names)

    def _product(
        self, x: Tensor, weight: nn.Parameter, axis: int, out: Tensor, makers: list[tuple[nn.Parameter, int]]
    ) -> None:
        self._known(x)
        self.readers.setdefault(id(x), []).append(Reader(self.names[id(weight)], weight, axis))
        self.alike[id(out)] = id(out)
        self.makers.setdefault(id(out), []).extend(makers)

    def _same(self, x: Tensor, out: Tensor) -> None:
        self._known(x)
        self.alike.setdefault(id(out), id(out))
        self.alike[self._root(id(out))] = self._root(id(x))

    def _known(self, x: Tensor) -> None:
        """A tensor that nothing in the run has made has the order it came in."""
        if id(x) not in self.alike:
            self.alike[id(x)] = id(x)
            self.tied.add(id(x))

    def _root(self, key: int) -> int:
        while self.alike[key] != key:
            key = self.alike[key]
        return key

    def found(self, outputs: Any) -> list[Channels]:
        """What can be reordered, once the run is over."""
        self.tied.update(id(x) for x in tensors_in(outputs))
        tied = {self._root(key) for key in self.tied if key in self.alike}
        makers: dict[int, list[tuple[nn.Parameter, int]]] = {}
        readers: dict[int, list[Reader]] = {}
        for key in self.alike:
            makers.setdefault(self._root(key), []).extend(self.makers.get(key, []))
            readers.setdefault(self._root(key), []).extend(self.readers.get(key, []))
        return [
            Channels(
                self.names[id(made[0][0])],
                tuple(Maker(self.names[id(p)], p, a) for p, a in made),
                tuple(readers[root]),
            )
            for root, made in makers.items()
            if root not in tied and readers[root] and self._free(made, readers[root])
        ]

    def _free(self, makers: list[tuple[nn.Parameter, int]], readers: list[Reader]) -> bool:
        """Whether nothing else in the run uses the parameters, and all have as many channels."""
        parameters = [(p, a) for p, a in makers] + [(r.weight, r.axis) for r in readers]
        used_once = all(id(p) in self.names and self.uses[id(p)] == 1 for p, _ in parameters)
        return used_once and len({p.shape[a] for p, a in parameters}) == 1


def _is(x: Tensor, only: Sequence[Tensor]) -> bool:
    return len(only) == 1 and only[0] is x


def unordered(module: nn.Module, run: Callable[[], Any]) -> list[Channels]:
    """The channels inside ``module`` that can change places without a trace.

    Args:
        module: whose parameters may be reordered; in evaluation mode.
        run: calls it on some input, and returns all that it returns.
    """
    tracing = _Tracing({id(p): name for name, p in module.named_parameters()})
    with torch.no_grad(), tracing:
        outputs = run()
    return tracing.found(outputs)
