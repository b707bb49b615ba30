"""Windows of several blocks that slide over a model and are tuned together."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.blocks import stacks
from openwork.calibrator.batches import Batches
from openwork.calibrator.contract import Block, BlockCalibrated
from openwork.calibrator.planning import beginning, left_dense, planned
from openwork.calibrator.report import Calibration, Line
from openwork.calibrator.stream import Stream
from openwork.calibrator.tuning import Tuned
from openwork.calibrator.undo import Undo, all_or_nothing, at_rest
from openwork.matrices import Matrix, matrices
from openwork.progress import phase
from openwork.weights import unwrapped


@dataclass(frozen=True)
class Side:
    """One way to run a window, and what that should give.

    Attributes:
        run: a batch -> what comes out of the window as it is being tuned.
        targets: of each batch, what the dense window makes of the same inputs.
        tokens: of each batch, boolean ``[n, length]`` of the tokens that count, or None for all.
    """

    run: Callable[[int], Tensor]
    targets: Sequence[Tensor]
    tokens: Sequence[Tensor | None]

    def __call__(self, batch: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output, target and tokens of a batch."""
        return self.run(batch), self.targets[batch], self.tokens[batch]


@dataclass(frozen=True, kw_only=True)
class WindowCalibrated(BlockCalibrated):
    """A block stage that can tune several blocks together. In a recipe its window is one block.

    Args:
        window: blocks that :func:`reconstruct_` tunes together.
        overlap: how many of them are in the next window too.
    """

    window: int = 2
    overlap: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.overlap < self.window:
            raise ValueError(
                f"a window of {self.window} blocks moves on by at least one: overlap is 0 to {self.window - 1}; "
                f"got {self.overlap}"
            )

    @abstractmethod
    def begin(self, block: Block) -> Tuned:
        """What is learned of a block, before anything was; its inputs and targets are not looked at."""

    @abstractmethod
    def tune(self, window: Sequence[Tuned], sides: Sequence[Side], purpose: str) -> tuple[float, float]:
        """Learn the blocks of a window together.

        Args:
            window: the blocks.
            sides: ways to run them, and what they should give.
            purpose: names the random numbers.

        Returns:
            The loss of hardened weights over all batches, before and after; after is not larger.
        """

    def solve_block(self, block: Block) -> None:
        tuned = self.begin(block)
        side = Side(lambda index: block.inputs[index].run(tuned), block.targets, block.tokens)
        self.tune([tuned], [side], block.name)
        _settle(tuned, block.parts)


def reconstruct_(
    model: nn.Module,
    method: WindowCalibrated,
    *,
    data: Iterable[Any],
    reference: nn.Module | None = None,
    homologous: bool = True,
    masks: Mapping[str, Tensor] | None = None,
    blocks: str = "auto",
) -> Calibration:
    """Slide a window of blocks over a model and tune the blocks in it together, in place.

    A window is tuned to give what the reference gives on the same inputs: those that the blocks before it, already tuned,
    produce, and (``homologous``) those that the reference's blocks produce. Blocks in the overlap go on being learned where the
    window before left them.

    Args:
        model: any module whose blocks stand in a row; changes whole or, after an error, not at all.
        method: such as ``ow.CBQ(grid="int3", group=64, window=2, overlap=1)``.
        data: calibration batches, as for :func:`openwork.sparsify_`.
        reference: what to come near to: the model before it was pruned. The model as it is, by default; a copy is held then.
        homologous: use both kinds of inputs.
        masks: parameter name -> boolean mask ``[out, in, *kernel]``, True = kept; the zeros of the model by default.
        blocks: where the blocks are.

    Returns:
        The report: a line a window, whose error is its loss afterwards; the codes in its parts.

    Raises:
        ValueError: the model computes something between its blocks and ``window`` is above 1; else as ``sparsify_``.
    """
    model = unwrapped(model)
    reference = copy.deepcopy(model) if reference is None else unwrapped(reference)
    batches, began = Batches(data), time.perf_counter()
    with all_or_nothing(model) as undo, at_rest(model), at_rest(reference):
        rows = stacks(model, blocks)
        layout = planned(model, method, left_dense(model, rows))
        held = {row.name: beginning(row, masks or {}) for row in layout.sparse}
        layers = [m for row in layout.sparse for m in matrices(row.weight)]
        parts: dict[str, dict[str, Any]] = {}
        lines: list[Line] = []
        for stack, dense in zip(rows, stacks(reference, blocks), strict=True):
            sliding = _Sliding(method, batches, layers, held, undo)
            streams = [Stream(model, list(stack.blocks.values()), batches)]
            if homologous:
                streams.append(Stream(reference, list(dense.blocks.values()), batches))
            lines += sliding.run(stack.blocks, list(dense.blocks.values()), streams, parts)
    return Calibration(layout, held, tuple(lines), parts, time.perf_counter() - began)


