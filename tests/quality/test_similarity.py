"""Ranks against scipy, embeddings against the plain formula, and both official forms of the benchmark."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from openwork.quality import cosine, embed, read_pairs, similarity
from openwork.quality.similarity import Pair, spearman
from tests.hf.tiny import bert, tokenizer


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 5)), min_size=2, max_size=30))
def test_ranks_agree_with_scipy_ties_included(pairs):
    x, y = torch.tensor(pairs, dtype=torch.float64).T
    if x.unique().numel() == 1 or y.unique().numel() == 1:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_embeddings_are_means_over_real_tokens():
    model, tokens = bert(), tokenizer(encoder=True)
    sentences = ["a cat.", "the dog sat on a mat", "b", "a cat."]
    found = embed(model, tokens, sentences, batch=3)
    assert found.norm(dim=1).tolist() == pytest.approx([1] * 4)
    for sentence, vector in zip(sentences, found, strict=True):  # alone, nothing is padded
        alone = model(**tokens([sentence], return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, alone / alone.norm(), atol=1e-5)
    assert cosine(found, found) == pytest.approx(1)
    assert cosine(found, -found) == pytest.approx(-1)
    with pytest.raises(ValueError, match="must agree"):
        cosine(found, found[:2])


def test_agreement_with_people():
    model, tokens = bert().train(), tokenizer(encoder=True)
    pairs = [
        Pair("a cat", "a cat", 5.0),
        Pair("a cat", "9999, 22", 0.5),
        Pair("a cat", "a bat", 4.0),
        Pair("x", "a cat", 2.0),
    ]
    found = similarity(model, tokens, pairs, batch=2)
    assert model.training
    model.eval()
    cosines = [
        float((embed(model, tokens, [p.first]) * embed(model, tokens, [p.second])).sum()) for p in pairs
    ]
    assert found.spearman == pytest.approx(spearmanr(cosines, [p.score for p in pairs]).statistic)
    assert found.pairs == 4
    assert str(found).endswith("(4 pairs)")


def test_both_official_forms(tmp_path):
    original = tmp_path / "sts-test.csv"
    original.write_text(
        'main-news\tMSRpar\t2012\t24\t2.5\tA "quoted, plane.\tAn air plane.\nx\ty\tz\t1\t0\tone\ttwo\textra\n'
    )
    assert read_pairs(original) == [('A "quoted, plane.', "An air plane.", 2.5), ("one", "two", 0.0)]
    glue = tmp_path / "dev.tsv"
    glue.write_text("index\tgenre\tsentence1\tsentence2\tscore\n0\tn\ta\tb\t5.0\n1\tn\tc\td\t1\n")
    assert read_pairs(glue) == [("a", "b", 5.0), ("c", "d", 1.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\tc\td\tfive\te\tf\n", "line 1"),
        ("a\tb\tc\td\t5\te\tf\na\tb\n", "line 2"),
        ("a\tb\tc\td\t5\te\tf\n", "at least two pairs; found 1"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, said):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_pairs(tmp_path / "t.tsv")


def test_a_table_that_is_no_text_is_named(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b"a\tb\tc\td\t5\t\xff\tf\n" * 2)
    with pytest.raises(ValueError, match=r"t\.tsv: not a table of text in UTF-8"):
        read_pairs(tmp_path / "t.tsv")
