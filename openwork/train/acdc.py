"""AC/DC: compress, decompress, compress again: every pruned weight gets several chances to come back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.initialization import Init
from openwork.method import Method, check_fraction, method
from openwork.plan import Row
from openwork.selection import strongest
from openwork.sparsifier import Sparsifier, Training
from openwork.train.gmp import GMP


@method(
    paper="Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, NeurIPS 2021, "
    "arXiv 2106.12379",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class ACDC(Training):
    """Alternate between training the strongest weights alone and training all of them.

    One run yields a sparse model and a dense one::

        warm-up     dense
        compress    keep the largest |w|, the others are zero; train what is left      for `sparse` of the run
        decompress  all weights train again, the pruned ones from zero                 for `dense` of the run
        ...         and so on; the last dense phase takes at least `last_dense` and ends with the
        compress    that is final, for the last `last_sparse` of the run

    A mask is chosen once a phase. Sparse networks are under-trained by the schedules of dense ones (Kuznedelev et al., 2024,
    arXiv 2308.02060): while the sparse loss is above the dense one at the end (:func:`openwork.undertraining`), a longer run is
    worth more than another method.

    Args:
        warmup, sparse, dense, last_dense, last_sparse: lengths of the phases as parts of the run; 0.1, 0.05, 0.05, 0.1, 0.15 as
            in the paper's ImageNet runs (100 epochs; compress at 10, 20, ..., 70 and 85, decompress at 15, 25, ..., 75). Its
            CIFAR runs are 0.05, 0.1, 0.1, 0.1, 0.15.
        reset_momentum: forget the optimizer's state of a parameter when its pruned weights come back, as the released runs do;
            old momentum would make them jump.
        keep_dense: remember the weights of the last dense phase, see :meth:`dense_weights`.
        allocation: ``global`` (default), the weights of all layers are ranked together; ``uniform`` is the paper's other choice.

    With ``warmup`` until the last phase this is one-shot magnitude pruning and fine-tuning (:class:`GMP` with one pruning). The
    statistics of batch norms lag behind after a change of phase: evaluate at the end of a phase.

    Differences from the authors' code: phases follow steps, not epochs, and their lengths follow the length of the run. Momentum
    of parameters that are never pruned is not reset.
    """

    shrinks: ClassVar[bool] = True
    restores: ClassVar[bool] = True

    warmup: float = 0.1
    sparse: float = 0.05
    dense: float = 0.05
    last_dense: float = 0.1
    last_sparse: float = 0.15
    reset_momentum: bool = True
    keep_dense: bool = True
    allocation: str | Allocation = "global"
    init: Init = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        for phase in ("warmup", "sparse", "dense", "last_dense", "last_sparse"):
            check_fraction(phase, getattr(self, phase))
        if self.sparse + self.dense == 0:
            raise ValueError(
                "sparse and dense phases of no length never end: give one of them a part of the run"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if self.steps is None:
            return
        at_once = dataclasses.replace(self, warmup=1.0, keep_dense=False)
        moment = (self.last_compression + 0.5) / self.steps
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Training)}
        yield at_once, GMP(**shared, begin=moment, until=moment)

    @property
    def last_compression(self) -> int:
        """The step after which the final sparse phase begins; the model is the dense one until then."""
        return self._step(1.0 - self.last_sparse)

    def phases(self) -> dict[int, bool]:
        """Step -> whether a sparse phase begins after it (or a dense one), in order. Phases too short for a step are left out."""
        end = 1.0 - self.last_sparse - self.last_dense
        found: dict[int, bool] = {}
        cycle = 0
        while (begin := self.warmup + cycle * (self.sparse + self.dense)) + self.sparse <= end + 1e-9:
            found[self._step(begin)] = True
            found[self._step(begin + self.sparse)] = False
            cycle += 1
        found[self.last_compression] = True
        return found

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def due(self, step: int) -> bool:
        return step in self.phases()

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        if not self.phases()[step]:
            self._decompress(sparsifier)
            return
        chosen = strongest(sparsifier.plan, sparsifier.connections)
        if self.keep_dense and step == self.last_compression:
            for name, c in sparsifier.connections.items():
                flat = c.values.new_zeros(c.numel)
                flat[c.positions] = c.values
                sparsifier.state[f"dense {name}"] = flat.view(c.weight.shape)
        for c, survivors in chosen:
            c.retain(survivors)

    def _decompress(self, sparsifier: Sparsifier) -> None:
        for c in sparsifier.connections.values():
            restored = c.kept < c.numel
            c.replace(torch.arange(c.numel, device=c.device))
            if self.reset_momentum and restored:
                c.forget()

    def dense_weights(self, sparsifier: Sparsifier) -> dict[str, Tensor]:
        """The weights ``[out, in, *kernel]`` at the end of the last dense phase, by parameter name: the run's other model.

        What the method does not cover, such as biases and norms, is not among them: right after step :attr:`last_compression` the
        model holds theirs.

        Raises:
            ValueError: there are none yet, or ``keep_dense`` is off.
        """
        prefix = "dense "
        found = {key.removeprefix(prefix): w for key, w in sparsifier.state.items() if key.startswith(prefix)}
        if not found:
            raise ValueError(
                f"the dense weights are kept from step {self.last_compression} on if keep_dense is on; this run is at step "
                f"{sparsifier.step_count} with keep_dense={self.keep_dense}"
            )
        return found

    def _step(self, part: float) -> int:
        """The last step of a part of the run, at least the first one; forgives the rounding of sums such as 0.1 + 0.2."""
        return max(1, math.floor(part * self.run_length + 1e-9))
