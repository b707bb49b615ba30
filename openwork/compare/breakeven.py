"""From which sparsity on is a layer faster than the best dense kernel, on this machine?

Every layout is timed against every dense kernel for each shape, size of batch and sparsity, taking turns. The
break-even is where the line through the measured ratios crosses one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from openwork.compare.roofline import Roof
from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense
from openwork.layouts.layout import layouts
from openwork.pack import contest
from openwork.patterns import pattern
from openwork.progress import track

SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
BATCHES = (1, 8, 64, 256)


@dataclass(frozen=True)
class Measured:
    """One layout on one layer.

    Attributes:
        shape: ``(out, in)``.
        batch: samples in a call.
        sparsity: fraction of zeros, achieved.
        pattern: of the random mask.
        layout: its name.
        ms, low_ms, high_ms: median and quartiles.
        dense: the fastest dense kernel in the same contest.
        dense_ms: its median.
        gflops: useful work, 2 x kept x batch, in 10^9 operations a second.
        nbytes: of the weight in this layout.
        of_peak: useful work as a fraction of this machine's multiply-adds, see :mod:`openwork.compare.roofline`; None where
            that is not measured.
        of_reads: bytes of the weight a second as a fraction of the rate a buffer of that size is read at.
    """

    shape: tuple[int, int]
    batch: int
    sparsity: float
    pattern: str
    layout: str
    ms: float
    low_ms: float
    high_ms: float
    dense: str
    dense_ms: float
    gflops: float
    nbytes: int
    of_peak: float | None
    of_reads: float | None

    @property
    def ratio(self) -> float:
        """How many times faster than the fastest dense kernel."""
        return self.dense_ms / self.ms


def measure(
    shapes: Iterable[tuple[int, int]],
    batches: Sequence[int] = BATCHES,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    spelling: str = "unstructured",
    seconds: float = 0.4,
    seed: int = 0,
    roof: Roof | None = None,
) -> list[Measured]:
    """Time random masks of a pattern, all layouts and dense kernels against one another.

    Args:
        shapes: layers ``(out, in)``.
        batches: sizes of batch.
        sparsities: fractions of zeros.
        spelling: the pattern, see :func:`openwork.pattern`.
        seconds: to spend on each contest.
        seed: of masks and values.
        roof: the limits of this machine, to compare with.
    """
    cases = [(shape, batch, sparsity) for shape in shapes for sparsity in sparsities for batch in batches]
    return [
        row
        for case in track(cases, "measuring layers")
        for row in _measure(*case, spelling, seconds, seed, roof)
    ]


def _measure(
    shape: tuple[int, int],
    batch: int,
    sparsity: float,
    spelling: str,
    seconds: float,
    seed: int,
    roof: Roof | None,
) -> Iterator[Measured]:
    generator = torch.Generator().manual_seed(seed)
    mask = pattern(spelling).choose(
        torch.rand(shape, generator=generator), round((1 - sparsity) * shape[0] * shape[1])
    )
    topology = CSR.from_mask(mask)
    values = torch.randn(topology.kept, generator=generator)
    times = contest(topology, values, batch, seconds)
    kinds = {cls.name: cls for cls in layouts()}
    dense = min(
        (name for name in times if issubclass(kinds[name], Dense)), key=lambda name: times[name].median
    )
    for name, time in times.items():
        nbytes = kinds[name].build(topology, values, batch).nbytes
        yield Measured(
            shape, batch, 1 - topology.kept / mask.numel(), spelling, name, time.median * 1e3, time.low * 1e3, time.high * 1e3,
            dense, times[dense].median * 1e3, 2e-9 * topology.kept * batch / time.median, nbytes,
            None if roof is None else roof.share_of_multiply_adds(topology.kept, batch, time.median),
            None if roof is None else roof.share_of_reads(nbytes, time.median),
        )  # fmt: skip


@dataclass(frozen=True)
class BreakEven:
    """Where the fastest sparse layout of a layer begins to win.

    Attributes:
        shape: ``(out, in)``.
        batch: samples in a call.
        sparsity: from here on sparse is faster; None if at no sparsity that was measured.
        layout: the layout that wins there.
    """

    shape: tuple[int, int]
    batch: int
    sparsity: float | None
    layout: str | None


def fastest(rows: Iterable[Measured], *, sparse: bool = False) -> list[Measured]:
    """The fastest layout of every layer, size of batch and sparsity; with ``sparse`` dense ones do not count."""
    kinds = {cls.name: cls for cls in layouts()}
    best: dict[tuple[object, ...], Measured] = {}
    for row in rows:
        case = (row.shape, row.batch, row.sparsity, row.pattern)
        if not (sparse and issubclass(kinds[row.layout], Dense)) and (
            case not in best or row.ms < best[case].ms
        ):
            best[case] = row
    return list(best.values())


def break_even(rows: Iterable[Measured]) -> list[BreakEven]:
    """The break-even of each layer and size of batch, by linear interpolation of the ratio over sparsity."""
    rows = list(rows)
    best: dict[tuple[tuple[int, int], int], dict[float, Measured]] = {(r.shape, r.batch): {} for r in rows}
    for row in fastest(rows, sparse=True):
        best[row.shape, row.batch][row.sparsity] = row
    return [
        BreakEven(shape, batch, *_crossing([found[s] for s in sorted(found)]))
        for (shape, batch), found in best.items()
    ]


def _crossing(rows: Sequence[Measured]) -> tuple[float | None, str | None]:
    wins_from = None
    for i in reversed(range(len(rows))):
        if rows[i].ratio < 1.0:
            break
        wins_from = i
    if wins_from is None:
        return None, None
    winner = rows[wins_from]
    if wins_from == 0:
        return winner.sparsity, winner.layout
    loser = rows[wins_from - 1]
    share = (1.0 - loser.ratio) / (winner.ratio - loser.ratio)
    return loser.sparsity + share * (winner.sparsity - loser.sparsity), winner.layout
