"""Where the channels of a tensor can change places: their order belongs to nobody but the layers that make and read it.

The hidden channels of a perceptron have no order: with the rows of what makes them and the columns of what reads them exchanged
alike, the network computes the same, through any function of single elements and through products and sums of two such tensors
(gates).

What makes and what reads a tensor is seen in a run, as in :mod:`openwork.folding`. The order is tied where anything else
touches the tensor: a residual connection, a norm, attention (whose heads are runs of channels, see :mod:`openwork.heads`), the
inputs and outputs of the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from openwork.folding import Reader

_ELEMENTWISE = {
    F.relu, torch.relu, Tensor.relu, F.gelu, F.silu, F.tanh, torch.tanh, Tensor.tanh, F.sigmoid, torch.sigmoid, Tensor.sigmoid,
    F.elu, F.leaky_relu, F.relu6, F.hardswish, F.mish, F.softplus, F.dropout, torch.square, Tensor.square, torch.pow, Tensor.pow,
    Tensor.__pow__, torch.erf, Tensor.erf, torch.exp, Tensor.exp, Tensor.neg, torch.neg, Tensor.__neg__, Tensor.contiguous,
    Tensor.to, Tensor.float, Tensor.double, Tensor.clone, Tensor.type_as,
}  # fmt: skip
_OF_TWO = {
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub,
    Tensor.sub, Tensor.__sub__, torch.div, Tensor.div, Tensor.__truediv__,
}  # fmt: skip
_RESHAPED = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten}


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


class _Tracing(TorchFunctionMode):
    """Sees which tensors of a run have one order of channels in common."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.alike: dict[int, int] = {}
        self.tied: set[int] = set()
        self.makers: dict[int, list[tuple[nn.Parameter, int]]] = {}
        self.readers: dict[int, list[Reader]] = {}
        self.uses: Counter[int] = Counter()
        self._alive: list[Tensor] = []  # an id means a tensor only while that lives

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        versions = {id(x): x._version for x in tree_leaves((list(args), kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((list(args), kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._alive += [*tensors, *results]
        if results and tensors:
            self.uses.update(id(x) for x in tensors if id(x) in self.names)
            self._note(func, tensors, results)
        changed_in_place = [x for x in tensors if x._version != versions[id(x)]]
        self.tied.update(id(x) for x in changed_in_place)
        return result

    def _note(self, func: Any, tensors: list[Tensor], results: list[Tensor]) -> None:
        x, out = tensors[0], results[0]
        own = [t for t in tensors[1:] if isinstance(t, nn.Parameter) and id(t) in self.names]
        if func is F.linear and own and len(own) == len(tensors) - 1:
            self._product(x, own[0], 1, out, [(p, 0) for p in own])
        elif (
            func is torch.addmm and len(tensors) == 3 and _is(tensors[2], own) and isinstance(x, nn.Parameter)
        ):
            self._product(tensors[1], own[0], 0, out, [(own[0], 1), (x, 0)])
        elif (
            (func in _ELEMENTWISE and len(tensors) == 1)
            or (func in _RESHAPED and out.shape[-1:] == x.shape[-1:])
            or (func in _OF_TWO and len(tensors) == 1)
        ):
            self._same(x, out)
        elif func in _OF_TWO and tensors[0].shape == tensors[1].shape == out.shape:
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
        self.tied.update(id(x) for x in tree_leaves(outputs) if isinstance(x, Tensor))
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
