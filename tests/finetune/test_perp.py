"""PERP trains a part and keeps every zero, on the model's loss and block by block."""

import pytest
import torch
from torch.nn import functional as F

import openwork as ow
from openwork import PERP, Magnitude, PERPBlocks
from openwork.weights import prunable
from tests.hf.tiny import VOCABULARY, bert, gpt2, llama

HEADLESS = {"exclude": ("lm_head.weight",)}


def text(count=6, length=20):
    """Rows that count upwards: easy to predict once it has been seen."""
    starts = torch.arange(count)[:, None] * 3
    return list((4 + (starts + torch.arange(length)) % (VOCABULARY - 4)).split(2))


def trained(make=llama, steps=60):
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = text()[step % 3]
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def loss_of(model):
    with torch.no_grad():
        return sum(float(model(batch, labels=batch).loss) for batch in text()) / 3


def changed(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_part_repairs_most_of_the_damage(make):
    model = trained(make)
    dense = loss_of(model)
    recipe = [Magnitude(sparsity=0.7, **(HEADLESS if make is llama else {}))]
    done = ow.sparsify_(model, recipe[0])
    damaged = loss_of(model)
    repaired = ow.sparsify_(
        model, PERP(train=("bias", "norm", "mask_lora"), rank=4, steps=60, learning_rate=5e-3), data=text()
    )
    assert loss_of(model) - dense < 0.5 * (damaged - dense)
    said = repaired.parts["perp"]
    assert said["losses"][-1] < said["losses"][0]
    for w in prunable(model):
        if w.name in done.masks:
            assert not w.oriented(w.parameter)[~done.masks[w.name]].any()
            assert torch.equal(repaired.masks[w.name], done.masks[w.name])


@pytest.mark.parametrize(
    "train", [("norm",), ("bias",), ("norm", "bias"), ("scale_lora",), ("lora_prune", "norm"), ("head",)]
)
def test_only_what_was_chosen_changes_and_is_counted_exactly(train):
    model = gpt2() if "head" not in train else llama()
    masks = ow.sparsify_(model, Magnitude(sparsity=0.5, **(HEADLESS if "head" in train else {}))).masks
    before, flags = copies(model), [p.requires_grad for p in model.parameters()]
    done = ow.sparsify_(model, PERP(train=train, rank=3, steps=3), data=text())
    expected = {n for n in before if "norm" in train and ".ln_" in n}
    expected |= {n for n in before if "bias" in train and n.endswith(".bias") and ".ln_" not in n}
    count = sum(before[n].numel() for n in expected)
    if "scale_lora" in train or "lora_prune" in train:
        expected |= set(masks)
        count += sum(3 * sum(mask.shape) for mask in masks.values())
    if "head" in train:
        expected, count = {"lm_head.weight"}, 3 * (24 + VOCABULARY)
    assert changed(model, before) == expected
    assert done.parts["perp"]["trainable"] == count
    assert done.parts["perp"]["of"] == sum(p.numel() for p in before.values())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert list(copies(model)) == list(before)
    assert all(p.grad is None for p in model.parameters())


def test_one_recipe_from_dense_to_repaired_and_the_same_bits_again():
    results = []
    for _ in range(2):
        model = llama()
        done = ow.sparsify_(
            model, [ow.Wanda(sparsity=0.5), PERPBlocks(steps=5, rank=2), PERP(steps=5, rank=2)], data=text()
        )
        results.append(copies(model))
        assert [line.stage for line in done.lines[-1:]] == ["perp"]
        for w in prunable(model):
            if w.name in done.masks:
                assert not w.oriented(w.parameter)[~done.masks[w.name]].any()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize(
    "first", [Magnitude(sparsity=0.6, exclude=("lm_head.weight",)), ow.Wanda(sparsity=0.6)]
)
def test_blocks_learn_to_do_what_they_did(first):
    model = llama()
    done = ow.sparsify_(model, [first, PERPBlocks(steps=40, rank=4, learning_rate=5e-3)], data=text())
    plain = llama()
    ow.sparsify_(plain, [first, PERPBlocks(steps=0)], data=text())
    for i in range(2):
        said = done.parts[f"model.layers.{i}"]
        assert said["error after"] < 0.9 * said["error before"]
        assert said["trainable"] == 2 * 24 + 4 * sum(
            sum(p.shape) for n, p in model.model.layers[i].named_parameters() if p.ndim == 2
        )
    dense = llama()
    batch = text()[0]
    with torch.no_grad():
        wanted, repaired, damaged = (m.model(batch)[0] for m in (dense, model, plain))
    assert (repaired - wanted).square().mean() < (damaged - wanted).square().mean()


def test_a_block_that_does_not_gain_is_left_as_it_was():
    one, other = llama(), llama()
    ow.sparsify_(one, [ow.Wanda(sparsity=0.5), PERPBlocks(steps=4, learning_rate=0.5)], data=text())
    ow.sparsify_(other, ow.Wanda(sparsity=0.5), data=text())
    assert not changed(one, copies(other))


def test_padding_is_not_learned_from():
    rows = torch.cat(text())
    mask = torch.ones_like(rows)
    mask[:, 12:] = 0
    results = []
    for filler in (0, 7):
        padded = rows.clone()
        padded[:, 12:] = filler
        model = bert()
        stages = [Magnitude(sparsity=0.6), PERPBlocks(steps=4, rank=2)]
        ow.sparsify_(model, stages, data=[{"input_ids": padded, "attention_mask": mask}])
        results.append(copies(model))
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-6) for name in results[0])


