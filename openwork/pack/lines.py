"""Modules whose code calls sparse layers one after the other, with functions of single elements between them: chained as well.

An ``nn.Sequential`` of such layers is a chain by its kind (:mod:`openwork.layouts.chain`). Code that says
``F.relu(self.first(x))`` has to be traced first: a module qualifies if its trace is one line, from one input to one output, of
layers and of functions that are known here. Its ``forward`` stays what it is, and is called in training mode, under a compiler,
and when a submodule was replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from openwork.layouts.chain import LAYERS, is_watched, links, through
from openwork.pack.behind import Tracer

FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: lambda inplace=False: _unless(inplace, nn.ReLU()),
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    F.gelu: lambda approximate="none": nn.GELU(approximate),
    F.silu: lambda inplace=False: _unless(inplace, nn.SiLU()),
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    F.dropout: lambda p=0.5, training=True, inplace=False: _unless(training or inplace, nn.Identity()),
    torch.flatten: lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
    "flatten": lambda start_dim=0, end_dim=-1: nn.Flatten(start_dim, end_dim),
}  # fmt: skip
"""What a line may call besides modules: function or method -> the module that does the same."""


@dataclass(frozen=True, eq=False)
class Line:
    """Stands in for the ``forward`` of a module that calls layers one after the other.

    Attributes:
        module: whose ``forward`` it is.
        names: of its submodules that are called, "" for functions.
        steps: what is called, in order.
        around: modules inside of it that hold steps, and so are not called.
    """

    module: nn.Module
    names: tuple[str, ...]
    steps: tuple[nn.Module, ...]
    around: tuple[nn.Module, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ``forward`` computes, handing activations on in tiles where that suits."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and self._applies():
            return through(self.steps, args[0])
        return type(self.module).forward(self.module, *args, **kwargs)

    def _applies(self) -> bool:
        if self.module.training or torch.compiler.is_compiling():
            return False
        if any(module.training or is_watched(module) for module in self.around):
            return False
        return all(
            not name or self.module.get_submodule(name) is step
            for name, step in zip(self.names, self.steps, strict=True)
        )


def lines(model: nn.Module) -> dict[str, Line]:
    """The modules of ``model`` whose code is such a line, with layers to chain in it, by name; those inside of others not."""
    found: dict[str, Line] = {}
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if inside or isinstance(module, (nn.Sequential, nn.ModuleList)) or "forward" in vars(module):
            continue
        line = _line(module)
        if line is not None and any(len(links(line.steps, at)[0]) > 1 for at in range(len(line.steps))):
            found[name] = line
    return found


def straighten_(found: dict[str, Line]) -> None:
    """Let modules compute as lines, in place."""
    for line in found.values():
        vars(line.module)["forward"] = line


def unstraighten_(model: nn.Module) -> None:
    """Undo :func:`straighten_`."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), Line):
            del vars(module)["forward"]


def _line(module: nn.Module) -> Line | None:
    """A module as a line; None where its code is not one."""
    inside = list(module.modules())
    if sum(isinstance(one, LAYERS) for one in inside) < 2 or any(
        isinstance(one, nn.Conv2d) for one in inside
    ):
        return None  # what images go through is a network, see whole
    try:
        nodes = list(Tracer().trace(module).nodes)
    except Exception:  # whatever a module does that depends on its inputs
        return None
    first, *calls, last = nodes
    if first.op != "placeholder" or first.args or last.op != "output" or not calls:
        return None
    names, steps = [], []
    for before, node in pairwise(nodes):
        if list(before.users) != [node] or node.all_input_nodes != [before]:
            return None
        if node is last:
            break
        step = _step(node, module)
        if step is None:
            return None
        names.append(str(node.target) if node.op == "call_module" else "")
        steps.append(step)
    if last.args[0] is not calls[-1]:
        return None
    called = {inner for step in steps for inner in step.modules()}
    around = [inner for inner in module.modules() if inner is not module and inner not in called]
    return Line(module, tuple(names), tuple(steps), tuple(around))


def _step(node: fx.Node, module: nn.Module) -> nn.Module | None:
    """What a node calls, as a module; None where that is not known."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return called if len(node.args) == 1 and not node.kwargs else None
    make = FUNCTIONS.get(node.target)
    if make is None:
        return None
    try:
        return make(*node.args[1:], **node.kwargs)
    except (TypeError, ValueError):  # arguments that are not known here
        return None


def _unless(wrong: bool, module: nn.Module) -> nn.Module:
    if wrong:
        raise ValueError("it writes into its input, or draws at random")
    return module
