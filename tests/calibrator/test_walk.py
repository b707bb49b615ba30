"""The walk over blocks: what each layer is solved for, and that a model is compressed whole or not at all."""

import copy
import gc
import math

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrator import Solution
from openwork.calibrator.estimate import estimate
from openwork.calibrator.stream import Stream
from openwork.statistics import Statistics
from openwork.tasks.resnet import resnet20
from openwork.testing import batches, network
from tests.calibrator.stages import SEEN, Between, Faulty, Tune, Twice, Watch, gpt, same, weights, windows


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def inputs_of(model, name, data):
    """What one layer reads over all batches, by a plain hook."""
    rows = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in data:
            model(batch)
    hook.remove()
    return torch.cat(rows)


def test_without_changes_the_model_is_the_same_to_the_bit():
    for model, data in (
        (gpt(), windows()),
        (network(), batches(2)),
        (resnet20().eval(), [torch.randn(2, 3, 16, 16)]),
        (Between(), [torch.randn(5, 6)]),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2),
            [torch.randn(2, 4, 8)],
        ),
    ):
        before = weights(model)
        found = ow.sparsify_(model, Watch(), data=data)
        assert same(before, weights(model))
        assert len(found.lines) == len(found.plan.sparse) > 0
        assert all(line.error == 0 for line in found.lines)


@pytest.mark.parametrize("split", [[1] * 12, [4, 4, 4], [12]])
def test_statistics_are_those_of_all_tokens_through_the_compressed_blocks_before(split):
    tokens = torch.cat(windows())
    dense, model = gpt(), gpt()
    ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Watch()], data=list(tokens.split(split)))
    stream = copy.deepcopy(dense)
    for i in range(3):
        for layer in SEEN[4 * i : 4 * i + 4]:
            x = inputs_of(stream, layer.name.removesuffix(".weight"), [tokens]).double()
            torch.testing.assert_close(layer.statistics.gram.double(), x.T @ x, rtol=1e-4, atol=1e-3)
            assert layer.statistics.count == len(x)
            assert torch.equal(layer.dense, dense.get_parameter(layer.name))
        stream.blocks[i].load_state_dict(model.blocks[i].state_dict())


class SharedInputs(nn.Module):
    """q, k and v read one tensor, gate and up another."""

    def __init__(self):
        super().__init__()
        self.names = ("q", "k", "v", "o", "gate", "up", "down")
        for name in self.names:
            self.add_module(name, nn.Linear(6, 6, bias=False))

    def forward(self, x):
        x = x + self.o(torch.tanh(self.q(x)) * self.k(x) + self.v(x))
        y = x / 2
        return x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))


def test_what_is_shared_is_summed_once_and_factorised_once(monkeypatch):
    model = nn.Sequential(*[SharedInputs() for _ in range(2)])
    products, factors = [], []
    add = torch.Tensor.addmm_
    monkeypatch.setattr(
        torch.Tensor, "addmm_", lambda s, a, b, **k: products.append(tuple(s.shape)) or add(s, a, b, **k)
    )
    from openwork.calibrator import layer

    factorise = layer.inverse_factor
    monkeypatch.setattr(layer, "inverse_factor", lambda *a: factors.append(1) or factorise(*a))
    ow.sparsify_(model, ow.ColumnSweep(), data=[torch.randn(9, 6) for _ in range(3)])
    grams = [shape for shape in products if shape == (6, 6)]
    assert len(factors) == 2 * 4
    # one a batch for each tensor read; the sweeps' own products have no columns left over
    assert len(grams) == 2 * 4 * 3


def test_layers_that_part_in_a_later_batch_are_kept_apart():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) + self.b(x if len(x) > 2 else x * 3)

    data = [torch.randn(5, 4), torch.randn(2, 4)]
    ow.sparsify_(Fickle(), Watch(), data=data)
    a, b = (layer.statistics for layer in SEEN)
    assert a is not b
    torch.testing.assert_close(a.gram, sum(x.T @ x for x in data))
    torch.testing.assert_close(b.gram, data[0].T @ data[0] + 9 * data[1].T @ data[1])


