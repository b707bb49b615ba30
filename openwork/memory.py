"""How much memory will training take? Dense, under masks, and holding only the kept connections; before anything is trained.

Counted are parameters, gradients, optimizer state, what is known of the topology and what the method remembers, activations, and
what is needed for a moment: whichever is largest of backward's temporary tensors, the optimizer's and those of an update of the
topology. Not counted is what does not depend on the model: libraries, data, and what the allocator keeps back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from openwork.connections.stored import TILE
from openwork.kernels.conv_index import conv_index_bytes
from openwork.kernels.index import TILE_WIDTH
from openwork.kernels.index import index_bytes as linear_index_bytes
from openwork.kernels.ranking import AT_ONCE, CANDIDATE_BYTES
from openwork.layouts.conv import convolution_of
from openwork.layouts.forms import storable
from openwork.method import Method
from openwork.plan import Plan, Row, plan
from openwork.sparsifier import Training

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
        indices: masks and positions, or what stored connections and their kernels need to know where they are; also what the
            method keeps of pruned weights (latent weights, a dense momentum).
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
    seen = _seen(model, example)
    forms = {form: _bytes(model, rows, form, method, states, batch, seen) for form in FORMS}
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


def index_bytes(row: Row, kept: int, transposed: bool) -> int:
    """Bytes of the indices of a stored layer: its topology as the ``state_dict`` has it, and once more as the kernels have proven
    it, with the order in which they walk it.

    Args:
        row: of the layer, dense or stored.
        kept: its connections.
        transposed: whether its inputs have gradients, for which the kernels walk the transposed matrix.
    """
    outputs, inputs = row.shape[0], row.numel // row.shape[0]
    module = row.weight.module
    if isinstance(module, nn.Conv2d):
        proven = conv_index_bytes(convolution_of(module), kept, transposed)
    elif isinstance(module, nn.Embedding):
        proven = 4 * (outputs + 1) + 4 * kept
    else:
        proven = linear_index_bytes((outputs, inputs), kept, transposed)
    return 4 * (outputs + 1) + 4 * kept + proven


def _bytes(
    model: nn.Module, rows: dict[int, Row], form: Form, method: Method, states: float, batch: int, seen: _Seen
) -> Bytes:
    activations, widest = batch * seen.activations, batch * seen.widest
    needs = method.growth_needs if isinstance(method, Training) else frozenset()
    rewires = isinstance(method, Training) and type(method).update is not Training.update
    parameters = gradients = indices = largest = remembered = update = 0
    # Dense convolutions put what they read and make in an order of their own first.
    scratch = 0 if form == "stored" else batch * seen.convolved
    for p in model.parameters():
        row = rows.get(id(p))
        count = p.numel() if row is None else row.numel
        if row is not None and form == "stored" and _can_be_stored(row):
            count = row.kept
            moved = index_bytes(row, count, id(row.weight.module) in seen.differentiated)
            indices += moved
            scratch = max(scratch, _scratch(row, batch))
            if (
                "gradient" in needs
            ):  # what passed through the layer: its inputs and the gradients of its outputs
                remembered += batch * (seen.inputs.get(id(row.weight.module), 0) + 4 * row.shape[0])
            if rewires:
                looked = _looked_through(min(row.numel, TILE), count, p.itemsize) if needs else 0
                moving = round((2 + states) * count * p.itemsize)
                update = max(update, looked, moved + _REWIRED * count + moving)
        elif row is not None and form != "dense":
            indices += row.numel + 8 * row.kept
            if isinstance(method, Training) and method.latent:
                indices += (p.itemsize + 2) * row.numel
                update = max(update, _RANKED * row.numel)
            indices += p.itemsize * row.numel if "momentum" in needs else 0
            remembered += p.itemsize * row.numel if needs else 0
            if rewires:
                looked = _looked_through(row.numel, row.kept, p.itemsize) if needs else 0
                update = max(update, looked, _REWIRED * row.kept)
        parameters += count * p.itemsize
        if p.requires_grad:
            gradients += count * p.itemsize
            largest = max(largest, count * p.itemsize)
    optimizer = round(states * gradients)
    backward = max(activations, gradients) + 2 * widest + scratch
    step = gradients + (2 * largest if states else 0)  # such as Adam's denominator, in two versions
    passing = remembered + max(backward, step, gradients + update)
    return Bytes(parameters, gradients, optimizer, indices, activations, passing)


_RANKED = 24
"""Bytes for each weight of a layer while all of them are ranked: strengths, their order, the places chosen and the new mask."""

_REWIRED = 40
"""Bytes for each connection of a layer while it is rewired: positions before and after, where each comes from."""


def _looked_through(tile: int, kept: int, itemsize: int) -> int:
    """What it takes to find the best places in tiles of scores: one tile, the candidates, and the connections that stay."""
    return itemsize * tile + CANDIDATE_BYTES * (AT_ONCE + kept // 2) + 16 * kept


def _scratch(row: Row, batch: int) -> int:
    """The kernels' own buffers: the weights woven with their columns, and activations packed in tiles."""
    module = row.weight.module
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, nn.Conv2d):
        return 8 * row.kept
    tiles = min(TILES_AT_ONCE, -(-batch // TILE_WIDTH))
    return 8 * row.kept + 2 * 4 * TILE_WIDTH * tiles * (row.shape[0] + row.numel // row.shape[0])


def _can_be_stored(row: Row) -> bool:
    return row.weight.stored or storable(row.weight.module)


@dataclass
class _Seen:
    """What one forward pass tells.

    Attributes:
        activations, widest: bytes that it saves for backward, and those of the largest tensor saved, for one example.
        inputs: bytes of the input of each module, by its identity, for one example.
        convolved: the most that a convolution reads and makes, for one example.
        differentiated: modules whose inputs will have gradients.
    """

    activations: int
    widest: int
    inputs: dict[int, int]
    convolved: int
    differentiated: set[int]


def _seen(model: nn.Module, example: Tensor) -> _Seen:
    (few, wide, passed, found), (more, wider, _, _) = (_saved(model, example, copies) for copies in (2, 3))
    inputs = {id(module): read // 2 for module, (read, _) in passed.items()}
    convolved = [sum(sizes) // 2 for module, sizes in passed.items() if isinstance(module, nn.Conv2d)]
    return _Seen(more - few, wider - wide, inputs, max(convolved, default=0), found)


_Passed = dict[nn.Module, tuple[int, int]]


def _saved(model: nn.Module, example: Tensor, copies: int) -> tuple[int, int, _Passed, set[int]]:
    """What forward saves of so many examples: bytes of all and of the largest; what each module reads and makes, and which will
    be asked for a gradient of what they read."""
    found: dict[int, Tensor] = {}
    passed: _Passed = {}
    differentiated: set[int] = set()

    def note(tensor: Tensor) -> Tensor:
        found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def look(module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
        for tensor in arguments[:1]:
            if isinstance(tensor, Tensor):
                passed[module] = tensor.nbytes, output.nbytes if isinstance(output, Tensor) else 0
                if tensor.requires_grad:
                    differentiated.add(id(module))

    x = example[:1].expand(copies, *example.shape[1:]).contiguous()
    own = {name: b.detach().clone() for name, b in model.named_buffers() if b.is_floating_point()}
    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            functional_call(model, own, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes = [t.untyped_storage().nbytes() for key, t in found.items() if key not in weights]
    return sum(sizes), max(sizes, default=0), passed, differentiated


def _named(name: str) -> MakeOptimizer:
    if name.lower() == "momentum":
        return lambda parameters: torch.optim.SGD(parameters, momentum=0.9)
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls.__name__.lower() == name.lower():
            return cls
    raise ValueError(
        f"torch.optim has no optimizer called {name!r}: use one such as adam, sgd, momentum, rmsprop"
    )
