"""PERP, block by block: each block learns to do again what it did before it was pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openwork.calibrator.contract import Block, BlockCalibrated
from openwork.finetune.course import train
from openwork.finetune.lora import LoRA
from openwork.finetune.subsets import check_subsets, training
from openwork.method import method
from openwork.weights import prunable


@method(
    paper="Zimmer, Andoni, Spiegel, Pokutta, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs, 2023, "
    "arXiv 2312.15230",
    kind="finetune",
)
@dataclass(frozen=True, kw_only=True)
class PERPBlocks(BlockCalibrated):
    """Train biases, norms and low-rank updates of each block against the outputs of the dense block on the same inputs.

    For one block after another, minimise the mean squared error between what it returns and what it returned before pruning,
    on the inputs that the pruned blocks before it produce: memory and time of one block, no labels, no loss of the model. A block
    that does not gain is left as it was. Updates are merged, and no zero is filled.

    Args:
        train: any of ``"bias"``, ``"norm"``, and one kind of low-rank update of the pruned weights: ``"mask_lora"``,
            ``"scale_lora"``, ``"lora_prune"``, see :mod:`openwork.finetune.lora`.
        rank, alpha: of the update; 16 and 32 as in the paper.
        learning_rate: 5e-4, the upper end of the paper's search; warms up over a tenth of the steps and falls to nothing.
        steps: of AdamW, each on one calibration batch; 200 here, as the paper does not say.
    """

    train: tuple[str, ...] = ("bias", "norm", "mask_lora")
    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 5e-4
    steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_subsets(self.train, head=False)
        if self.steps < 0:
            raise ValueError(f"steps is a number of steps; got {self.steps}")

    def solve_block(self, block: Block) -> Mapping[str, Any]:
        masks = {
            w.name: w.oriented(block.masks[w.name]) for w in prunable(block.module) if w.name in block.masks
        }
        before = {name: p.detach().clone() for name, p in block.module.named_parameters()}
        first = _error(block)
        order = self.generator(block.name)
        queue: list[int] = []

        def loss(_: int) -> Tensor:
            if not queue:
                queue.extend(torch.randperm(len(block), generator=order).tolist())
            batch = queue.pop()
            return _difference(block, batch).square().mean()

        lora = LoRA(rank=self.rank, alpha=self.alpha, seed=self.seed)
        with training(block.module, self.train, masks, lora) as subset:
            what = f"repairing {block.name}".rstrip()
            train(subset.parameters, loss, steps=self.steps, learning_rate=self.learning_rate, what=what)
            subset.merge_()
        last = _error(block)
        if not last < first:
            with torch.no_grad():
                for name, p in block.module.named_parameters():
                    p.copy_(before[name])
        return {
            "trainable": subset.trainable,
            "of": subset.of,
            "error before": first,
            "error after": min(first, last) if last == last else first,
        }


def _difference(block: Block, batch: int) -> Tensor:
    """Outputs less targets of the tokens that are no padding, in float32 at least."""
    output, target, tokens = block.run(batch), block.targets[batch], block.tokens[batch]
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    difference = output.to(wide) - target.to(wide)
    return difference if tokens is None else difference[tokens.to(difference.device)]


@torch.no_grad()
def _error(block: Block) -> float:
    """Mean squared error over all batches, every token alike."""
    total, count = 0.0, 0
    for batch in block:
        difference = _difference(block, batch)
        total, count = total + float(difference.double().square().sum()), count + difference.numel()
    return total / max(count, 1)
