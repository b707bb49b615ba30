"""Train a fixed random topology: the baseline that every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.method import method
from openwork.plan import Row
from openwork.sparsifier import Training


@method(
    paper="Liu et al., The Unreasonable Effectiveness of Random Pruning, ICLR 2022, arXiv 2202.02643; "
    "Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, ICML 2023, arXiv 2210.02412",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class StaticRandom(Training):
    """A random mask with sensible layer densities, drawn once and trained like a dense network.

    For each parameter, exactly as many positions as the plan says are drawn uniformly from the pattern's legal places::

        M ~ uniform over masks with sum(M) = kept,     w <- M * w after every step

    It approaches the dense network as the network gets wider and deeper. It is also where methods that prune while they train may
    start, instead of from the dense network (Gadhikar et al.): they then work inside its mask and never leave it::

        start = ow.attach(model, None, ow.StaticRandom(sparsity=0.5, allocation="balanced"))
        start.detach()
        ow.attach(model, optimizer, ow.GMP(sparsity=0.9, steps=10_000), masks=start.masks)          # or ISSP, STR

    With ``allocation=ow.Like.of(masks)`` it takes over from another topology how many connections each layer has, and draws anew
    which: the control of every claim that a mask was well chosen.

    Args:
        repair: connect every output unit that drew no input and every input that drew no output, and take as many connections
            from units that can spare one, so that the count stays exact. Worth it from about 97 % sparsity up.

    Differences from the authors' code: counts are exact instead of Bernoulli draws, which wobble in small layers.
    """

    repair: bool = False

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        positions = super().topology(row, generator)
        if not self.repair or positions is None:
            return positions
        if not row.pattern.grid(row.shape).plain or row.pattern.grid(row.shape).rows > 1:
            raise ValueError(
                f"repair moves single connections, and {row.name} has pattern {row.pattern}: use pattern='unstructured'"
            )
        return repaired(positions, row.shape, generator)


def repaired(positions: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Move connections so that no output is without input and no input without output.

    It always succeeds from ``out + in - 1`` connections on. With fewer it does what it can, and never leaves more units
    alone than there were.

    Args:
        positions: sorted int64, drawn at random; not changed.
        shape: ``[out, in, *kernel]``; a unit is connected if any kernel position is.
        generator: chooses partners and which connections are given up.

    Returns:
        Sorted positions, as many as before.
    """
    outputs, inputs = shape[0], shape[1]
    taps = 1
    for size in shape[2:]:
        taps *= size
    active = set(positions.tolist())
    fan_in = torch.bincount(positions // (inputs * taps), minlength=outputs)
    fan_out = torch.bincount(positions // taps % inputs, minlength=inputs)

    def connect(output: int, input_: int) -> None:
        tap = int(torch.randint(taps, (1,), generator=generator))
        active.add((output * inputs + input_) * taps + tap)
        fan_in[output] += 1
        fan_out[input_] += 1

    # Pairing a lonely output with a lonely input mends two units with one connection.
    lonely_outputs, lonely_inputs = (
        (fan_in == 0).nonzero().flatten().tolist(),
        (fan_out == 0).nonzero().flatten().tolist(),
    )
    for i in range(max(len(lonely_outputs), len(lonely_inputs))):
        output = (
            lonely_outputs[i]
            if i < len(lonely_outputs)
            else int(torch.randint(outputs, (1,), generator=generator))
        )
        input_ = (
            lonely_inputs[i]
            if i < len(lonely_inputs)
            else int(torch.randint(inputs, (1,), generator=generator))
        )
        connect(output, input_)

    surplus = len(active) - positions.numel()
    # Give up connections whose units both have another one; then, where there are too few to reach every unit, those that
    # leave one unit alone, and only then those that leave two.
    for spared in (2, 1, 0):
        candidates = torch.tensor(sorted(active), dtype=torch.int64)
        for candidate in candidates[torch.randperm(len(active), generator=generator)].tolist():
            output, input_ = candidate // (inputs * taps), candidate // taps % inputs
            if surplus and int(fan_in[output] > 1) + int(fan_out[input_] > 1) >= spared:
                active.remove(candidate)
                fan_in[output] -= 1
                fan_out[input_] -= 1
                surplus -= 1
    return torch.tensor(sorted(active), dtype=torch.int64)
