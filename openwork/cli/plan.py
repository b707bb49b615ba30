"""``openwork plan``: what a method would make of a model, before anything changes."""

from __future__ import annotations

import importlib
import sys
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from openwork.cli.output import JSON, show_json

if TYPE_CHECKING:
    from torch import nn

    from openwork.memory import Memory
    from openwork.method import Method


def plan(
    model: str,
    method: str,
    /,
    *,
    sparsity: float | None = None,
    kept: int | None = None,
    allocation: str | None = None,
    pattern: str | None = None,
    exclude: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    include: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    training: bool = False,
    optimizer: str = "adam",
    batch: int = 128,
    input: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    json: JSON = False,
) -> None:
    """Show parameter by parameter what would be sparse, how sparse, and why. Nothing is changed.

    Parameters
    ----------
    model
        A built-in model such as "lenet_300_100", or "package.module:factory", called without arguments.
    method
        A method, as in "openwork methods".
    sparsity
        Fraction of zeros; the method's default if not given.
    kept
        The same as an exact number of connections.
    allocation
        How the total is split among parameters, such as "erk", "uniform" or "global".
    pattern
        Which masks are legal, such as "2:4" or "block 4x1".
    exclude
        Globs of parameters to leave dense.
    include
        Globs of parameters to cover although they would be left dense, such as embeddings.
    training
        Show as well how much memory training would take: dense, under masks, and holding only the kept connections.
    optimizer
        Whose state to count: "momentum" (SGD with it), or a class of torch.optim, such as "adam" or "sgd".
    batch
        Examples a training step.
    input
        Shape of one example, such as "3 32 32"; the inputs of the first layer if it is a linear one.
    """
    from openwork.method import get
    from openwork.plan import plan as make_plan

    given = {"sparsity": sparsity, "kept": kept, "allocation": allocation, "pattern": pattern}
    options = {key: value for key, value in given.items() if value is not None}
    network = _model(model)
    chosen = get(method)(exclude=exclude, include=include, **options)  # type: ignore[arg-type]
    made = make_plan(network, chosen)
    memory = _memory(network, chosen, input, batch, optimizer) if training else None
    if not json:
        print(made)
        if memory is not None:
            print(f"\ntraining with {optimizer}, batch {batch}\n{memory}")
        return
    rows = [
        {
            "name": row.name,
            "shape": list(row.shape),
            "pattern": str(row.pattern) if row.sparse else None,
            "sparsity": row.sparsity,
            "kept": row.kept,
            "numel": row.numel,
            "why": row.why,
        }
        for row in made
    ]
    show_json(
        {
            "method": made.method.record(),
            "rows": rows,
            "kept": made.kept,
            "numel": made.numel,
            "sparsity": made.sparsity,
            **({} if memory is None else {"memory": memory.record()}),
        }
    )


def _memory(network: nn.Module, method: Method, shape: tuple[int, ...], batch: int, optimizer: str) -> Memory:
    import torch

    from openwork.memory import training_memory

    if not shape:
        first = next(
            (m for m in network.modules() if next(m.parameters(recurse=False), None) is not None), None
        )
        if not isinstance(first, torch.nn.Linear):
            raise ValueError(
                "the shape of an example cannot be told from the model: give it, as in --input 3 32 32"
            )
        shape = (first.in_features,)
    return training_memory(network, method, torch.zeros(1, *shape), batch=batch, optimizer=optimizer)


def _model(name: str) -> nn.Module:
    """A built-in model by its name, or whatever a factory of the user's returns."""
    from torch import nn

    from openwork import tasks

    if ":" not in name:
        return tasks.model(name)
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    factory = getattr(importlib.import_module(module), attribute, None)
    if not callable(factory):
        raise ValueError(f"{name} was asked for, and {module} has no function or class {attribute!r}")
    try:
        signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"{name} is called without arguments, and {error}: write a function that needs none and returns the model"
        ) from error
    made = factory()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} returned {type(made).__name__}, and a model is a torch.nn.Module")
    return made
