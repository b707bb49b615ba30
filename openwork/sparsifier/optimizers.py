"""What a sparsifier asks of an optimizer: hooks around its step, which it finds under any wrapper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def unwrapped(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """The optimizers themselves, in the order given, each out of the wrappers it is in."""
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


def around_steps(
    optimizer: Optimizer, before: Callable[[], None], after: Callable[[], None]
) -> list[RemovableHandle]:
    """Call ``before`` once the gradients of a step are there, and ``after`` when it is taken.

    Returns:
        Handles of the hooks.
    """
    return [
        optimizer.register_step_pre_hook(partial(_before, before)),
        optimizer.register_step_post_hook(lambda *_: after()),
    ]


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


def forget_flat_history(optimizer: Optimizer) -> None:
    """Clear states that mix all parameters in flat vectors (LBFGS keeps lists of them): a new topology makes them
    meaningless.
    """
    for state in optimizer.state.values():
        if any(isinstance(v, list) for v in state.values()):
            state.clear()
