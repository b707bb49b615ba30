"""Patterns against masks made by hand: loops over units, windows and blocks, sorted by Python."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.patterns import NM, Block, FanIn, Gates, Groups, Unstructured
from tests.test_grid import best

few = settings(max_examples=30)


def competitions(p, shape):
    """Per row of the pattern, the atoms that compete, each a list of flat positions: plain loops."""
    out, inputs, kernel = shape[0], shape[1], shape[2:]
    taps = list(itertools.product(*(range(n) for n in kernel)))

    def at(o, i, tap=()):
        flat = o * inputs + i
        for n, t in zip(kernel, tap, strict=True):
            flat = flat * n + t
        return flat

    match p:
        case Unstructured():
            return [[[at(o, i, t)] for o in range(out) for i in range(inputs) for t in taps]]
        case NM(_, of):
            starts = range(0, inputs, of)
            return [[[at(o, s + j, t)] for j in range(of)] for o in range(out) for s in starts for t in taps]
        case FanIn():
            return [[[at(o, i, t)] for i in range(inputs) for t in taps] for o in range(out)]
        case Block(h, w):
            return [
                [
                    [at(o + a, i + b, t) for a in range(h) for b in range(w)]
                    for o in range(0, out, h)
                    for i in range(0, inputs, w)
                    for t in taps
                ]
            ]
        case Gates(n):
            part = out // n
            return [
                [
                    [at(o + k * part, i, t) for k in range(n)]
                    for o in range(part)
                    for i in range(inputs)
                    for t in taps
                ]
            ]
        case Groups(0):
            return [[[at(o, i, t) for i in range(inputs) for t in taps] for o in range(out)]]
        case Groups(1):
            return [[[at(o, i, t) for o in range(out) for t in taps] for i in range(inputs)]]


PATTERNS = [
    Unstructured(),
    NM(2, 4),
    NM(1, 3),
    NM(0, 2),
    FanIn(),
    FanIn(3),
    Block(2, 1),
    Block(3, 2),
    Groups(0),
    Groups(1),
    Gates(3),
]


SHAPES = [(6, 12), (6, 12, 3), (6, 12, 2, 3), (12, 12), (3, 6, 1, 1)]


FITTING = [(p, s) for p in PATTERNS for s in SHAPES if p.misfit(s) is None]


@pytest.mark.parametrize(("p", "shape"), FITTING, ids=str)
def test_choose_is_the_best_legal_mask(p, shape):
    g = torch.Generator().manual_seed(len(str(p)) + sum(shape))
    # Few different integers: ties everywhere, and sums that are exact in any order.
    scores = torch.randint(0, 5, shape, generator=g).double()
    size = math.prod(shape)
    for kept in (0, 1, size // 3, size // 2, size - 1, size):
        rows = competitions(p, shape)
        atom = len(rows[0][0])
        places = {NM: lambda: p.keep, FanIn: lambda: p.inputs}.get(type(p), lambda: None)()
        if places is None:
            places = min(kept // (len(rows) * atom), len(rows[0]))
        wanted = set()
        for row in rows:
            sums = [sum(scores.flatten()[i].item() for i in member) for member in row]
            wanted.update(i for a in best(sums, places) for i in row[a])
        mask = p.choose(scores, kept)
        assert set(mask.flatten().nonzero().flatten().tolist()) == wanted
        assert mask.sum() == p.legal_kept(shape, kept)
        assert p.allows(mask)
        if not isinstance(p, (NM, FanIn)):
            assert p.legal_kept(shape, kept) <= kept


@pytest.mark.parametrize(("p", "shape"), FITTING, ids=str)
def test_atoms_and_positions_are_inverse(p, shape):
    grid = p.grid(shape)
    rows = competitions(p, shape)
    assert (grid.rows, grid.competitors, grid.atom) == (len(rows), len(rows[0]), len(rows[0][0]))
    members = [member for row in rows for member in row]
    for number, member in enumerate(members):
        assert grid.atoms_of(torch.tensor(member)).tolist() == [number] * grid.atom
    some = torch.tensor(list(range(0, len(members), 2))[::-1])
    assert grid.positions_of(some).tolist() == sorted(i for a in some.tolist() for i in members[a])
    weight = torch.arange(math.prod(shape)).view(shape)
    assert torch.equal(grid.unview(grid.view(weight), shape), weight)


@few
@given(st.sampled_from(FITTING), st.integers(0, 2**32))
def test_allows_only_legal_masks(fitting, seed):
    p, shape = fitting
    g = torch.Generator().manual_seed(seed)
    mask = p.choose(torch.rand(shape, generator=g), int(torch.randint(math.prod(shape), (1,), generator=g)))
    flip = int(torch.randint(mask.numel(), (1,), generator=g))
    broken = mask.clone()
    broken.view(-1)[flip] ^= True
    rows = competitions(p, shape)
    free = len(rows) == 1 and len(rows[0][0]) == 1
    assert p.allows(broken) == free


def test_allows_knows_how_many_an_nm_pattern_keeps():
    one_of_four = torch.tensor([[True, False, False, False]])
    assert NM(1, 4).allows(one_of_four)
    assert not NM(2, 4).allows(one_of_four)
    assert not FanIn(2).allows(one_of_four)
    assert FanIn().allows(one_of_four)


@pytest.mark.parametrize(
    ("p", "shape", "why"),
    [
        (NM(2, 4), (3, 6), "6 inputs are no multiple of 4"),
        (NM(2, 4), (3,), "input axis"),
        (Block(2, 3), (3, 6), "3 outputs are no multiple of 2"),
        (Block(3, 4), (3, 6), "6 inputs are no multiple of 4"),
        (FanIn(7), (3, 6), "6 inputs, 7 were asked for"),
        (Groups(2), (3, 6), "no axis 2"),
        (Gates(4), (6, 6), "6 outputs are no multiple of 4 gates"),
    ],
)
def test_misfits_say_why(p, shape, why):
    assert why in p.misfit(shape)
    with pytest.raises(ValueError, match="does not fit"):
        p.choose(torch.zeros(shape), 1)
