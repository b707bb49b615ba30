"""What a convolution of a traced model takes over: the norm, the addition and the ReLU behind it, where nobody else looks at what
stands between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from openwork.layouts.packed_conv import PackedConv
from openwork.pack.behind import foldable
from openwork.pack.operators import is_add, is_relu


@dataclass(eq=False)
class Fused:
    """A convolution and what it takes over: the node whose value it makes, and the one that it carries."""

    node: fx.Node
    layer: nn.Conv2d
    norm: nn.BatchNorm2d | None
    activation: str
    last: fx.Node
    carried: fx.Node | None = None


def fusions(
    graph: fx.Graph, modules: Mapping[str, nn.Module], layers: Mapping[nn.Module, bool]
) -> list[Fused]:
    """What each of the ``layers`` can take over."""
    found: list[Fused] = []
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d) or layer not in layers or not node.args:
            continue
        one = Fused(node, layer, None, "none", node)
        if isinstance(layer, PackedConv):
            one.norm, one.activation = layer.norm, layer.activation
        elif (
            (after := _only_user(node)) and after.op == "call_module" and foldable(modules[str(after.target)])
        ):
            norm = modules[str(after.target)]
            assert isinstance(norm, nn.BatchNorm2d)
            one.norm, one.last = norm, after
        found.append(one)
    carrying: set[fx.Node] = (
        set()
    )  # additions: of two convolutions that are added up one carries the other's value along
    for one in found:
        after = _only_user(one.last)
        if one.activation == "none" and after and is_add(after) and after not in carrying:
            others = [part for part in after.args if part is not one.last]
            if others:  # not the convolution added to itself
                assert isinstance(others[0], fx.Node)
                one.carried, one.last = others[0], after
                carrying.add(after)
                after = _only_user(after)
        if one.activation == "none" and after and is_relu(after, modules.get(str(after.target))):
            one.activation, one.last = "relu", after
    return found


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
