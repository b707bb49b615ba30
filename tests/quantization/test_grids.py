"""Levels and where they lie: against enumeration of all levels, on odd and random groups."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.quantization import FloatGrid, Grid, IntegerGrid, Placement, formats
from openwork.quantization.grids import best, squared

INTEGERS = [
    IntegerGrid(bits, symmetric, clip=clip, scales=scales)
    for bits, symmetric, clip, scales in itertools.product(
        (2, 3, 4, 8), (False, True), (False, True), ("float32", "float16")
    )
]
FLOATS = [FloatGrid(e, m, bias) for e, m in formats(4) + formats(6) for bias in ("max", "additive")]
GRIDS: list[Grid] = [*INTEGERS, *FLOATS, IntegerGrid(3, zero="real"), IntegerGrid(4, zero="real", clip=True)]


def groups(seed: int = 0, shape: tuple[int, ...] = (5, 7, 13)) -> torch.Tensor:
    """Groups of very different sizes, some of one sign, one constant and one zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = (
        values.sign()
        * values.abs() ** 1.7
        * torch.rand(shape[:-1], generator=generator).exp2()[..., None]
        * 0.03
    )
    values[0, 0] = values[0, 0].abs() + 0.1
    values[1, 1] = -values[1, 1].abs()
    values[2, 2] = 0.25
    values[3, 3] = 0
    return values


def along(at: Placement) -> Placement:
    return Placement(at.scale.unsqueeze(-1), at.zero.unsqueeze(-1))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_values_move_to_the_nearest_of_all_levels(grid: Grid) -> None:
    values = groups()
    at = along(grid.fit(values))
    found = grid.round(values, at)
    every = torch.arange(2**grid.bits, dtype=torch.uint8)
    levels = grid.decode(every.expand(*values.shape[:-1], -1), at)
    distance = (values[..., None] - levels[..., None, :]).abs().amin(-1)
    assert torch.allclose((values - found).abs(), distance, rtol=1e-12, atol=1e-15)
    assert bool((found[..., None] == levels[..., None, :]).any(-1).all())
    assert torch.equal(grid.round(found, at), found)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.holds_zero], ids=repr)
def test_zero_stays_zero_and_has_no_sign(grid: Grid) -> None:
    values = groups()
    values[..., ::3] = 0
    found = grid.round(values, along(grid.fit(values)))
    assert bool((found[..., ::3] == 0).all())
    assert not bool(torch.signbit(found[found == 0]).any())


def test_a_real_zero_point_does_not_hold_zero() -> None:
    grid = IntegerGrid(3, zero="real")
    values = groups()
    values[..., ::3] = 0
    assert not grid.holds_zero
    assert bool((grid.round(values, along(grid.fit(values)))[..., ::3] != 0).any())


def test_asymmetric_ranges_are_those_of_the_group() -> None:
    values = torch.tensor([[-0.3, 0.1, 1.2], [0.5, 1.0, 2.0], [-4.0, -1.0, -2.0]], dtype=torch.float64)
    at = IntegerGrid(4).fit(values)
    assert at.scale.tolist() == pytest.approx([1.5 / 15, 2.0 / 15, 4.0 / 15])
    assert at.zero.tolist() == [3, 0, 15]


def test_symmetric_grids_are_signed_integers() -> None:
    at = IntegerGrid(4, symmetric=True).fit(torch.tensor([[0.3, -1.5, 0.7]], dtype=torch.float64))
    assert at.scale.tolist() == pytest.approx([2 * 1.5 / 15])
    assert at.zero.tolist() == [8]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clipping_never_errs_more(bits: int) -> None:
    values = groups(3, (9, 4, 64))
    plain, clip = IntegerGrid(bits), IntegerGrid(bits, clip=True)
    error = {
        grid: (grid.round(values, along(grid.fit(values))) - values).abs().pow(2.4).sum(-1)
        for grid in (plain, clip)
    }
    assert bool((error[clip] <= error[plain] + 1e-15).all())
    assert bool((error[clip] < 0.9 * error[plain]).any())


