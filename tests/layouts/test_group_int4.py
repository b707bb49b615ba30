"""GroupInt4Linear: rounded to nearest, loaded from anywhere, and a citizen of PyTorch."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openwork.files import load, save
from openwork.kernels.group_int4 import pack_codes
from openwork.layouts.group_int4 import STORED, GroupInt4Linear, quantized
from tests.kernels.test_group_int4 import random_groups


def layer(rows: int = 30, columns: int = 70, density: float = 0.5, seed: int = 0) -> GroupInt4Linear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    groups = torch.rand(rows, -(-columns // 16), generator=generator) < density
    mask = groups.repeat_interleave(16, 1)[:, :columns]
    return GroupInt4Linear.from_dense(weight, mask, torch.randn(rows, generator=generator))


def test_it_computes_with_the_weight_it_shows():
    one = layer()
    x = torch.randn(2, 5, 70)
    torch.testing.assert_close(one(x), F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.to_linear()(x), one(x), rtol=1e-5, atol=1e-5)
    assert not one.to_linear().weight.requires_grad


def test_it_is_made_from_codes():
    (codes, scales, zeros, row_ptr, group_col, shape), dense = random_groups(20, 50, 0.5, 3)
    bias = torch.randn(20)
    one = GroupInt4Linear(codes, scales, zeros, row_ptr, group_col, in_features=50, bias=bias)
    assert (one.out_features, one.in_features) == shape
    torch.testing.assert_close(one.weight.double(), dense, rtol=1e-6, atol=0)
    assert list(one.state_dict()) == ["bias", *STORED]
    assert f"groups={group_col.numel()}" in repr(one)
    with pytest.raises(ValueError, match=r"bias must be \[20\]"):
        GroupInt4Linear(codes, scales, zeros, row_ptr, group_col, in_features=50, bias=bias[1:])


@given(
    rows=st.integers(1, 20), columns=st.integers(1, 60), inside=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99), dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_rounding_is_to_the_nearest_and_zeros_stay_zero(rows, columns, inside, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) >= inside
    one = GroupInt4Linear.from_dense(weight, mask, dtype=dtype)
    found, masked = one.weight, weight * mask
    assert not found[~mask].any()
    cells = F.pad(masked, (0, -columns % 16)).view(rows, -1, 16)
    kept = F.pad(mask, (0, -columns % 16)).view(rows, -1, 16).any(2)
    assert torch.equal(one.topology.mask(), kept)
    step = ((cells.amax(2).clamp(min=0) - cells.amin(2).clamp(max=0)) / 15)[..., None].expand_as(cells)
    off = (F.pad(found, (0, -columns % 16)).view(rows, -1, 16) - cells).abs()
    # Half a step, half again where the end of the range and the whole zero disagree, and what the scale was rounded by.
    slack = 15 * step * (2**-10 if dtype is torch.float16 else 2**-7)
    assert (off <= step * 1.001 + slack + 1e-6)[kept].all()
    assert float(off[kept].sum()) <= float((0.5 * step + slack + 1e-6)[kept].sum())


def test_codes_of_whole_steps_come_back_exactly():
    codes = torch.randint(0, 16, (50, 16), generator=torch.Generator().manual_seed(0))
    codes[:, 0], codes[:, 1], zeros = 0, 15, torch.randint(0, 16, (50, 1))
    cells = (codes - zeros) * 0.25
    assert all(
        map(
            torch.equal,
            quantized(cells.float()),
            (codes.byte(), torch.full((50,), 0.25).half(), zeros[:, 0].half()),
        )
    )


def test_extreme_ranges():
    tiny, huge = torch.full((1, 16), 1e-12), torch.full((1, 16), 1e7)
    codes, scales, _ = quantized(tiny)
    assert scales > 0
    assert not codes.any()
    with pytest.raises(ValueError, match="use bfloat16"):
        quantized(huge)
    codes, scales, _zeros = quantized(huge, torch.bfloat16)
    torch.testing.assert_close(codes * scales.float()[:, None], huge, rtol=1e-2, atol=0)
    empty = GroupInt4Linear.from_dense(torch.zeros(3, 40))
    assert empty.density == 0
    assert not empty(torch.ones(1, 40)).any()
    with pytest.raises(ValueError, match="NaN or infinity"):
        GroupInt4Linear.from_dense(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="16 inputs, not 32"):
        GroupInt4Linear.from_dense(torch.ones(1, 1), group=32)
    with pytest.raises(ValueError, match="boolean mask of its shape"):
        GroupInt4Linear.from_dense(torch.ones(2, 2), torch.ones(2, 2))


def test_state_of_any_number_of_groups_loads_and_bad_state_does_not():
    one, other = layer(seed=1), layer(density=0.2, seed=2)
    x = torch.randn(3, 70)
    expected = one(x)
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved))
    assert torch.equal(other(x), expected)
    other.load_state_dict(other.state_dict())
    assert torch.equal(other(x), expected)

    good = other.state_dict()
    for name, wrong in (
        ("group_col", good["group_col"] + 1),
        ("row_ptr", good["row_ptr"].flip(0)),
        ("codes", good["codes"][1:]),
        ("scales", good["scales"].float()),
    ):
        with pytest.raises(RuntimeError, match="codes: "):
            other.load_state_dict({**good, name: wrong})
        assert torch.equal(other(x), expected)
    with pytest.raises(RuntimeError, match="zeros is missing"):
        other.load_state_dict({name: tensor for name, tensor in good.items() if name != "zeros"})


def test_it_is_saved_and_loaded_with_its_model(tmp_path):
    model = nn.Sequential(nn.Linear(8, 70), layer(seed=1)).eval()
    save(model, tmp_path / "model.safetensors")
    again = nn.Sequential(nn.Linear(8, 70), layer(seed=1)).eval()
    load(tmp_path / "model.safetensors", into=again)
    x = torch.randn(2, 8)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_statistics_may_be_tuned():
    one = layer()
    x, before = torch.randn(1, 70), one(torch.zeros(1, 70))
    scales = one.scales.float().requires_grad_()
    one.scales = scales
    one.weight.sum().backward()
    assert scales.grad.isfinite().all()
    one.scales = (2 * scales.detach()).half()
    assert torch.equal(one.refresh()(torch.zeros(1, 70)), before)
    torch.testing.assert_close(one(x), F.linear(x, one.weight, one.bias), rtol=1e-5, atol=1e-5)
    one.scales = one.scales[1:]
    with pytest.raises(ValueError, match="scales must be"):
        one.refresh()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_change_precision_around_it(dtype):
    one = layer()
    codes, scales = one.codes.clone(), one.scales.clone()
    x = torch.randn(2, 70)
    expected = one(x)
    one.to(dtype)
    assert one.scales.dtype == torch.float16
    assert torch.equal(one.codes, codes)
    assert torch.equal(one.scales, scales)
    y = one(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=3e-2, atol=3e-2)


def test_all_of_it_moves_to_another_device_whatever_the_precision():
    one = layer().to(device="meta", dtype=torch.bfloat16)
    assert {name: getattr(one, name).is_meta for name in STORED} == dict.fromkeys(STORED, True)
    assert one.scales.dtype == torch.float16


def test_copies_are_independent():
    one = layer()
    two = copy.deepcopy(one)
    x = torch.randn(1, 70)
    expected = one(x)
    one.load_state_dict(layer(seed=9).state_dict())
    assert torch.equal(two(x), expected)
    assert not torch.equal(one(x), expected)


def test_it_refuses_gradients_through_it():
    with pytest.raises(RuntimeError, match="no gradients"):
        layer()(torch.randn(1, 70, requires_grad=True))


def test_packed_codes_of_from_dense_are_what_was_rounded():
    weight = torch.arange(16.0)[None]
    assert torch.equal(GroupInt4Linear.from_dense(weight).codes, pack_codes(torch.arange(16)[None]))
