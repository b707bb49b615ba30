"""Keeps zeros zero while any optimizer trains the model, and lets a method move them.

The model stays an ordinary PyTorch model: pruned weights are exact zeros (or do not exist, in layers that hold only their
kept connections), ``state_dict`` has its usual keys, and the training loop is the user's own. Two lines are added::

    sparsifier = ow.attach(model, optimizer, ow.RigL(sparsity=0.9, steps=10_000))
    ...
    torch.save({"sparsifier": sparsifier.state_dict(), ...})

The sparsifier hangs on public hooks only: of the optimizer's step and of gradient accumulation. Nothing is patched.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from openwork import processes
from openwork.connections import Connections, LatentConnections, MaskedConnections, connect, require_latent
from openwork.growth import random_places
from openwork.initialization import Init, initial_values
from openwork.method import Method
from openwork.patterns import Shape
from openwork.plan import Plan, Row, plan, prunable


class SparsifierWarning(UserWarning):
    """Something a training run should know about: an update that was skipped, a parameter that no optimizer trains."""


@dataclass(frozen=True, kw_only=True)
class Training(Method):
    """A method that works while a model trains. Steps are optimizer steps, counted from 1.

    Args:
        steps: optimizer steps of the whole run; needed by every method that schedules something.
        init: what kept connections start from, see :data:`openwork.initialization.Init`.
    """

    trains = True
    restores: ClassVar[bool] = False
    """Whether connections that were pruned come back all at once, so that the model is dense for a while."""
    latent: ClassVar[bool] = False
    """Whether pruned weights live on unseen: the optimizer trains them, the network computes without them. Takes memory of the
    size of the dense weights, see :mod:`openwork.connections.latent`."""

    stores: ClassVar[bool] = True
    """Whether it can work on layers that hold only their kept connections, as far as its options allow."""

    steps: int | None = None
    init: Init = "rescale"

    @property
    def growth_needs(self) -> frozenset[str]:
        """What updates look at beyond weights: ``gradient``, ``momentum``, ``activations``."""
        return frozenset()

    @property
    def replaces_step(self) -> bool:
        """Whether an update takes the place of the optimizer's step."""
        return False

    @property
    def redistributes(self) -> bool:
        """Whether connections move from one parameter to another: the plan then says how many each has at the start, and how many
        all have together.
        """
        return False

    @property
    def run_length(self) -> int:
        """``steps``, or an error where it was not given."""
        if self.steps is None or self.steps < 1:
            raise ValueError(
                f"{self.name} schedules its updates over the whole run and does not know its length: give steps=, the number of "
                "optimizer steps you will take"
            )
        return self.steps

    def start(self, layout: Plan) -> Plan:
        """The plan that the initial topology is drawn from, where that is not the plan of the end."""
        return layout

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        """Sorted positions that are active at the start; None = all of them. By default uniformly random in the row's pattern."""
        grid = row.pattern.grid(row.shape)
        vacant = torch.full((grid.rows,), row.pattern.places(row.shape, row.kept))
        return grid.positions_of(random_places(grid, torch.empty(0, dtype=torch.int64), vacant, generator))

    def due(self, step: int) -> bool:
        """Whether the topology is updated at ``step``."""
        return False

    def attached(self, sparsifier: Sparsifier) -> None:
        """Called once when attached, before the first step."""

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        """Change the topology. Called at steps that are :meth:`due`."""

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        """Called before the optimizer takes ``step``: the place to add to gradients."""

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        """What the method observes about its own work, by name; shown in :meth:`Sparsifier.summary`."""
        return {}