def test_many_bits_are_the_identity() -> None:
    values = groups()
    grid = IntegerGrid(8)
    at = along(grid.fit(values))
    assert bool(((grid.round(values, at) - values).abs() <= at.scale / 2 * 1.01).all())


def test_e2m1_has_the_known_levels() -> None:
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert FloatGrid(2, 1).levels().tolist() == positive + [-x for x in positive]
    assert FloatGrid(2, 1).bias_of(torch.ones(())) == 1


def test_e1m2_is_uniform_and_e3m0_has_powers_of_two() -> None:
    uniform = FloatGrid(1, 2)
    assert uniform.levels()[:8].tolist() == [0.5 * i for i in range(8)]  # bias 0: multiples of 0.5 up to 3.5
    powers = FloatGrid(3, 0).levels()[1:8]
    assert powers.log2().diff().tolist() == [1.0] * 6


@given(
    st.floats(-3.0, 9.0),
    st.sampled_from(formats(4) + formats(5) + formats(8, least_mantissa=2)),
    st.integers(0, 2**31),
)
def test_floats_follow_the_formula_at_any_bias(bias: float, shape: tuple[int, int], seed: int) -> None:
    grid = FloatGrid(*shape)
    e, m = shape
    b = torch.tensor(bias, dtype=torch.float64)
    values = (
        torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 * 2**-bias
    )
    top = (2 - 2.0**-m) * 2 ** (2**e - 1 - b)
    clipped = values.clamp(-top, top)
    p = (clipped.abs().log2() + b).floor().clamp(min=1)
    step = 2 ** (p - m - b)
    expected = step * (clipped / step).round()
    found = grid.round(values, Placement(grid.scale_of(b), torch.zeros(())))
    assert torch.allclose(found, expected, rtol=1e-9, atol=0)


def test_the_additive_search_works_where_the_multiplicative_one_cannot_move() -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values *= 12 / values.abs().amax(-1, keepdim=True)  # the bias that just holds the largest is 0
    errors = {}
    for how in ("max", "additive", "multiplicative"):
        grid = FloatGrid(2, 1, how)
        errors[how] = squared(grid.round(values, along(grid.fit(values))) - values)
    assert torch.allclose(errors["multiplicative"], errors["max"])
    assert bool((errors["additive"] < errors["max"]).all())


def test_four_bit_floats_suit_bell_shaped_weights_better_than_integers() -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = {
        grid: float((grid.round(values, along(grid.fit(values))) - values).square().mean())
        for grid in (FloatGrid(2, 1), IntegerGrid(4))
    }
    assert error[FloatGrid(2, 1)] < error[IntegerGrid(4)]


def test_a_search_may_have_its_own_loss() -> None:
    values = torch.tensor([[1.0, 0.2, 0.11]], dtype=torch.float64)
    importance = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    grid = FloatGrid(2, 1)
    at = grid.fit(values, lambda error: (error.square() * importance).sum(-1))
    assert abs(float(grid.round(values, along(at))[0, 2]) - 0.11) < 2e-3
    assert abs(float(grid.round(values, along(grid.fit(values)))[0, 2]) - 0.11) > 1e-2


def test_what_cannot_be_quantised_is_refused() -> None:
    for grid in (IntegerGrid(), FloatGrid()):
        with pytest.raises(ValueError, match="nearest level"):
            grid.fit(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="2 to 8 bits"):
        IntegerGrid(1)
    with pytest.raises(ValueError, match="exponent"):
        FloatGrid(0, 3)
    with pytest.raises(ValueError, match="no placement"):
        best(IntegerGrid(), torch.zeros(1, 2), [])
    with pytest.raises(ValueError, match="stored as one of"):
        IntegerGrid(scales="int8")