def test_memory_is_that_of_one_block():
    """However deep the model, no more statistics are alive than one block has."""
    alive = []

    class Count(Watch):
        def solve(self, layer):
            alive.append(sum(type(o) is Statistics for o in gc.get_objects()))
            return Solution(layer.weight)

    gc.collect()
    ow.sparsify_(gpt(depth=6), Count(), data=windows(1))
    assert max(alive) == 4


def test_modes_caches_and_flags_come_back_and_dropout_is_off():
    class Config:
        use_cache = True

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.layer, self.drop = Config(), nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x):
            assert not self.config.use_cache
            return self.layer(self.drop(x))

    model, x = Noisy(), torch.randn(64, 4)
    model.layer.bias.requires_grad_(False)
    ow.sparsify_(model, Watch(), data=[x])
    torch.testing.assert_close(SEEN[0].statistics.gram, x.T @ x)
    assert model.training
    assert model.drop.training
    assert model.config.use_cache
    assert [p.requires_grad for p in model.parameters()] == [True, False]


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("raise", RuntimeError, "on purpose"),
        ("interrupt", KeyboardInterrupt, None),
        ("fill", ValueError, r"faulty filled zeros of blocks.1.mlp.up.weight: nothing"),
        ("nan", ValueError, r"faulty made NaN or infinity of blocks.1.mlp.up"),
        ("shape", ValueError, r"returned a weight \[1, 16\] .* which is \[64, 16\]"),
        ("lose", ValueError, r"keeps 0 weights of blocks.1.mlp.up.weight and was to keep 1024"),
    ],
)
def test_after_any_error_the_model_is_as_it_was(how, error, match):
    model = gpt().train()
    before = weights(model)
    with pytest.raises(error, match=match):
        ow.sparsify_(model, Faulty(at="blocks.1.mlp.up.weight", how=how), data=windows())
    assert same(before, weights(model))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_numbers_are_named():
    model = gpt()
    with torch.no_grad():
        model.blocks[1].norm2.bias[3] = math.inf
    before = weights(model)
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up.weight reads NaN or infinity in batch 0"):
        ow.sparsify_(model, ow.Wanda(), data=windows())
    assert same(before, weights(model))
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"blocks.1.mlp.up.weight holds NaN"):
        ow.sparsify_(model, ow.Wanda(), data=windows())


@pytest.mark.parametrize("data", [None, [], iter(())])
def test_no_data_is_said(data):
    with pytest.raises(ValueError, match="give at least one"):
        ow.sparsify_(gpt(), ow.Wanda(), data=data)


def test_batches_of_other_forms_are_refused():
    x = windows(1)[0]
    with pytest.raises(ValueError, match="batch 0 of the calibration data is a tuple of 3"):
        ow.sparsify_(gpt(), ow.Wanda(), data=[(x, x, x)])
    with pytest.raises(ValueError, match="batch 1 of the calibration data is a str"):
        ow.sparsify_(gpt(), ow.Wanda(), data=[x, "text"])


def test_tensor_pair_and_dict_are_the_same_batch():
    x, outcomes = windows(2), []
    for data in (x, [(b, None) for b in x], [{"tokens": b} for b in x], (b for b in x), [[b] for b in x]):
        model = gpt()
        ow.sparsify_(model, ow.SparseGPT(sparsity=0.6), data=data)
        outcomes.append(weights(model))
    assert all(same(outcomes[0], other) for other in outcomes[1:])