def test_targets_and_a_loss_of_your_own():
    model = bert()
    data = [(batch, batch.float().mean(1)) for batch in text()]

    def loss(outputs, targets):
        return F.mse_loss(outputs.last_hidden_state.mean((1, 2)), targets)

    with pytest.raises(ValueError, match="has no logits"):
        ow.sparsify_(bert(), [Magnitude(sparsity=0.5), PERP(steps=2)], data=text())
    done = ow.sparsify_(
        model, [Magnitude(sparsity=0.5), PERP(steps=20, learning_rate=1e-2)], data=data, loss=loss
    )
    assert done.parts["perp"]["losses"][-1] < done.parts["perp"]["losses"][0]


def test_after_an_error_the_model_is_as_it_was():
    model = llama()
    before = copies(model)

    def loss(outputs, targets):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        ow.sparsify_(model, [ow.Wanda(sparsity=0.5), PERP(steps=2)], data=[(b, b) for b in text()], loss=loss)
    assert not changed(model, before)
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


def test_weights_of_16_bits():
    model = llama(dtype=torch.bfloat16)
    done = ow.sparsify_(
        model, [ow.Wanda(sparsity=0.5), PERPBlocks(steps=10, rank=2), PERP(steps=3, rank=2)], data=text()
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(not w.parameter[~done.masks[w.name]].any() for w in prunable(model) if w.name in done.masks)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ((), "train is a tuple"),
        (("bias", "embedding"), "'embedding' is none of"),
        (("mask_lora", "scale_lora"), "are two"),
        (("lora",), "'lora' is none of"),
    ],
)
def test_what_is_not_a_subset(train, said):
    for method in (PERP, PERPBlocks):
        with pytest.raises(ValueError, match=said):
            method(train=train)
    with pytest.raises(ValueError, match="'head' is none of"):
        PERPBlocks(train=("head",))


def test_nothing_to_train_and_a_tied_head():
    with pytest.raises(ValueError, match="the module has no bias"):
        ow.sparsify_(llama(), [ow.Wanda(sparsity=0.5), PERPBlocks(train=("bias",))], data=text())
    with pytest.raises(ValueError, match="cannot change on its own: embedding tied"):
        ow.sparsify_(llama(tied=True), [ow.Wanda(sparsity=0.5), PERP(train=("head",), steps=1)], data=text())
    with pytest.raises(ValueError, match="goes on with stages that calibrate, and ends"):
        ow.sparsify_(llama(), [PERP(), ow.Wanda(sparsity=0.5)], data=text())
