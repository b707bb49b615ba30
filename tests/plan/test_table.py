"""The table of a plan says all of it."""

from openwork.plan import plan
from openwork.train.static_random import StaticRandom
from tests.plan.models import Everything


def test_the_total_is_exact_and_shown():
    p = plan(Everything(), StaticRandom(sparsity=0.73))
    size = sum(row.numel for row in p.sparse)
    assert p.numel == size
    assert p.kept == round(0.27 * size)
    assert p.sparsity == 1 - p.kept / size
    assert f"static_random: asked sparsity 0.73; sparsity {p.sparsity:.6f}, {p.kept} of {size} kept" in str(p)
    for row in p:
        assert row.name in str(p)
        assert row.why in str(p)
        assert row.kept == row.numel or row.sparse
    lines = str(p).splitlines()
    assert len(lines) == len(p.rows) + 2
    assert plan(Everything(), StaticRandom(kept=100)).kept == 100
