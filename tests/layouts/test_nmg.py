"""n:m:g masks against their definition and exhaustive search, and the layout that computes them."""

from itertools import combinations, permutations, product
from math import comb

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.nmg import NMG, nmg_mask, ratio


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).abs()


@given(
    kind=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4), (2, 3), (4, 4)]),
    g=st.integers(1, 5),
    groups=st.integers(0, 3),
    columns=st.integers(0, 70),
    equal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_mask_is_n_m_g(kind, g, groups, columns, equal, seed):
    n, m = kind
    scores = torch.ones(groups * m, columns) if equal else random(groups * m, columns, seed=seed)
    mask = nmg_mask(scores, n, m, g)
    assert mask.shape == scores.shape
    assert bool((mask.view(groups, m, columns).sum(1) == n).all())
    length = comb(m, n) * g
    for group in mask.view(groups, m, columns):
        for chunk in group.split(length, dim=1) if columns else ():
            _, times = torch.unique(chunk.T, dim=0, return_counts=True)
            assert int(times.max()) <= g
            if chunk.shape[1] == length:
                assert times.tolist() == [g] * comb(m, n)


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_is_between_greedy_and_the_best(seed):
    """One small chunk, 1:4:1 and 2:4:1: no exchange of two columns gains; all assignments are tried."""
    for n, m in ((1, 4), (2, 4)):
        sets = list(combinations(range(m), n))
        scores = random(m, len(sets), seed=seed).double()
        kept = torch.tensor([[sum(scores[r, c] for r in rows) for rows in sets] for c in range(len(sets))])
        best = max(sum(kept[c, p] for c, p in enumerate(order)) for order in permutations(range(len(sets))))
        mask = nmg_mask(scores, n, m, 1)
        pairs = sorted(
            ((float(kept[c, p]), -c, -p) for c, p in product(range(len(sets)), repeat=2)), reverse=True
        )
        greedy: dict[int, int] = {}
        for _, c, p in pairs:
            if -c not in greedy and -p not in greedy.values():
                greedy[-c] = -p
        least = sum(float(kept[c, p]) for c, p in greedy.items())
        assert least - 1e-9 <= float((scores * mask).sum()) <= float(best) + 1e-9
        chosen = [sets.index(tuple(mask[:, c].nonzero().flatten().tolist())) for c in range(len(sets))]
        for a, b in combinations(range(len(sets)), 2):
            gain = kept[a, chosen[b]] + kept[b, chosen[a]] - kept[a, chosen[a]] - kept[b, chosen[b]]
            assert gain <= 1e-9


def test_more_freedom_keeps_more():
    scores = random(64, 192)
    total = float(scores.sum())
    energies = [float((scores * nmg_mask(scores, 2, 4, g)).sum()) / total for g in (1, 4, 16)]
    free = scores.view(16, 4, 192).topk(2, 1).values.sum() / total
    assert energies == sorted(energies)
    assert energies[-1] <= float(free)
    assert energies[-1] > 0.97 * float(free)  # "within a few percent of n:m from g = 8 on"


def test_scores_are_untouched_and_errors_say_what_was_found():
    scores = random(8, 10)
    before = scores.clone()
    nmg_mask(scores, 2, 4, 2)
    assert torch.equal(scores, before)
    with pytest.raises(ValueError, match=r"out a multiple of 4, found \[6, 10\]"):
        nmg_mask(scores[:6], 2, 4, 1)
    with pytest.raises(ValueError, match="found 5:4:1"):
        nmg_mask(scores, 5, 4, 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        nmg_mask(scores / 0, 2, 4, 1)


@pytest.mark.parametrize(("n", "m", "g", "columns"), [(2, 4, 16, 500), (2, 4, 1, 500), (2, 8, 4, 1000)])
def test_the_layout_suits_its_masks_and_computes_them(n, m, g, columns):
    held = CSR.from_mask(nmg_mask(random(2 * m, columns), n, m, g))
    values, x, bias = torch.randn(held.kept), torch.randn(70, columns), torch.randn(2 * m)
    assert ratio(held) == (n, m)
    assert NMG.unsuited(held, values, 64) is None
    layout = NMG.build(held, values, 64)
    expected = F.relu(F.linear(x, held.dense(values), bias))
    torch.testing.assert_close(layout.linear(x, bias, "relu"), expected, rtol=1e-5, atol=1e-4)
    assert layout.nbytes > values.nbytes
    assert NMG in layouts()


def test_unsuited_says_why():
    held = CSR.from_mask(nmg_mask(random(8, 48), 2, 4, 2))
    values = torch.ones(held.kept)
    assert NMG.unsuited(held, values, 8) == "it wants batches of 16 and more"
    assert "not torch.float64 on cpu" in str(NMG.unsuited(held, values.double(), 64))
    unstructured = CSR.random((8, 48), 8 * 24, torch.Generator().manual_seed(0))
    assert "do not have 2 of 4 or 2 of 8" in str(NMG.unsuited(unstructured, values, 64))
    with pytest.raises(ValueError, match="8 x 48 weight do not have"):
        NMG.build(unstructured, values, 64)
    uneven = torch.zeros(4, 48, dtype=torch.bool)
    uneven[:2] = True
    one_pattern = CSR.from_mask(uneven)
    assert "83% would be filling" in str(NMG.unsuited(one_pattern, torch.ones(96), 64))
