"""PST: movement pruning with few numbers to train: updates and scores of low rank, and a score for every row and column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.connections import LatentConnections
from openwork.method import Method, method
from openwork.scores import movement
from openwork.sparsifier import Sparsifier
from openwork.train.deep_r import learning_rate
from openwork.train.movement import Movement, precise


@method(
    paper="Li et al., Parameter-Efficient Sparsity for Large Language Models Fine-Tuning, IJCAI 2022, arXiv 2205.11005",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class PST(Movement):
    """Parameter-efficient sparse training: about a hundredth of the weights is trained while most are pruned.

    Scores that add up over a run are of low rank, with stripes of rows and columns, so they are held as such, and so is what
    fine-tuning adds to the weights ``W0``, which never change themselves::

        theta = W0 + change * U V                      U [out, rank] ~ N(0, 1)           V [rank, in] = 0
        S = |theta| + low_rank * A B                   A [out, score_rank] ~ N(0, 1)     B [score_rank, in] = 0
                    + stripes * (R[:, None] + C[None])                                   R [out] = C [in] = 0
        w = M * theta,   M = the kept largest S

    The gradient of ``w`` passes ``M`` straight through to ``A B R C`` and to ``|theta|``. At first this is magnitude pruning.
    ``(rank + score_rank) (out + in) + out + in`` numbers are trained for each matrix ``[out, in]``, by Adam. The optimizer trains
    whatever else it was given, such as biases (the authors freeze them: leave them out). When detached, the model is a plain
    sparse one.

    Args:
        rank, score_rank: 8 and 8, as in the paper.
        change, low_rank, stripes: how much each term counts; 1.
        pace: learning rate of ``U`` and ``V``, which follows the schedule of the optimizer's; 1e-3, which suits some hundred
            steps. ``U`` is much larger than the ``A`` of LoRA: the paper takes 3e-5 for twenty epochs.
        rate: learning rate of the scores; 1e-3 likewise.

    Memory is not that of so few numbers: scores and gradients of a parameter are dense for a moment, as in the authors' code, and
    ``W0`` is kept. Checkpoints from before ``until`` are of networks less sparse than asked for: take the best one after it.
    """

    rank: int = 8
    score_rank: int = 8
    change: float = 1.0
    low_rank: float = 1.0
    stripes: float = 1.0
    pace: float = 1e-3
    rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or self.score_rank < 1 or self.pace < 0:
            raise ValueError(
                f"ranks are at least 1 and pace at least 0; got {self.rank}, {self.score_rank} and {self.pace}"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        return ()

    def attached(self, sparsifier: Sparsifier) -> None:
        for row, c in sparsifier.latents():
            base = _matrix(c, c.latent)
            drawn = {"U": (len(base), self.rank), "A": (len(base), self.score_rank)}
            zeros = {"V": (self.rank, base.shape[1]), "B": (self.score_rank, base.shape[1])}
            zeros |= {"R": (len(base), 1), "C": (1, base.shape[1])}
            generator = self.generator(f"factors of {row.name}")
            for factor, shape in drawn.items():
                normal = torch.randn(shape, generator=generator, dtype=torch.float64)
                sparsifier.state[f"{factor} {c.name}"] = normal.to(base)
            for factor, shape in zeros.items():
                sparsifier.state[f"{factor} {c.name}"] = base.new_zeros(shape)
            sparsifier.state[f"W0 {c.name}"] = c.latent.clone()
            sparsifier.state[f"lr {c.name}"] = torch.tensor(first_rate(c), dtype=torch.float64)

    def learn(self, sparsifier: Sparsifier, c: LatentConnections, gradient: Tensor, step: int) -> None:
        """Move the factors of one parameter, and the parameter with them; the optimizer sees no gradient of it."""
        u, v, a, b, *_ = self.factors(sparsifier, c)
        theta, seen = _matrix(c, c.latent), _matrix(c, gradient)
        score = -movement(theta, seen)
        weight = self.change * (seen.masked_fill(_matrix(c, c.inactive).bool(), 0) + theta.sign() * score)
        slopes = {"U": weight @ v.T, "V": u.T @ weight}
        slopes |= {"A": self.low_rank * score @ b.T, "B": self.low_rank * a.T @ score}
        slopes |= {"R": self.stripes * score.sum(1, True), "C": self.stripes * score.sum(0, True)}
        first = float(sparsifier.state[f"lr {c.name}"])
        pace = self.pace * learning_rate(c) / first if first else self.pace
        for factor, slope in slopes.items():
            self.descend(sparsifier, f"{factor} {c.name}", slope, step, pace if factor in "UV" else self.rate)
        u, v, *_ = self.factors(sparsifier, c)
        base = _matrix(c, sparsifier.state[f"W0 {c.name}"])
        moved = (base + self.change * (u @ v)).view(c.weight.shape)
        parameter = c.weight.parameter
        parameter.copy_(c.weight.restored(moved).to(parameter.dtype))
        parameter.grad = None

    def scores(self, sparsifier: Sparsifier, c: LatentConnections) -> Tensor:
        _, _, a, b, rows, columns = self.factors(sparsifier, c)
        theta = _matrix(c, c.latent)
        score = theta.abs() + self.low_rank * (a @ b) + self.stripes * (rows + columns)
        return c.weight.restored(score.view(c.weight.shape))

    def factors(self, sparsifier: Sparsifier, c: LatentConnections) -> list[Tensor]:
        """``U V A B R C`` of one parameter, ``R`` as a column and ``C`` as a row; the weight is seen as a matrix."""
        return [sparsifier.state[f"{factor} {c.name}"] for factor in "UVABRC"]

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        pairs = sparsifier.latents()
        trained = sum(factor.numel() for _, c in pairs for factor in self.factors(sparsifier, c))
        return {"share of the weights that is trained": trained / sum(row.numel for row, _ in pairs)}


def first_rate(c: LatentConnections) -> float:
    """What the optimizer's schedule is a multiple of: what a scheduler began from, or the present rate where there is none."""
    groups = c.optimizer.param_groups if c.optimizer is not None else []
    group = next((g for g in groups if any(p is c.weight.parameter for p in g["params"])), {})
    return float(group.get("initial_lr", learning_rate(c)))


def _matrix(c: LatentConnections, tensor: Tensor) -> Tensor:
    """A tensor of the parameter's shape as a matrix ``[out, in * prod(kernel)]``, in the precision of the factors."""
    return c.weight.oriented(tensor).flatten(1).to(precise(c.latent))
