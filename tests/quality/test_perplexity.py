"""The sliding window against the definition, token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openwork.quality import perplexity

VOCABULARY = 7


class Sums(nn.Module):
    """A model whose logits depend on all tokens it has seen so far, and on how many those are."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        draw = torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(draw)
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, tokens):
        self.calls.append(tuple(tokens.shape))
        seen = self.weight[tokens].cumsum(1)
        return self.dropout(seen / torch.arange(1, tokens.shape[1] + 1)[:, None])


def by_definition(model, tokens, window, stride):
    """One token at a time: its context begins with the first window that ends after it."""
    total, count = 0.0, 0
    for i in range(1, len(tokens)):
        begin = 0
        while begin + window <= i:
            begin += stride
        if begin < i:
            logits = model(tokens[None, begin:i])[0, -1]
            total -= float(logits.log_softmax(0)[tokens[i]])
            count += 1
    return total / count, count


@given(st.integers(2, 40), st.integers(2, 12), st.data(), st.integers(1, 5))
def test_equals_the_definition(length, window, data, batch):
    stride = data.draw(st.integers(1, window))
    tokens = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    model = Sums().eval()
    with torch.no_grad():
        loss, count = by_definition(model, tokens, window, stride)
    found = perplexity(model, tokens, window=window, stride=stride, batch=batch)
    assert found.tokens == count
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.value == pytest.approx(math.exp(loss), rel=1e-12)


def test_windows_that_do_not_overlap_leave_their_first_token_out():
    tokens = torch.arange(20) % VOCABULARY
    found = perplexity(Sums(), tokens, window=5)
    assert (found.tokens, found.window, found.stride) == (16, 5, 5)
    assert "16 tokens, windows of 5, stride 5" in str(found)
    assert perplexity(Sums(), tokens, window=5, stride=4).tokens == 19


def test_a_uniform_model_hesitates_between_all_tokens():
    found = perplexity(lambda tokens: torch.zeros(*tokens.shape, 11), torch.arange(11), window=4, stride=2)
    assert found.value == pytest.approx(11)


def test_windows_come_in_batches_and_the_model_is_as_before():
    model = Sums().train()
    state = torch.get_rng_state()
    perplexity(model, torch.arange(23) % VOCABULARY, window=6, stride=3, batch=4)
    assert model.calls == [(4, 6), (2, 6), (1, 5)]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)  # no dropout was drawn
    assert model.weight.grad is None


def test_batch_does_not_matter_to_the_bit_of_the_count():
    tokens = torch.randint(VOCABULARY, (50,), generator=torch.Generator().manual_seed(0))
    found = [perplexity(Sums(), tokens, window=8, stride=3, batch=b) for b in (1, 2, 7)]
    assert len({f.tokens for f in found}) == 1
    assert found[0].loss == pytest.approx(found[2].loss, rel=1e-14)


def test_a_model_gone_wrong_is_reported_as_it_is():
    wrong = perplexity(lambda t: torch.full((*t.shape, 5), math.nan), torch.arange(5), window=3)
    assert math.isnan(wrong.value)
    far = torch.zeros(1, 5, 5)
    far[..., 0] = 1e4
    assert (
        perplexity(lambda t: far[:, : t.shape[1]], torch.tensor([0, 1, 2, 3, 4]), window=5).value == math.inf
    )


@pytest.mark.parametrize(
    ("tokens", "options", "said"),
    [
        (torch.tensor([1]), {}, "at least two tokens"),
        (torch.zeros(2, 3, dtype=torch.long), {}, "in a row"),
        (torch.arange(5), {"window": 1}, "at least 2 tokens"),
        (torch.arange(5), {"window": 4, "stride": 5}, "stride of 1 to window"),
        (torch.arange(5), {"window": 4, "stride": 0}, "stride of 1 to window"),
        (torch.arange(5), {"window": 4, "batch": 0}, "batch"),
    ],
)
def test_what_cannot_be_measured(tokens, options, said):
    with pytest.raises(ValueError, match=said):
        perplexity(Sums(), tokens, **options)


def test_a_model_of_transformers_against_its_own_loss():
    from tests.hf.tiny import VOCABULARY as WORDS
    from tests.hf.tiny import llama

    model = llama(dtype=torch.float64)
    tokens = torch.randint(WORDS, (41,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = float(model(tokens[None], labels=tokens[None]).loss)
    assert perplexity(model, tokens, window=64).loss == pytest.approx(own, rel=1e-6)  # theirs is in float32
