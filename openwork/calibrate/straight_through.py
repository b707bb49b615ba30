"""Block-wise training of quantised, sparse weights through the rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openwork.calibrator.contract import Block, BlockCalibrated
from openwork.calibrator.tuning import Tuned, keep_best, squared_distance
from openwork.method import method
from openwork.quantization import Grid, Group, Quantized, fit
from openwork.quantization.grouped import groups_of
from openwork.quantization.learned import StraightThrough as Rounded
from openwork.quantization.named import grid


@method(
    paper="Zeng et al., GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference, IJCNLP-AACL 2025, "
    "arXiv 2412.17560 (block quantisation-pruning optimisation)",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class StraightThrough(BlockCalibrated):
    """Train the kept weights and the scales of a block so that it computes what the dense block did, rounded as they will be.

    Forward, weights are ``(clamp(round(w / s + z)) - z) * s``; backward, rounding counts as the identity. The loss is the squared
    distance of the block's outputs from those of the dense block on the same inputs. Masks stay, zero points stay, and the state
    that was best over all batches is what remains, so the block is never worse than before.

    After :class:`openwork.GQSA`, :class:`openwork.GPTQ` or :class:`openwork.RTN` it starts from their scales, layer by layer; a
    layer that is not quantised yet is, on ``grid``.

    Args:
        grid, group: for layers that no earlier stage has quantised.
        epochs: over the calibration data; 16 are better still. (The authors' thousands of sequences make more steps.)
        learning_rate: of the weights, relative to the mean scale of a layer; Adam. Measured on a small GPT with half of its
            groups gone (docs/evidence/calibration.md): five times as much undoes more than it mends.
        scale_rate: of the scales, relative likewise.
    """

    grid: str | Grid = "int4"
    group: Group = 16
    epochs: int = 8
    learning_rate: float = 0.01
    scale_rate: float = 0.002

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_of(1, self.group)
        grid(self.grid)

    def solve_block(self, block: Block) -> None:
        learned = {name: self._rounded(block, name) for name in block.layers}
        tuned = Tuned(block.module, block.layers, learned)
        groups = []
        for rounded in learned.values():
            unit = float(rounded.scale.detach().mean())
            groups.append({"params": [rounded.weight], "lr": self.learning_rate * unit})
            groups.append({"params": [rounded.scale], "lr": self.scale_rate * unit})

        def distance(index: int) -> torch.Tensor:
            return squared_distance(block.inputs[index].run(tuned), block.targets[index], block.tokens[index])

        def measure() -> float:
            with tuned.hardened():
                return sum(float(distance(index)) for index in block)

        keep_best(
            list(learned.values()),
            torch.optim.Adam(groups),
            lambda index, _: distance(index),
            measure,
            len(block),
            self.epochs,
            self.generator(block.name),
        )
        tuned.write()
        for name, rounded in learned.items():
            block.parts.setdefault(name, {})["quantized"] = rounded.hardened()

    def _rounded(self, block: Block, layer: str) -> Rounded:
        weight, mask = block.weight(layer), block.mask(layer)
        held = block.parts.get(layer, {}).get("quantized")
        if isinstance(held, Quantized):
            return Rounded(weight, held.grid, held.at, held.group_of, mask)
        levels = grid(self.grid)
        at = fit(weight, levels, self.group)
        return Rounded(weight, levels, at, groups_of(weight.shape[1], self.group), mask)