class Sparsifier:
    """Keeps a model's topology while it trains. Made by :func:`attach`.

    Attributes:
        plan: what was asked for.
        method: the method at work.
        connections: name -> the kept connections of that parameter.
        step_count: optimizer steps seen.
        updates: how many topology updates took place.
        generator: the method's own random state.
        state: tensors a method keeps from update to update, by name; saved and restored with everything else.
        handles: of the hooks that :meth:`detach` removes.
    """

    def __init__(
        self,
        plan: Plan,
        method: Training,
        optimizers: Sequence[Optimizer],
        connections: Sequence[Connections],
    ) -> None:
        self.plan = plan
        self.method = method
        self.optimizers = tuple(optimizers)
        self.connections = {c.name: c for c in connections}
        self.step_count = 0
        self.updates = 0
        self.skipped = 0
        self.generator = method.generator("updates")
        self.state: dict[str, Tensor] = {}
        self._others = [
            0 for _ in self.optimizers[1:]
        ]  # steps that the optimizers after the first have taken
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._remembering = True
        self.handles: list[RemovableHandle] = []
        if self.optimizers:
            # The first optimizer is the clock: topology updates follow its steps.
            self.handles = [
                self.optimizers[0].register_step_pre_hook(partial(_before, self._before_step)),
                self.optimizers[0].register_step_post_hook(lambda *_: self._after_step()),
            ]
            for number, other in enumerate(self.optimizers[1:]):
                self.handles += [
                    other.register_step_pre_hook(partial(_before, partial(self._before_other, number))),
                    other.register_step_post_hook(lambda *_, number=number: self._after_other(number)),
                ]
        method.attached(self)
        self._require_agreement("when the sparsifier was attached")
        self._look_ahead()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> boolean mask ``[out, in, *kernel]``, True = kept."""
        return {name: c.mask for name, c in self.connections.items()}

    @property
    def trained(self) -> dict[str, Connections]:
        """The connections that an update may move: all but those of parameters that are frozen now."""
        return {name: c for name, c in self.connections.items() if c.weight.parameter.requires_grad}

    @property
    def kept(self) -> int:
        """Active connections now."""
        return sum(c.kept for c in self.connections.values())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros now, over the parameters the method works on."""
        return 1.0 - self.kept / sum(c.numel for c in self.connections.values())

    def summary(self) -> str:
        """A table of what was wanted and what is, parameter by parameter."""
        width = max(len(name) for name in self.connections)
        wanted = {row.name: row.kept for row in self.plan.sparse}
        lines = [
            f"{name.ljust(width)}  wanted {wanted[name]:>9}  kept {c.kept:>9} of {c.numel:>9}  "
            f"sparsity {1 - c.kept / c.numel:.4f}"
            for name, c in self.connections.items()
        ]
        lines += [f"{what}: {value:.4f}" for what, value in self.method.measures(self).items()]
        return "\n".join(
            [
                f"{self.method.name} after step {self.step_count}: asked {self.plan.asked}, sparsity {self.sparsity:.6f}, "
                f"{self.updates} updates of the topology"
                + (f", {self.skipped} skipped" if self.skipped else ""),
                *lines,
            ]
        )

    def step(self) -> None:
        """For loops without an optimizer object: call once after the weights were changed by hand."""
        self._before_step()
        self._after_step()

    def follow(self, copy: nn.Module) -> None:
        """Let a copy of the model, such as a running average of its weights, take every change of the topology.

        Without that an average would mix the weights of connections that are not the same. What stays keeps the value it has in
        the copy, what is new starts with zero there, and what leaves is zero.

        Args:
            copy: a copy of the model, or an ``AveragedModel`` of it, in the same storage. Changed: its topology becomes that of
                the model.

        Raises:
            ValueError: the copy lacks a parameter, or has it in another shape or storage; nothing has changed then.
        """
        inner = getattr(copy, "module", copy)
        weights = {w.name: w for w in prunable(inner)}
        found = []
        for name, c in self.connections.items():
            twin = weights.get(name)
            if twin is None or (twin.shape, twin.stored) != (c.weight.shape, c.weight.stored):
                raise ValueError(
                    f"a copy that follows needs {name} {list(c.weight.shape)} in the storage it has in the model: make the copy "
                    "with copy.deepcopy or AveragedModel once the model has its layers"
                )
            found.append((c, twin))
        with torch.no_grad():
            for c, twin in found:
                c.follow(connect(twin, c.pattern, ()))

    def detach(self) -> None:
        """Let go of model and optimizers. The model keeps its zeros; nothing guards them any more."""
        for handle in self.handles:
            handle.remove()
        for c in self.connections.values():
            c.release()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never interrupted, beside the model's and optimizers' own ``state_dict``.

        Holds tensors and plain values only, so ``torch.load(..., weights_only=True)`` reads it.
        """
        return {
            "format": 1,
            "method": self.method.record(),
            "step": self.step_count,
            "others": list(self._others),
            "updates": self.updates,
            "skipped": self.skipped,
            "generator": self.generator.get_state(),
            "positions": {name: c.positions for name, c in self.connections.items()},
            "remembered": {name: c.remembered() for name, c in self.connections.items()},
            "state": dict(self.state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Load the model's state first, then the optimizers', then this.

        Raises:
            ValueError: the state belongs to another method, other options or other parameters, or a layer that holds only its
                kept connections has another topology; nothing has changed then.
        """
        self._check(state)
        for name, c in self.connections.items():
            positions = state["positions"][name].to(c.device)
            if not torch.equal(positions, c.positions):
                c.replace(positions)
            c.recall(state["remembered"][name])
        self.step_count, self.updates, self.skipped = state["step"], state["updates"], state["skipped"]
        self._others = [*state["others"], *[self.step_count for _ in self._others]][: len(self._others)]
        self.generator.set_state(state["generator"])
        self.state = {name: tensor.clone() for name, tensor in state["state"].items()}
        self._look_ahead()

    def _check(self, state: Mapping[str, Any]) -> None:
        _same_run(state, self.method, {name: c.weight.shape for name, c in self.connections.items()})
        for name, c in self.connections.items():
            for what, tensor in c.remembered().items():
                saved = state["remembered"][name].get(what)
                if not isinstance(saved, Tensor) or saved.shape != tensor.shape:
                    raise ValueError(f"the saved {what} of {name} is no tensor {list(tensor.shape)}")
            if c.weight.stored and not torch.equal(state["positions"][name].to(c.device), c.positions):
                raise ValueError(
                    f"the stored topology of {name} is not the saved one: load the model's state_dict first"
                )

    def _due(self, step: int) -> bool:
        return self.method.due(step)

    def _look_ahead(self) -> None:
        """Have the gradients of the next step remembered if an update will need them."""
        needs = self.method.growth_needs
        coming = "momentum" in needs or ("gradient" in needs and self._due(self.step_count + 1))
        if coming or self._remembering:
            for c in self.connections.values():
                c.observe(coming)
        self._remembering = coming

    def _before_step(self) -> None:
        with torch.no_grad():
            for c in self.connections.values():
                c.before_step()
            self.method.before_step(self, self.step_count + 1)
        for optimizer in self.optimizers[:1]:
            self._replace_step(optimizer, self.step_count + 1)

    def _after_step(self) -> None:
        self._show_gradients()
        self._restore_zeros()
        self.step_count += 1
        if self._due(self.step_count):
            self._update()
        self._look_ahead()

    def _before_other(self, number: int) -> None:
        self._replace_step(self.optimizers[1 + number], self._others[number] + 1)

    def _after_other(self, number: int) -> None:
        self._show_gradients()
        self._others[number] += 1
        self._restore_zeros()

    def _replace_step(self, optimizer: Optimizer, step: int) -> None:
        """Let a topology update take the place of an optimizer's ``step``: it skips parameters without a gradient."""
        if self.method.replaces_step and self._due(step):
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                if p.grad is not None:
                    self._hidden.append((p, p.grad))
                    p.grad = None

    def _show_gradients(self) -> None:
        for p, gradient in self._hidden:
            p.grad = gradient
        self._hidden.clear()

    def _restore_zeros(self) -> None:
        for c in self.connections.values():
            c.after_step()

    def _require_agreement(self, when: str) -> None:
        if processes.count() > 1:
            digests = {name: processes.digest(c.positions) for name, c in self.connections.items()}
            processes.require_agreement(digests, when, next(iter(self.connections.values())).device)

    def _update(self) -> None:
        self._remembering = True  # at least the positions, which take as much room as the weights
        try:
            for c in self.connections.values():
                values = c.values
                if values.numel() and not all(bool(bound.isfinite()) for bound in values.aminmax()):
                    raise FloatingPointError(f"the weights of {c.name} hold NaN or infinity")
            with torch.no_grad():
                self.method.update(self, self.step_count)
        except FloatingPointError as reason:
            self.skipped += 1
            warnings.warn(
                f"topology update at step {self.step_count} skipped: {reason}",
                SparsifierWarning,
                stacklevel=2,
            )
            return
        self.updates += 1
        for optimizer in self.optimizers:
            _forget_flat_history(optimizer)
        self._require_agreement(f"after the topology update at step {self.step_count}")


