"""What flows from block to block: recorded before the first one, then carried through the blocks as they are compressed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from openwork.calibrator.batches import Batches
from openwork.calibrator.wiring import Call, FromBefore, FromFirst, Own, Same, Wiring, trace, watched
from openwork.scores import run


class Activations:
    """Tensors of each batch, in memory or in files.

    Args:
        folder: to keep them in a temporary folder inside; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._held: dict[int, list[Any]] = {}
        self._files = (
            None if folder is None else tempfile.TemporaryDirectory(prefix="activations-", dir=folder)
        )

    def __setitem__(self, batch: int, leaves: list[Any]) -> None:
        if self._files is None:
            self._held[batch] = leaves
        else:
            torch.save(leaves, self._path(batch))

    def __getitem__(self, batch: int) -> list[Any]:
        if self._files is None:
            return self._held[batch]
        leaves: list[Any] = torch.load(self._path(batch), weights_only=True)
        return leaves

    def close(self) -> None:
        """Forget them, files included."""
        self._held.clear()
        if self._files is not None:
            self._files.cleanup()

    def _path(self, batch: int) -> str:
        assert self._files is not None
        return f"{self._files.name}/{batch}.pt"


class Stream:
    """The calls of the blocks of a row, one block after another.

    A model that computes something between two blocks is run from its start to each block instead: slower, never wrong.

    Args:
        model: in evaluation mode.
        blocks: of one row.
        batches: the calibration data.
        folder: keep what flows in files here instead of in memory.

    Raises:
        ValueError: a block is not called exactly once in a run of the model, or not in order.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], batches: Batches, folder: Path | None = None
    ) -> None:
        self._model, self._blocks, self._batches = model, list(blocks), batches
        self.wiring: Wiring | None = trace(model, self._blocks, batches[0])
        self._position = 0
        self._recorded: list[dict[int, Call]] = []
        self._flowing = Activations(folder)
        self._record(0)

    def __len__(self) -> int:
        return len(self._batches)

    def call(self, batch: int) -> Call:
        """How the present block is called in a batch."""
        if self._position == 0 or self.wiring is None:
            return self._recorded[batch][self._position]
        return self._call(self._position, batch, self._flowing[batch])

    def through(self, batch: int, blocks: Sequence[Callable[..., Any]]) -> Tensor:
        """What comes out of a span of blocks that begins at the present one, in a batch.

        Args:
            batch: which.
            blocks: called in the places of those of the model; gradients flow where they are enabled.

        Raises:
            ValueError: the model computes something between its blocks, and the span is longer than one.
        """
        if self.wiring is None and len(blocks) > 1:
            raise ValueError(
                "the model computes something between its blocks: only a window of 1 is possible"
            )
        call = self.call(batch)
        for further, block in enumerate(blocks[:-1], start=1):
            call = self._call(self._position + further, batch, call.outputs(block))
        return call.run(blocks[-1])

    def _call(self, i: int, batch: int, before: Sequence[Any]) -> Call:
        """How block ``i`` is called in a batch, when the one before it returned ``before``."""
        assert self.wiring is not None
        calls, leaves = self._recorded[batch], []
        for j, wire in enumerate(self.wiring.wires[i]):
            match wire:
                case FromBefore(index):
                    leaves.append(before[index])
                case FromFirst(index):
                    leaves.append(calls[0].leaves[index])
                case Same(value):
                    leaves.append(value)
                case _:
                    leaves.append(calls[i].leaves[j])
        return Call(self.wiring.specs[i], tuple(leaves), self.wiring.outputs[i])

    def advance(self, *, keep: bool = False) -> list[Tensor]:
        """Run the present block as it is now on every batch, and go on to the next; returns its outputs, to ``keep``."""
        i, last = self._position, self._position + 1 == len(self._blocks)
        flows, kept = self.wiring is not None and not last, []
        for b in range(len(self) if flows or keep else 0):
            call = self.call(b)
            outputs = call.outputs(self._blocks[i])
            if flows:
                self._flowing[b] = outputs
            if keep:
                kept.append(outputs[call.output])
        self._position += 1
        if self.wiring is None and not last:
            self._record(self._position)
        elif i == 0:
            self._drop_unread()
        return kept

    def close(self) -> None:
        """Forget all activations."""
        self._flowing.close()
        self._recorded.clear()

    def _record(self, index: int) -> None:
        """Run the model as far as block ``index``, or as the last block with arguments of its own, and note the calls."""
        rows = self.wiring.wires if self.wiring is not None else ()
        noted = {index, *(i for i, row in enumerate(rows) if any(isinstance(w, Own) for w in row))}
        self._recorded = [self._calls(b, noted) for b in range(len(self))]

    def _drop_unread(self) -> None:
        """Forget what only the first block read: in a deep model, a second copy of everything that flows."""
        rows = self.wiring.wires[1:] if self.wiring is not None else ()
        read = {wire.index for row in rows for wire in row if isinstance(wire, FromFirst)}
        for calls in self._recorded:
            leaves = tuple(x if j in read else None for j, x in enumerate(calls[0].leaves))
            calls[0] = replace(calls[0], leaves=leaves)

    def _calls(self, batch: int, noted: set[int]) -> dict[int, Call]:
        calls: dict[int, Call] = {}
        copies: dict[int, tuple[Any, Any]] = {}

        def copied(leaf: Any) -> Any:
            # what several blocks are given is copied once; the leaf is held, for its id to stay its own
            if isinstance(leaf, Tensor) and id(leaf) not in copies:
                copies[id(leaf)] = leaf, leaf.detach().clone()
            return copies[id(leaf)][1] if isinstance(leaf, Tensor) else leaf

        def note(i: int, args: Any, kwargs: Mapping[str, Any]) -> None:
            if i in noted:
                leaves, spec = tree_flatten((args, dict(kwargs)))
                if self.wiring is not None and spec != self.wiring.specs[i]:
                    raise ValueError(
                        f"batch {batch} of the calibration data has block {i} called in another way than batch 0: "
                        "give batches of one form"
                    )
                wires = self.wiring.wires[i] if self.wiring is not None and i else [Own()] * len(leaves)
                kept = [copied(x) if isinstance(w, Own) else None for x, w in zip(leaves, wires, strict=True)]
                calls[i] = Call(spec, tuple(kept), self.wiring.outputs[i] if self.wiring is not None else 0)
            if i == max(noted):
                raise _Reached

        try:
            with watched(self._blocks, note):
                run(self._model, self._batches[batch])
        except _Reached:
            return calls
        raise ValueError(
            f"batch {batch} of the calibration data does not reach block {max(noted)}: use blocks='whole'"
        )


class _Reached(Exception):
    """The last block whose call is wanted has been called."""
