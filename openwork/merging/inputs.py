"""What the layers of a model read, on a few batches: means and mean squares of every input.

By them a change counts for what it does to the outputs, and the divisor of DARE can be chosen layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openwork.dataflow import Reading
from openwork.matrices import Matrix, matrices, unseen
from openwork.scores import run, untouched
from openwork.weights import prunable, unwrapped


@dataclass(frozen=True)
class Inputs:
    """The inputs of one layer.

    Attributes:
        mean: of every input, float64 ``[in * prod(kernel)]``.
        square: mean square of every input.
        count: tokens, or patches of an image, that were seen.
    """

    mean: Tensor
    square: Tensor
    count: int


def layer_inputs(model: nn.Module, data: Iterable[Any]) -> dict[str, Inputs]:
    """The inputs of every weight matrix that can be watched.

    Args:
        model: run in evaluation mode; not changed.
        data: batches of inputs: a tensor, a tuple of arguments or a dict of keyword arguments; no targets.

    Returns:
        Parameter name -> its inputs. Several matrices in one parameter (experts, groups of a convolution) count together.
    """
    model = unwrapped(model)
    watched = [m for w in prunable(model) if not w.reason and not unseen(w) for m in matrices(w)]
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def note(layer: Matrix, rows: Tensor, _: tuple[Any, ...]) -> None:
        rows, name = rows.double(), layer.weight.name
        held = sums.setdefault(name, [torch.zeros_like(rows[0]), torch.zeros_like(rows[0])])
        held[0] += rows.sum(0)
        held[1] += rows.square().sum(0)
        counts[name] = counts.get(name, 0) + len(rows)

    with untouched(model), torch.no_grad():
        model.eval()
        for batch in data:
            with Reading(watched, note):
                run(model, batch)
    return {
        name: Inputs(total / counts[name], squares / counts[name], counts[name])
        for name, (total, squares) in sums.items()
    }