class _Sliding:
    def __init__(
        self,
        method: WindowCalibrated,
        batches: Batches,
        layers: Sequence[Matrix],
        masks: Mapping[str, Tensor],
        undo: Undo,
    ) -> None:
        self.method, self.batches, self.layers, self.masks, self.undo = method, batches, layers, masks, undo
        self.tokens = [batches.tokens(b) for b in range(len(batches))]

    def run(
        self,
        blocks: Mapping[str, nn.Module],
        dense: Sequence[nn.Module],
        streams: Sequence[Stream],
        parts: dict[str, dict[str, Any]],
    ) -> Iterator[Line]:
        names, step = list(blocks), self.method.window - self.method.overlap
        tuned: list[Tuned] = []
        first = 0
        with phase("reconstructing", len(names)) as progress:
            while first < len(names):
                last = min(first + self.method.window, len(names))
                for name in names[first + len(tuned) : last]:
                    self.undo.remember(blocks[name])
                    tuned.append(self.method.begin(self._block(name, blocks[name], parts)))
                title = " + ".join(names[first:last])
                progress.describe(f"({first + 1}/{len(names)}) reconstructing {title}")
                began = time.perf_counter()
                sides = [self._side(stream, tuned, dense[first:last]) for stream in streams]
                _, loss = self.method.tune(tuned, sides, title)
                done = len(tuned) if last == len(names) else step
                sizes = [r.mask for t in tuned for r in t.learned.values()]
                seconds = time.perf_counter() - began
                kept = sum(int(mask.sum()) for mask in sizes)
                yield Line(title, self.method.name, sum(m.numel() for m in sizes), kept, loss, seconds)
                for settled in tuned[:done]:
                    _settle(settled, parts)
                    for stream in streams:
                        stream.advance()
                    progress.advance()
                tuned, first = tuned[done:], first + done
        for stream in streams:
            stream.close()

    def _block(self, name: str, block: nn.Module, parts: dict[str, dict[str, Any]]) -> Block:
        inside = {id(p): key for key, p in block.named_parameters()}
        layers = {m.name: m for m in self.layers if id(m.weight.parameter) in inside}
        masks = {
            inside[id(m.weight.parameter)]: m.weight.restored(self.masks[m.weight.name])
            for m in layers.values()
        }
        return Block(name, block, masks, (), (), (), layers, parts)

    def _side(self, stream: Stream, tuned: Sequence[Tuned], dense: Sequence[nn.Module]) -> Side:
        with torch.no_grad():
            targets = [stream.through(b, dense) for b in range(len(stream))]
        return Side(lambda batch: stream.through(batch, tuned), targets, self.tokens)


def _settle(tuned: Tuned, parts: dict[str, dict[str, Any]]) -> None:
    """Write the hardened weights of a block, and note their codes."""
    tuned.write()
    for name, learned in tuned.learned.items():
        parts.setdefault(name, {})["quantized"] = learned.hardened()
