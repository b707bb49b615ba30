"""Adapters on sparse weights: nothing changes at first, merges are what was trained, zeros stay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork import LoRA, adapt_
from openwork.finetune.lora import KINDS
from openwork.weights import prunable
from tests.hf.tiny import VOCABULARY, bert, gpt2, llama, mixtral, seeded

TOKENS = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
EXACT = ("mask_lora", "scale_lora")


def network(dtype=torch.float64):
    return seeded(lambda: nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 5, bias=False))).to(dtype)


def disturb(adapters, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapters.parameters():
            p += torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * 0.1


def out(model, x):
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_at_first_and_removal_puts_everything_back(kind, dora):
    model = network()
    masks = ow.sparsify_(model, ow.Magnitude(sparsity=0.6)).masks
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    keys, x = list(model.state_dict()), torch.randn(4, 7, dtype=torch.float64)
    y = out(model, x)
    adapters = adapt_(model, LoRA(kind=kind, rank=3, dora=dora), masks=masks)
    assert torch.allclose(out(model, x), y, atol=0 if kind != "scale_lora" else 1e-12)
    size = 3 * (7 + 12) + 3 * (12 + 5) + (dora and 17)
    assert adapters.trainable == size
    assert adapters.fraction == size / sum(p.numel() for p in before.values())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in adapters.parameters()}
    disturb(adapters)
    assert not torch.allclose(out(model, x), y)
    adapters.remove_()
    assert torch.equal(out(model, x), y)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("make", [llama, gpt2, mixtral, bert], ids=lambda f: f.__name__)
def test_merged_equals_adapted_and_the_mask_stays(make, kind, dora):
    model = make()
    masks = ow.sparsify_(model, ow.Magnitude(sparsity=0.6)).masks
    name = next(iter(masks))
    weight = next(w for w in prunable(model) if w.name == name)
    with torch.no_grad():  # a kept zero: the mask knows of it, the weight does not
        weight.oriented(weight.parameter)[tuple(masks[name].nonzero()[0])] = 0
    adapters = adapt_(model, LoRA(kind=kind, rank=2, dora=dora), masks=masks, include=tuple(masks))
    disturb(adapters)
    adapted = out(model, TOKENS)
    found = adapters.merge_()
    assert torch.allclose(out(model, TOKENS), adapted, atol=1e-5)
    for w in prunable(model):
        if w.name in masks:
            assert torch.equal(found[w.name], masks[w.name])
            assert not w.oriented(w.parameter)[~masks[w.name]].any()
    if kind == "mask_lora":  # the kept zero has learned
        assert weight.oriented(weight.parameter)[tuple(masks[name].nonzero()[0])] != 0
    assert not any(nn.utils.parametrize.is_parametrized(m) for m in model.modules())


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_formulas(rows, columns, rank, kind, stabilized, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows).double()
    mask = torch.rand(rows, columns, generator=generator) < 0.6
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, columns, generator=generator, dtype=torch.float64) * mask)
    w = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    adapters = adapt_(
        model, LoRA(kind=kind, rank=rank, alpha=5, stabilized=stabilized), masks={"0.weight": mask}
    )
    disturb(adapters, seed)
    a, b = (p.detach().clone() for p in adapters.parameters())
    ba, s = b @ a, 5 / (math.sqrt(rank) if stabilized else rank)
    during = {"mask_lora": w + s * ba * mask, "scale_lora": w * ba}.get(kind, w + s * ba)
    assert torch.allclose(layer.weight, during, atol=1e-12)
    if kind == "lora" and not mask.all():
        with pytest.raises(ValueError, match=f"would fill the {int((~mask).sum())} zeros of 0.weight"):
            adapters.merge_()
        assert torch.allclose(layer.weight, during, atol=1e-12)  # still on
        return
    found = adapters.merge_()["0.weight"]
    assert found.sum() == mask.sum()
    if kind == "project":
        order = during.abs().flatten().sort(descending=True).values
        assert torch.allclose(during.abs()[found].sort(descending=True).values, order[: int(mask.sum())])
    else:
        assert torch.equal(found, mask)
    assert torch.allclose(layer.weight, during * found, atol=1e-12)
    assert not layer.weight[~found].any()


def test_no_gradient_reaches_pruned_entries_of_the_product():
    layer = nn.Linear(6, 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, :3] = True
    with torch.no_grad():
        layer.weight.mul_(mask)
    adapters = adapt_(nn.Sequential(layer), LoRA(rank=2), masks={"0.weight": mask})
    layer(torch.randn(5, 6)).square().sum().backward()
    _, b = adapters.parameters()
    assert b.grad[0].any()
    assert not b.grad[1:].any()  # rows that keep nothing


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dora", [False, True])
def test_stored_layers_get_the_same_update_as_masked_ones(kind, dora):
    masked, stored = network(), network()
    masks = ow.sparsify_(masked, ow.Magnitude(sparsity=0.6)).masks
    ow.sparsify_(stored, ow.Magnitude(sparsity=0.6))
    ow.to_sparse_(stored, masks)
    x = torch.randn(4, 7, dtype=torch.float64)
    both = [adapt_(model, LoRA(kind=kind, rank=3, dora=dora), masks=masks) for model in (masked, stored)]
    for adapters in both:
        disturb(adapters)
    assert torch.allclose(out(masked, x), out(stored, x), atol=1e-12)
    for model in (masked, stored):
        model(x).square().sum().backward()
    for one, other in zip(both[0].parameters(), both[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)
    for adapters in both:
        assert all(torch.equal(mask, masks[name]) for name, mask in adapters.merge_().items())
    assert torch.allclose(masked[0].weight, stored[0].weight, atol=1e-12)
    assert type(stored[0]) is ow.SparseLinear
    assert list(stored.state_dict()) == [
        "0.weight_values",
        "0.bias",
        "0.weight_crow",
        "0.weight_col",
        *list(stored.state_dict())[4:],
    ]


def test_weights_of_16_bits_are_adapted_in_32():
    model = network(torch.bfloat16)
    masks = ow.sparsify_(model, ow.Magnitude(sparsity=0.5)).masks
    adapters = adapt_(model, LoRA(rank=2), masks=masks)
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    disturb(adapters)
    x = torch.randn(3, 7, dtype=torch.bfloat16)
    adapted = out(model, x)
    assert adapted.dtype == torch.bfloat16
    adapters.merge_()
    assert torch.equal(out(model, x), adapted)


def test_what_cannot_be_adapted():
    model = network()
    with pytest.raises(ValueError, match="kind is one of"):
        LoRA(kind="qlora")
    with pytest.raises(ValueError, match="rank is at least 1"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="nothing to adapt"):
        adapt_(model, include=("nosuch",))
    with pytest.raises(ValueError, match=r"the mask of 0.weight is boolean \[12, 7\]"):
        adapt_(model, masks={"0.weight": torch.ones(7, 12, dtype=torch.bool)})
    ow.to_sparse_(model)
    with pytest.raises(
        ValueError, match=r"0.weight, 2.weight hold only their kept connections, and lora updates all"
    ):
        adapt_(model, LoRA(kind="lora"))


def test_a_bad_update_is_not_merged():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    adapters = adapt_(model, LoRA(rank=2))
    with torch.no_grad():
        next(adapters.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match=r"0.weight holds NaN or infinity: nothing was merged"):
        adapters.merge_()
    adapters.remove_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
