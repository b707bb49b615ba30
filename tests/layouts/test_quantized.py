"""Layers that hold codes: the same outputs from fewer bytes, through files and changes of precision."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrate.spqr import bits_per_weight
from openwork.calibrator.storage import to_quantized_
from openwork.layouts.group_int4 import GroupInt4Linear
from openwork.layouts.quantized import QuantizedLinear
from openwork.quantization import IntegerGrid, nearest
from openwork.quantization import grid as named
from openwork.tasks.gpt import gpt_small

RECIPES = {
    "rtn": [ow.RTN(group=8)],
    "rtn symmetric": [ow.RTN(grid="int3-symmetric", group="row")],
    "rtn tensor": [ow.RTN(grid="int8", group="tensor")],
    "float": [ow.RTN(grid="e2m1", group=8)],
    "act order": [ow.GPTQ(grid="int3", group=8, act_order=True)],
    "sparse": [ow.Wanda(pattern="2:4"), ow.GPTQ(grid=IntegerGrid(4, scales="float16"), group=8)],
    "spqr": [ow.SpQR(group=8, stat_rows=4)],
    "spqr one level": [ow.SpQR(grid=IntegerGrid(3, scales="float16"), group=8, stat_bits=None)],
    "gqsa": [ow.GQSA(sparsity=0.4)],
}


def quantised(recipe: str, seed: int = 0) -> tuple[nn.Module, ow.Calibration]:
    small = gpt_small(width=32, depth=2, heads=2, context=12, seed=seed)
    data = [torch.randint(0, 65, (3, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return small, ow.sparsify_(small, RECIPES[recipe], data=data)


@pytest.mark.parametrize("recipe", RECIPES)
def test_codes_compute_what_decoded_weights_did(recipe: str) -> None:
    small, found = quantised(recipe)
    x = torch.randint(0, 65, (2, 12), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        before = small(x)
        made = to_quantized_(small, found)
        after = small(x)
    kind = GroupInt4Linear if recipe == "gqsa" else QuantizedLinear
    assert len(made) == 8
    assert all(isinstance(layer, kind) for layer in made.values())
    assert torch.allclose(after, before, atol=1e-5)  # sums in another order
    for layer in made.values():
        dense = 4 * layer.in_features * layer.out_features
        assert layer.nbytes < 0.6 * dense


@pytest.mark.parametrize("recipe", ["rtn", "act order", "spqr", "sparse", "float"])
def test_they_are_saved_and_loaded(recipe: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    small, found = quantised(recipe)
    to_quantized_(small, found)
    ow.save(small, tmp_path / "codes.safetensors")
    other, again = quantised(recipe, seed=5)
    to_quantized_(other, again)
    x = torch.randint(0, 65, (2, 12))
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), small(x))
    if recipe != "spqr":  # numbers of outliers differ, and a file fits one model
        third, more = quantised(recipe, seed=6)
        to_quantized_(third, more)
        ow.load(tmp_path / "codes.safetensors", into=third)
        assert torch.equal(third(x), small(x))
    with pytest.raises(ow.FileError, match="not in the"):
        ow.load(tmp_path / "codes.safetensors", into=quantised("rtn")[0])


def test_precision_changes_only_the_bias() -> None:
    w = torch.randn(5, 12)
    layer = QuantizedLinear(nearest(w, IntegerGrid(4, scales="float16"), 4), torch.randn(5))
    before = layer.weight
    half = layer.bfloat16()
    assert torch.equal(half.weight, before)
    assert half.bias is not None
    assert half.bias.dtype == torch.bfloat16
    assert half(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "bits_per_weight" in repr(layer)


def test_the_bytes_of_spqr_are_those_of_its_formula() -> None:
    big = nn.Sequential(nn.Linear(96, 64, bias=False))
    generator = torch.Generator().manual_seed(0)
    found = ow.sparsify_(
        big, ow.SpQR(threshold=0.3), data=[torch.randn(200, 96, generator=generator)], blocks="whole"
    )
    layer = to_quantized_(big, found)["0.weight"]
    permutation = layer.group_of.nbytes
    bits = 8 * (layer.nbytes - permutation) / (64 * 96)
    assert bits == pytest.approx(bits_per_weight(found.parts["0.weight"]), rel=0.01)


def test_hostile_outliers_are_refused() -> None:
    small, found = quantised("spqr")
    layer = next(iter(to_quantized_(small, found).values()))
    state = layer.state_dict()
    wrong = dict(state)
    wrong["outlier_col"] = torch.full_like(state["outlier_col"].int(), 500).to(torch.uint16)
    with pytest.raises(RuntimeError, match="outliers"):
        layer.load_state_dict(wrong)


@pytest.mark.parametrize("recipe", ["spqr", "act order"])
@pytest.mark.parametrize("group", [-1, 2**20])
def test_hostile_groups_are_refused(recipe: str, group: int) -> None:
    """A negative one would be counted from the end, without a word."""
    small, found = quantised(recipe)
    layer = next(iter(to_quantized_(small, found).values()))
    assert isinstance(layer, QuantizedLinear)
    state, before = layer.state_dict(), layer.weight
    wrong = dict(state) | {"group_of": state["group_of"].clone()}
    wrong["group_of"][3] = group
    with pytest.raises(RuntimeError, match=r"group_of: each of .* inputs belongs to one of"):
        layer.load_state_dict(wrong)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("name", ["scale", "zero"])
def test_scales_that_make_no_finite_weights_are_refused(name: str, wrong: float) -> None:
    layer = QuantizedLinear(nearest(torch.randn(5, 32), IntegerGrid(4, zero="real"), 16))
    state, before = layer.state_dict(), layer.weight
    changed = dict(state) | {name: state[name].clone()}
    changed[name][1, 0] = wrong
    if wrong == 3e38 and name == "zero":
        changed["scale"] = torch.full_like(state["scale"], 2.0)
    with pytest.raises((ValueError, RuntimeError), match=r"not be finite|not finite"):
        layer.load_state_dict(changed)
    assert torch.equal(layer.weight, before)


def test_weights_that_changed_since_are_refused() -> None:
    small, found = quantised("rtn")
    with torch.no_grad():
        small.blocks[0].mlp.up.weight[0, 0] += 1  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.weight are not those of its codes"):
        to_quantized_(small, found)
    assert not any(isinstance(m, QuantizedLinear) for m in small.modules())
    plain = gpt_small(width=32, depth=2, heads=2, context=12)
    with pytest.raises(ValueError, match="needs a quantiser"):
        to_quantized_(plain, ow.sparsify_(plain, ow.Wanda(), data=[torch.zeros(1, 12, dtype=torch.int64)]))


@pytest.mark.parametrize("shape", [(5, 48), (7, 37), (3, 16), (1, 5)])
@pytest.mark.parametrize(
    ("grid", "group"),
    [
        ("int4-float16", 16),
        ("int4-bfloat16", 32),
        ("int3-float16", "row"),
        ("int4-symmetric-float16", "tensor"),
        ("int2-clip-bfloat16", 48),
        (IntegerGrid(4, zero="real", scales="float16"), 16),
        (IntegerGrid(4, zero="real"), 16),
        ("int4", 128),
        ("int4-float16", 8),
        ("int3", 20),
        ("int8-symmetric-float16", 16),
        ("int8", "row"),
        ("int5-bfloat16", 24),
        ("e2m1", 16),
        ("e1m1", "row"),
        ("e3m0", 7),
    ],
)
def test_few_samples_are_computed_from_codes(shape, grid, group) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator)
    if named(grid).holds_zero:
        weight[:, : shape[1] // 2 : 2] = 0
    layer = QuantizedLinear(nearest(weight, named(grid), group), torch.randn(shape[0], generator=generator))
    assert layer.computes_from_codes
    x = torch.randn(2, 3, shape[1], generator=generator)
    expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())  # type: ignore[union-attr]
    decoded = QuantizedLinear.weight
    with pytest.MonkeyPatch.context() as forbidden:
        forbidden.setattr(
            QuantizedLinear, "weight", property(lambda _: pytest.fail("the weight was decoded"))
        )
        found = layer(x)
        many = layer(x.repeat(80, 1, 1))
    assert QuantizedLinear.weight is decoded
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(many[1].double(), expected[1], atol=1e-5, rtol=1e-5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    gradient = x.clone().requires_grad_()
    layer(gradient).sum().backward()
    torch.testing.assert_close(gradient.grad, layer.weight.sum(0).expand_as(x))


@pytest.mark.parametrize("recipe", ["rtn", "float", "act order", "spqr", "spqr one level", "rtn tensor"])
def test_products_from_codes_are_those_of_the_decoded_weight(recipe: str) -> None:
    """Layer by layer, in float64: groups in an order of their own, scales in two levels, outliers."""
    small, found = quantised(recipe)
    for layer in to_quantized_(small, found).values():
        assert isinstance(layer, QuantizedLinear)
        assert layer.computes_from_codes
        x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(3))
        bias = None if layer.bias is None else layer.bias.double()
        expected = nn.functional.linear(x.double(), layer.weight.double(), bias)
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
        places = layer._arranged().places
        assert (places is None) == (recipe == "rtn tensor")
        if places is not None:  # every input once
            assert torch.equal(
                places[places < layer.in_features].sort().values, torch.arange(layer.in_features)
            )
        assert (layer._arranged().rest is not None) == (recipe in ("spqr", "spqr one level"))


def test_floats_of_more_bits_are_decoded() -> None:
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    layer = QuantizedLinear(nearest(weight, named("e4m3"), 8))
    assert not layer.computes_from_codes
    x = torch.randn(3, 24)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))


def test_new_codes_are_seen() -> None:
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    one, other = (QuantizedLinear(nearest(v, named("int4-float16"), 16)) for v in (w, -2 * w))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    before = one(x)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))
    assert not torch.equal(one(x), before)
    with torch.no_grad():
        one.scale *= 2
    torch.testing.assert_close(one.refresh()(x), 2 * other(x))


def test_groups_of_zeros_are_not_computed() -> None:
    w = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    w[1:3, 16:48] = 0
    layer = QuantizedLinear(nearest(w, named("int4-float16"), 16))
    layer(torch.ones(1, 64))
    assert layer._arranged().groups.ends.diff().tolist() == [4, 2, 2, 4]
