"""Drop whole blocks: those that hardly change what flows through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from openwork.blocks import Stack, stacks
from openwork.calibrator.batches import Batches
from openwork.calibrator.undo import at_rest
from openwork.calibrator.wiring import watched
from openwork.method import Method, method
from openwork.scores import run
from openwork.weights import unwrapped


@method(
    paper="Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024, arXiv 2403.03853; "
    "spans: Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, ICLR 2025, arXiv 2403.17887",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class LayerDrop(Method):
    """Remove the residual blocks of least influence, ``1 - mean over tokens of cos(x_l, x_(l+1))``.

    A block that returns what it is given has influence 0. What reads a dropped block reads the one before it instead, so the
    model is shallower, smaller and faster by exactly its blocks; repair it with a little training. The verb is
    :func:`openwork.drop_blocks_`.

    Args:
        drop: how many blocks.
        span: drop one run of neighbours instead: the one whose input and output are nearest in angle.
        protect: how many of the first blocks, and of the last, always stay.
        blocks: where the blocks are, as for :func:`openwork.sparsify_`; the model must have one row of them.
    """

    drop: int = 1
    span: bool = False
    protect: int = 1
    blocks: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop < 1 or self.protect < 0:
            raise ValueError(
                f"drop is at least 1 and protect at least 0; got drop={self.drop}, protect={self.protect}"
            )


@dataclass(frozen=True)
class Dropped:
    """What :func:`drop_blocks_` did.

    Attributes:
        names: of the blocks that are gone, by their old places.
        influence: of every block of the dense model, by its old place.
        before, after: parameters of the model.
    """

    names: tuple[str, ...]
    influence: dict[str, float]
    before: int
    after: int

    def __str__(self) -> str:
        lines = [
            f"{name}  {score:.4f}{'  dropped' if name in self.names else ''}"
            for name, score in self.influence.items()
        ]
        saved = 1 - self.after / self.before if self.before else 0.0
        return "\n".join(
            [*lines, f"{self.after} of {self.before} parameters left ({100 * saved:.1f} % fewer)"]
        )


def drop_blocks_(
    model: nn.Module,
    method: LayerDrop,
    *,
    data: Iterable[Any],
    evaluate: Callable[[nn.Module], float] | None = None,
) -> Dropped:
    """Remove blocks from ``model``, in place.

    Args:
        model: with one row of residual blocks. ``layer_idx`` of what stays, and the configuration of a model of transformers,
            are set to the new depth.
        method: how many, and how they are chosen.
        data: calibration batches, as for :func:`openwork.sparsify_`.
        evaluate: of a model, lower is better. With it blocks go one by one, each time the one without which the model is best.

    Raises:
        ValueError: there are not that many blocks to drop, a block is no residual one, or ``evaluate`` is given for a span. The
            model has not changed then.
    """
    if said := [o for o in ("kept", "include", "exclude", "overrides") if getattr(method, o)]:
        raise ValueError(
            f"whole blocks are dropped, and {said[0]} says nothing of them: use drop= and protect="
        )
    model = unwrapped(model)
    stack = _row(model, method)
    names = list(stack.blocks)
    free = range(method.protect, len(names) - method.protect)
    if len(free) < method.drop:
        raise ValueError(
            f"{method.drop} of {len(names)} blocks cannot go while {method.protect} at each end stay: drop at most {len(free)}"
        )
    if evaluate is not None and method.span:
        raise ValueError("a span is chosen by its angle: leave evaluate out, or span=False")
    before = sum(p.numel() for p in model.parameters())
    distances = _distances(model, stack, Batches(data), method.drop if method.span else 1)
    influence = {name: distances[0][i] for i, name in enumerate(names)}
    if method.span:
        starts = range(method.protect, len(names) - method.protect - method.drop + 1)
        first = min(starts, key=lambda i: distances[1][i])
        gone = list(range(first, first + method.drop))
    elif evaluate is None:
        gone = sorted(sorted(free, key=lambda i: distances[0][i])[: method.drop])
    else:
        gone = _greedily(model, stack, list(free), method.drop, evaluate)
    keep = [i for i in range(len(names)) if i not in gone]
    _hold(model, stack, keep)
    _renumber(model, stack, keep)
    after = sum(p.numel() for p in model.parameters())
    return Dropped(tuple(names[i] for i in gone), influence, before, after)


def _row(model: nn.Module, method: LayerDrop) -> Stack:
    rows = stacks(model, method.blocks)
    if len(rows) != 1 or len(rows[0].blocks) < 2:
        found = ", ".join(f"{s.name or 'the whole model'} ({len(s.blocks)})" for s in rows)
        raise ValueError(
            f"blocks are dropped from one row of them, and this model has {found}: name it with blocks="
        )
    return rows[0]


def _distances(
    model: nn.Module, stack: Stack, batches: Batches, span: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Of each block ``1 - cos``, and of each run of ``span`` blocks the angle over pi, as means over tokens."""
    influence, angle = dict.fromkeys(range(len(stack.blocks)), 0.0), dict[int, float]()
    count = 0
    names = list(stack.blocks)
    with torch.no_grad(), at_rest(model):
        for b in range(len(batches)):
            read: dict[int, list[Tensor]] = {}
            made: dict[int, Tensor] = {}

            def before(i: int, args: Any, kwargs: Any, read: dict[int, list[Tensor]] = read) -> None:
                leaves = tree_leaves((args, dict(kwargs)))
                read[i] = [x.clone() for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]

            def after(i: int, result: Any, made: dict[int, Tensor] = made) -> Any:
                made[i] = next(
                    x for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()
                )
                return result

            with watched(list(stack.blocks.values()), before, after):
                run(model, batches[b])
            states = {}
            for i, name in enumerate(names):
                same = [x for x in read[i] if x.shape == made[i].shape]
                if not same:
                    raise ValueError(
                        f"{name} returns {list(made[i].shape)} and reads nothing of that shape: it is no residual block, and "
                        "the model would not run without it"
                    )
                states[i] = same[0]
            tokens = batches.tokens(b)
            for i in range(len(names)):
                influence[i] += float((1 - _cosines(states[i], made[i], tokens)).sum())
            for i in range(len(names) - span + 1):
                turned = _cosines(states[i], made[i + span - 1], tokens).clamp(-1, 1).acos() / math.pi
                angle[i] = angle.get(i, 0.0) + float(turned.sum())
            count += _cosines(states[0], made[0], tokens).numel()
    return {i: x / count for i, x in influence.items()}, {i: x / count for i, x in angle.items()}


