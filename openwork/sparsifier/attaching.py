"""Makes a sparsifier: the plan, the topology at the start, and the weights it starts from."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.connections import Connections, LatentConnections, MaskedConnections, connect, require_latent
from openwork.initialization import initial_values
from openwork.method import require_kind
from openwork.plan import Plan, plan
from openwork.sparsifier.contract import Training
from openwork.sparsifier.data_parallel import fixed_buckets
from openwork.sparsifier.occupation import occupy, require_vacant
from openwork.sparsifier.optimizers import unwrapped
from openwork.sparsifier.resuming import same_run
from openwork.sparsifier.sparsifier import Sparsifier, SparsifierWarning


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
        ValueError: see :func:`openwork.plan.plan`; also masks of unknown parameters or wrong shape, and parameters that another
            sparsifier is at work on.
    """
    require_kind(
        method, Training, "is no method that works while a model trains: use ow.sparsify_(model, method)"
    )
    optimizers = unwrapped(optimizer)
    method.due(1)  # what is missing to answer is said before anything changes
    layout = plan(model, method)
    require_vacant(layout)
    lookouts = fixed_buckets(model, method, layout)
    if method.latent:
        require_latent(method.name, layout, optimizers)
    if resume is not None:
        same_run(resume, method, {row.name: row.shape for row in layout.sparse})
    given = _given_positions(layout, masks, resume)
    if masks is not None and not method.shrinks:
        layout = _with_masks(layout, masks)
    momentum = "momentum" in method.growth_needs
    connections = []
    for row in method.start(layout).sparse:
        if row.weight.stored:
            connections.append(connect(row.weight, row.pattern, optimizers, momentum=momentum))
            if _untrained(connections[-1], optimizers):
                warnings.warn(
                    f"{row.name} holds only its kept connections, and no optimizer given here trains them: make the optimizer "
                    "after ow.to_sparse_, of model.parameters()",
                    SparsifierWarning,
                    stacklevel=2,
                )
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
        if _untrained(c, optimizers):
            warnings.warn(
                f"{row.name} will be sparse, but no optimizer given here trains it",
                SparsifierWarning,
                stacklevel=2,
            )
        connections.append(c)
    sparsifier = Sparsifier(layout, method, optimizers, connections)
    sparsifier.handles += lookouts
    occupy(connections)
    if resume is not None:
        sparsifier.load_state_dict(resume)
    return sparsifier


def _untrained(c: Connections, optimizers: Sequence[Optimizer]) -> bool:
    return bool(optimizers) and c.optimizer is None and c.weight.parameter.requires_grad


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
