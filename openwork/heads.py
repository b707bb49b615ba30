"""Where the channels of an attention's values can change places: inside a head, and nowhere else.

A head mixes the values of several tokens and treats all of its channels alike. With the rows that make a head's values and the
columns that read them exchanged alike, an attention computes the same. Several heads may read one set of values (grouped
queries); their columns move together.

Which rows and columns belong together is asked of the model, not guessed from names or from the kind of attention. The module is
run with what one layer makes replaced by a pattern ``r[token] * a[channel]``, and what all other layers make by random numbers,
so that queries and keys are random too. What a layer reads is then, for every channel of a head, the same mixture of ``r`` times
the ``a`` of one channel: from a few patterns ``a`` follows whose channel it is, and channels of one head are those with the same
mixture. The outputs of the module and the inputs of all other layers must not depend on ``a`` at all: nothing else reads the
values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from openwork.operations import Reader
from openwork.reordering import Maker

_DIGIT = 16
"""A channel's number is asked for in digits so small that bfloat16 tells them apart."""

_LOUD = 2.0
"""Deviation of the random numbers: queries and keys of that size attend to few tokens, and every head to others."""


@dataclass(frozen=True)
class Head:
    """The values of one head.

    Attributes:
        rows: int64 ``[width]``, ascending: the outputs of the layer that makes them.
        columns: int64 ``[readers, width]``: the inputs that each of the heads reading these values passes on, in the order of
            ``rows``.
    """

    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Values:
    """The values of one attention.

    Attributes:
        name: of the weight that makes them.
        makers: that weight and its bias, with the axis of the outputs.
        readers: the one weight whose columns read what the heads make of them.
        heads: in the order of their rows.
    """

    name: str
    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    heads: tuple[Head, ...]

    @property
    def channels(self) -> int:
        """Inputs of the layer that reads."""
        return self.readers[0].weight.shape[self.readers[0].axis]

    def parameters(self) -> list[tuple[str, nn.Parameter, int]]:
        """(name, parameter, axis) of all that makes and reads them."""
        reader = self.readers[0]
        return [
            *((m.name, m.parameter, m.axis) for m in self.makers),
            (reader.name, reader.weight, reader.axis),
        ]

    def orders(self, within: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The order of all rows of the makers, and of all columns of the reader.

        Args:
            within: for each head, which of its channels comes to each of its places, int64 ``[width]``.

        Raises:
            ValueError: not a permutation of the channels of each head.
        """
        maker = self.makers[0]
        rows, columns = torch.arange(maker.parameter.shape[maker.axis]), torch.arange(self.channels)
        for head, order in zip(self.heads, within, strict=True):
            if not torch.equal(order.sort().values, torch.arange(head.rows.numel())):
                raise ValueError(
                    f"a head of {self.name} has {head.rows.numel()} channels, and an order names each once"
                )
            rows[head.rows] = head.rows[order]
            columns[head.columns] = head.columns[:, order]
        return rows, columns

    @torch.no_grad()
    def reorder_(self, within: Sequence[Tensor]) -> None:
        """Put channel ``within[h][j]`` of head ``h`` in its place ``j``, exactly: values move and none is computed.

        Raises:
            ValueError: see :meth:`orders`; nothing has changed then.
        """
        rows, columns = self.orders(within)
        for m in self.makers:
            m.parameter.copy_(m.parameter.index_select(m.axis, rows.to(m.parameter.device)))
        for r in self.readers:
            r.weight.copy_(r.weight.index_select(r.axis, columns.to(r.weight.device)))


@dataclass(frozen=True)
class _Product:
    """One use of a linear layer in a run."""

    name: str
    weight: nn.Parameter
    axis: int
    bias: nn.Parameter | None

    @property
    def inputs(self) -> int:
        return self.weight.shape[self.axis]

    @property
    def outputs(self) -> int:
        return self.weight.shape[1 - self.axis]

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class _Asking(TorchFunctionMode):
    """A run in which one layer makes a pattern, and all others make noise.

    Args:
        names: of the parameters.
        maker, rows, amplitudes: whose outputs ``rows`` are ``r * amplitudes``; None leaves the run as it is.
    """

    def __init__(
        self, names: dict[int, str], maker: nn.Parameter | None = None, rows: slice = slice(None),
        amplitudes: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names, self.maker, self.rows, self.amplitudes = names, maker, rows, amplitudes
        self.products: list[_Product] = []
        self.read: list[Tensor] = []
        self.uses: Counter[int] = Counter()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((list(args), kwargs or {})) if isinstance(x, Tensor)]
        if any(isinstance(x, Tensor) for x in tree_leaves(result)):
            self.uses.update(id(x) for x in tensors if id(x) in self.names)
        used = self._product(func, tensors)
        if used is None:
            return result
        product, x = used
        self.products.append(product)
        self.read.append(x.detach().clone())
        return result if self.amplitudes is None else self._answer(product, result)

    def _product(self, func: Any, tensors: list[Tensor]) -> tuple[_Product, Tensor] | None:
        if func is F.linear and id(tensors[1]) in self.names:
            x, weight, axis, bias = tensors[0], tensors[1], 1, tensors[2] if len(tensors) > 2 else None
        elif func is torch.addmm and len(tensors) == 3 and id(tensors[2]) in self.names:
            (bias, x, weight), axis = tensors, 0
        else:
            return None
        if not isinstance(weight, nn.Parameter) or not (bias is None or isinstance(bias, nn.Parameter)):
            return None
        return _Product(self.names[id(weight)], weight, axis, bias), x

    def _answer(self, product: _Product, result: Tensor) -> Tensor:
        noise = torch.randn(result.shape, generator=self._generator)
        if product.weight is self.maker and self.amplitudes is not None:
            tokens = torch.randn((*result.shape[:-1], 1), generator=torch.Generator().manual_seed(1))
            noise[..., self.rows] = tokens * self.amplitudes / _LOUD
        return (_LOUD * noise).to(result)


class _Questions:
    """What a module answers."""

    def __init__(self, module: nn.Module, run: Callable[[], Any]) -> None:
        self._run, self._names = run, {id(p): name for name, p in module.named_parameters()}
        with torch.no_grad(), (asking := _Asking(self._names)):
            run()
        self.products, self.uses = asking.products, asking.uses

    def ask(self, maker: _Product, rows: slice, amplitudes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """What each layer reads, and what comes out, where ``maker`` makes a pattern."""
        with torch.no_grad(), (asking := _Asking(self._names, maker.weight, rows, amplitudes)):
            outputs = self._run()
        return asking.read, [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]

    def values(self, maker: _Product, rows: slice) -> tuple[_Product, tuple[Head, ...]] | None:
        """The layer that reads what heads make of some outputs of ``maker``, and the heads; None where something else reads them
        too, or where there is more between them than heads.
        """
        count = len(range(*rows.indices(maker.outputs)))
        a, b = torch.ones(count), 1 + torch.rand(count, generator=torch.Generator().manual_seed(2))
        (plain, out), (other, out_other) = self.ask(maker, rows, a), self.ask(maker, rows, b)
        if len(plain) != len(other) or len(plain) != len(self.products):
            return None
        moved = [i for i, (x, y) in enumerate(zip(plain, other, strict=True)) if not torch.equal(x, y)]
        if len(moved) != 1 or not all(torch.equal(x, y) for x, y in zip(out, out_other, strict=True)):
            return None
        (reader,) = moved
        mixture = _rows(plain[reader])
        precise = 1e-4 if self.products[reader].weight.dtype in (torch.float32, torch.float64) else 0.05
        if (factor := _factors(mixture, _rows(other[reader]), precise)) is None:
            return None
        channel, unit = torch.zeros(mixture.shape[1], dtype=torch.int64), 1
        while unit < count:
            digits = torch.arange(count) // unit % _DIGIT
            asked = self.ask(maker, rows, 1.0 + digits)[0][reader]
            found = _factors(mixture, _rows(asked), precise)
            if found is None:
                return None
            channel += unit * (found.round().long() - 1)
            unit *= _DIGIT
        if bool(((channel < 0) | (channel >= count)).any()):
            return None
        if not torch.allclose(factor, b.double()[channel], rtol=precise):
            return None
        heads = _heads(mixture, channel, range(*rows.indices(maker.outputs)).start, precise)
        return None if heads is None else (self.products[reader], heads)


def _rows(x: Tensor) -> Tensor:
    """``[tokens, channels]``, in a precision in which squares can be added."""
    return x.reshape(-1, x.shape[-1]).cpu().double()


def _factors(plain: Tensor, other: Tensor, precise: float) -> Tensor | None:
    """By how much each channel of ``other [tokens, in]`` exceeds that of ``plain``, where it is a multiple of it; else None."""
    size = plain.square().sum(0)
    if not bool((size > 0).all() & size.isfinite().all()):
        return None
    factors: Tensor = (plain * other).sum(0) / size
    rest = (other - factors * plain).square().sum(0)
    return factors if bool((rest <= precise**2 * other.square().sum(0)).all()) else None


def _heads(mixture: Tensor, channel: Tensor, first: int, precise: float) -> tuple[Head, ...] | None:
    """Inputs with one mixture are one head; heads that mix the same channels share them."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    left = torch.arange(len(channel))
    while left.numel():
        one = mixture[:, left[:1]]
        alike = (mixture[:, left] - one).square().sum(0) <= precise**2 * one.square().sum()
        columns = left[alike]
        columns = columns[channel[columns].argsort(stable=True)]
        found.setdefault(tuple(channel[columns].tolist()), []).append(columns)
        left = left[~alike]
    rows = [row for head in found for row in head]
    if len(set(rows)) < len(rows):
        return None  # a channel in two heads
    heads = [Head(torch.tensor(head) + first, torch.stack(columns)) for head, columns in found.items()]
    return tuple(sorted(heads, key=lambda head: int(head.rows[0])))


def _candidates(products: Sequence[_Product]) -> Iterator[tuple[_Product, slice]]:
    """Layers that may make values, and which of their outputs: all, or those that are left when there are queries for every input
    of some layer and as many keys as values before them.
    """
    for i, maker in enumerate(products):
        widths = {later.inputs for later in products[i + 1 :]}
        if any(inputs % maker.outputs == 0 for inputs in widths):
            yield maker, slice(None)
        for inputs in sorted(widths):
            if (count := (maker.outputs - inputs) // 2) > 0 and inputs % count == 0:
                yield maker, slice(maker.outputs - count, None)


def values(module: nn.Module, run: Callable[[], Any], exclude: Sequence[str] = ()) -> list[Values]:
    """The attentions inside ``module`` whose values have channels that can change places.

    Args:
        module: in evaluation mode; not changed.
        run: calls it on some input of several tokens, and returns all that it returns. Called twice or four times for each linear
            layer, and a few times more for each attention.
        exclude: names of weights that are known to make something else.
    """
    questions, found = _Questions(module, run), list[Values]()
    taken: set[str] = set()
    names = {id(p): name for name, p in module.named_parameters()}
    used_once = {
        p.name for p in questions.products if all(questions.uses[id(q)] == 1 for q in p.parameters())
    }
    free = used_once - set(exclude)
    for maker, rows in _candidates(questions.products):
        if maker.name not in free - taken:
            continue
        if (found_heads := questions.values(maker, rows)) is None:
            continue
        reader, heads = found_heads
        if reader.name not in free - taken or max(head.rows.numel() for head in heads) < 2:
            continue
        taken |= {maker.name, reader.name}
        makers = [Maker(maker.name, maker.weight, 1 - maker.axis)]
        if maker.bias is not None:
            makers.append(Maker(names[id(maker.bias)], maker.bias, 0))
        found.append(
            Values(maker.name, tuple(makers), (Reader(reader.name, reader.weight, reader.axis),), heads)
        )
    return found
