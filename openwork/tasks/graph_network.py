"""Networks built on a graph: its nodes are units, its links the connections between them.

graph = ow.watts_strogatz(100, 6, 0.3)
model = ow.graph_network(graph, 64, 10)                        # feed-forward, level by level
ow.attach(model, optimizer, ow.KeepZeros())                    # no link, no connection: zeros stay

masks = ow.recurrent_masks(model, graph)                       # or: between the hidden units of a recurrent network
ow.attach(model, optimizer, ow.KeepZeros(exclude=("*weight_ih*", "head.*")), masks=masks)

(Stier, Darji & Granitzer, Experiments on Properties of Hidden Structures of Sparse Neural Networks, 2021, arXiv 2107.12917;
Darji, Investigating Sparsity in Recurrent Neural Networks, 2024, arXiv 2407.20601.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openwork.graphs import levels
from openwork.initialization import initial_values
from openwork.tasks.initial import seeded


class GraphNetwork(nn.Module):
    """A feed-forward network whose hidden units are the nodes of a graph. Made by :func:`graph_network`.

    With links from lower to higher levels, however far, every unit computes::

        h_v = f(b_v + sum of w_vu h_u over the links u -> v)        sources read all inputs, all outputs read the sinks

    Attributes:
        entry, exit: dense layers, from the inputs to the sources and from the sinks to the outputs.
        levels: one layer for each level but the first; it reads all units of the levels before.
        masks: name of their weights -> which connections are links, bool ``[units, units before]``.

    Args:
        links: the masks, level by level.
        sources: units of the first level.
        sinks: numbers of the units from which none leads on, counted level by level.
        inputs, outputs: of the network.
        activation: makes ``f``.
    """

    def __init__(
        self,
        links: Sequence[Tensor],
        sources: int,
        sinks: Sequence[int],
        inputs: int,
        outputs: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, sources)
        self.levels = nn.ModuleList(nn.Linear(mask.shape[1], mask.shape[0]) for mask in links)
        self.exit = nn.Linear(len(sinks), outputs)
        self.activation = activation()
        self.sinks = list(sinks)
        self.masks = {f"levels.{number}.weight": mask for number, mask in enumerate(links)}

    def forward(self, x: Tensor) -> Tensor:
        """``[n, ...]``, flattened to ``[n, inputs]``, to ``[n, outputs]``."""
        units = self.activation(self.entry(x.flatten(1)))
        for level in self.levels:
            units = torch.cat([units, self.activation(level(units))], dim=1)
        y: Tensor = self.exit(units[:, self.sinks])
        return y


def graph_network(
    graph: Tensor,
    inputs: int,
    outputs: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    seed: int | torch.Generator = 0,
) -> GraphNetwork:
    """A network on the nodes of a graph, with links from lower to higher numbers; see :class:`GraphNetwork`.

    Args:
        graph: bool ``[n, n]``, symmetric, such as :func:`openwork.watts_strogatz` draws.
        inputs, outputs: of the network.
        activation: makes what stands behind every unit.
        seed: of the weights. They have He's variance for the links that a unit has; what is no link is exactly zero.

    Raises:
        ValueError: ``graph`` is no undirected graph without loops.
    """
    level = levels(graph)
    order = level.argsort(stable=True)
    links_in = graph.cpu().tril()[order][:, order]  # [to, from], level by level
    widths = torch.bincount(level).tolist()
    links, before = [], widths[0]
    for width in widths[1:]:
        links.append(links_in[before : before + width, :before].clone())
        before += width
    sinks = (~links_in.any(0)).nonzero().flatten().tolist()
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    model = seeded(lambda: GraphNetwork(links, widths[0], sinks, inputs, outputs, activation), generator)
    with torch.no_grad():
        for layer, mask in zip(model.levels, links, strict=True):
            weight = layer.get_parameter("weight")
            units, _ = mask.nonzero(as_tuple=True)
            kept = initial_values(weight[mask], units, tuple(mask.shape), "rescale", generator)
            weight.zero_()[mask] = kept
    return model


def recurrent_masks(model: nn.Module, graph: Tensor) -> dict[str, Tensor]:
    """Masks with which the hidden units of recurrent layers are linked as in a graph, in every gate alike.

    Gates are stacked along the rows of a weight, so the graph is repeated in chunks of rows, not row by row. The layers' inputs
    are left alone.

    Args:
        model: with ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or their cells; not changed.
        graph: bool ``[n, n]``, ``[to, from]``; directed or not, with or without links to itself.

    Returns:
        Name -> mask ``[gates * n, n]`` of every hidden-to-hidden matrix, for ``attach(..., masks=...)``.

    Raises:
        ValueError: there is none, or one has another number of units.
    """
    if graph.dtype != torch.bool or graph.dim() != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"a graph of hidden units is boolean [n, n]; got {graph.dtype} {list(graph.shape)}")
    found = {}
    for prefix, layer in model.named_modules():
        if not isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            continue
        for part, weight in layer.named_parameters(recurse=False):
            if not part.startswith("weight_hh"):
                continue
            name = f"{prefix}.{part}" if prefix else part
            gates, rest = divmod(weight.shape[0], len(graph))
            if weight.shape[1] != len(graph) or rest:
                raise ValueError(
                    f"{name} links {weight.shape[1]} units in a weight {list(weight.shape)}, and the graph has {len(graph)} nodes"
                )
            found[name] = graph.repeat(gates, 1).to(weight.device)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no recurrent layer, so no hidden-to-hidden matrix to link"
        )
    return found
