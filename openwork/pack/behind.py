"""What stands right behind a layer and can be computed with it: a batch norm, an activation.

Where the model can be traced (``torch.fx``) its graph tells; where not, only neighbours in an ``nn.Sequential`` are
seen. A module is taken only where it is the one user of what stands before it, and is called once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}


@dataclass(frozen=True)
class Behind:
    """Names of the modules behind a layer, empty where there is none.

    Attributes:
        norm: a batch norm.
        activation: an activation, behind the norm if there is one.
        kind: its name as an epilogue.
    """

    norm: str = ""
    activation: str = ""
    kind: str = "none"


def behind(model: nn.Module) -> dict[str, Behind]:
    """What stands behind each ``nn.Linear`` and ``nn.Conv2d`` of ``model``, by name."""
    follower = _followers(model)
    modules = dict(model.named_modules())
    found = {}
    for name, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name in follower:
            norm, after = "", follower[name]
            if isinstance(module, nn.Conv2d) and foldable(modules[after]):
                norm, after = after, follower.get(after, "")
            kind = _kind(modules[after]) if after else "none"
            found[name] = Behind(norm, after if kind != "none" else "", kind)
    return found


class Tracer(fx.Tracer):
    """Looks into every module but layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, (nn.Linear, nn.Conv2d))  # those of ours included
        return layer or super().is_leaf_module(m, module_qualified_name)


def _followers(model: nn.Module) -> dict[str, str]:
    """Module -> the module that alone uses its outputs, both called once."""
    try:
        graph = Tracer().trace(model)
    except Exception:  # whatever a model does that depends on its inputs
        return _neighbours(model)
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    followers = {}
    for node in graph.nodes:
        if node.op == "call_module" and len(node.users) == 1:
            (user,) = node.users
            names = str(node.target), str(user.target)
            if user.op == "call_module" and calls[names[0]] == calls[names[1]] == 1:
                followers[names[0]] = names[1]
    return followers


def _neighbours(model: nn.Module) -> dict[str, str]:
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            for (name, layer), (after, follower) in pairwise(module._modules.items()):
                if places[id(layer)] == places[id(follower)] == 1:
                    found[f"{prefix}.{name}".lstrip(".")] = f"{prefix}.{after}".lstrip(".")
    return found


def foldable(module: nn.Module) -> bool:
    """Whether a module is a batch norm that a convolution before it can take over."""
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _kind(module: nn.Module) -> str:
    if type(module) is nn.GELU and module.approximate == "tanh":
        return "gelu_tanh"
    return ACTIVATIONS.get(type(module), "none")
