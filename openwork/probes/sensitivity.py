"""What breaks first: a trained model compressed in many ways, and by how much each of them harms it.

Yao, Wu, Li, Youn, He, ZeroQuant-V2, 2023, arXiv 2303.08302, with sparsity as one more axis.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from openwork.blocks import stacks
from openwork.calibrate.gptq import GPTQ
from openwork.calibrate.lorc import LoRC
from openwork.calibrate.rtn import RTN
from openwork.calibrate.wanda import Wanda
from openwork.calibrator import Stage
from openwork.calibrator.planning import left_dense, planned
from openwork.progress import phase
from openwork.pruner import sparsify_
from openwork.quantization import Grid, Group, IntegerGrid, nearest
from openwork.weights import unwrapped

CLASSES = (0.1, 0.5)
"""A cell is of class I up to the first degradation, II up to the second, III beyond; in units of perplexity, as in the paper."""


@dataclass(frozen=True)
class Trial:
    """One way to compress a model.

    Attributes:
        name: in the table.
        recipe: stages of :func:`openwork.sparsify_`; none leaves the weights as they are.
        inputs: what linear layers round their inputs to, token by token, while the model is evaluated; None for not at all.
    """

    name: str
    recipe: tuple[Stage, ...] = ()
    inputs: Grid | None = None


@dataclass(frozen=True)
class Cell:
    """One entry of the table.

    Attributes:
        trial: what was done.
        layer: the only layer it was done to; None for all.
        score: of the evaluation, lower is better.
        change: from the dense score.
        grade: "I", "II" or "III".
    """

    trial: str
    layer: str | None
    score: float
    change: float
    grade: str


@dataclass(frozen=True)
class Sensitivity:
    """The table. Print it.

    Attributes:
        dense: score of the model as it is.
        cells: in the order of the trials; layers within a trial by damage, the worst first.
    """

    dense: float
    cells: tuple[Cell, ...]

    def of(self, trial: str) -> list[Cell]:
        """The cells of one trial."""
        return [cell for cell in self.cells if cell.trial == trial]

    def __str__(self) -> str:
        width = max(len(_title(cell)) for cell in self.cells) if self.cells else 5
        lines = [
            f"{_title(cell).ljust(width)}  {cell.score:10.4f}  {cell.change:+10.4f}  {cell.grade}"
            for cell in self.cells
        ]
        return "\n".join([f"{'dense'.ljust(width)}  {self.dense:10.4f}", *lines])


def _title(cell: Cell) -> str:
    return cell.trial if cell.layer is None else f"{cell.trial}: {cell.layer}"


def trials(
    bits: Sequence[int] = (8, 4),
    groups: Sequence[Group] = ("tensor", "row", 512, 256, 128, 64),
    sparsities: Sequence[float | str] = (0.5, "2:4"),
) -> list[Trial]:
    """The grid of the study: weights alone, inputs alone, both; by bits, symmetry, granularity and solver; and sparsity.

    Args:
        bits: of the weights. Inputs have 8.
        groups: who shares a scale.
        sparsities: fractions of zeros, or n:m patterns, of :class:`openwork.Wanda`.
    """
    found = [Trial("inputs int8", inputs=IntegerGrid(8))]
    for b in bits:
        for symmetric in (False, True):
            for group in groups:
                grid, kind = IntegerGrid(b, symmetric), " symmetric" if symmetric else ""
                name = f"int{b}{kind} {group if isinstance(group, str) else f'groups of {group}'}"
                rtn = RTN(grid=grid, group=group)
                found.append(Trial(f"{name} rtn", (rtn,)))
                found.append(Trial(f"{name} gptq", (GPTQ(grid=grid, group=group),)))
                found.append(Trial(f"{name} rtn + lorc", (rtn, LoRC())))
                found.append(Trial(f"{name} rtn, inputs int8", (rtn,), IntegerGrid(8)))
    for sparsity in sparsities:
        stage = Wanda(pattern=sparsity) if isinstance(sparsity, str) else Wanda(sparsity=sparsity)
        named = sparsity if isinstance(sparsity, str) else f"{100 * sparsity:g} %"
        found.append(Trial(f"sparse {named}", (stage,)))
    return found


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    data: Iterable[Any],
    grid: Sequence[Trial] | None = None,
    mode: Literal["global", "one_layer"] = "global",
    classes: tuple[float, float] = CLASSES,
    blocks: str = "auto",
) -> Sensitivity:
    """Compress copies of a model in many ways and evaluate each.

    Args:
        model: any module; it does not change.
        evaluate: of a model, lower is better, such as a perplexity.
        data: calibration batches, as for :func:`openwork.sparsify_`.
        grid: the trials; :func:`trials` by default, which are many.
        mode: "global" compresses all layers; "one_layer" one at a time, which ranks layers by damage.
        classes: degradations up to which a cell is of class I and of class II.
        blocks: where the blocks are.

    Raises:
        ValueError: an unknown mode, or what a recipe finds wrong.
    """
    if mode not in ("global", "one_layer"):
        raise ValueError(f"mode is 'global' or 'one_layer'; got {mode!r}")
    model, grid = unwrapped(model), trials() if grid is None else grid
    batches = list(data)
    rows = stacks(model, blocks)
    layers = [row.name for row in planned(model, RTN(), left_dense(model, rows)).sparse]
    where: list[str | None] = [None] if mode == "global" else [*layers]
    dense = evaluate(model)
    cells: list[Cell] = []
    with phase("compressing copies", len(grid) * len(where)) as progress:
        for trial in grid:
            found = []
            for layer in where:
                score = _score(model, trial, layer, layers, batches, evaluate, blocks)
                change = score - dense
                grade = "I" if change <= classes[0] else "II" if change <= classes[1] else "III"
                found.append(Cell(trial.name, layer, score, change, grade))
                progress.advance()
            cells += sorted(found, key=lambda cell: -cell.change) if mode == "one_layer" else found
    return Sensitivity(dense, tuple(cells))


def _score(
    model: nn.Module,
    trial: Trial,
    layer: str | None,
    layers: Sequence[str],
    batches: Sequence[Any],
    evaluate: Callable[[nn.Module], float],
    blocks: str,
) -> float:
    others = tuple(name for name in layers if layer is not None and name != layer)
    changed = copy.deepcopy(model)
    if trial.recipe:
        recipe = [dataclasses.replace(stage, exclude=(*stage.exclude, *others)) for stage in trial.recipe]
        sparsify_(changed, recipe, data=batches, blocks=blocks)
    if trial.inputs is None:
        return evaluate(changed)
    readers = [name.rpartition(".")[0] for name in layers if name not in others]
    with rounded_inputs(changed, readers, trial.inputs):
        return evaluate(changed)


@contextmanager
def rounded_inputs(model: nn.Module, layers: Iterable[str], grid: Grid) -> Iterator[None]:
    """Inside this, these modules round what they read to ``grid``, each token with a scale of its own.

    Args:
        model: that they are in.
        layers: names of modules that read ``[..., in]``.
        grid: of the inputs.
    """

    def rounded(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        tokens = x.reshape(-1, x.shape[-1])
        return (nearest(tokens, grid).dense().to(x.dtype).view(x.shape), *rest)

    hooks = [model.get_submodule(name).register_forward_pre_hook(rounded) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
