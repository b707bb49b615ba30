"""A traced model as steps that hand images in blocks to each other.

Convolutions take over the norm, the addition and the ReLU behind them where nobody else looks at what stands between.
What else a node does is either known on blocks (:mod:`openwork.pack.operators`), or it is called as it is, with plain
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from openwork.pack.behind import Tracer
from openwork.pack.fusions import Fused, fusions
from openwork.pack.operators import (
    Window,
    does_nothing,
    into_blocks,
    is_add,
    known,
    makes_blocks,
    out_of_blocks,
)
from openwork.pack.places import Attribute, Method, Place
from openwork.pack.steps import Blocked, Conv, Depthwise, Plain, Pool, Step, is_depthwise


def traced(model: nn.Module, x: Tensor) -> fx.Graph | None:
    """The graph of a model that is called with images only; None where its steps depend on more than its modules."""
    try:
        graph = Tracer().trace(model)
        ShapeProp(fx.GraphModule(model, graph)).propagate(x)
    except Exception:  # whatever a model does that depends on its inputs
        return None
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        found = node.meta.get("tensor_meta")
        node.meta["shape"] = tuple(found.shape) if hasattr(found, "shape") else None
        if does_nothing(node, modules.get(str(node.target)) if node.op == "call_module" else None):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return graph if len(inputs) == 1 and not any(_changes_shared(n, modules) for n in graph.nodes) else None


def _changes_shared(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node writes into a tensor that others may read: then the order of steps would matter."""
    name = getattr(node.target, "__name__", str(node.target))
    if node.op == "call_module":
        writes = getattr(modules[str(node.target)], "inplace", False)
    else:
        method = name.endswith("_") and not name.endswith("__")
        writes = method or name in ("iadd", "isub", "imul", "itruediv") or node.kwargs.get("inplace", False)
    if name in ("setitem", "setattr") or "out" in node.kwargs:
        return True
    if not writes:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    fresh = source.op == "call_module" or is_add(source)
    return not fresh or len(source.users) > 1


@dataclass
class Reader:
    """Reads a graph into steps.

    Attributes:
        model: what was traced.
        graph: from :func:`traced`.
        layers: convolutions that run in our kernels: with 16 images side by side (True) or 16 pixels.
        steps: in the order of computing.
    """

    model: nn.Module
    graph: fx.Graph
    layers: Mapping[nn.Module, bool]
    steps: list[Step] = field(default_factory=list)
    _plain_at: dict[fx.Node, int] = field(default_factory=dict)
    _blocked_at: dict[fx.Node, int] = field(default_factory=dict)
    _count: int = 0

    def read(self) -> Any:
        """Make the steps; returns the places of the outputs, nested as the model has them."""
        self.modules = dict(self.model.named_modules())
        fused = fusions(self.graph, self.modules, self.layers)
        self.convolutions = {one.node: one for one in fused}
        # A convolution is computed where the last node stands that it takes over: what it carries is there by then.
        due = {one.last: one for one in fused}
        taken = set()
        for one in fused:
            node = one.node
            while node is not one.last:
                taken.add(node)
                (node,) = node.users
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self._place(node, blocked=False)
            elif node.op == "output":
                return self._arguments(node.args[0])
            elif node in due:
                self._convolve(due[node])
            elif node not in taken:
                self._compute(node)
        raise AssertionError("a graph has an output")

    def _convolve(self, one: Fused) -> None:
        grouped, (source, *_) = self.layers[one.layer], one.node.args
        assert isinstance(source, fx.Node)
        blocked = grouped and any(self._takes_blocks(user) for user in one.last.users)
        kind: type[Conv] = Depthwise if is_depthwise(one.layer) else Conv
        if kind is Depthwise:  # inputs and outputs are in the same order
            x = self._blocked(source) if blocked else self._plain(source)
        else:
            x = self._blocked_at[source] if grouped and source in self._blocked_at else self._plain(source)
        carried = None
        if one.carried is not None:
            carried = self._blocked(one.carried) if blocked else self._plain(one.carried)
        to = self._place(one.last, blocked=blocked)
        shape = one.last.meta["shape"]
        step = kind(to, shape, blocked, one.layer, one.norm, grouped, x, carried, one.activation)
        self.steps.append(step)

    def _takes_blocks(self, node: fx.Node) -> bool:
        if node in self.convolutions:
            return self.layers[self.convolutions[node].layer]
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return node.op != "output" and known(node, module) is not None

    def _compute(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        call = None
        if any(source in self._blocked_at for source in sources):
            call = known(node, self.modules.get(str(node.target)) if node.op == "call_module" else None)
        if call is None:
            self._call(node)
            return
        arguments, shape = [self._blocked(source) for source in _listed(node)], node.meta["shape"]
        if isinstance(call, Window):
            to = self._place(node, blocked=True)
            size = call.window, call.stride, call.padding, call.mean
            self.steps.append(Pool(to, shape, True, arguments[0], *size))
        else:
            blocked = makes_blocks(call)
            to = self._place(node, blocked=blocked)
            self.steps.append(Blocked(to, shape, blocked, arguments, call))

    def _call(self, node: fx.Node) -> None:
        """Call what the model calls."""
        arguments, keywords = self._arguments(node.args), self._arguments(node.kwargs)
        call: Callable[..., Any]
        if node.op == "call_module":
            call = self.model.get_submodule(str(node.target))
        elif node.op == "call_method":
            call = Method(str(node.target))
        elif node.op == "get_attr":
            call, arguments = Attribute(self.model, str(node.target)), ()
        else:
            assert callable(node.target)
            call = node.target
        self.steps.append(Plain(self._place(node, blocked=False), (), False, arguments, keywords, call))

    def _place(self, node: fx.Node, *, blocked: bool) -> int:
        (self._blocked_at if blocked else self._plain_at)[node] = self._count
        self._count += 1
        return self._count - 1

    def _plain(self, node: fx.Node) -> int:
        if node not in self._plain_at:
            x, to = self._blocked_at[node], self._place(node, blocked=False)
            self.steps.append(Blocked(to, node.meta["shape"], False, [x], out_of_blocks))
        return self._plain_at[node]

    def _blocked(self, node: fx.Node) -> int:
        if node not in self._blocked_at:
            x, to = self._plain_at[node], self._place(node, blocked=True)
            self.steps.append(Blocked(to, node.meta["shape"], True, [x], into_blocks))
        return self._blocked_at[node]

    def _arguments(self, arguments: Any) -> Any:
        """Nested arguments with places for nodes."""
        if isinstance(arguments, fx.Node):
            return Place(self._plain(arguments))
        if isinstance(arguments, slice):
            return slice(
                *(self._arguments(part) for part in (arguments.start, arguments.stop, arguments.step))
            )
        if isinstance(arguments, dict):
            return {key: self._arguments(part) for key, part in arguments.items()}
        if isinstance(arguments, (tuple, list)):
            parts = [self._arguments(part) for part in arguments]
            return parts if isinstance(arguments, list) else tuple(parts)
        return arguments


def _listed(node: fx.Node) -> list[fx.Node]:
    """The tensors a node computes with, in order, repeated ones too."""
    (first, *rest) = node.args
    parts = first if isinstance(first, (tuple, list)) else [first, *rest]
    return [part for part in parts if isinstance(part, fx.Node)]
