"""The dense model under `torch.compile` as a contender: what is compiled, and what is said about it."""

import copy
import re

import pytest
import torch
from torch import nn

from openwork.layouts.linear import SparseLinear
from openwork.pack import Compiled, compiled, pack_
from openwork.storage import to_sparse_

pytestmark = pytest.mark.filterwarnings("ignore:.*mkldnn.*")


def small() -> nn.Module:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(50, 40) < 0.1)
    return model


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        ((2.0, 1.0), "packed is 2.00 times as fast"),
        ((1.0, 1.03), "about the same"),
        ((1.0, 1.5), "THE COMPILED DENSE MODEL IS 1.50 TIMES AS FAST: compile it rather than pack it"),
    ],
)
def test_it_is_said_which_is_faster(ms: tuple[float, float], said: str) -> None:
    told = Compiled(3, *ms)
    assert str(told).endswith(said)
    assert told.ratio == ms[0] / ms[1]


def test_it_is_timed_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def pretend(dense: nn.Module, inputs: torch.Tensor, order: torch.memory_format):
        seen.append((dense, inputs.shape, order))
        return lambda: None  # nothing is faster

    monkeypatch.setattr(compiled, "_compiled", pretend)
    monkeypatch.setattr(compiled, "REST", 0.0)
    model, x = small(), torch.randn(2, 40)
    before = copy.deepcopy(model)
    assert pack_(copy.deepcopy(model), x, seconds=0.01, cache=False).compiled == ()
    assert not seen
    decisions = pack_(model, x, seconds=0.01, cache=False, batches=(2, 5), compiled=True)
    assert [told.batch for told in decisions.compiled] == [2, 5]
    assert [shape for _, shape, _ in seen] == [(2, 40), (5, 40)]
    assert "THE COMPILED DENSE MODEL" in str(decisions)
    for dense, _, order in seen:  # the model before, and images alone have an order
        assert [type(layer) for layer in dense] == [nn.Linear, nn.ReLU, nn.Linear]
        assert torch.equal(dense(x), before(x))
        assert order is torch.contiguous_format


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no working C++ compiler\nat all")

    monkeypatch.setattr(compiled, "_compiled", fails)
    decisions = pack_(small(), torch.randn(2, 40), seconds=0.01, cache=False, compiled=True)
    (told,) = decisions.compiled
    assert told.compiled_ms is None
    assert str(told).endswith("it could not compile the dense model (RuntimeError: no working C++ compiler)")


def test_stored_layers_are_dense_to_the_compiler_and_packed_ones_refused() -> None:
    model = small()
    expected = model(torch.ones(1, 40))
    to_sparse_(model)
    assert isinstance(model[0], SparseLinear)
    dense = compiled.dense_copy(model)
    assert not any(isinstance(layer, SparseLinear) for layer in dense)
    assert torch.equal(dense(torch.ones(1, 40)), expected)
    assert isinstance(model[0], SparseLinear)
    pack_(model, torch.ones(1, 40), seconds=0.01, cache=False)
    packed = [type(layer) for layer in model]
    if any(issubclass(kind, compiled.PACKED) for kind in packed):
        with pytest.raises(ValueError, match=re.escape("compiled=True times the dense model")):
            pack_(model, torch.ones(1, 40), cache=False, compiled=True)
        assert [type(layer) for layer in model] == packed


@pytest.mark.slow
def test_a_network_of_convolutions_is_compiled_for_real() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).detach()
    (told,) = pack_(model, x, seconds=0.05, cache=False, compiled=True).compiled
    assert told.failed == ""
    assert told.compiled_ms > 0 < told.packed_ms
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
