"""Weights rounded where that was allowed, bfloat16 models, and autocast: the right numbers in the right precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwork.files import load, save
from openwork.layouts.csr import CSR
from openwork.layouts.dense import BFloat16Dense, Dense
from openwork.layouts.layout import PRECISIONS, Layout, layouts
from openwork.layouts.packed import DenseLinear, PackedLinear
from openwork.pack import contest, pack_
from openwork.pack.linear import LinearTrial
from openwork.storage import to_sparse_
from tests.pack.test_conv import prefer

pytestmark = pytest.mark.filterwarnings("ignore:.*mkldnn.*")

SPARSE = [cls for cls in layouts() if not issubclass(cls, Dense)]
BF16 = [cls for cls in layouts() if cls.weight_dtype is torch.bfloat16]


def matrix(rows: int = 37, columns: int = 50, density: float = 0.4) -> tuple[CSR, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(rows, columns, generator=generator) < density
    return CSR.from_mask(mask), torch.randn(int(mask.sum()), generator=generator)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Linear(60, 50), nn.GELU(), nn.Linear(50, 30)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if parameter.ndim == 2:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < 0.3)
    return net.to(dtype)


def suited(values: Tensor, topology: CSR, batch: int, coarsest: torch.dtype) -> list[type[Layout]]:
    return [cls for cls in layouts(coarsest) if cls.unsuited(topology, values, batch) is None]


def test_nothing_coarser_than_allowed_takes_part():
    topology, values = matrix()
    exact = LinearTrial(topology, values, 1).forms()
    assert not any(name in exact for name in (cls.name for cls in BF16))
    rounded = LinearTrial(topology, values, 1, torch.bfloat16).forms()
    assert exact.keys() <= rounded.keys()
    assert {"slices bf16", "octets bf16", "dense bf16"} <= rounded.keys()
    assert rounded["dense bf16"]
    assert not rounded["slices bf16"]
    coarser = LinearTrial(topology, values, 1, torch.int8).forms()
    assert rounded.keys() <= coarser.keys()
    assert {"slices int8", "octets int8"} <= coarser.keys()
    assert contest(topology, values, 1, 0.01, torch.bfloat16).keys() == rounded.keys()


def test_precisions_are_ordered_and_every_layout_has_one():
    assert [torch.finfo(dtype).eps for dtype in PRECISIONS[:4]] == sorted(
        torch.finfo(dtype).eps for dtype in PRECISIONS[:4]
    )
    assert all(cls.weight_dtype in PRECISIONS for cls in layouts())


@pytest.mark.parametrize("batch", [1, 2, 5, 16, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_layouts_round_weights_and_only_dense_ones_round_inputs(batch, dtype):
    topology, values = matrix()
    x, bias = torch.randn(batch, 50).to(dtype), torch.randn(37).to(dtype)
    rounded = topology.dense(values).bfloat16().double()
    exact = F.linear(x.double(), rounded, bias.double()).relu()
    for cls in suited(values, topology, batch, torch.bfloat16):
        if cls.weight_dtype is not torch.bfloat16:
            continue
        y = cls.build(topology, values, batch).compute(x, bias, "relu")
        assert y.dtype is dtype
        loose = issubclass(cls, Dense) or dtype is torch.bfloat16 or torch.bfloat16 in cls.input_dtypes
        torch.testing.assert_close(
            y.double(), exact, rtol=2e-2 if loose else 1e-5, atol=5e-2 if loose else 1e-5
        )


@pytest.mark.parametrize("batch", [1, 5, 20, 70])
def test_every_layout_serves_bfloat16_models_as_exactly_as_they_can_be(batch):
    topology, values = matrix()
    values = values.bfloat16()
    x, bias = torch.randn(batch, 50).bfloat16(), torch.randn(37).bfloat16()
    exact = F.linear(x.double(), topology.dense(values).double(), bias.double())
    forms = suited(values, topology, batch, torch.bfloat16)
    assert len([cls for cls in forms if not issubclass(cls, Dense)]) >= 2
    assert not any(issubclass(cls, BFloat16Dense) for cls in forms)  # "dense" is that already
    for cls in forms:
        y = cls.build(topology, values, batch).compute(x, bias, "none")
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(
            y.double(), exact, rtol=1.0 if issubclass(cls, Dense) else 2**-8, atol=2e-2
        )


@pytest.mark.parametrize("form", ["slices bf16", "dense bf16", "dense onednn bf16", "bitmask int8"])
def test_a_model_packed_with_rounded_weights(monkeypatch, form, tmp_path):
    dtype = torch.int8 if "int8" in form else torch.bfloat16
    if form not in LinearTrial(*matrix(), 1, dtype).forms():
        pytest.skip(f"{form} is not to be had on this machine")
    prefer(monkeypatch, form)
    net, x = model(), torch.randn(1, 60)
    before = copy.deepcopy(net.state_dict())
    decisions = pack_(net, x, weight_dtype=dtype, cache=False)
    assert [row.layout for row in decisions] == [form, form]
    sparse = not form.startswith("dense")
    assert isinstance(net[0], PackedLinear if sparse else DenseLinear)
    rounded = model().to(torch.bfloat16).to(torch.float32)
    with torch.no_grad():
        rounded.load_state_dict(
            {name: p.bfloat16().float() if p.ndim == 2 else p for name, p in before.items()}
        )
        expected, y = rounded(x), net(x)
    assert y.dtype is torch.float32
    exact = form == "slices bf16"
    torch.testing.assert_close(y, expected, rtol=1e-5 if exact else 5e-2, atol=1e-5 if exact else 0.3)
    assert torch.equal(net[0].weight, before["0.weight"])  # held as it was, for whoever saves it

    save(net, tmp_path / "packed.safetensors")
    again = model()
    load(tmp_path / "packed.safetensors", into=again)
    pack_(again, x, weight_dtype=dtype, cache=False)
    assert torch.equal(again(x), y)
    with torch.no_grad():
        net.load_state_dict(
            {name: 2 * p if p.is_floating_point() else p for name, p in net.state_dict().items()}
        )
        assert not torch.equal(net(x), y)  # layouts follow what is loaded


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_bfloat16_model_is_packed_without_being_asked_for(monkeypatch, stored, batch):
    prefer(monkeypatch, "slices bf16", "octets bf16", "csr")
    net, x = model(torch.bfloat16), torch.randn(batch, 60).bfloat16()
    if stored:
        to_sparse_(net, {name: p != 0 for name, p in net.named_parameters() if p.ndim == 2})
    with torch.no_grad():
        expected = model(torch.bfloat16)(x)
        decisions = pack_(net, x, cache=False)
        y = net(x)
    assert {row.layout for row in decisions} == {{1: "slices bf16", 8: "octets bf16", 64: "csr"}[batch]}
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=0.5)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    net.load_state_dict(net.state_dict())
    assert torch.equal(net(x), y)


@pytest.mark.parametrize("form", ["csr", "slices bf16", "dense onednn"])
def test_packed_layers_take_what_autocast_gives_them(monkeypatch, form):
    prefer(monkeypatch, form, "dense")
    net, x = model(), torch.randn(1, 60)
    pack_(net, x, weight_dtype=torch.bfloat16, cache=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = net(x.bfloat16())
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y, model()(x), rtol=5e-2, atol=0.5)


def test_the_dtypes_that_weights_may_have():
    for wrong in (torch.float16, torch.float64, torch.int32):
        with pytest.raises(TypeError, match=f"not {wrong}"):
            pack_(model(), torch.randn(1, 60), weight_dtype=wrong)


def test_double_models_are_left_to_dense_kernels():
    net = model(torch.float64)
    decisions = pack_(net, torch.randn(1, 60, dtype=torch.float64), weight_dtype=torch.bfloat16, cache=False)
    assert {row.layout for row in decisions} == {"dense"}


def test_a_choice_among_rounded_forms_is_not_remembered_for_exact_ones():
    topology, values = matrix()
    assert LinearTrial(topology, values, 1).key() != LinearTrial(topology, values, 1, torch.bfloat16).key()
