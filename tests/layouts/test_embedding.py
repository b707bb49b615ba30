"""An embedding that owns only its kept weights, against the dense embedding with the same zeros."""

import copy

import pytest
import torch
from torch import nn

from openwork import SET, RigL, SparseEmbedding, StaticRandom, attach, load, plan, save, to_dense_, to_sparse_
from openwork.files import FileError
from openwork.layouts.csr import CSR
from openwork.layouts.layer import SparseLayer

WORDS, FEATURES = 13, 7


def dense(dtype: torch.dtype = torch.float64, **options: object) -> tuple[nn.Embedding, torch.Tensor]:
    """A dense embedding with zeros, and its mask; one kept weight is zero and one entry keeps nothing."""
    generator = torch.Generator().manual_seed(3)
    embedding = nn.Embedding(WORDS, FEATURES, dtype=dtype, **options)
    mask = torch.rand(WORDS, FEATURES, generator=generator) < 0.4
    mask[5] = False
    with torch.no_grad():
        embedding.weight.copy_(torch.randn(WORDS, FEATURES, generator=generator) * mask)
        embedding.weight[tuple(mask.nonzero()[4])] = 0.0
    return embedding, mask


def words(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("shape", [(4, 9), (), (0,), (3, 0)])
def test_equals_the_dense_layer_forward_and_backward(dtype, padding, shape) -> None:
    embedding, mask = dense(dtype, padding_idx=padding)
    sparse = SparseEmbedding.from_embedding(embedding, mask)
    x = words(*shape)
    y, expected = sparse(x), embedding(x)
    assert torch.equal(y, expected)
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (y * factor).sum().backward()
    (expected * factor).sum().backward()
    tolerance = 1e-1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(
        sparse.weight_values.grad, embedding.weight.grad[mask], rtol=tolerance, atol=tolerance
    )
    assert sparse.weight_values.grad.shape == (int(mask.sum()),)


def test_a_gradient_of_a_gradient() -> None:
    embedding, mask = dense()
    sparse = SparseEmbedding.from_embedding(embedding, mask)
    x = words(20)
    results = []
    for layer, parameter in ((sparse, sparse.weight_values), (embedding, embedding.weight)):
        (gradient,) = torch.autograd.grad(layer(x).tanh().square().sum(), parameter, create_graph=True)
        kept = gradient if layer is sparse else gradient[mask]
        results.append(torch.autograd.grad(kept.square().sum(), parameter)[0])
    torch.testing.assert_close(results[0], results[1][mask])


def test_there_and_back() -> None:
    embedding, mask = dense(padding_idx=1)
    sparse = SparseEmbedding.from_embedding(embedding, mask)
    assert isinstance(sparse, nn.Embedding)
    assert sparse.topology == CSR.from_mask(mask)
    assert torch.equal(sparse.weight, embedding.weight)
    back = sparse.to_embedding()
    assert back.padding_idx == 1
    assert torch.equal(back(words(9)), embedding(words(9)))
    assert f"kept={int(mask.sum())}" in repr(sparse)
    assert torch.equal(copy.deepcopy(sparse)(words(9)), back(words(9)))


def test_a_new_layer_keeps_as_many_as_asked_for() -> None:
    layer = SparseEmbedding(1000, 40, 3, sparsity=0.9, generator=torch.Generator().manual_seed(1))
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [("weight_values", (4000,))]
    assert 0.9 < float(layer.weight_values.detach().std()) < 1.1
    assert not layer(torch.tensor([3])).any()
    with pytest.raises(TypeError, match=r"SparseEmbedding stores 4000 kept weights.*from_embedding"):
        layer.weight = nn.Parameter(torch.zeros(1000, 40))


def test_indices_are_checked() -> None:
    layer = SparseEmbedding.from_embedding(*dense())
    assert torch.equal(layer(words(4).int()), layer(words(4)))
    for wrong in (-1, WORDS):
        with pytest.raises(IndexError):
            layer(torch.tensor([0, wrong]))
    with pytest.raises(ValueError, match=r"int32 or int64 indices \[\.\.\.\], not float32 \[2\]"):
        layer(torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_norm": 1.0}, "max_norm"),
        ({"scale_grad_by_freq": True}, "how often"),
        ({"sparse": True}, "torch.sparse"),
    ],
)
def test_what_has_no_sparse_form_is_refused(options, reason) -> None:
    with pytest.raises(ValueError, match=f"stays dense: .*{reason}"):
        SparseEmbedding.from_embedding(*dense(**options))


