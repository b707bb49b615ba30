from dataclasses import replace

import pytest

from openwork.compare import curves
from openwork.compare.breakeven import Measured, break_even, fastest, measure
from openwork.compare.roofline import Roof

ROW = Measured(
    (8, 16), 4, 0.5, "unstructured", "csr", 2.0, 1.9, 2.1, "dense", 1.0, 1.0, 100, of_peak=0.25, of_reads=0.5
)
DENSE = replace(ROW, layout="dense", ms=1.0)
ROWS = [
    ROW,
    replace(ROW, layout="octets", ms=4.0),
    DENSE,
    replace(ROW, sparsity=0.9, ms=0.5),
    replace(DENSE, sparsity=0.9),
]


def test_the_break_even_is_where_the_ratio_crosses_one():
    (point,) = break_even(ROWS)
    assert (point.shape, point.batch, point.layout) == ((8, 16), 4, "csr")
    assert point.sparsity == pytest.approx(0.5 + 0.4 * (1 - 0.5) / (2 - 0.5))
    (never,) = break_even(ROWS[:3])
    assert never.sparsity is None
    assert "dense wins at every sparsity" in curves.told(never)


def test_the_fastest_of_each_case():
    assert [row.layout for row in fastest(ROWS)] == ["dense", "csr"]
    assert [row.layout for row in fastest(ROWS, sparse=True)] == ["csr", "csr"]


def test_measured_rows_have_their_share_of_the_roof():
    found = Roof(threads=1, gflops=100.0, reads={1 << 14: 10.0})
    rows = measure([(16, 16)], [2], [0.5], seconds=0.01, roof=found)
    for row in rows:
        assert row.of_peak == pytest.approx(row.gflops / 100)
        assert row.of_reads == pytest.approx(1e-6 * row.nbytes / row.ms / 10)
    assert all(row.of_peak is None for row in measure([(16, 16)], [2], [0.5], seconds=0.01))


def test_the_page_has_curves_and_asks_nobody():
    html = curves.page(ROWS, Roof(2, 100.0, 4e-8, {1 << 20: 50.0}))
    assert "8x16: times as fast as the best dense kernel" in html
    assert "100 GFLOP/s and reads 50 GB/s from 1 MB" in html
    assert "Share of the limits" in html
    assert 'src="http' not in html
    assert "Share of the limits" not in curves.page([replace(row, of_peak=None) for row in ROWS])