def _before(
    act: Callable[[], None], optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """``act`` on gradients before a step: they are there already, or a closure computes them inside it."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        act()
        return None

    def computed() -> Any:
        loss = closure()
        act()
        return loss

    if len(args) > 1:
        return (optimizer, computed, *args[2:]), kwargs
    return args, {**kwargs, "closure": computed}


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    method: Training,
    *,
    masks: Mapping[str, Tensor] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> Sparsifier:
    """Have ``method`` make and keep ``model`` sparse while ``optimizer`` trains it.

    The weights that lose their place are set to zero at once, and the kept ones are rescaled for the inputs their units really
    have (``method.init``). Layers that hold only their kept connections stay as they are.

    Args:
        model: any module, also compiled or data-parallel.
        optimizer: the optimizer that trains it, or several (the first one is the clock), or None for loops that call
            :meth:`Sparsifier.step` themselves. Wrapped optimizers are unwrapped.
        method: what to do, such as ``ow.RigL(sparsity=0.9, steps=10_000)``.
        masks: start from these masks ``[out, in, *kernel]`` instead of the method's own, by parameter name; weights outside
            become zero, the others are not changed.
        resume: the ``state_dict()`` of a sparsifier: its topology is taken over and no weight is initialised anew.

    Returns:
        The sparsifier: masks, summary, ``state_dict``, ``detach``.

    Raises:
        TypeError: the method does not work during training.
        ValueError: see :func:`openwork.plan.plan`; also masks of unknown parameters or wrong shape.
    """
    if not isinstance(method, Training):
        raise TypeError(
            f"{type(method).__name__} is no method that works while a model trains: use ow.sparsify_(model, method)"
        )
    optimizers = _optimizers(optimizer)
    method.due(1)  # what is missing to answer is said before anything changes
    layout = plan(model, method)
    lookouts = _fixed_buckets(model, method, layout)
    if method.latent:
        require_latent(method.name, layout, optimizers)
    if resume is not None:
        _same_run(resume, method, {row.name: row.shape for row in layout.sparse})
    given = _given_positions(layout, masks, resume)
    if masks is not None and not method.shrinks:
        layout = _with_masks(layout, masks)
    momentum = "momentum" in method.growth_needs
    connections = []
    for row in method.start(layout).sparse:
        if row.weight.stored:
            connections.append(connect(row.weight, row.pattern, optimizers, momentum=momentum))
            continue
        generator = method.generator(row.name)
        drawn = method.topology(row, generator) if given is None else given[row.name]
        positions = None if drawn is None else drawn.to(row.weight.parameter.device)
        c = connect(
            row.weight,
            row.pattern,
            optimizers,
            positions=positions,
            momentum=momentum,
            activations="activations" in method.growth_needs,
            masked=LatentConnections if method.latent else MaskedConnections,
        )
        if given is None and positions is not None:
            with torch.no_grad():
                units = positions // (c.numel // row.shape[0])
                c.write(positions, initial_values(c.values, units, row.shape, method.init, generator))
        c.after_step()
        if optimizers and c.optimizer is None and row.weight.parameter.requires_grad:
            warnings.warn(
                f"{row.name} will be sparse, but no optimizer given here trains it",
                SparsifierWarning,
                stacklevel=2,
            )
        connections.append(c)
    sparsifier = Sparsifier(layout, method, optimizers, connections)
    sparsifier.handles += lookouts
    if resume is not None:
        sparsifier.load_state_dict(resume)
    return sparsifier


def _optimizers(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    several: list[Any] = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    found: list[Optimizer] = []
    for o in several:
        if o is None:
            continue
        while not isinstance(o, Optimizer):  # a wrapper, whatever its annotation says
            inner = getattr(o, "optimizer", None)
            if inner is None:
                raise TypeError(
                    f"attach needs a torch.optim.Optimizer or a wrapper that holds one as .optimizer; got {type(o).__name__}. "
                    "If it is an optimizer of its own kind, attach with optimizer=None to a masked model, and call "
                    "sparsifier.step() after each of its steps"
                )
            o = inner
        found.append(o)
    return found


def _fixed_buckets(model: nn.Module, method: Training, layout: Plan) -> list[RemovableHandle]:
    """Refuse to resize parameters whose gradients travel in buckets that are cut once, now or when the model is wrapped later.

    Returns:
        Handles of the hooks that look out for a wrapper.
    """
    stored = [row for row in layout.sparse if row.weight.stored]
    if not stored or not (method.shrinks or method.redistributes or method.whole_units):
        return []

    def refuse(*_: object) -> None:
        raise ValueError(
            f"{method.name} changes how many connections a parameter has, and DistributedDataParallel has cut its buckets for "
            f"gradients of a fixed size; {', '.join(row.name for row in stored)} hold only their kept connections. Train masked "
            "(to_dense_ before wrapping the model) and store when training is done"
        )

    def look_out(*_: object) -> None:
        if getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None) is not None:
            refuse()

    if isinstance(model, nn.parallel.DistributedDataParallel):
        refuse()
    if processes.count() == 1:
        return []
    return [row.weight.module.register_forward_pre_hook(look_out) for row in stored]


def _same_run(state: Mapping[str, Any], method: Method, shapes: Mapping[str, Shape]) -> None:
    """Refuse a saved state of another method, other options or other parameters, or one that nobody has saved."""
    _well_formed(state)
    saved, own = state["method"], method.record()
    different = [key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key)]
    if different:
        told = ", ".join(
            f"{key}: saved {saved.get(key)!r}, now {own.get(key)!r}" for key in sorted(different)
        )
        raise ValueError(f"the saved state is of another run: {told}. Attach the method that was saved")
    covered = state["positions"].keys(), state["remembered"].keys()
    if missing := (shapes.keys() ^ covered[0]) | (shapes.keys() ^ covered[1]):
        raise ValueError(
            f"the saved state covers other parameters: only one side has {', '.join(sorted(missing))}"
        )
    for name, shape in shapes.items():
        positions = state["positions"][name]
        if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(f"the saved topology of {name} is no vector of int64 positions")
        if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= math.prod(shape)):
            raise ValueError(f"the saved topology of {name} does not fit its shape {list(shape)}")
        if not bool((positions[1:] > positions[:-1]).all()):
            raise ValueError(
                f"the saved topology of {name} is not in ascending order, or names a connection twice"
            )


def _well_formed(state: Mapping[str, Any]) -> None:
    """Refuse what is not the ``state_dict()`` of a sparsifier before anything in it is believed."""

    def require(key: str, holds: bool) -> None:
        if not holds:
            found = type(state.get(key)).__name__
            raise ValueError(
                f"this is not the state_dict() of a sparsifier: {key!r} is {found}, or holds something else"
            )

    for key in ("format", "step", "updates", "skipped"):
        require(key, type(state.get(key)) is int and state[key] >= 0)
    others = state.get("others")
    require("others", isinstance(others, list) and all(type(count) is int and count >= 0 for count in others))
    for key in ("method", "positions", "remembered", "state"):
        require(key, isinstance(state.get(key), Mapping))
    require("method", _is_plain(state["method"]))
    require("remembered", all(isinstance(held, Mapping) for held in state["remembered"].values()))
    require("state", all(isinstance(tensor, Tensor) for tensor in state["state"].values()))
    if state["format"] != 1:
        raise ValueError(
            f"the saved state is of format {state['format']}, and this openwork reads format 1: update openwork"
        )
    try:
        torch.Generator().set_state(state["generator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"the saved state of the random generator cannot be restored: {error}") from error


def _is_plain(value: object) -> bool:
    """Whether a value is made of what a record of a method is made of, so that it can be compared with one."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))


def _given_positions(
    layout: Plan, masks: Mapping[str, Tensor] | None, resume: Mapping[str, Any] | None
) -> dict[str, Tensor] | None:
    if resume is not None:
        return {row.name: resume["positions"][row.name] for row in layout.sparse}
    if masks is None:
        return None
    names = {row.name for row in layout.sparse}
    if unknown := masks.keys() - names:
        raise ValueError(
            f"masks are given for {', '.join(sorted(unknown))}, which the plan does not make sparse; it covers "
            f"{', '.join(sorted(names))}"
        )
    if missing := names - masks.keys():
        raise ValueError(
            f"no mask is given for {', '.join(sorted(missing))}: give one for each, or exclude them"
        )
    for row in layout.sparse:
        if tuple(masks[row.name].shape) != row.shape or masks[row.name].dtype != torch.bool:
            raise ValueError(
                f"the mask of {row.name} must be boolean of shape {list(row.shape)}; "
                f"got {masks[row.name].dtype} {list(masks[row.name].shape)}"
            )
    return {name: mask.flatten().nonzero().flatten() for name, mask in masks.items()}


def _with_masks(layout: Plan, masks: Mapping[str, Tensor]) -> Plan:
    """The plan with the counts of masks that were given instead of its own."""
    rows = [
        dataclasses.replace(row, kept=int(masks[row.name].sum()), why="mask given", fixed=True)
        if row.sparse and not row.weight.stored
        else row
        for row in layout
    ]
    return dataclasses.replace(layout, rows=tuple(rows))


def _forget_flat_history(optimizer: Optimizer) -> None:
    """Clear states that mix all parameters in flat vectors (LBFGS keeps lists of them): a new topology makes them
    meaningless.
    """
    for state in optimizer.state.values():
        if any(isinstance(v, list) for v in state.values()):
            state.clear()