@pytest.mark.parametrize("padding", [None, 4])
def test_observed_gradients_are_those_of_the_dense_layer(padding) -> None:
    embedding, mask = dense(padding_idx=padding)
    sparse = SparseEmbedding.from_embedding(embedding, mask)
    sparse.observe = True
    for seed in (1, 2):
        x = words(6, 5, seed=seed)
        sparse(x).cosh().sum().backward()
        embedding(x).cosh().sum().backward()
    torch.testing.assert_close(sparse.gradient_rows(2, 9), embedding.weight.grad[2:9])
    places = torch.tensor([0, 29, 30, 31, 90])
    torch.testing.assert_close(sparse.gradient_at(places), embedding.weight.grad.flatten()[places])


class Reader(nn.Module):
    """A bag of words with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, FEATURES, padding_idx=0)
        self.hidden, self.out = nn.Linear(FEATURES, 8), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            self.words.weight[0] = 0
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(self.words(x).mean(1)).tanh())


METHODS = [
    SET(sparsity=0.6, steps=12, every=3, include=("words.weight",)),
    RigL(sparsity=0.6, steps=12, every=3, until=1.0, include=("words.weight",)),
]


def train(model, sparsifier, optimizer, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        optimizer.zero_grad()
        x = words(16, 4, seed=step)
        loss = nn.functional.cross_entropy(model(x), x[:, 0] % 3)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_stored_training_takes_the_decisions_of_masked_training(method) -> None:
    masked, stored = Reader(), Reader()
    assert "words.weight" in to_sparse_(stored, method)
    assert isinstance(stored.words, SparseEmbedding)
    results = []
    for model in (masked, stored):
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        sparsifier = attach(model, optimizer, method)
        before = sparsifier.masks["words.weight"]
        results.append((train(model, sparsifier, optimizer, 0, 12), sparsifier.masks))
        assert not torch.equal(before, sparsifier.masks["words.weight"])
        sparsifier.detach()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    assert all(torch.equal(mask, results[1][1][name]) for name, mask in results[0][1].items())
    to_dense_(stored)
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(dict(stored.named_parameters())[name], parameter)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_an_interrupted_run_has_the_bits_of_a_straight_one(method) -> None:
    def started():
        model = Reader()
        to_sparse_(model, method)
        return model, torch.optim.Adam(model.parameters(), 0.02)

    model, optimizer = started()
    sparsifier = attach(model, optimizer, method)
    straight = train(model, sparsifier, optimizer, 0, 12)
    end = model.state_dict()

    model, optimizer = started()
    sparsifier = attach(model, optimizer, method)
    losses = train(model, sparsifier, optimizer, 0, 5)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    model, optimizer = started()
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    sparsifier = attach(model, optimizer, method, resume=states[2])
    losses += train(model, sparsifier, optimizer, 5, 12)
    assert losses == straight
    assert all(torch.equal(tensor, end[name]) for name, tensor in model.state_dict().items())


def test_files_bring_it_back(tmp_path) -> None:
    model = Reader()
    to_sparse_(model, METHODS[0])
    save(model, tmp_path / "m.safetensors")
    target = Reader()
    load(tmp_path / "m.safetensors", into=target)
    assert isinstance(target.words, SparseEmbedding)
    assert target.words.padding_idx == 0
    assert torch.equal(target(words(3, 4)), model(words(3, 4)))
    other = Reader()
    other.words = nn.Embedding(WORDS, FEATURES, max_norm=1.0).double()
    with pytest.raises(FileError, match="words is a Embedding here"):
        load(tmp_path / "m.safetensors", into=other)


def test_embeddings_are_stored_only_where_they_are_named() -> None:
    model = Reader()
    replaced = to_sparse_(model, StaticRandom(sparsity=0.5))
    assert set(replaced) == {"hidden.weight", "out.weight"}
    model = Reader()
    to_sparse_(model)
    assert not isinstance(model.words, SparseLayer)
    assert any(
        row.name == "words.weight" and "embedding" in row.why
        for row in plan(model, StaticRandom(sparsity=0.5))
    )
    to_sparse_(model, {"words.weight": dense()[1]})
    assert isinstance(model.words, SparseEmbedding)


def test_a_tied_table_stays_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(WORDS, FEATURES), nn.Linear(FEATURES, WORDS)
            self.out.weight = self.words.weight
            self.other = nn.Linear(4, 4)

    model = Tied()
    assert set(to_sparse_(model, StaticRandom(sparsity=0.5, include=("words.weight",)))) == {"other.weight"}


def test_a_compiled_model_looks_rows_up() -> None:
    embedding, mask = dense(torch.float32)
    model = nn.Sequential(SparseEmbedding.from_embedding(embedding, mask))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = words(5, 4)
    y = compiled(x)
    assert torch.equal(y, embedding(x))
    y.square().sum().backward()
    embedding(x).square().sum().backward()
    torch.testing.assert_close(model[0].weight_values.grad, embedding.weight.grad[mask])
