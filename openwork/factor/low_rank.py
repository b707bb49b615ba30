"""Low rank: a linear layer as two thinner ones, solved on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import nn

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.walk import calibrate_
from openwork.factor.ranks import Spectrum, allocated, uniform_rank
from openwork.factorization import Factors, break_even, mimicking, mimicking_bias, truncated, whitened
from openwork.layouts.low_rank import LowRankLinear
from openwork.method import check_fraction, method

SOLVERS = ("svd", "afm", "whitened")


@method(
    paper="Kaushal, Vaidhya, Rish, LORD: Low Rank Decomposition Of Monolingual Code LLMs For One-Shot Compression, 2023, "
    "arXiv 2309.14021; whitened: Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class LowRank(Calibrated):
    """Replace weights ``W`` by ``A B``, ``A [out, k]`` and ``B [k, in]``: fast with ordinary kernels, and trainable.

    Three solvers say what is kept (:mod:`openwork.factorization`):

    - ``svd``: the most of ``W`` itself;
    - ``whitened``: the most of the outputs ``X W^T``; no product of that rank is nearer on the calibration data;
    - ``afm``: the most of the variance of the outputs, with their mean in the bias, which every layer then has.

    Parameters are saved only at ranks below ``out * in / (out + in)``, half the width of a square layer. A layer whose rank is
    not below stays as it is.

    Args:
        ratio: parameters of a layer that remain, in (0, 1]; a layer gets rank ``ratio * out * in / (out + in)``.
        solver: "svd", "afm" or "whitened".
        ranks: glob of parameter names -> rank of those layers, instead; such as :func:`openwork.energy_ranks` finds.
        multiple: ranks are rounded down to a multiple of this (but not to zero); 64 or 128 suit kernels of large models.
        damping: of ``X^T X``, relative to its mean diagonal.
    """

    reads_zeros: ClassVar[bool] = True
    restructures: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    ratio: float = 0.8
    solver: Literal["svd", "afm", "whitened"] = "whitened"
    ranks: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 1
    damping: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("ratio", self.ratio)
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is one of {', '.join(SOLVERS)}; got {self.solver!r}")
        if self.multiple < 1:
            raise ValueError(f"ranks are a multiple of at least 1; got {self.multiple}")

    def rank(self, name: str, shape: tuple[int, ...]) -> int | None:
        """The rank of a layer, or None where that would save nothing."""
        given = next((rank for glob, rank in self.ranks.items() if fnmatchcase(name, glob)), None)
        rank = uniform_rank(shape, self.ratio, self.multiple) if given is None else given
        return rank if rank <= break_even(*shape) else None

    def factors(self, layer: Layer, rank: int) -> Factors:
        """The factors of a layer's weight."""
        if self.solver == "svd":
            return truncated(layer.weight, rank)
        statistics = layer.statistics
        if self.solver == "whitened":
            return whitened(layer.weight, statistics.gram, rank, self.damping)
        mean = statistics.mean
        centred = statistics.gram.double() - statistics.count * mean.outer(mean)
        return mimicking(layer.weight, centred, rank)

    def solve(self, layer: Layer) -> Solution:
        if len(layer.shape) != 2:
            raise ValueError(
                f"{layer.name} is a convolution {list(layer.shape)}, and two thin matrices stand for a linear layer: exclude it"
            )
        if not bool(layer.mask.all()):
            raise ValueError(
                f"{layer.name} has {int((~layer.mask).sum())} pruned weights, which a product of two factors would fill: factor "
                "before pruning, or exclude it"
            )
        rank = self.rank(layer.name, layer.shape)
        if rank is None:
            return Solution(layer.weight)
        factors = self.factors(layer, rank)
        bias = layer.bias
        if self.solver == "afm":
            bias = mimicking_bias(layer.weight, bias, factors.left, layer.statistics.mean)

        def thin(module: nn.Module) -> nn.Module:
            own = {name for name, _ in module.named_parameters()}
            if not own <= {"weight", "bias"}:
                raise ValueError(
                    f"{layer.name} belongs to a {type(module).__name__} with {', '.join(sorted(own))}: only a plain linear layer "
                    "becomes two; exclude it"
                )
            dtype = module.get_parameter("weight").dtype
            held = None if bias is None else bias.to(dtype)
            return LowRankLinear(factors.left.to(dtype), factors.right.to(dtype), held).train(module.training)

        return Solution(factors.product(), bias=bias, parts={"factors": factors}, module=thin)


def energy_ranks(model: nn.Module, method: LowRank, data: Iterable[Any]) -> dict[str, int]:
    """Ranks for :attr:`LowRank.ranks` that share ``method.ratio`` of all parameters by need: greedily, rank by rank, where the
    relative energy that is lost for each parameter saved is least.

    Args:
        model: any module; it does not change.
        method: says the ratio, the solver, and which layers.
        data: calibration batches. Statistics are those of the dense model.

    Returns:
        Parameter name -> rank; the full rank where a layer had better stay as it is.
    """
    probe = Spectrum(
        include=method.include, exclude=method.exclude, overrides=method.overrides, solver=method.factors
    )
    found = calibrate_(model, [probe], data=data)
    spectra = {name: (parts["shape"], parts["energy"]) for name, parts in found.parts.items()}
    return allocated(spectra, method.ratio, method.multiple)
