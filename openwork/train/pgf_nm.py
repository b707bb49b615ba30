"""Progressive gradient flow: from dense to N:M by degrees, so that pruned weights lose their say slowly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from openwork.connections import LatentConnections
from openwork.method import Method, check_fraction, method
from openwork.patterns import NM, Pattern, pattern
from openwork.plan import Row
from openwork.sparsifier import Sparsifier, Training
from openwork.train.dnw import DNW
from openwork.train.gmp import GMP

Flow = Literal["exponential", "linear", "stepwise", "geometric"]
WIDENINGS = (8, 4, 2, 1)
"""How many times wider than in the end the groups of a geometric decay are, frame by frame."""


@method(
    paper="Bambhaniya et al., Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers, 2024, arXiv 2402.04744",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class PGF(DNW):
    """Decaying N:M masks: dense training, a decay, and fine-tuning under the plain N:M mask.

    Straight-through gradients of pruned weights are noise at high sparsity. Here their influence fades out between the dense
    phase and fine-tuning, in one of four ways. In two of them the *mask* decays. With ``M`` the N:M mask of the largest
    ``|theta|``, chosen anew after every step, and ``p`` the progress of the decay from 0 to 1::

        forward   w = theta * (M + (1 - M) * beta)
        linear       beta = 1 - p
        exponential  beta = rest ** p

    and in two the *structure*, over frames of equal length in which ``w = M * theta`` for a pattern of their own::

        stepwise   M-1:M,  M/2:M,  M/4:M, ...,  N:M             ever sparser
        geometric  8N:8M,  4N:4M,  2N:2M,  N:M                  in ever smaller groups

    All weights have gradients until fine-tuning begins; then the mask is fixed, what is pruned stays so and has none.

    Args:
        flow: ``exponential`` (default), ``linear``, ``stepwise`` or ``geometric``.
        dense: part of the run that is dense; 0.05 (1.25 to 10 % are in use).
        finetune: part of the run at its end under the final mask; 0.1.
        rest: what is left of ``beta`` at the end of an exponential decay; 0.01. The authors' code fixes the decay a step instead
            (2e-4), which has to be chosen anew for a run of another length.
        scaled: multiply the gradient of a weight by how strongly it is seen, as is exact; off (default), as in the authors' code.
        pattern: 1:4; the paper finds no gain over SR-STE at 2:4 and the most at 1:8 and beyond.

    With ``dense = 1 - finetune`` there is no decay: one-shot N:M pruning and fine-tuning (:class:`GMP` with one pruning). While
    weights fade the model that is evaluated is not sparse yet, and its masks say so.

    Differences from the authors' code: in a geometric decay a layer leaves out the groups that do not divide its inputs.
    """

    shrinks: ClassVar[bool] = True

    flow: Flow = "exponential"
    dense: float = 0.05
    finetune: float = 0.1
    rest: float = 0.01
    scaled: bool = False
    pattern: str | Pattern = "1:4"

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("dense", "finetune", "rest"):
            check_fraction(part, getattr(self, part))
        if self.flow not in ("exponential", "linear", "stepwise", "geometric"):
            raise ValueError(f"unknown flow {self.flow!r}: choose exponential, linear, stepwise or geometric")
        if self.flow in ("stepwise", "geometric") and not isinstance(pattern(self.pattern), NM):
            raise ValueError(
                f"a {self.flow} decay runs through n:m patterns, and the last one is {self.pattern}: use pattern='1:8', or the "
                "flow 'exponential' or 'linear'"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if self.steps is not None:
            at_once = dataclasses.replace(self, dense=1.0)
            moment = (self._last + 0.5) / self.steps
            shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Training)}
            yield at_once, GMP(**shared, begin=moment, until=moment)

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def due(self, step: int) -> bool:
        return step == self._last or (self._first <= step < self._last and step % self.every == 0)

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        for _, c in sparsifier.latents():
            gradient, seen = c.weight.parameter.grad, c.fading()
            if self.scaled and gradient is not None and seen is not None:
                gradient *= seen

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        progress = (step - self._first) / max(self._last - self._first, 1)
        chosen: list[tuple[LatentConnections, Tensor]] = []
        for row, c in sparsifier.latents():
            frames = self.frames(row)
            now = frames[math.floor(progress * len(frames))] if step < self._last else row.pattern
            chosen.append((c, c.strongest_latent(row.kept, now)))
        for c, positions in chosen:
            if step == self._last:
                c.fade(c.others(positions), 1.0)
                c.replace(positions)
                c.sleep(positions)
            elif self.flow in ("linear", "exponential"):
                c.fade(c.others(positions), self.strength(progress))
            else:
                c.replace(positions)

    def strength(self, progress: float) -> float:
        """``beta``, how strongly pruned weights are seen at a ``progress`` in [0, 1] of the decay."""
        return 1.0 - progress if self.flow == "linear" else self.rest**progress

    def frames(self, row: Row) -> list[Pattern]:
        """The patterns of the decay, frame by frame."""
        last = row.pattern
        if not isinstance(last, NM) or self.flow in ("linear", "exponential"):
            return [last]
        if self.flow == "geometric":
            wider = [NM(k * last.keep, k * last.of) for k in WIDENINGS]
            return [p for p in wider if p.misfit(row.shape) is None]
        kept, halves = [last.of - 1], last.of // 2
        while halves > last.keep:
            kept.append(halves)
            halves //= 2
        return [*(NM(k, last.of) for k in sorted(set(kept), reverse=True) if k > last.keep), last]

    @property
    def _first(self) -> int:
        """The step after which the decay begins, at least the first one."""
        return max(1, math.floor(self.dense * self.run_length + 1e-9))

    @property
    def _last(self) -> int:
        """The step after which fine-tuning begins."""
        return max(1, math.floor((1.0 - self.finetune) * self.run_length + 1e-9))
