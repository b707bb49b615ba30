"""An n of its own for each weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.patterns import NM, AnyNM, Unstructured, pattern


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.floats(0, 1))
def test_any_n_of_m_takes_the_nearest_n(m, groups, out, density):
    shape = (out, groups * m)
    kept = round(density * out * groups * m)
    p = AnyNM(m)
    exact = kept / (out * groups)
    n = p.places(shape, kept)
    assert abs(n - exact) <= 0.5
    assert p.settled(shape, kept) == NM(n, m)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = p.choose(scores, kept)
    assert torch.equal(mask, NM(n, m).choose(scores, 0))
    assert p.allows(mask)
    assert p.legal_kept(shape, p.legal_kept(shape, kept)) == p.legal_kept(shape, kept) == int(mask.sum())
    assert pattern(str(p)) == p
    with pytest.raises(ValueError, match="of >= 1"):
        AnyNM(0)


def test_any_n_of_m_wants_whole_groups():
    assert "no multiple of 4" in AnyNM(4).misfit((3, 6))
    assert Unstructured().settled((3, 6), 4) == Unstructured()
