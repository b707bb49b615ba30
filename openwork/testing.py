"""Does a method keep its promises? The conformance suite, for the methods of this library and for yours::

    from openwork.testing import check_method

    def test_my_method():
        check_method(MyMethod, strength=0.5)

Every promise is a function below, named after what it promises; :func:`checks` lists them. They run a method
on small networks for a few steps: the whole suite takes about a second a method. What they find goes into the
error: the promise that was broken, and the parameter, setting or step where it was.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from openwork.allocation import allocation
from openwork.calibrator import BlockCalibrated, Calibrated, ModelCalibrated
from openwork.method import Method, registry
from openwork.patterns import Unstructured, pattern
from openwork.plan import Plan, plan, wanted_total
from openwork.pruner import Pruning, sparsify_
from openwork.scores import Batch
from openwork.sparsifier import Sparsifier, SparsifierWarning, Training, attach
from openwork.storage import to_sparse_

SHORT: Mapping[str, int] = {"steps": 9, "every": 3, "rounds": 3}
"""What is filled in for options of these names, where a method has them, so that a run takes a dozen steps.
"""

Check = Callable[["Trial"], None]

_CHECKS: dict[str, Check] = {}


class BrokenPromise(AssertionError):
    """A method does not do what every method must do."""


def check_method(cls: type[Method], only: Collection[str] | None = None, /, **options: Any) -> None:
    """Put a method through every check.

    Args:
        cls: a registered method that works in training, prunes at once, or calibrates.
        only: names of the promises to check, all of :func:`checks` by default.
        options: options of the method. Short schedules are filled in, see :data:`SHORT`.

    Raises:
        BrokenPromise: lists each broken promise and what was found.
        TypeError: ``cls`` is no method of either sort.
        ValueError: ``only`` names an unknown promise.
    """
    if unknown := set(only or ()) - _CHECKS.keys():
        raise ValueError(f"no promise is called {', '.join(sorted(unknown))}; there are {', '.join(_CHECKS)}")
    if not issubclass(cls, (Training, Pruning, Calibrated, BlockCalibrated, ModelCalibrated)):
        raise TypeError(
            f"{cls.__name__} is neither a Training nor a Pruning nor a Calibrated method: there is no verb to check it with"
        )
    fields = {f.name for f in dataclasses.fields(cls)}
    trial = Trial(cls, {**{name: value for name, value in SHORT.items() if name in fields}, **options})
    broken: list[str] = []
    cause: Exception | None = None
    chosen = {name: check for name, check in _CHECKS.items() if only is None or name in only}
    for name, check in chosen.items():
        try:
            check(trial)
        except Exception as error:  # whatever a method does wrong is a finding
            found = str(error) if isinstance(error, BrokenPromise) else f"{type(error).__name__}: {error}"
            broken.append(f"- {name}: {found}")
            cause = cause or error
    if broken:
        raise BrokenPromise(
            "\n".join([f"{cls.__name__} breaks {len(broken)} of {len(chosen)} promises", *broken])
        ) from cause


def checks() -> dict[str, str]:
    """What :func:`check_method` checks: the name of each promise, and the promise itself."""
    return {name: " ".join((check.__doc__ or "").split()) for name, check in _CHECKS.items()}


def promise(check: Check) -> Check:
    """Add a check to the suite, under the function's name and with its docstring as the promise."""
    _CHECKS[check.__name__.replace("_", " ")] = check
    return check


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small network with odd shapes, a convolution, two norms and buffers: images ``[n, 2, 6, 6]`` to
    ``[n, 3]``.
    """

    def layers() -> list[nn.Module]:
        front = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 12)]
        return [*front, nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3)]

    return _drawn(layers, dtype, seed)


def perceptron(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A small network of linear layers that can also be stored: images ``[n, 2, 6, 6]`` to ``[n, 3]``."""
    return _drawn(lambda: [nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 3)], dtype, seed)


def narrow(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    """A network with matrices of one row and one column: images ``[n, 2, 6, 6]`` to ``[n, 3]``."""
    return _drawn(lambda: [nn.Flatten(), nn.Linear(72, 1), nn.Tanh(), nn.Linear(1, 3)], dtype, seed)


def batches(steps: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Batch]:
    """Random images and classes for the networks above."""
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(8, 2, 6, 6, generator=g, dtype=torch.float64).to(dtype),
            torch.randint(3, (8,), generator=g),
        )
        for _ in range(steps)
    ]


