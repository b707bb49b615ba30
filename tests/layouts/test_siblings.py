"""Layers that read the same tensor: each computes what it would by itself, whoever calls what, when and how."""

import copy
import io
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.kernels.bits import same_bits
from openwork.layouts.bitmasked import Bitmasked
from openwork.layouts.csr import CSR
from openwork.layouts.layout import Layout
from openwork.layouts.packed import PackedLinear
from openwork.layouts.siblings import Share, Sibling, Siblings
from openwork.layouts.slices import Int8Slices, Slices
from openwork.layouts.small_batch import Octets
from openwork.layouts.stream import Stream

INPUTS = 37
OUTPUTS = (19, 8, 23)
ACTIVATIONS = ("none", "silu", "none")
LAYOUTS = [Slices, Octets, Bitmasked, Stream]


def members(activations=ACTIVATIONS, biased=(True, False, True), seed: int = 0) -> list[Sibling]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for outputs, activation, has_bias in zip(OUTPUTS, activations, biased, strict=True):
        mask = torch.rand(outputs, INPUTS, generator=generator) < 0.3
        values = torch.randn(int(mask.sum()), generator=generator)
        bias = torch.randn(outputs, generator=generator) if has_bias else None
        found.append(Sibling(CSR.from_mask(mask), values, bias, activation))
    return found


