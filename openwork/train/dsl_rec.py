"""Dynamic sparse learning: the embedding tables of a recommender are sparse from the first step, and share their budget."""

from __future__ import annotations

from dataclasses import dataclass

from openwork.allocation import Allocation
from openwork.growth import Growth
from openwork.method import method
from openwork.schedules import Cosine, Scalar
from openwork.train.rigl import RigL


@method(
    paper="Wang et al., Dynamic Sparse Learning: A Novel Paradigm for Efficient Recommendation, WSDM 2024, arXiv 2402.02855",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class DSL(RigL):
    """RigL for tables of users and items: who is seen often ends with more numbers.

    At an update, over a *whole* table, so that budgets move from row to row::

        drop  the smallest |w|              grow  as many of largest |m|, starting from zero

    A batch has gradients only for the rows it reads, so ``m`` is a running mean of them instead of the gradient of one batch.
    Embeddings stay dense unless named: ``include=("users.*", "items.*")``. The other weights of the model take part as usual.

    Args:
        sparsity, allocation: 0.5 and ``uniform``, as in the paper.
        drop: 0.5 falling to 0.005 along a cosine over the whole run, as in the paper.
        every: 2000 steps; the paper waits for 100 (batches of 16) to 3000 (of 1024), about as long as most rows need to be seen.
        until: 1, the whole run.
        grow: ``momentum``, the running mean, which decays by 0.9 a step.
        replace: updates come after the optimizer's step.

    Differences from the authors' code: the running mean, where theirs looks at one batch. Stored as positions and values, a table
    is smaller than a dense one from about 50 % sparsity on.
    """

    sparsity: float = 0.5
    allocation: str | Allocation = "uniform"
    drop: Scalar = Cosine(start=0.5, stop=0.005)
    every: int = 2000
    until: float = 1.0
    grow: str | Growth = "momentum"
    replace: bool = False
