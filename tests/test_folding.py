"""Scales that hide: found by watching a run, exact, and refused where anything else would notice."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.folding import folds


class Parts(nn.Module):
    """One layer of each kind that a test puts together."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(9)
        self.up, self.gate, self.down = nn.Linear(9, 13), nn.Linear(9, 13), nn.Linear(13, 7, bias=False)
        self.gain = nn.Parameter(torch.rand(9) + 0.5)
        self.double()


def found(parts: Parts, run) -> dict[str, set[str]]:  # type: ignore[no-untyped-def]
    """Folds by name, after scaling each and seeing that nothing changes."""
    x = torch.randn(4, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in parts.parameters():
            p.add_(
                0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype)
            )
        parts.down.weight[:, 3] = 0
        before = run(parts, x)
    names = {}
    for fold in folds(parts, lambda: run(parts, x)):
        names[fold.name] = {reader.name for reader in fold.readers}
        weights = [reader.weight.clone() for reader in fold.readers]
        fold.scale_(torch.logspace(-2, 2, fold.channels, dtype=torch.float64))
        with torch.no_grad():
            assert torch.allclose(run(parts, x), before, rtol=1e-9, atol=1e-11)
        for reader, was in zip(fold.readers, weights, strict=True):
            assert torch.equal(reader.weight == 0, was == 0)
            assert not torch.equal(reader.weight, was)
    return names


CASES = {
    "a norm read by two layers": (
        lambda m, x: m.down(F.silu(m.gate(h := m.norm(x))) * m.up(h)),
        {"norm.weight": {"gate.weight", "up.weight"}, "up.weight": {"down.weight"}},
    ),
    "a norm written by hand": (
        lambda m, x: m.down(torch.tanh(m.up(m.gain * (x * torch.rsqrt(x.square().mean(-1, keepdim=True)))))),
        {"gain": {"up.weight"}},
    ),
    "behind a ReLU and a dropout": (
        lambda m, x: m.down(F.dropout(F.relu(m.up(x)), training=False)),
        {"up.weight": {"down.weight"}},
    ),
    "behind a reshape that keeps the channels": (
        lambda m, x: m.down(m.up(m.norm(x).view(-1, 9)).reshape(4, 5, 13)),
        {"norm.weight": {"up.weight"}, "up.weight": {"down.weight"}},
    ),
    "a bilinear gate": (lambda m, x: m.down(m.gate(x) * m.up(x)), {"gate.weight": {"down.weight"}}),
    "a residual reads the norm": (lambda m, x: F.pad(m.up(h := m.norm(x)), (0, 0)).sum() + h.sum(), {}),
    "the norm is returned too": (lambda m, x: torch.cat([m.up(h := m.norm(x)), h], -1), {}),
    "behind a GELU": (lambda m, x: m.down(F.gelu(m.up(x))), {}),
    "behind a ReLU that a sum reads as well": (lambda m, x: m.down(h := F.relu(m.up(x))) + h.sum(), {}),
    "a reshape that mixes channels": (
        lambda m, x: F.linear(m.up(x).flatten(1), torch.ones(2, 65).double()),
        {},
    ),
    "a layer that is used twice": (lambda m, x: m.up(m.norm(x)) + m.up(m.norm(2 * x)), {}),
    "only the input of the model": (lambda m, x: m.up(x), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_scaled(case: str) -> None:
    run, expected = CASES[case]
    assert found(Parts(), run) == expected


def test_norms_without_gain_have_nothing_to_scale() -> None:
    parts = Parts()
    parts.norm = nn.LayerNorm(9, elementwise_affine=False)
    assert found(parts, lambda m, x: m.up(m.norm(x))) == {}


def test_rms_norm_and_the_layers_of_gpt2() -> None:
    class Conv1D(nn.Module):
        def __init__(self, out: int, features: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(features, out)), nn.Parameter(torch.randn(out))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return y.view(*x.shape[:-1], self.weight.shape[1])

    parts = Parts()
    parts.norm = nn.RMSNorm(9)  # type: ignore[assignment]
    parts.up, parts.down = Conv1D(13, 9), Conv1D(7, 13)  # type: ignore[assignment]
    parts.double()
    with torch.no_grad():
        parts.down.weight = nn.Parameter(parts.down.weight.T.clone().T)
    x = torch.randn(2, 3, 9, dtype=torch.float64)

    def run() -> Tensor:
        return parts.down(F.relu(parts.up(parts.norm(x))))

    before = run()
    names = {fold.name: [(r.name, r.axis) for r in fold.readers] for fold in folds(parts, run)}
    assert names == {"norm.weight": [("up.weight", 0)], "up.weight": [("down.weight", 0)]}
    for fold in folds(parts, run):
        fold.scale_(torch.rand(fold.channels, dtype=torch.float64) + 0.1)
    assert torch.allclose(run(), before)


def test_scales_that_are_no_scales_are_refused() -> None:
    parts = Parts()
    fold = folds(parts, lambda: parts.up(parts.norm(torch.ones(2, 9, dtype=torch.float64))))[0]
    before = parts.norm.weight.clone()
    for bad in (torch.ones(8), torch.zeros(9), torch.full((9,), torch.inf)):
        with pytest.raises(ValueError, match=r"norm\.weight has 9 channels"):
            fold.scale_(bad)
    assert torch.equal(parts.norm.weight, before)
