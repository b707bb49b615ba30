"""What each form of training takes, added up.

Counted are parameters, gradients, optimizer state, what is known of the topology and what the method remembers, activations, the
buffers that kernels keep, and what is needed for a moment: whichever is largest of the dearest moment of forward and backward
(:mod:`openwork.memory.course`), the optimizer's temporary tensors and those of an update of the topology. Not counted is what
does not depend on the model: libraries, data, and what the allocator keeps back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.connections.stored import TILE
from openwork.kernels.conv_index import conv_index_bytes
from openwork.kernels.index import index_bytes as linear_index_bytes
from openwork.kernels.ranking import CANDIDATE_BYTES
from openwork.kernels.scratch import Scratch, conv_scratch, linear_scratch
from openwork.layouts.chain import chained
from openwork.layouts.conv import convolution_of
from openwork.layouts.forms import storable
from openwork.memory.course import Course, course
from openwork.method import Method
from openwork.plan import Plan, Row, plan
from openwork.sparsifier import Training

Form = Literal["dense", "masked", "stored"]
FORMS: tuple[Form, ...] = ("dense", "masked", "stored")

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Bytes:
    """Bytes of one form of training.

    Attributes:
        parameters, gradients, optimizer: of all parameters, sparse or not.
        indices: masks and positions, or what stored connections and their kernels need to know where they are; also what the
            method keeps of pruned weights (latent weights, a dense momentum).
        activations: what one forward pass keeps for backward.
        buffers: what the kernels keep between calls to work in.
        passing: the most that gradients, activations and temporary tensors take at one time. Backward makes gradients as it
            lets go of activations, so this is less than their sum.
    """

    parameters: int
    gradients: int
    optimizer: int
    indices: int
    activations: int
    buffers: int
    passing: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return self.parameters + self.optimizer + self.indices + self.buffers + self.passing


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
        parts = ("parameters", "gradients", "optimizer", "indices", "activations", "buffers", "peak")
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
    """Predict the memory of a training step. Nothing is changed, and nothing larger than one parameter's gradient is allocated.

    Args:
        model: dense, or with layers that hold only their kept connections; tensors on the ``meta`` device will do.
        method: says what will be sparse, and how sparse.
        example: an input ``[1, ...]`` of the model; a step is taken with two and with three copies of it to see what it holds.
        batch: examples a step.
        optimizer: a class of ``torch.optim`` by its name, with its default options (``momentum``: SGD with momentum), or a
            function from parameters to an optimizer.

    Raises:
        ValueError: no optimizer is called so; see also :func:`openwork.plan.plan`.
    """
    layout = plan(model, method)
    states = moments(optimizer)
    rows = {id(row.weight.parameter): row for row in layout.sparse}
    plain = course(model, example)
    observed = [row.weight.module for row in layout.sparse if _can_be_stored(row)]
    looks = isinstance(method, Training) and "gradient" in method.growth_needs
    courses = {"stored": course(model, example, observed) if looks else plain}
    forms = {
        form: _bytes(model, rows, form, method, states, batch, courses.get(form, plain)) for form in FORMS
    }
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
    model: nn.Module,
    rows: dict[int, Row],
    form: Form,
    method: Method,
    states: float,
    batch: int,
    seen: Course,
) -> Bytes:
    needs = method.growth_needs if isinstance(method, Training) else frozenset()
    rewires = isinstance(method, Training) and type(method).update is not Training.update
    parameters = indices = remembered = update = waiting = of_chains = 0
    gradients: dict[int, int] = {}
    scratch = Scratch()
    # While a layer is observed it computes by itself.
    in_chains = set() if "gradient" in needs else chained(model, {row.weight.module for row in rows.values()})
    for p in model.parameters():
        row = rows.get(id(p))
        count = p.numel() if row is None else row.numel
        if row is not None and form == "stored" and _can_be_stored(row):
            count = row.kept
            indices += index_bytes(row, count, id(row.weight.module) in seen.differentiated)
            scratch |= _scratch(row, batch, row.weight.module in in_chains)
            if row.weight.module in in_chains:
                of_chains = max(of_chains, 4 * batch * (row.shape[0] + row.numel // row.shape[0]) + 4 * count)
            if rewires:
                looked = _looked_through(min(row.numel, TILE), count, p.itemsize) if needs else 0
                if isinstance(
                    row.weight.module, nn.Conv2d
                ):  # its dense gradient is made from reordered images
                    looked += batch * seen.passed.get(id(row.weight.module), 0)
                update, waiting = max(update, looked, _REWIRED * count), waiting + _WAITING * count
        elif row is not None and form != "dense":
            indices += row.numel + 8 * row.kept
            if isinstance(method, Training) and method.latent:
                indices += (p.itemsize + 2) * row.numel
                update = max(update, _RANKED * row.numel)
            indices += p.itemsize * row.numel if "momentum" in needs else 0
            remembered += p.itemsize * row.numel if needs else 0
            if rewires:
                looked = _looked_through(row.numel, row.kept, p.itemsize) if needs else 0
                update = max(update, looked, _REWIRED_MASKED * row.kept)
        parameters += count * p.itemsize
        if p.requires_grad:
            gradients[id(p)] = count * p.itemsize
    total, largest = sum(gradients.values()), max(gradients.values(), default=0)
    remembered += seen.left(batch) if form == "stored" else 0
    backward = seen.peak(batch, gradients, dense=form != "stored")
    if of_chains:  # a chain has its inputs in tiles, keeps all activations until it is through, and makes one layer's gradients
        backward = max(backward, batch * (seen.read + seen.saved) + of_chains)
    step = remembered + total + (2 * largest if states else 0)  # such as Adam's denominator, in two versions
    return Bytes(
        parameters,
        total,
        round(states * total),
        indices,
        batch * seen.saved,
        scratch.held(torch.get_num_threads()),
        max(backward + (remembered if form == "masked" else 0), step, remembered + total + update + waiting),
    )


_RANKED = 24
"""Bytes for each weight of a layer while all of them are ranked: strengths, their order, the places chosen and the new mask."""

_WAITING = 8
"""Bytes of a connection that is chosen, its column and where it comes from: they wait until all layers have chosen."""

_REWIRED = 10
"""Bytes for each connection of a stored layer while others are chosen: the positions of those that stay, and what is drawn."""

_REWIRED_MASKED = 26
"""The same of a masked layer: positions before and after, and where each comes from."""


def _looked_through(tile: int, kept: int, itemsize: int) -> int:
    """What it takes to find the best places in tiles of scores: one tile, the candidates, and the connections that stay."""
    return itemsize * tile + CANDIDATE_BYTES * min(tile, 3 * kept // 4) + 8 * kept


def _scratch(row: Row, batch: int, chained: bool) -> Scratch:
    module = row.weight.module
    if isinstance(module, nn.Embedding):
        return Scratch()
    if isinstance(module, nn.Conv2d):
        return conv_scratch(row.kept)
    outputs, inputs = row.shape[0], row.numel // row.shape[0]
    return linear_scratch(outputs, inputs, row.kept, batch, torch.get_num_threads(), chained=chained)


def _can_be_stored(row: Row) -> bool:
    return row.weight.stored or storable(row.weight.module)


def _named(name: str) -> MakeOptimizer:
    if name.lower() == "momentum":
        return lambda parameters: torch.optim.SGD(parameters, momentum=0.9)
    for cls in vars(torch.optim).values():
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls.__name__.lower() == name.lower():
            return cls
    raise ValueError(
        f"torch.optim has no optimizer called {name!r}: use one such as adam, sgd, momentum, rmsprop"
    )
