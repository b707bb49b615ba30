"""Makes a dense model sparse at once: scores, a plan, masks, zeros.

pruned = ow.sparsify_(model, ow.Magnitude(sparsity=0.9, allocation="lamp"))
print(pruned.plan)
ow.attach(model, optimizer, ow.KeepZeros(), masks=pruned.masks)        # fine-tune and keep every zero
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn

from openwork.blocks import stacks
from openwork.calibrator import BlockCalibrated, Calibrated, Calibration, ModelCalibrated, Stage, calibrate_
from openwork.calibrator.afterwards import as_it_is, whole_or_nothing, work_on_model
from openwork.calibrator.planning import left_dense, restricted
from openwork.method import Method, require_kind
from openwork.plan import Plan, plan, wanted_total
from openwork.scores import Batch, Loss, Scores
from openwork.weights import Weight, prunable, unwrapped


@dataclass(frozen=True, kw_only=True)
class Pruning(Method):
    """A method that scores the connections of a model and keeps the best.

    Args:
        rounds: how many times to score and cut. In round ``r`` of ``n`` the density is ``d ** (r / n)``, and only connections
            that survived so far are scored; 1 cuts at once.
    """

    before_training: ClassVar[bool] = False
    """Whether it is meant for a network that is not trained yet."""

    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}")

    @abstractmethod
    def scores(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], data: Iterable[Batch] | None, loss: Loss
    ) -> Scores:
        """Score connections, higher = keep.

        Args:
            model: the model; leave it as it was.
            weights: the parameters to score, by name.
            data: batches ``(inputs, targets)``, or None.
            loss: of outputs and targets.

        Returns:
            One tensor a parameter, of the parameter's shape.
        """


@dataclass(frozen=True)
class Pruned:
    """What :func:`sparsify_` did.

    Attributes:
        plan: parameter by parameter, what was kept and why. Print it.
        masks: parameter name -> boolean mask ``[out, in, *kernel]``, True = kept.
    """

    plan: Plan
    masks: dict[str, Tensor]

    def __str__(self) -> str:
        return str(self.plan)


@overload
def sparsify_(
    model: nn.Module, method: Pruning, *, data: Iterable[Batch] | None = None, loss: Loss | None = None
) -> Pruned: ...


@overload
def sparsify_(
    model: nn.Module,
    method: Stage | ModelCalibrated | Sequence[Stage | ModelCalibrated | Pruning],
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    **walk: Any,
) -> Calibration: ...


def sparsify_(
    model: nn.Module,
    method: Pruning | Stage | ModelCalibrated | Sequence[Stage | ModelCalibrated | Pruning],
    *,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    **walk: Any,
) -> Pruned | Calibration:
    """Set the least important connections of ``model`` to zero, in place.

    Args:
        model: any module; its weights change (and biases, where a stage corrects them), nothing else.
        method: how to choose and how many to keep, such as ``ow.Magnitude(sparsity=0.9)``; or a recipe, a list of stages that
            work on one layer after another from calibration data, such as ``[ow.Wanda(sparsity=0.5), ow.Refit()]``. A recipe may
            begin with methods that score the whole model, whose masks it then starts from, and end with some that train it.
        data: batches ``(inputs, targets)`` for methods that look at data; a batch of inputs alone (a tensor, or a dict of
            keyword arguments) will do for calibration. Read once for each round, and once for calibration.
        loss: ``loss(outputs, targets)`` for scores that are gradients; cross entropy by default.
        walk: for calibration, see :func:`openwork.calibrator.calibrate_`: ``blocks``, ``true_sequential``, ``targets``,
            ``errors``, ``offload``, ``checkpoint``.

    Returns:
        The plan and the masks; from calibration, with the table of what each stage did to each layer. Kept counts are exact, ties
        included.

    Raises:
        TypeError: the method works during training.
        ValueError: see :func:`openwork.plan.plan`; also scores that are NaN. The model has not changed then.
    """
    stages = list(method) if isinstance(method, Sequence) else [method]
    for stage in stages:
        require_kind(
            stage,
            (Pruning, Calibrated, BlockCalibrated, ModelCalibrated),
            "does not prune at once: use ow.attach(model, optimizer, method)",
        )
    if isinstance(method, Pruning):
        if walk:
            raise TypeError(f"{', '.join(walk)} belong to calibration, and {method.name} does not calibrate")
        return _prune(model, method, data, loss)
    return _recipe(model, stages, data, loss, walk)


def _recipe(
    model: nn.Module,
    stages: Sequence[Pruning | Stage | ModelCalibrated],
    data: Iterable[Any] | None,
    loss: Loss | None,
    walk: Mapping[str, Any],
) -> Calibration:
    """Score the whole model first, for the masks only; then calibrate, from the dense weights and those masks."""
    scoring = [stage for stage in stages if isinstance(stage, Pruning)]
    calibrated = [stage for stage in stages if isinstance(stage, (Calibrated, BlockCalibrated))]
    training = [stage for stage in stages if isinstance(stage, ModelCalibrated)]
    if not (calibrated or training) or list(stages) != [*scoring, *calibrated, *training]:
        raise ValueError(
            "a recipe begins with the methods that score the whole model, if any, goes on with stages that calibrate, and ends "
            f"with those that train the whole model; this one is {', '.join(stage.name for stage in stages) or 'empty'}"
        )
    if data is not None and not isinstance(data, (list, tuple)):
        data = list(data)
    model = unwrapped(model)
    masks, chosen = _scored(model, scoring, data, loss, walk.get("blocks", "auto")) if scoring else ({}, None)
    if not training:
        return calibrate_(model, calibrated, data=data, masks=masks, chosen=chosen, **walk)
    with whole_or_nothing(model):
        if calibrated:
            done = calibrate_(model, calibrated, data=data, masks=masks, chosen=chosen, **walk)
        else:
            done = as_it_is(model, training[0], masks, chosen)
        for stage in training:
            done = work_on_model(stage, model, done, data, loss)
    return done


def _scored(
    model: nn.Module, scoring: Sequence[Pruning], data: Iterable[Any] | None, loss: Loss | None, blocks: str
) -> tuple[dict[str, Tensor], Plan]:
    """The masks that methods choose which score the whole model; it stays as it is."""
    dense = left_dense(model, stacks(model, blocks))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks: dict[str, Tensor] = {}
    try:
        for stage in scoring:
            pruned = _prune(model, restricted(stage, dense), data, loss)
            masks |= pruned.masks
    finally:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name])
    return masks, pruned.plan


def _prune(model: nn.Module, method: Pruning, data: Iterable[Batch] | None, loss: Loss | None) -> Pruned:
    model = unwrapped(model)
    layout = plan(model, method)
    weights = {row.name: row.weight for row in layout.sparse}
    if stored := [name for name, w in weights.items() if w.stored]:
        raise ValueError(
            f"{', '.join(stored)} already hold only their kept connections: exclude them, or use to_dense_ first"
        )
    loss = loss or nn.functional.cross_entropy
    if method.rounds > 1 and data is not None and not isinstance(data, (list, tuple)):
        data = list(data)
    before = {name: w.parameter.detach().clone() for name, w in weights.items()}
    masks = {
        name: torch.ones(w.shape, dtype=torch.bool, device=w.parameter.device) for name, w in weights.items()
    }
    try:
        for kept in _rounds(method, layout):
            scores = _alive(
                method.scores(model, {name: w.parameter for name, w in weights.items()}, data, loss),
                weights,
                masks,
            )
            layout = plan(model, dataclasses.replace(method, kept=kept), scores)
            masks = {row.name: row.pattern.choose(scores[row.name], row.kept) for row in layout.sparse}
            _apply(weights, masks)
    except BaseException:
        with torch.no_grad():
            for name, w in weights.items():
                w.parameter.copy_(before[name])
        raise
    return Pruned(dataclasses.replace(layout, method=method), masks)


def _rounds(method: Pruning, layout: Plan) -> list[int]:
    """Connections kept after each round, a geometric sequence that ends exactly at what was asked for."""
    size = sum(row.numel for row in layout.sparse if not row.fixed)
    if not size:
        return [0]
    final = wanted_total(method, size)
    return [*(round(size * (final / size) ** (r / method.rounds)) for r in range(1, method.rounds)), final]


def _alive(scores: Scores, weights: Mapping[str, Weight], masks: Mapping[str, Tensor]) -> Scores:
    """Scores in ``[out, in, *kernel]`` order, minus infinity where a connection is gone already."""
    oriented = {}
    for name, w in weights.items():
        score = w.oriented(scores[name])
        if bool(score.isnan().any()):
            raise ValueError(
                f"the scores of {name} hold NaN: nothing was pruned; check the data and the model's outputs"
            )
        oriented[name] = torch.where(masks[name], score, -math.inf)
    return oriented


def _apply(weights: Mapping[str, Weight], masks: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, w in weights.items():
            w.oriented(w.parameter).masked_fill_(~masks[name], 0)


__all__ = ["Pruned", "Pruning", "prunable", "sparsify_"]