def test_padding_does_not_count():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = gpt()

        def forward(self, tokens, attention_mask):
            return self.inner(tokens)

    short, pad = windows(1, length=7)[0], torch.zeros(4, 5, dtype=torch.int64)
    mask = torch.cat([torch.ones(4, 7), torch.zeros(4, 5)], 1)
    outcomes = []
    for tokens, attention in ((torch.cat([short, pad], 1), mask), (short, torch.ones(4, 7))):
        ow.sparsify_(Masked(), Watch(), data=[{"tokens": tokens, "attention_mask": attention}])
        outcomes.append([layer.statistics for layer in SEEN])
        SEEN.clear()
    for one, other in zip(
        *outcomes, strict=True
    ):  # attention is causal: padding behind changes nothing before it
        assert one.count == other.count == 28
        torch.testing.assert_close(one.gram, other.gram, rtol=1e-4, atol=1e-4)


def test_what_is_computed_between_blocks_is_seen_and_the_walk_is_right():
    torch.manual_seed(0)
    dense, x = Between(), torch.randn(9, 6)
    model = copy.deepcopy(dense)
    assert Stream(model, list(model.blocks), [x]).wiring is None
    ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Watch()], data=[x])
    stream = copy.deepcopy(dense)
    for i in range(3):
        seen = inputs_of(stream, f"blocks.{i}.0", [x])
        torch.testing.assert_close(SEEN[2 * i].statistics.gram, seen.T @ seen)
        stream.blocks[i].load_state_dict(model.blocks[i].state_dict())
    with pytest.raises(ValueError, match="computes something between the blocks"):
        ow.sparsify_(model, Tune(), data=[x], targets="dense_stream")


def test_a_block_that_is_called_twice_is_refused_and_the_whole_model_works():
    x = torch.randn(9, 6)
    with pytest.raises(ValueError, match=r"in the order \[0, 1, 2, 0\].*blocks='whole'"):
        ow.sparsify_(Twice(), ow.Wanda(), data=[x])
    model = Twice()
    ow.sparsify_(model, [ow.Wanda(), Watch()], data=[x], blocks="whole")
    assert SEEN[0].statistics.count == 18  # the first block reads twice as many tokens
    assert SEEN[2].statistics.count == 9