@dataclass(frozen=True)
class Trial:
    """A method class and the options it is checked with."""

    cls: type[Method]
    options: dict[str, Any]

    def method(self, **changes: Any) -> Method:
        """The method, with some options changed."""
        return self.cls(**{**self.options, **changes})

    @property
    def steps(self) -> int:
        """How many steps a run takes."""
        return int(self.options.get("steps") or SHORT["steps"])

    def work(self, method: Method, model: nn.Module, data: list[Batch] | None = None) -> Outcome:
        """Let the method do all it does to a model."""
        data = batches(self.steps, _dtype(model)) if data is None else data
        if isinstance(method, (Pruning, Calibrated, BlockCalibrated, ModelCalibrated)):
            pruned = sparsify_(model, method, data=data[:2])
            return Outcome(pruned.plan, pruned.masks)
        sparsifier, optimizer = attached(method, model)
        for batch in data:
            step(model, optimizer, batch)
        return Outcome(sparsifier.plan, sparsifier.masks)


@dataclass(frozen=True)
class Outcome:
    """What a method said it would do to a model, and what it did."""

    plan: Plan
    masks: Mapping[str, Tensor]


def attached(method: Method, model: nn.Module) -> tuple[Sparsifier, Optimizer]:
    """A training method at work. What it does not thin has learning rate zero, so that only a mistake can
    change it.
    """
    assert isinstance(method, Training)
    thinned = {id(row.weight.parameter) for row in plan(model, method).sparse}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if id(p) in thinned]},
        {"params": [p for p in model.parameters() if id(p) not in thinned], "lr": 0.0, "weight_decay": 0.0},
    ]
    optimizer = AdamW([g for g in groups if g["params"]], lr=1e-2, weight_decay=0.1)
    return attach(model, optimizer, method), optimizer


def step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> float:
    """One ordinary training step; returns the loss."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss.item()


@promise
def is_registered_and_documented(trial: Trial) -> None:
    """It is found by its name, says its paper and kind, and its docstring opens with one sentence and
    explains every option of its own.
    """
    cls = trial.cls
    found = registry().get(getattr(cls, "name", ""))
    _require(
        found is cls,
        f"registry() has {found} under {getattr(cls, 'name', None)!r}: decorate the class with @method",
    )
    _require(bool(cls.paper.strip()) and bool(cls.kind.strip()), f"paper {cls.paper!r}, kind {cls.kind!r}")
    text = (cls.__doc__ or "").strip()
    _require(bool(text) and not text.startswith(f"{cls.__name__}("), "the class has no docstring")
    first = text.split("\n\n")[0].strip()
    _require(
        first.endswith((".", ":")), f"the docstring opens with {first!r}, which ends with neither '.' nor ':'"
    )
    inherited = {
        f.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)
    }
    explained = text.partition("Args:")[2]
    for f in dataclasses.fields(cls):
        if f.name not in inherited:
            _require(
                bool(re.search(rf"\b{f.name}\b[^:\n]*:", explained)),
                f"the docstring does not explain the option {f.name!r}",
            )


@promise
def is_a_value(trial: Trial) -> None:
    """It is a frozen dataclass: equal when its options are, and never changed."""
    one, two = trial.method(), trial.method()
    _require(one == two, f"two with equal options differ: {one} and {two}")
    _require(one != trial.method(seed=one.seed + 1), "two with different seeds are equal")
    try:
        one.seed = 7  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise BrokenPromise("an option could be assigned: make it @dataclass(frozen=True)")


@promise
def record_is_plain_data(trial: Trial) -> None:
    """Its record names the method and every option, and survives JSON unchanged."""
    made = trial.method()
    record = made.record()
    again = json.loads(json.dumps(record))
    _require(again == record, f"{record} comes back from JSON as {again}")
    missing = {f.name for f in dataclasses.fields(made)} - record.keys()
    _require(not missing and record["method"] == made.name, f"the record lacks {missing or 'the name'}")


@promise
def planning_changes_nothing(trial: Trial) -> None:
    """A plan can be made any number of times, is always the same, and leaves the model as it was."""
    model = network()
    before = _snapshot(model)
    first, second = plan(model, trial.method()), plan(model, trial.method())
    _require(str(first) == str(second), f"the second plan differs from the first:\n{first}\n{second}")
    _require_same(before, _snapshot(model), "after planning")


@promise
def budget_is_exact(trial: Trial) -> None:
    """Every parameter keeps exactly as many connections as the plan says, these are as many as were asked
    for in all, the masks fit the pattern, and every other weight is exactly zero.
    """
    size = plan(network(), trial.method(sparsity=0.5)).numel
    settings: list[dict[str, Any]] = [{"sparsity": s} for s in (0.0, 0.35, 0.8)] + [
        {"kept": k} for k in (size // 3, 23)
    ]
    for setting in settings:
        model, method = network(), trial.method(**setting)
        _plant_zeros(model, method)
        planned = plan(model, method)
        if isinstance(pattern(method.pattern), Unstructured) and not method.reads_zeros:
            asked = wanted_total(method, planned.numel)
            _require(
                planned.kept == asked, f"with {setting} the plan keeps {planned.kept}, asked for were {asked}"
            )
        _require_exact(trial, method, model, f"with {setting}")


@promise
def ties_are_broken_exactly(trial: Trial) -> None:
    """The counts are exact when all weights are equal."""
    model, method = network(), trial.method()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.25)
    _plant_zeros(model, method)
    _require_exact(trial, method, model, "with all weights equal")


@promise
def one_row_is_enough(trial: Trial) -> None:
    """Matrices of one row or one column are no exception."""
    model, method = narrow(), trial.method(sparsity=0.5)
    _plant_zeros(model, method)
    _require_exact(trial, method, model, "in a network with one row and one column")


@promise
def seed_decides(trial: Trial) -> None:
    """The same seed gives the same bits, whatever the global random state, which is left alone."""
    outcomes = []
    for draws in (1, 5):
        model, method = network(), trial.method()
        _plant_zeros(model, method)
        with torch.random.fork_rng(devices=[]):
            torch.rand(draws)
            before = torch.get_rng_state()
            trial.work(method, model)
            _require(torch.equal(before, torch.get_rng_state()), "the global random state was used")
        outcomes.append(_snapshot(model))
    _require_same(outcomes[0], outcomes[1], "in a second run with the same seed")


@promise
def dtype_and_device_are_kept(trial: Trial) -> None:
    """Parameters keep their dtype and device, in float32, float64 and bfloat16."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, method = network(dtype), trial.method()
        _plant_zeros(model, method)
        described = {name: (t.dtype, t.device) for name, t in model.state_dict().items()}
        masks = _require_exact(trial, method, model, f"in {dtype}").masks
        for name, t in model.state_dict().items():
            _require(
                (t.dtype, t.device) == described[name],
                f"{name} was {described[name]}, is {(t.dtype, t.device)}",
            )
        for name, mask in masks.items():
            _require(mask.dtype == torch.bool, f"the mask of {name} is {mask.dtype}")


