"""Dynamic sparse learning of embedding tables, on a small market with popular and unpopular items."""

import dataclasses

import pytest
import torch
from torch import nn

from openwork import DSL, attach
from openwork.testing import check_method

USERS, ITEMS, SIZE, STEPS = 60, 80, 12, 400


class Recommender(nn.Module):
    """Matrix factorisation: a score for every pair of user and item."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.users, self.items = nn.Embedding(USERS, SIZE), nn.Embedding(ITEMS, SIZE)
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for table in (self.users, self.items):
                table.weight.copy_(0.1 * torch.randn(table.weight.shape, generator=g))

    def forward(self, user, item):
        return (self.users(user) * self.items(item)).sum(-1)


def market():
    """Who likes what (low rank), and how often each item is met: a few items make up most of it."""
    g = torch.Generator().manual_seed(1)
    taste = torch.randn(USERS, 4, generator=g) @ torch.randn(4, ITEMS, generator=g)
    popularity = 1.0 / torch.arange(1, ITEMS + 1).float() ** 1.2
    return taste, popularity[torch.randperm(ITEMS, generator=g)]


def learned(method):
    taste, popularity = market()
    model, g = Recommender(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    sparsifier = None if method is None else attach(model, optimizer, method)
    for _ in range(STEPS):
        user = torch.randint(USERS, (64,), generator=g)
        item = torch.multinomial(popularity, 64, replacement=True, generator=g)
        loss = (model(user, item) - taste[user, item]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if sparsifier is not None:
            kept = [round((1 - method.sparsity) * rows * SIZE) for rows in (USERS, ITEMS)]
            assert [c.kept for c in sparsifier.connections.values()] == kept
    with torch.no_grad():
        error = (model.users.weight @ model.items.weight.T - taste).square().mean(0)
    return model, float(error @ popularity / popularity.sum()), popularity


METHOD = DSL(steps=STEPS, every=40, include=("users.*", "items.*"))


def test_conformance():
    check_method(DSL)


def test_popular_items_end_with_more_numbers():
    model, _, popularity = learned(METHOD)
    per_row = (model.items.weight != 0).sum(1)
    order = popularity.argsort(descending=True)
    popular, rare = per_row[order[:10]].double().mean(), per_row[order[-10:]].double().mean()
    assert len(per_row.unique()) > 3
    assert popular > rare + 2


def test_half_of_the_numbers_explain_nearly_as_much():
    """Of a variance of 4: 97 % instead of 99.7 %."""
    sparse, dense = learned(METHOD)[1], learned(None)[1]
    assert (dense, sparse) == pytest.approx((DENSE, SPARSE), rel=0.4)


DENSE, SPARSE = 0.012, 0.141


def test_tables_that_are_not_named_stay_dense():
    with pytest.raises(ValueError, match="embedding"):
        attach(Recommender(), None, DSL(steps=STEPS))


def test_without_sparsity_it_is_the_dense_model():
    full = dataclasses.replace(METHOD, sparsity=0.0)
    assert learned(full)[1] == learned(None)[1]
