"""How much memory will training take? Dense, under masks, and holding only the kept connections; before anything is trained.

Counted are parameters, gradients, optimizer state, indices and activations, and what the steps need for a moment: whichever is
larger of backward's temporary tensors and the optimizer's. Not counted is what does not depend on the model: libraries, data,
and what the allocator keeps back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from openwork.kernels import native
from openwork.kernels.index import BUCKETS, RUN_PADDING, TILE_WIDTH, block_columns, part_count
from openwork.layouts.forms import storable
from openwork.method import Method
from openwork.plan import Plan, Row, plan

Form = Literal["dense", "masked", "stored"]
FORMS: tuple[Form, ...] = ("dense", "masked", "stored")

TILES_AT_ONCE = 8
"""Tiles of activations that a kernel holds at a time (csrc/kernels/weight_gradient.cpp)."""

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Bytes:
    """Bytes of one form of training.

    Attributes:
        parameters, gradients, optimizer: of all parameters, sparse or not.
        indices: masks and positions, or what stored connections and their kernels need to know where they are.
        activations: what one forward pass keeps for backward.
        passing: the most that gradients, activations and temporary tensors take at one time. Backward makes gradients as it
            lets go of activations, so the larger of the two counts.
    """

    parameters: int
    gradients: int
    optimizer: int
    indices: int
    activations: int
    passing: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.parameters + self.optimizer + self.indices + self.passing


@dataclass(frozen=True)
class Memory:
    """What training would take, form by form. Print it."""

    plan: Plan
    batch: int
    forms: dict[Form, Bytes]

    def record(self) -> dict[str, dict[str, int]]:
        """The same as plain data: form -> part -> bytes."""
        return {form: {**asdict(held), "peak": held.peak} for form, held in self.forms.items()}

    def __str__(self) -> str:
        parts = ("parameters", "gradients", "optimizer", "indices", "activations", "peak")
        lines = [("MiB", *FORMS)]
        lines += [(part, *(f"{getattr(self.forms[f], part) / 2**20:.1f}" for f in FORMS)) for part in parts]
        dense = self.forms["dense"].peak
        lines += [("of dense", *(f"{self.forms[f].peak / dense:.3f}" for f in FORMS))]
        return "\n".join(
            "  ".join([line[0].ljust(11), *(cell.rjust(10) for cell in line[1:])]) for line in lines
        )


def training_memory(
    model: nn.Module, method: Method, example: Tensor, *, batch: int, optimizer: str | MakeOptimizer = "adam"
) -> Memory:
    """Predict the memory of a training step. Nothing is changed, and nothing large is allocated.

    Args:
        model: dense, or with layers that hold only their kept connections; tensors on the ``meta`` device will do.
        method: says what will be sparse, and how sparse.
        example: an input ``[1, ...]`` of the model; two and three copies of it are sent through to see what is saved.
        batch: examples a step.
        optimizer: a class of ``torch.optim`` by its name, with its default options (``momentum``: SGD with momentum), or a
            function from parameters to an optimizer.

    Raises:
        ValueError: no optimizer is called so; see also :func:`openwork.plan.plan`.
    """
    layout = plan(model, method)
    states = moments(optimizer)
    rows = {id(row.weight.parameter): row for row in layout.sparse}
    sizes = _activations(model, example)
    forms = {form: _bytes(model, rows, form, states, batch, sizes) for form in FORMS}
    return Memory(layout, batch, forms)


def moments(optimizer: str | MakeOptimizer) -> float:
    """How many tensors of a parameter's shape an optimizer keeps for it, found out by letting it take a step."""
    parameter = nn.Parameter(torch.zeros(64))
    parameter.grad = torch.ones(64)
    made = _named(optimizer)([parameter]) if isinstance(optimizer, str) else optimizer([parameter])
    made.step(lambda: 0.0) if isinstance(made, torch.optim.LBFGS) else made.step()
    held = [
        t
        for state in made.state.values()
        for v in state.values()
        for t in (v if isinstance(v, list) else [v])
    ]
    return sum(t.nbytes for t in held if isinstance(t, Tensor) and t.dim()) / parameter.nbytes


def index_bytes(shape: tuple[int, int], kept: int) -> int:
    """Bytes of the indices of a stored layer ``[out, rest]`` that trains (of a convolution about).

    Its topology twice (in the ``state_dict``, and as the kernels have proven it), the walk of the matrix and that of its
    transpose, and the permutation between them.
    """
    if not native.enabled():
        return 4 * (2 * (shape[0] + 1) + 4 * kept)
    rows = [(shape[0], shape[1]), (shape[1], shape[0])]
    blocks = [-(-columns // block_columns(r, columns, kept)) for r, columns in rows]
    parts = part_count(kept)
    walks = sum(
        12 * (r * b + RUN_PADDING) + 4 * parts * b * BUCKETS + 12 * (parts + 1)
        for (r, _), b in zip(rows, blocks, strict=True)
    )
    return 4 * (2 * (shape[0] + 1) + 4 * kept) + walks


def _bytes(
    model: nn.Module, rows: dict[int, Row], form: Form, states: float, batch: int, sizes: tuple[int, int]
) -> Bytes:
    activations, widest = (batch * size for size in sizes)
    parameters = gradients = indices = largest = scratch = 0
    tiles = min(TILES_AT_ONCE, -(-batch // TILE_WIDTH))
    for p in model.parameters():
        row = rows.get(id(p))
        count = p.numel() if row is None else row.numel
        if row is not None and form == "stored" and _can_be_stored(row):
            count = row.kept
            outputs, inputs = row.shape[0], row.numel // row.shape[0]
            indices += index_bytes((outputs, inputs), count)
            # The kernels' own buffers: the weights woven with their columns, and tiles of activations.
            scratch = max(scratch, 8 * count + 2 * 4 * TILE_WIDTH * tiles * (outputs + inputs))
        elif row is not None and form != "dense":
            indices += row.numel + 8 * row.kept
        parameters += count * p.itemsize
        if p.requires_grad:
            gradients += count * p.itemsize
            largest = max(largest, count * p.itemsize)
    optimizer = round(states * gradients)
    backward = max(activations, gradients) + 2 * widest + scratch
    step = gradients + (2 * largest if states else 0)  # such as Adam's denominator, in two versions
    return Bytes(parameters, gradients, optimizer, indices, activations, max(backward, step))


def _can_be_stored(row: Row) -> bool:
    return row.weight.stored or storable(row.weight.module)


def _activations(model: nn.Module, example: Tensor) -> tuple[int, int]:
    """Bytes that forward saves for backward, and those of the largest tensor saved, both for one example."""
    (few, wide), (more, wider) = (_saved(model, example, copies) for copies in (2, 3))
    return more - few, wider - wide


def _saved(model: nn.Module, example: Tensor, copies: int) -> tuple[int, int]:
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    x = example[:1].expand(copies, *example.shape[1:]).contiguous()
    own = {name: b.detach().clone() for name, b in model.named_buffers() if b.is_floating_point()}
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        functional_call(model, own, (x,))
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes = [t.untyped_storage().nbytes() for key, t in found.items() if key not in weights]
    return sum(sizes), max(sizes, default=0)


def _named(name: str) -> MakeOptimizer:
    if name.lower() == "momentum":
        return lambda parameters: torch.optim.SGD(parameters, momentum=0.9)
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls.__name__.lower() == name.lower():
            return cls
    raise ValueError(
        f"torch.optim has no optimizer called {name!r}: use one such as adam, sgd, momentum, rmsprop"
    )