@promise
def what_is_excluded_is_untouched(trial: Trial) -> None:
    """Parameters outside the plan keep every bit, except for what the optimizer does to them; modes,
    gradients and ``requires_grad`` stay as they were.
    """
    method = trial.method(exclude=("4.*",))
    model = network()
    _plant_zeros(model, method)
    planned = plan(model, method)
    row = next(row for row in planned if row.name == "4.weight")
    _require(not row.sparse, f"4.weight was excluded by name, and the plan says {row.why!r}")
    thinned = {row.name for row in planned.sparse}
    before = _snapshot(model)
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    if isinstance(method, Training):
        attach(model, SGD(model.parameters(), lr=0.1), method).detach()
    else:
        trial.work(method, model)
        _require(all(p.grad is None for p in model.parameters()), "gradients were left behind")
    may_change = thinned | _repaired(method, model, thinned)
    _require_same(
        before, _snapshot(model), "of the parameters and buffers that are not thinned", but=may_change
    )
    now = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    _require(flags == now, "training modes or requires_grad have changed")
    if isinstance(method, Training):
        model = network()
        _plant_zeros(model, method)
        trial.work(method, model)  # the optimizer itself moves none of them, see `attached`
        buffers = {name for name, _ in model.named_buffers()}
        _require_same(
            before, _snapshot(model), "of the parameters that are not thinned", but=thinned | buffers
        )


@promise
def refusal_changes_nothing(trial: Trial) -> None:
    """What cannot be done raises a ValueError before the model has changed."""
    model = network()
    before = _snapshot(model)
    for impossible in ({"exclude": ("no such layer",)}, {"kept": 10**6}):
        try:
            trial.work(trial.method(**impossible), model)
        except ValueError:
            _require_same(before, _snapshot(model), f"after {impossible} was refused")
        else:
            _require(trial.cls.reads_zeros and "kept" in impossible, f"{impossible} was accepted")


