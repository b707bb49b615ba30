"""Trainer trains the kept weights of a sparse folder and nothing else; its checkpoints go on; adapters work on top."""

import pytest
import torch
import transformers

import openwork as ow
from openwork import SparseLinear
from openwork.hf import load, merge_adapters_, save
from tests.hf.tiny import VOCABULARY, llama, seeded


@pytest.fixture
def folder(tmp_path):
    model = llama()
    masks = ow.sparsify_(model, ow.Magnitude(sparsity=0.7, exclude=("lm_head.weight",))).masks
    save(model, tmp_path / "sparse", storage="sparse", masks=masks)
    return tmp_path / "sparse"


def trainer(model, out, steps, **options):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(4, VOCABULARY, (16, 12), generator=generator)
    data = [{"input_ids": row, "labels": row} for row in rows]
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        seed=3,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=data)


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear)}


def test_only_kept_weights_are_trained_and_zeros_stay(folder, tmp_path):
    model = load(folder)
    before = {name: (m.topology, m.weight_values.detach().clone()) for name, m in layers(model).items()}
    assert len(before) == 14
    run = trainer(model, tmp_path / "run", 4, save_strategy="no")
    run.train()
    for name, layer in layers(model).items():
        topology, values = before[name]
        assert layer.topology == topology
        assert not torch.equal(layer.weight_values, values)
        state = run.optimizer.optimizer.state[layer.weight_values]
        assert state["exp_avg"].shape == values.shape  # the optimizer holds the kept weights only
        assert int((layer.weight != 0).sum()) <= topology.kept
    run.save_model(tmp_path / "tuned")
    again = load(tmp_path / "tuned")
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_checkpoint_goes_on_with_the_same_bits(folder, tmp_path):
    straight = load(folder)
    trainer(straight, tmp_path / "a", 6, save_strategy="no").train()
    first = load(folder)
    trainer(first, tmp_path / "b", 6, save_strategy="steps", save_steps=3).train()
    resumed = load(folder)
    trainer(resumed, tmp_path / "b", 6, save_strategy="no").train(
        resume_from_checkpoint=str(tmp_path / "b/checkpoint-3")
    )
    for (name, one), other in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other[1]), name


@pytest.mark.filterwarnings("default::FutureWarning")  # peft asks transformers in its old words
def test_adapters_of_peft_on_a_sparse_base(folder):
    peft = pytest.importorskip("peft")
    model = load(folder)
    kept = {name: m.weight_values.detach().clone() for name, m in layers(model).items()}
    tokens = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = model(tokens).logits
    adapted = seeded(
        lambda: peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj", "q_proj"], r=3)), 4
    )
    with torch.no_grad():
        assert torch.equal(adapted(tokens).logits, before)  # B is zero
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    adapted.train()
    adapted(tokens, labels=tokens).loss.backward()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad.sign()
    found = [m for m in adapted.modules() if isinstance(m, SparseLinear)]
    assert all(any(torch.equal(m.weight_values, values) for values in kept.values()) for m in found)
    with torch.no_grad():
        assert not torch.equal(adapted.eval()(tokens).logits, before)


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.parametrize("dense", [False, True])
def test_updates_of_peft_are_merged_where_weights_are_kept(folder, dense):
    peft = pytest.importorskip("peft")
    model, plain = load(folder, dense=dense), load(folder, dense=True)
    config = peft.LoraConfig(target_modules=["up_proj", "q_proj"], r=3, lora_alpha=5)
    adapted = seeded(lambda: peft.get_peft_model(model, config), 4)
    updates, generator = {}, torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, layer in adapted.get_base_model().named_modules():
            if hasattr(layer, "lora_B"):
                b = layer.lora_B["default"].weight
                b.copy_(torch.randn(b.shape, generator=generator))
                updates[name] = 5 / 3 * b @ layer.lora_A["default"].weight
    merged = merge_adapters_(adapted)
    assert len(updates) == 4
    for name, update in updates.items():
        before, after = plain.get_submodule(name).weight, merged.get_submodule(name).weight
        assert torch.allclose(after, torch.where(before != 0, before + update, 0), atol=1e-6)
        assert not after[before == 0].any()
        assert isinstance(merged.get_submodule(name), SparseLinear) != dense
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with pytest.raises(ValueError, match="no low-rank updates"):
        merge_adapters_(
            peft.get_peft_model(
                merged, peft.IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"])
            )
        )
