"""``openwork plan``: what a method would make of a model, before anything changes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from openwork.cli.output import JSON, show_json

if TYPE_CHECKING:
    from torch import nn


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
        How the total is split among parameters.
    pattern
        Which masks are legal, such as "2:4" or "block 4x1".
    exclude, include
        Globs of parameters to leave dense, or to cover although they would be left dense.
    """
    from openwork.method import get
    from openwork.plan import plan as make_plan

    given = {"sparsity": sparsity, "kept": kept, "allocation": allocation, "pattern": pattern}
    options = {key: value for key, value in given.items() if value is not None}
    made = make_plan(_model(model), get(method)(exclude=exclude, include=include, **options))  # type: ignore[arg-type]
    if not json:
        print(made)
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
        }
    )


def _model(name: str) -> nn.Module:
    """A built-in model by its name, or whatever a factory of the user's returns."""
    from torch import nn

    from openwork import tasks

    if ":" not in name:
        return tasks.model(name)
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    made = getattr(importlib.import_module(module), attribute)()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} returned {type(made).__name__}, and a model is a torch.nn.Module")
    return made
