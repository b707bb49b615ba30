"""One contract, two storages: everything is compared with a dictionary from position to value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork.connections import MaskedConnections, StoredConnections, connect
from openwork.growth import Gradient, Random
from openwork.layouts.linear import SparseLinear
from openwork.patterns import NM, Block, FanIn, Groups, Unstructured
from openwork.weights import prunable

PATTERNS = [Unstructured(), NM(1, 3), FanIn(), Block(2, 3), Groups(0)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def connections(stored, pattern=None, shape=(4, 6), kept=12, seed=0, optimizer=torch.optim.Adam):
    """Connections of one linear layer after two steps, so that the optimizer has a state."""
    pattern = pattern or Unstructured()
    g = generator(seed)
    linear = nn.Linear(shape[1], shape[0], dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(shape, generator=g))
        linear.bias.zero_()
    mask = pattern.choose(torch.rand(shape, generator=g), kept)
    with torch.no_grad():
        linear.weight *= mask
    model = nn.Sequential(SparseLinear.from_linear(linear, mask) if stored else linear)
    opt = optimizer(model.parameters(), lr=0.01)
    positions = mask.flatten().nonzero().flatten()
    c = connect(prunable(model)[0], pattern, [opt], positions=None if stored else positions)
    for _ in range(2):
        learn(model, opt, c, g)
    return model, opt, c


def learn(model, opt, c, g, observe=False):
    shape = c.weight.shape
    c.observe(observe)
    x = torch.randn(5, shape[1], generator=g, dtype=torch.float64)
    opt.zero_grad()
    (model(x) * torch.randn(5, shape[0], generator=g, dtype=torch.float64)).sum().backward()
    c.before_step()
    opt.step()
    c.after_step()


def states(c, key="exp_avg"):
    """Position -> (weight, optimizer state)."""
    state = c.optimizer.state[c.weight.parameter][key]
    if not c.weight.stored:
        state = state.flatten()[c.positions]
    return dict(zip(c.positions.tolist(), zip(c.values.tolist(), state.tolist(), strict=True), strict=True))


@pytest.mark.parametrize("stored", [False, True])
def test_the_view_of_a_parameter(stored):
    _, _, c = connections(stored)
    assert isinstance(c, StoredConnections if stored else MaskedConnections)
    assert (c.name, c.numel, c.kept) == ("0.weight", 24, 12)
    assert c.positions.tolist() == sorted(c.positions.tolist())
    assert c.mask.flatten().nonzero().flatten().tolist() == c.positions.tolist()
    dense = c.weight.module.weight.detach()
    assert torch.equal(dense.flatten()[c.positions], c.values)
    assert torch.equal(dense != 0, c.mask)
    assert c.gradient.shape == (12,)


@pytest.mark.parametrize("stored", [False, True])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_what_stays_keeps_its_bits_and_what_is_new_starts_at_zero(stored, seed):
    _, _, c = connections(stored, seed=seed % 97)
    before = states(c)
    g = generator(seed)
    after = torch.randperm(24, generator=g)[: int(torch.randint(25, (1,), generator=g))].sort().values
    if not stored or after.numel() == c.kept:
        fresh = c.adopt(c.becoming(after)).fresh
        assert fresh.tolist() == [p for p in after.tolist() if p not in before]
    else:
        c.replace(after)
    assert c.positions.tolist() == after.tolist()
    assert states(c) == {p: before.get(p, (0.0, 0.0)) for p in after.tolist()}
    if not stored:
        for tensor in (c.weight.parameter.detach(), *c.optimizer.state[c.weight.parameter].values()):
            if tensor.dim() == 2:
                assert int((tensor[~c.mask] != 0).sum()) == 0


def test_training_goes_on_after_a_change_of_size():
    for stored in (False, True):
        model, opt, c = connections(stored)
        c.replace(c.positions[::2].clone())
        learn(model, opt, c, generator(5))
        assert c.kept == 6


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_both_storages_choose_the_same(pattern):
    chosen = []
    for stored in (False, True):
        model, opt, c = connections(stored, pattern)
        learn(model, opt, c, generator(9), observe=True)
        # more tiles than one: what a large layer would do
        survivors = c.strongest(c.atoms().numel() - 2)
        rewired = [
            c.rewired(survivors, rule, generator(3)).positions.tolist() for rule in (Gradient(), Random())
        ]
        kept = c.kept
        chosen.append((c.positions.tolist(), c.atoms().tolist(), survivors.tolist(), rewired))
    assert chosen[0] == chosen[1]
    for positions in chosen[0][3]:
        mask = torch.zeros(24, dtype=torch.bool)
        mask[positions] = True
        assert pattern.allows(mask.view(4, 6)) or pattern.grid((4, 6)).rows > 1
        assert len(positions) == kept


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_tiles_of_a_stored_gradient_are_the_dense_gradient(pattern, monkeypatch):
    monkeypatch.setattr("openwork.connections.stored.TILE", 12)  # two rows of six at a time
    tiles = []
    for stored in (False, True):
        model, opt, c = connections(stored, pattern)
        learn(model, opt, c, generator(9), observe=True)
        parts = list(c.gradient_tiles())
        assert len(parts) == (2 if stored else 1)
        assert [first for first, _ in parts] == ([0, c.grid.atoms // 2] if stored else [0])
        tiles.append(torch.cat([t for _, t in parts]))
    torch.testing.assert_close(tiles[1], tiles[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 12), (12, 1)])
def test_one_row_or_column_can_grow(shape):
    for stored in (False, True):
        model, opt, c = connections(stored, shape=shape, kept=5)
        learn(model, opt, c, generator(9), observe=True)
        grown = c.rewired(c.strongest(3), Gradient(), generator()).positions
        assert grown.numel() == 5


def test_groups_of_inputs_cannot_grow_stored():
    model, opt, c = connections(True, Groups(1))
    learn(model, opt, c, generator(9), observe=True)
    with pytest.raises(ValueError, match="groups of inputs cannot grow"):
        list(c.gradient_tiles())


@settings(max_examples=20)
@given(st.sampled_from(PATTERNS), st.integers(0, 99), st.booleans())
def test_the_strongest_places(pattern, seed, stored):
    _, _, c = connections(stored, pattern, seed=seed)
    strength = {}
    for atom, value in zip(c.grid.atoms_of(c.positions).tolist(), c.values.abs().tolist(), strict=True):
        strength[atom] = strength.get(atom, 0.0) + value
    atoms = sorted(strength)
    assert c.atoms().tolist() == atoms
    best = sorted(atoms, key=lambda a: (-strength[a], a))[: len(atoms) // 2]
    assert c.atoms()[c.strongest(len(atoms) // 2)].tolist() == sorted(best)
    legal = c.atoms()[c.strongest_legal(8)]
    places = pattern.places((4, 6), 8)
    rows = {}
    for a in atoms:
        rows.setdefault(a // c.grid.competitors, []).append(a)
    expected = [a for row in rows.values() for a in sorted(row, key=lambda a: (-strength[a], a))[:places]]
    assert legal.tolist() == sorted(expected)
    c.retain(c.strongest_legal(8))
    assert c.kept == len(expected) * c.grid.atom


@pytest.mark.parametrize("stored", [False, True])
def test_writing_some_values(stored):
    _, _, c = connections(stored)
    places = c.positions[[1, 4, 5]]
    before = c.values.clone()
    c.write(places, torch.tensor([7.0, 8.0, 9.0]))
    expected = before
    expected[[1, 4, 5]] = torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64)
    assert torch.equal(c.values, expected)


def dense_gradient(c):
    flat = torch.zeros(c.grid.atoms, dtype=torch.float64)
    for first, tile in c.gradient_tiles():
        flat[first : first + tile.numel()] = tile
    return flat


@pytest.mark.parametrize("stored", [False, True])
def test_the_observed_gradient_is_that_of_the_coming_step(stored):
    """Batches accumulate; what zero_grad throws away is forgotten, active or not, whatever happens to .grad
    afterwards.
    """
    model, opt, c = connections(stored)
    g = generator(1)
    x = [torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(4)]
    dy = [torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(4)]
    c.observe(True)
    opt.zero_grad()
    (model(x[0] * torch.inf) * dy[0]).nan_to_num().sum().backward()  # an overflow, as in mixed precision
    opt.zero_grad()
    (model(x[1]) * dy[1]).sum().backward()
    opt.zero_grad()
    (model(x[2]) * dy[2]).sum().backward()
    (model(x[3]) * dy[3]).sum().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    c.before_step()
    expected = (dy[2].T @ x[2] + dy[3].T @ x[3]).abs().flatten()
    torch.testing.assert_close(dense_gradient(c), expected, rtol=1e-12, atol=1e-14)
    c.observe(True)
    assert not dense_gradient(c).any()  # nothing has come yet: a layer that was not used
    c.observe(False)
    with pytest.raises(RuntimeError, match="was not observed"):
        list(c.gradient_tiles())


def test_momentum_is_dense_and_forgets_an_overflow():
    linear = nn.Linear(3, 2, bias=False)
    c = connect(
        prunable(nn.Sequential(linear))[0], Unstructured(), [], positions=torch.tensor([1, 4]), momentum=True
    )
    total = torch.zeros(2, 3)
    g = generator()
    for k in range(4):
        c.observe(True)
        gradient = torch.randn(2, 3, generator=g)
        if k == 2:
            gradient[0, 0] = torch.inf
        linear.weight.grad = None
        (linear.weight * gradient).sum().backward()
        c.before_step()
        total = 0.9 * total + (gradient if k != 2 else gradient.nan_to_num(0, 0, 0))
        c.after_step()
    torch.testing.assert_close(next(c.momentum_tiles())[1].view(2, 3), total.abs())
    with pytest.raises(RuntimeError, match="keeps no dense momentum"):
        list(connections(False)[2].momentum_tiles())


def test_momentum_needs_masks():
    with pytest.raises(ValueError, match="growth by momentum needs the momentum of those that do not exist"):
        connect(connections(True)[2].weight, Unstructured(), [], momentum=True)


def test_nan_dies_in_a_pruned_place():
    linear = nn.Linear(3, 1, bias=False)
    c = connect(prunable(nn.Sequential(linear))[0], Unstructured(), [], positions=torch.tensor([0]))
    linear.weight.grad = torch.tensor([[1.0, torch.nan, torch.inf]])
    c.before_step()
    assert linear.weight.grad.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("stored", [False, True])
def test_released_parameters_carry_no_hook(stored):
    model, _, c = connections(stored)
    c.observe(True)
    c.release()
    parameter = c.weight.parameter
    assert not getattr(parameter, "_post_accumulate_grad_hooks", None)
    model(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    assert stored or bool((parameter.grad != 0).all())
    if stored:
        assert not c.layer.observations


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    weight = prunable(nn.Sequential(embedding))[0]
    connect(weight, Unstructured(), [], positions=torch.arange(7))
    with pytest.raises(ValueError, match=r"0.weight is a torch.sparse tensor.* sparse=False"):
        embedding(torch.tensor([1, 2])).sum().backward()


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("pattern", "vacant"), [(Unstructured(), [7]), (FanIn(), [0, 2, 3, 1]), (Unstructured(), [0])]
)
def test_as_many_grow_as_are_asked_for(stored, pattern, vacant):
    """More or fewer than were dropped, in every row."""
    _, _, c = connections(stored, pattern)
    survivors = c.strongest(8)
    rows, counts = c.grid.rows, torch.tensor(vacant)
    stayed = c.counted(survivors)
    assert int(stayed.sum()) == 8
    assert torch.equal(c.counted(survivors) + c.counted(~survivors), c.counted(survivors | True))
    before = states(c)
    kept = c.atoms()[survivors].tolist()
    fresh = c.adopt(c.rewired(survivors, Random(), generator(2), counts)).fresh
    assert torch.equal(torch.bincount(c.atoms() // c.grid.competitors, minlength=rows), stayed + counts)
    now = states(c)
    assert all(now[place] == before[place] for place in kept)
    assert all(now[place] == (0.0, 0.0) for place in fresh.tolist())