def test_true_sequential_refreshes_inside_a_block():
    tokens = windows()
    dense, model = gpt(depth=1), gpt(depth=1)
    ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Watch()], data=tokens, true_sequential=True, blocks="blocks")
    stream = copy.deepcopy(dense)
    for layer in SEEN:
        x = inputs_of(stream, layer.name.removesuffix(".weight"), tokens).double()
        torch.testing.assert_close(layer.statistics.gram.double(), x.T @ x, rtol=1e-4, atol=1e-3)
        stream.get_parameter(layer.name).data.copy_(model.get_parameter(layer.name))
    assert [layer.name.split(".", 2)[2] for layer in SEEN] == [
        "attention.qkv.weight",
        "attention.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    ]


def test_offloading_gives_the_same_bits_and_leaves_no_files(tmp_path):
    outcomes = []
    for folder in (None, tmp_path):
        model = gpt()
        ow.sparsify_(model, ow.SparseGPT(sparsity=0.5), data=windows(), offload=folder)
        outcomes.append(weights(model))
    assert same(*outcomes)
    assert not list(tmp_path.iterdir())


def test_stages_for_whole_blocks_get_inputs_and_targets_of_either_stream():
    x = windows()
    dense = gpt()
    hidden = [torch.cat([b.detach() for b in outputs_of(dense, x, i)]) for i in range(3)]
    for targets in ("dense_on_sparse_inputs", "dense_stream"):
        SEEN.clear()
        model = gpt()
        found = ow.sparsify_(model, [ow.Wanda(sparsity=0.5), Tune()], data=x, targets=targets)
        stream = copy.deepcopy(dense)
        for i, (name, now, wanted, tokens, masks) in enumerate(SEEN):
            assert name == f"blocks.{i}"
            expected = torch.cat([b.detach() for b in outputs_of(stream, x, i)])
            torch.testing.assert_close(
                torch.cat(wanted), hidden[i] if targets == "dense_stream" else expected
            )
            assert not torch.allclose(torch.cat(now), torch.cat(wanted))
            assert tokens == [None] * 3
            assert {f"blocks.{i}.{key}" for key in masks} == {n for n in found.masks if n.startswith(name)}
            stream.blocks[i].load_state_dict(model.blocks[i].state_dict())
        assert [line.stage for line in found.lines].count("tune") == 3
        for name, mask in found.masks.items():
            assert not model.get_parameter(name)[~mask].any()


def outputs_of(model, data, index):
    """What a block of a GPT returns for each batch."""
    outputs = []
    hook = model.blocks[index].register_forward_hook(lambda _, __, y: outputs.append(y))
    with torch.no_grad():
        for batch in data:
            model(batch)
    hook.remove()
    return outputs


def test_a_block_stage_that_fills_zeros_is_refused():
    model = gpt()
    before = weights(model)
    with pytest.raises(ValueError, match=r"tune filled zeros of blocks.0.attention.qkv.weight"):
        ow.sparsify_(model, [ow.Wanda(), Tune(fill=True)], data=windows())
    assert same(before, weights(model))
    with pytest.raises(ValueError, match="this recipe has none"):
        ow.sparsify_(model, ow.Wanda(), data=windows(), targets="dense_stream")


def test_a_stage_may_put_another_module_in_the_place_of_a_layer():
    class Beside(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + 1

    class Replace(Watch):
        def solve(self, layer):
            if layer.name.startswith("blocks.2"):
                raise RuntimeError("on purpose")
            return Solution(layer.weight, module=Beside, parts={"rank": 1})

    model = gpt()
    up, before = model.blocks[0].mlp.up, weights(model)
    with pytest.raises(RuntimeError):
        ow.sparsify_(model, Replace(), data=windows())
    assert model.blocks[0].mlp.up is up
    assert same(before, weights(model))
    found = ow.sparsify_(model, Replace(exclude=("blocks.2.*",)), data=windows())
    assert isinstance(model.blocks[1].mlp.up, Beside)
    assert found.parts["blocks.0.mlp.up.weight"] == {"rank": 1}


def test_recipes_begin_with_what_scores_the_whole_model():
    model, dense = gpt(), gpt()
    found = ow.sparsify_(
        model, [ow.Magnitude(sparsity=0.6, allocation="global"), ow.Refit(), ow.BiasCorrect()], data=windows()
    )
    assert found.plan.method.name == "magnitude"
    assert found.plan.kept == round(0.4 * found.plan.numel) == sum(int(m.sum()) for m in found.masks.values())
    assert "dense: outside the blocks" in str(found.plan) or "excluded" in str(found.plan)
    assert torch.equal(model.head.weight, dense.head.weight)
    alone = gpt()
    pruned = ow.sparsify_(alone, ow.Magnitude(sparsity=0.6, allocation="global", exclude=("head.*",)))
    assert same(found.masks, pruned.masks)
    for recipe in ([ow.Wanda(), ow.Magnitude()], [ow.Magnitude()], []):
        with pytest.raises(ValueError, match="a recipe begins with"):
            ow.sparsify_(model, recipe, data=windows())
    with pytest.raises(TypeError, match="SET does not prune at once"):
        ow.sparsify_(model, [ow.Wanda(), ow.SET()], data=windows())
    with pytest.raises(TypeError, match="offload belong to calibration"):
        ow.sparsify_(model, ow.Magnitude(), offload="here")


def test_a_second_choice_is_made_among_what_the_first_left():
    model = gpt()
    found = ow.sparsify_(model, [ow.Wanda(sparsity=0.3), ow.SparseGPT(sparsity=0.6)], data=windows())
    assert found.plan.sparsity == pytest.approx(0.6, abs=1e-3)
    first = gpt()
    wanda = ow.sparsify_(first, ow.Wanda(sparsity=0.3, exclude=("blocks.1.*", "blocks.2.*")), data=windows())
    for name, mask in wanda.masks.items():
        assert not found.masks[name][~mask].any()


def test_the_table_tells_layer_by_layer():
    found = ow.sparsify_(
        gpt(), [ow.Wanda(sparsity=0.5, pattern="2:4"), ow.BiasCorrect()], data=windows(), errors=True
    )
    text = str(found)
    assert text.splitlines()[0].split() == ["layer", "stage", "sparsity", "kept", "of", "error", "seconds"]
    assert len(text.splitlines()) == 2 + 3 * 4 * 2
    assert "sparsity 0.500000" in text
    before, after = found.errors("wanda"), found.errors("bias_correct")
    assert before.keys() == after.keys() == set(found.masks)
    assert all(after[name] <= before[name] for name in before)
    assert ow.sparsify_(gpt(), ow.Wanda(), data=windows()).lines[0].error is None


def test_the_error_in_the_table_is_that_of_the_outputs():
    model, data = nn.Sequential(nn.Linear(7, 5)).double(), [torch.randn(50, 7).double() + 1]
    dense = copy.deepcopy(model)
    found = ow.sparsify_(model, [ow.Wanda(sparsity=0.6), ow.BiasCorrect()], data=data, errors=True)
    with torch.no_grad():
        difference = (model(data[0]) - dense(data[0])).square().sum() / (
            data[0] @ dense[0].weight.T
        ).square().sum()
    assert found.lines[-1].error == pytest.approx(float(difference), rel=1e-9)


def test_a_layer_that_nothing_goes_through_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Idle()
    with pytest.raises(
        ValueError, match=r"seen to go through idle.weight: exclude it, exclude=\('idle.weight',\)"
    ):
        ow.sparsify_(model, ow.Wanda(), data=[torch.randn(5, 4)])
    ow.sparsify_(model, ow.Wanda(exclude=("idle.*",)), data=[torch.randn(5, 4)])


def test_an_estimate_says_what_it_takes_and_changes_nothing():
    model = gpt()
    before = weights(model)
    found = estimate(model, [ow.SparseGPT()], data=windows())
    assert (found.blocks, found.layers, found.batches) == (3, 12, 3)
    assert found.seconds > 0
    assert estimate(model, ow.Wanda(), data=windows()).nbytes < found.nbytes
    assert found.nbytes < estimate(model, ow.SparseGPT(), data=windows(6)).nbytes
    assert same(before, weights(model))
    assert "12 layers in 3 blocks, 3 batches: about" in str(found)


def test_what_a_method_for_the_whole_model_prunes_is_pruned_also_where_no_stage_goes(tmp_path):
    scored = ow.Magnitude(sparsity=0.6, allocation="global")
    recipe = [scored, ow.Refit(exclude=("*.up.*",))]
    dense, model, again = gpt(), gpt(), gpt()
    masks = ow.sparsify_(gpt(), ow.Magnitude(sparsity=0.6, allocation="global", exclude=("head.*",))).masks
    found = ow.sparsify_(model, recipe, data=windows(), checkpoint=tmp_path)
    assert same(found.masks, masks)
    assert found.plan.kept == sum(int(m.sum()) for m in found.masks.values())
    left = [name for name in masks if ".up." in name]
    assert left
    for name in left:
        weight = dict(dense.named_parameters())[name] * masks[name]
        assert torch.equal(dict(model.named_parameters())[name], weight)
    ow.sparsify_(again, recipe, data=windows(), checkpoint=tmp_path)
    assert same(weights(model), weights(again))


def test_vectors_that_a_glob_names_too_stay_dense_and_say_so():
    model, named = gpt(), gpt()
    found = ow.sparsify_(model, ow.Wanda(include=("blocks.*",)), data=windows())
    ow.sparsify_(named, ow.Wanda(), data=windows())
    assert same(weights(model), weights(named))
    row = next(row for row in found.plan if row.name == "blocks.1.norm1.weight")
    assert not row.sparse
    assert "dense" in row.why