@promise
def bad_gradients_do_no_harm(trial: Trial) -> None:
    """With inputs of zero, which leave gradients of zero, the counts are exact. With NaN, pruned weights are
    still exactly zero, or a ValueError leaves the model as it was; an update of the topology that meets NaN
    is made nowhere.
    """
    for value in (0.0, torch.nan):
        model, method = network(), trial.method()
        _plant_zeros(model, method)
        before = _snapshot(model)
        data = [(torch.full_like(x, value), y) for x, y in batches(trial.steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsifierWarning)
            if value == 0.0:
                _require_exact(trial, method, model, "with inputs of zero", data)
                continue
            try:
                _require_zeros(trial.work(method, model, data), "with inputs of NaN")
            except ValueError:
                _require_same(before, _snapshot(model), "after scores of NaN were refused")
    if isinstance(method, Training):
        _require_whole_updates(trial, method)


@promise
def zeros_stay_zero(trial: Trial) -> None:
    """While training, pruned weights and every optimizer state of theirs (unless the method says that they
    are latent) are exactly zero after each step, and the number of connections stays what it is, or falls if
    the method says that it shrinks, or is that of the dense model if the method says that it restores.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    model = network()
    _plant_zeros(model, method)
    sparsifier, optimizer = attached(method, model)
    kept = sparsifier.kept
    for number, batch in enumerate(batches(trial.steps), 1):
        step(model, optimizer, batch)
        _require(
            sparsifier.kept == kept
            or (method.shrinks and sparsifier.kept < kept)
            or (method.restores and sparsifier.kept == sum(c.numel for c in sparsifier.connections.values()))
            or (method.whole_units and sparsifier.kept <= sparsifier.plan.kept),
            f"step {number}: {sparsifier.kept} connections, before {kept}",
        )
        kept = sparsifier.kept
        for name, c in sparsifier.connections.items():
            states = {} if method.latent else optimizer.state[c.weight.parameter]
            held = {"the weight": c.weight.parameter, **states}
            for what, tensor in held.items():
                if isinstance(tensor, Tensor) and tensor.shape == c.weight.parameter.shape:
                    left = int((c.weight.oriented(tensor.detach())[~c.mask] != 0).sum())
                    _require(
                        left == 0, f"step {number}: {what} of {name} has {left} values that should be zero"
                    )


@promise
def resuming_gives_the_same_bits(trial: Trial) -> None:
    """A training run that is saved, loaded into new objects and continued ends with the bits of a run that
    was never interrupted, wherever it was interrupted.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    data = batches(trial.steps)
    straight = _start(method)
    for batch in data:
        step(straight.model, straight.optimizer, batch)
    for stop in sorted({1, trial.steps // 2, trial.steps - 1}):
        run = _start(method)
        for batch in data[:stop]:
            step(run.model, run.optimizer, batch)
        file = io.BytesIO()
        torch.save([run.model.state_dict(), run.optimizer.state_dict(), run.sparsifier.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        model = network(seed=1)
        model.load_state_dict(saved[0])
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(saved[1])
        sparsifier = attach(model, optimizer, method, resume=saved[2])
        for batch in data[stop:]:
            step(model, optimizer, batch)
        when = f"when interrupted after step {stop}"
        _require_same(_snapshot(straight.model), _snapshot(model), when)
        _require_same(straight.sparsifier.masks, sparsifier.masks, f"of the masks {when}")
        _require_same(
            _states(straight), _states(_Run(model, optimizer, sparsifier)), f"of the optimizer {when}"
        )


@promise
def both_storages_agree(trial: Trial) -> None:
    """Training the kept connections alone gives the losses of training under a mask, step by step; a method
    that cannot do so says so in a ValueError.
    """
    method = trial.method()
    if not isinstance(method, Training):
        return
    data = batches(trial.steps)
    losses = []
    for stored in (False, True):
        model = perceptron()
        _plant_zeros(model, method)
        try:
            if stored:
                to_sparse_(model, method)
            optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
            sparsifier = attach(model, optimizer, method)
        except ValueError:
            return
        losses.append([step(model, optimizer, batch) for batch in data])
        sparsifier.detach()
    for number, (masked, held) in enumerate(zip(*losses, strict=True), 1):
        _require(
            abs(masked - held) <= 1e-9 * abs(masked), f"step {number}: loss {masked} masked, {held} stored"
        )


@promise
def limits_are_simpler_methods(trial: Trial) -> None:
    """With a part switched off, the method gives the bits of the simpler method that it declares itself to
    be then (:meth:`openwork.method.Method.limits`).
    """
    for setting, simpler in trial.method().limits():
        outcomes = []
        for method in (setting, simpler):
            model = network()
            _plant_zeros(model, method)
            trial.work(method, model)
            outcomes.append(_snapshot(model))
        _require_same(outcomes[1], outcomes[0], f"between {setting} and {simpler}")


@dataclass(frozen=True)
class _Run:
    model: nn.Module
    optimizer: Optimizer
    sparsifier: Sparsifier


def _start(method: Training) -> _Run:
    model = network()
    _plant_zeros(model, method)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return _Run(model, optimizer, attach(model, optimizer, method))


def _require_whole_updates(trial: Trial, method: Training) -> None:
    """An update that is skipped changes no parameter, though only the last one has gradients of NaN."""
    model = network()
    _plant_zeros(model, method)
    sparsifier, optimizer = attached(method, model)
    last = list(sparsifier.connections.values())[-1]
    last.weight.parameter.register_hook(lambda gradient: gradient.masked_fill(~last.mask, torch.nan))
    for number, batch in enumerate(batches(trial.steps), 1):
        masks, skipped = sparsifier.masks, sparsifier.skipped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsifierWarning)
            step(model, optimizer, batch)
        if sparsifier.skipped > skipped:
            _require_same(
                masks, sparsifier.masks, f"of the masks after the update of step {number} was skipped"
            )


def _require(condition: bool, found: str) -> None:
    if not condition:
        raise BrokenPromise(found)


def _require_same(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    where: str,
    but: set[str] | frozenset[str] = frozenset(),
) -> None:
    for name, tensor in one.items():
        if name not in but and not _same_bits(tensor, other[name]):
            changed = (
                int((tensor != other[name]).sum()) if tensor.shape == other[name].shape else tensor.numel()
            )
            raise BrokenPromise(f"{changed} of {tensor.numel()} values of {name} differ {where}")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same = (one == other) | ((one != one) & (other != other)) if one.shape == other.shape else torch.zeros(1)
    return one.dtype == other.dtype and bool(same.all())


def _require_exact(
    trial: Trial, method: Method, model: nn.Module, where: str, data: list[Batch] | None = None
) -> Outcome:
    """Every mask has the planned count, and the masks together the count that was planned before anything
    was known.
    """
    expected = plan(model, method).kept
    outcome = trial.work(method, model, data)
    total = sum(int(mask.sum()) for mask in outcome.masks.values())
    if isinstance(pattern(method.pattern), Unstructured):
        _require(total == expected, f"{total} are kept in all {where}, planned were {expected}")
    moves = isinstance(method, Training) and (
        method.redistributes or allocation(method.allocation).needs_scores
    )
    if not moves:
        for row in outcome.plan.sparse:
            kept = int(outcome.masks[row.name].sum())
            if method.whole_units:
                kept += (row.kept - kept) % max(1, int(outcome.masks[row.name].flatten(1).any(1).sum()))
            _require(kept == row.kept, f"{row.name} keeps {kept} {where}, planned were {row.kept}")
    _require_zeros(outcome, where)
    if not method.reads_zeros:
        for row in outcome.plan.sparse:
            _require(
                row.pattern.allows(outcome.masks[row.name]),
                f"the mask of {row.name} is not {row.pattern} {where}",
            )
    return outcome


def _repaired(method: Method, model: nn.Module, thinned: set[str]) -> set[str]:
    """What a calibrated method may change beside the weights it thins: their biases; all but what is excluded, where it works on
    whole blocks.
    """
    if isinstance(method, (BlockCalibrated, ModelCalibrated)):
        return {name for name, _ in model.named_parameters()} - {"4.weight"}
    return (
        {f"{name.removesuffix('weight')}bias" for name in thinned}
        if isinstance(method, Calibrated)
        else set()
    )


def _require_zeros(outcome: Outcome, where: str) -> None:
    """Every weight outside the masks is zero."""
    for row in outcome.plan.sparse:
        weight = row.weight.oriented(row.weight.parameter.detach())
        left = int((weight[~outcome.masks[row.name]] != 0).sum())
        _require(left == 0, f"{left} pruned weights of {row.name} are not zero {where}")


def _plant_zeros(model: nn.Module, method: Method) -> None:
    """Give a method that keeps a model's zeros some to keep."""
    if method.reads_zeros:
        with torch.no_grad():
            for row in plan(model, method).sparse:
                row.weight.parameter.view(-1)[::3] = 0.0


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _states(run: _Run) -> dict[str, Tensor]:
    return {
        f"{i}.{key}": value
        for i, p in enumerate(run.model.parameters())
        for key, value in run.optimizer.state[p].items()
        if isinstance(value, Tensor)
    }


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _drawn(layers: Callable[[], list[nn.Module]], dtype: torch.dtype, seed: int) -> nn.Sequential:
    """Build a network with all parameters drawn from a generator of its own; the global random state is
    left alone.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*layers())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.dim() > 1 else 0.1))
    return model.to(dtype)


__all__ = ["BrokenPromise", "Trial", "batches", "check_method", "checks", "network", "promise"]
