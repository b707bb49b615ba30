"""Task arithmetic: what was learned is a vector, and vectors add up."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.merger import Merging
from openwork.method import method


@method(
    paper="Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, arXiv 2212.04089", kind="merge"
)
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Merging):
    """Add the deltas of all models to their base::

        W = W0 + scale * sum over k of weight_k * (W_k - W0)

    A negative weight takes a task away. The reference that every other merge is compared with.

    Args:
        scale: 0.3, as in the paper for several tasks; 1 gives a single tuned model back, bit for bit.
        sparsity: 0: nothing is dropped; otherwise the smallest changes are.
    """

    sparsity: float = 0.0
    scale: float = 0.3
