"""How a model calls its blocks, found out by running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from openwork.scores import run


@dataclass(frozen=True)
class Call:
    """How a block is called.

    Attributes:
        spec: the structure of its arguments.
        leaves: the arguments, flattened.
        output: which leaf of what the block returns flows on to the next.
    """

    spec: TreeSpec
    leaves: tuple[Any, ...]
    output: int = 0

    def run(self, block: Callable[..., Any]) -> Tensor:
        """Call the block; returns the tensor that the next block reads."""
        result: Tensor = self.outputs(block)[self.output]
        return result

    def outputs(self, block: Callable[..., Any]) -> list[Any]:
        """Call the block; returns all it returns, flattened."""
        # a block may work in place on what it is given
        leaves = [x.clone() if isinstance(x, Tensor) and x.is_floating_point() else x for x in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return tree_flatten(block(*args, **kwargs))[0]


class Wire:
    """Where one argument of a block comes from."""


@dataclass(frozen=True)
class FromBefore(Wire):
    """Leaf ``index`` of what the block before returned."""

    index: int


@dataclass(frozen=True)
class FromFirst(Wire):
    """Leaf ``index`` of the call of the first block: a mask or positions that all blocks share."""

    index: int


@dataclass(frozen=True)
class Own(Wire):
    """Recorded for this block: a mask that only some blocks use."""


@dataclass(frozen=True)
class Same(Wire):
    """No tensor, and the same in every batch."""

    value: Any


@dataclass(frozen=True)
class Wiring:
    """How the blocks of a row hang together, one entry a block.

    Attributes:
        specs: the structures of their arguments.
        wires: where each argument comes from.
        outputs: which leaf of what each returns flows on.
    """

    specs: tuple[TreeSpec, ...]
    wires: tuple[tuple[Wire, ...], ...]
    outputs: tuple[int, ...]


def trace(model: nn.Module, blocks: Sequence[nn.Module], inputs: Any) -> Wiring | None:
    """Run a model and see how its blocks are called.

    Outputs of blocks are marked, meanwhile, by asking for their gradient, block by block: an argument that depends on a block
    and is not the output of the one before was computed between the blocks.

    Returns:
        None where something is computed between the blocks.

    Raises:
        ValueError: a block is not called exactly once, or not in order.
    """
    order: list[int] = []
    calls: dict[int, tuple[list[Any], TreeSpec]] = {}
    results: dict[int, list[Any]] = {}

    def before(i: int, args: Any, kwargs: Mapping[str, Any]) -> None:
        order.append(i)
        calls[i] = tree_flatten((args, dict(kwargs)))

    def after(i: int, result: Any) -> Any:
        leaves, spec = tree_flatten(result)
        results[i] = [_marked(leaf) for leaf in leaves]
        return tree_unflatten(results[i], spec)

    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        with watched(blocks, before, after), torch.enable_grad():
            run(model, inputs)
    finally:
        for p in wanted:
            p.requires_grad_(True)
    if order != list(range(len(blocks))):
        raise ValueError(
            f"a run of the model calls its {len(blocks)} blocks in the order {order}, and each must be called once, one after "
            "another: use blocks='whole', or name the container to walk"
        )
    rows = [_wires(calls[i], calls[0], results.get(i - 1, [])) for i in range(1, len(blocks))]
    if any(row is None for row in rows):
        return None
    first = tuple(FromFirst(j) for j in range(len(calls[0][0])))
    wires = (first, *(row for row in rows if row is not None))
    read = [next(w.index for w in row if isinstance(w, FromBefore)) for row in wires[1:]]
    return Wiring(tuple(calls[i][1] for i in range(len(blocks))), wires, (*read, *(read[-1:] or (0,))))


@contextmanager
def watched(
    blocks: Sequence[nn.Module],
    before: Callable[[int, Any, Mapping[str, Any]], None],
    after: Callable[[int, Any], Any] | None = None,
) -> Iterator[None]:
    """Have ``before(i, args, kwargs)`` called ahead of block ``i``, and ``after(i, result)`` behind it, which may replace it."""
    with ExitStack() as hooks:
        for i, block in enumerate(blocks):

            def ahead(_: nn.Module, args: Any, kwargs: Any, i: int = i) -> None:
                before(i, args, kwargs)

            hooks.callback(block.register_forward_pre_hook(ahead, with_kwargs=True).remove)
            if after is not None:

                def behind(_: nn.Module, __: Any, result: Any, i: int = i) -> Any:
                    return after(i, result)

                hooks.callback(block.register_forward_hook(behind).remove)
        yield


def _marked(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return (
            leaf.detach().requires_grad_().clone()
        )  # no leaf of the graph, so that it may be changed in place
    return leaf


def _wires(
    call: tuple[list[Any], TreeSpec], first: tuple[list[Any], TreeSpec], before: list[Any]
) -> tuple[Wire, ...] | None:
    """Where the arguments of a block come from; None where one was computed from a block's output on the way."""
    found: list[Wire] = []
    known: dict[int, Wire] = {
        id(leaf): FromFirst(j) for j, leaf in enumerate(first[0]) if isinstance(leaf, Tensor)
    }
    known |= {id(leaf): FromBefore(k) for k, leaf in enumerate(before) if isinstance(leaf, Tensor)}
    for j, leaf in enumerate(call[0]):
        if not isinstance(leaf, Tensor):
            # what is None in this batch (a mask, where nothing is padded) may be a tensor in the next
            shared = call[1] == first[1] and first[0][j] is leaf
            found.append(FromFirst(j) if shared else Same(leaf))
        elif id(leaf) in known:
            found.append(known[id(leaf)])
        elif leaf.requires_grad:
            return None
        else:
            found.append(Own())
    return tuple(found) if any(isinstance(wire, FromBefore) for wire in found) else None
