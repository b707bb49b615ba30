"""Promises about merged models: the base keeps its zeros and its kind, and what does not fit is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from openwork.merger import Merging, merge_
from openwork.plan import wanted_total
from openwork.testing.bits import require_same, snapshot
from openwork.testing.networks import batches, network, tuned
from openwork.testing.registry import BrokenPromise, promise, require
from openwork.testing.trial import Trial


@promise(about="models")
def what_was_not_learned_is_not_changed(trial: Trial) -> None:
    """Merging copies of the base into it changes no bit."""
    model = network()
    before = snapshot(model)
    merge_(model, [copy.deepcopy(model), copy.deepcopy(model)], _method(trial))
    require_same(before, snapshot(model), "after two copies of the base were merged into it")


@promise(about="models")
def merging_keeps_exact_counts(trial: Trial) -> None:
    """Of each model's changes exactly as many are kept as were asked for."""
    for sparsity in (0.0, 0.35, 0.8):
        method, model = _method(trial, sparsity=sparsity), network()
        done = merge_(model, [tuned(model, 1), tuned(model, 2)], method)
        thinned = [row for row in done if len(row.shape) > 1]
        asked = wanted_total(method, sum(row.of for row in thinned))
        for i in range(2):
            kept = sum(row.kept[i] for row in thinned)
            require(kept == asked, f"of model {i + 1} {kept} changes are kept, asked for were {asked}")


@promise(about="models")
def zeros_of_the_base_stay_zero(trial: Trial) -> None:
    """Where a weight matrix of the base is zero it is zero afterwards; dtypes stay, in float32, float64 and bfloat16."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = network(dtype)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.view(-1)[::3] = 0
        before = snapshot(model)
        merge_(model, [tuned(model, 1), tuned(model, 2)], _method(trial))
        for name, p in model.named_parameters():
            require(p.dtype == dtype, f"{name} was {dtype}, is {p.dtype}")
            filled = int((p.detach()[before[name] == 0] != 0).sum()) if p.dim() > 1 else 0
            require(filled == 0, f"{filled} zeros of {name} are filled in {dtype}")


@promise(about="models")
def tuned_models_are_left_alone(trial: Trial) -> None:
    """The models that are merged keep every bit."""
    model = network()
    others = [tuned(model, 1), tuned(model, 2)]
    before = [snapshot(other) for other in others]
    merge_(model, others, _method(trial))
    for i, other in enumerate(others):
        require_same(before[i], snapshot(other), f"in tuned model {i + 1}")


@promise(about="models")
def models_that_do_not_fit_change_nothing(trial: Trial) -> None:
    """A tuned model with NaN, without a parameter, with one more or with one of another shape is a ValueError that names it, and
    the base stays as it was.
    """
    model = network()
    before, last = snapshot(model), "7.weight"
    for what, spoil in _SPOILED.items():
        state = dict(tuned(model, 2).state_dict())
        spoil(state, last)
        try:
            merge_(model, [tuned(model, 1), state], _method(trial))
        except ValueError as error:
            require(last in str(error), f"with {what} the error does not name it: {error}")
        else:
            raise BrokenPromise(f"a model with {what} was merged")
        require_same(before, snapshot(model), f"after a model with {what} was refused")


@promise(about="models")
def a_merged_model_is_saved_and_loaded(trial: Trial) -> None:
    """It is a model of the base's kind: its state loads into another one, which then computes the same."""
    model, other = network(), network(seed=3)
    merge_(model, [tuned(model, 1), tuned(model, 2)], _method(trial))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = batches(1)[0][0]
    require(torch.equal(_output(model, x), _output(other, x)), "the loaded model computes something else")


def _method(trial: Trial, **changes: object) -> Merging:
    method = trial.method(**changes)
    assert isinstance(method, Merging)
    return method


def _output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = model.eval()(x)
    return made


def _with_nan(state: dict[str, Tensor], name: str) -> None:
    state[name].view(-1)[1] = torch.nan


def _without(state: dict[str, Tensor], name: str) -> None:
    del state[name]


def _with_another(state: dict[str, Tensor], name: str) -> None:
    state[f"{name}s"] = state[name]


def _reshaped(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][1:]


_SPOILED: Mapping[str, Callable[[dict[str, Tensor], str], None]] = {
    "NaN": _with_nan,
    "a parameter missing": _without,
    "a parameter more": _with_another,
    "a parameter of another shape": _reshaped,
}