class Family(nn.Module):
    """Three packed layers with one weight, called as the test says."""

    def __init__(self, layout: type[Layout] = Slices, activations=ACTIVATIONS, seed: int = 0) -> None:
        super().__init__()
        shares = Siblings(members(activations, seed=seed), layout, 1).shares()
        self.layers = nn.ModuleList(
            PackedLinear.pack(one.topology, one.values, one.bias, {1: share}, one.activation)
            for one, share in zip(members(activations, seed=seed), shares, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]

    @property
    def siblings(self) -> Siblings:
        share = self.layers[0].dispatch.by_batch[1]
        assert isinstance(share, Share)
        return share.siblings


def alone(layer: PackedLinear, x: Tensor) -> Tensor:
    """What a layer computes, in float64."""
    y = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    return F.silu(y) if layer.activation == "silu" else F.relu(y) if layer.activation == "relu" else y


def check(family: Family, x: Tensor, order=(0, 1, 2)) -> None:
    for i in order:
        y = family.layers[i](x)
        assert y.is_contiguous()
        torch.testing.assert_close(y.double(), alone(family.layers[i], x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activations", [ACTIVATIONS, ("none",) * 3, ("relu",) * 3])
@pytest.mark.parametrize(
    "shape", [(1, INPUTS), (1, 1, INPUTS), (INPUTS,), (5, INPUTS), (2, 3, INPUTS), (0, INPUTS)]
)
def test_each_computes_what_it_would_by_itself(layout, activations, shape) -> None:
    check(Family(layout, activations), torch.randn(shape))


@given(calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_any_order_of_calls_and_inputs(calls) -> None:
    family, inputs = Family(), torch.randn(3, 1, INPUTS)
    for layer, x in calls:
        check(family, inputs[x], [layer])


def test_all_are_computed_in_one_pass_and_nothing_stays(monkeypatch) -> None:
    family, computed = Family(), []
    original = Siblings._computed
    monkeypatch.setattr(Siblings, "_computed", lambda self, x: computed.append(1) or original(self, x))
    for _ in range(3):
        family(torch.randn(1, INPUTS))
        assert family.siblings._local.kept is None
    assert len(computed) == 3


@pytest.mark.parametrize("write", ["version", "data", "numpy"])
def test_an_input_written_to_between_calls_is_another_input(write) -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    check(family, x, [0])
    if write == "version":
        x.mul_(2)
    elif write == "data":
        x.data.mul_(2)  # no version tells
    else:
        x.numpy()[0, 3] = 7
    check(family, x, [1, 2])


def test_outputs_may_be_written_to() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    first = family.layers[0](x)
    second = family.layers[1](x)
    kept, version = second.clone(), second._version
    first.zero_()
    assert torch.equal(second, kept)
    assert second._version == version
    second.zero_()
    check(family, x, [1, 2, 1, 0])


def test_a_hook_that_changes_one_input_changes_that_only() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    family.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 3,))
    y = family(x)
    torch.testing.assert_close(y[1].double(), alone(family.layers[1], 3 * x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[2].double(), alone(family.layers[2], x), rtol=1e-4, atol=1e-4)


def test_nan_reaches_who_keeps_its_input() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    x[0, 5] = float("nan")
    for layer, y in zip(family.layers, family(x), strict=True):
        assert torch.equal(y[0].isnan(), layer.weight[:, 5] != 0)
    assert family.siblings._local.kept is None  # NaN is the same as itself here


def test_zeros_of_another_sign_are_another_input() -> None:
    a, b = torch.zeros(1, 3), -torch.zeros(1, 3)
    assert same_bits(a, a.clone())
    assert not same_bits(a, b)
    assert not same_bits(a, a[0])
    assert not same_bits(a, a.int())
    assert same_bits(torch.full((2,), float("nan")), torch.full((2,), float("nan")))
    assert same_bits(a[:0], b[:0])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_share_among_themselves_only(how) -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    family.layers[0](x)  # something is kept meanwhile
    if how == "deepcopy":
        other = copy.deepcopy(family)
    else:
        file = io.BytesIO()
        torch.save(family, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.siblings is not family.siblings
    assert other.layers[2].dispatch.by_batch[1].siblings is other.siblings
    check(other, x, [1, 2, 0])
    check(family, x, [1, 2])


def test_another_state_is_computed_with() -> None:
    family, other, x = Family(), Family(seed=5), torch.randn(1, INPUTS)
    check(family, x, [0])
    family.load_state_dict(other.state_dict())
    for mine, theirs in zip(family(x), other(x), strict=True):
        assert torch.equal(mine, theirs)
    check(family, x)


@pytest.mark.parametrize("how", ["in place", "another"])
def test_a_bias_that_changes_is_seen(how) -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    family.layers[0](x)
    if how == "in place":
        family.layers[2].bias.add_(1)
    else:
        family.layers[2].bias = nn.Parameter(torch.randn(OUTPUTS[2]), requires_grad=False)
    check(family, x, [2, 0, 1])


def test_gradients_are_refused_by_all() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    family.layers[0](x)
    for layer in family.layers:
        with pytest.raises(RuntimeError, match="gives no gradients"):
            layer(x.clone().requires_grad_())
    family.train()
    check(family, x)


def test_what_inference_mode_computed_stays_there() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    with torch.inference_mode():
        family.layers[0](x)
        assert family.layers[1](x).is_inference()
    assert not family.layers[2](x).is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_of_other_precisions(dtype) -> None:
    family = Family()
    x = torch.randn(1, INPUTS, dtype=dtype)
    for layer, y in zip(family.layers, family(x), strict=True):
        assert y.dtype is dtype
        torch.testing.assert_close(y.double(), alone(layer, x), rtol=2e-2, atol=2e-2)


def test_rounded_weights_are_rounded_row_by_row() -> None:
    together, x = Siblings(members(), Int8Slices, 1), torch.randn(1, INPUTS)
    for one, share in zip(members(), together.shares(), strict=True):
        apart = Int8Slices.build(one.topology, one.values, 1).compute(x, one.bias, one.activation)
        torch.testing.assert_close(share.compute(x, one.bias, one.activation), apart)


def test_threads_do_not_get_each_others() -> None:
    family, started = Family(), threading.Barrier(4)

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        started.wait()
        for _ in range(50):
            check(family, torch.randn(1, INPUTS, generator=generator))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def _in_child(family: Family, x: Tensor, send) -> None:
    send.send([y.tolist() for y in family(x)])


def test_a_forked_process() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    expected = [y.tolist() for y in family(x)]
    family.layers[0](x)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe()
    process = context.Process(target=_in_child, args=(family, x, send))
    process.start()
    assert receive.poll(60)
    assert receive.recv() == expected
    process.join()


def test_compiled_all_is_seen() -> None:
    family, x = Family(), torch.randn(1, INPUTS)
    compiled = torch.compile(family, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            for mine, theirs in zip(compiled(x), family(x), strict=True):
                torch.testing.assert_close(mine, theirs)


def test_one_layer_alone_is_no_sibling() -> None:
    one = members()[0]
    assert Share.unsuited(one.topology, one.values, 1)
    with pytest.raises(TypeError, match="together"):
        Share.build(one.topology, one.values, 1)