def _cosines(x: Tensor, y: Tensor, tokens: Tensor | None) -> Tensor:
    found = nn.functional.cosine_similarity(x.double(), y.double(), dim=-1)
    return found[tokens] if tokens is not None and tokens.shape == found.shape else found.flatten()


def _greedily(
    model: nn.Module, stack: Stack, free: list[int], drop: int, evaluate: Callable[[nn.Module], float]
) -> list[int]:
    gone: list[int] = []
    everything = list(range(len(stack.blocks)))
    try:
        for _ in range(drop):
            losses = {}
            for i in free:
                if i not in gone:
                    _hold(model, stack, [j for j in everything if j not in (*gone, i)])
                    losses[i] = evaluate(model)
            gone.append(min(losses, key=losses.__getitem__))
    finally:
        _hold(model, stack, everything)
    return sorted(gone)


def _hold(model: nn.Module, stack: Stack, keep: list[int]) -> None:
    """Make the row hold these of its blocks, under consecutive numbers where they had such."""
    container = model.get_submodule(stack.name)
    keys = [name.removeprefix(f"{stack.name}.") for name in stack.blocks]
    blocks = list(stack.blocks.values())
    numbered = keys == [str(i) for i in range(len(keys))]
    container._modules.clear()
    for place, i in enumerate(keep):
        container._modules[str(place) if numbered else keys[i]] = blocks[i]


def _renumber(model: nn.Module, stack: Stack, keep: list[int]) -> None:
    """Attention finds its cache by ``layer_idx``, and a configuration says how deep the model is."""
    for place, i in enumerate(keep):
        for module in list(stack.blocks.values())[i].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place  # type: ignore[assignment]
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in configs.values():
        if getattr(config, "num_hidden_layers", None) == len(stack.blocks):
            kinds: Any = getattr(config, "layer_types", None)
            if isinstance(kinds, list) and len(kinds) == len(stack.blocks):
                config.layer_types = [kinds[i] for i in keep]  # type: ignore[union-attr]
            config.num_hidden_layers = len(keep)  # type: ignore[union-attr]
