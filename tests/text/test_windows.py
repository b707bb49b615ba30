"""Windows are cut from inside long documents, the same ones for the same seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.text import batches, windows


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def text_of(row) -> str:
    return "".join(map(chr, row.tolist()))


@given(
    st.lists(st.text("abcdefg ", min_size=1, max_size=40), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_every_window_is_a_stretch_of_a_long_document(texts, seqlen, samples, seed):
    long = [text for text in texts if len(text) > seqlen]
    if not long:
        with pytest.raises(
            ValueError, match=f"the longest of {len(texts)} has {max(map(len, texts))} tokens"
        ):
            windows(texts, letters, samples=samples, seqlen=seqlen, seed=seed)
        return
    found = windows(texts, letters, samples=samples, seqlen=seqlen, seed=seed)
    assert found.shape == (samples, seqlen)
    assert found.dtype == torch.int64
    assert all(any(text_of(row) in text for text in long) for row in found)
    assert torch.equal(found, windows(iter(texts), letters, samples=samples, seqlen=seqlen, seed=seed))


def test_documents_and_places_vary():
    texts = ["".join(chr(97 + i) + chr(65 + j) for j in range(26)) for i in range(5)]
    found = windows(texts, letters, samples=200, seqlen=4, seed=1)
    assert {row[0] if row[0] >= 97 else row[1] for row in found.tolist()} == set(range(97, 102))
    assert len({tuple(row) for row in found.tolist()}) > 100
    assert not torch.equal(found, windows(texts, letters, samples=200, seqlen=4, seed=2))


def test_short_documents_serve_once_they_are_joined():
    texts = ["abc", "defg", "hi"]
    with pytest.raises(ValueError, match="join=True"):
        windows(texts, letters, samples=2, seqlen=8)
    assert text_of(windows(texts, letters, samples=1, seqlen=12, join=True)[0]) in "abc\n\ndefg\n\nhi"


def test_each_long_document_is_tokenized_once():
    calls = []

    def counting(text):
        calls.append(text)
        return letters(text)

    windows(["a" * 50, "b"], counting, samples=40, seqlen=8)
    assert sorted(calls) in ([*["a" * 50], "b"], ["a" * 50])


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"seqlen": 0}])
def test_nothing_asked_for(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        windows(["abc"], letters, **wrong)


def test_windows_of_a_tokenizer_of_transformers(caplog):
    from tests.hf.tiny import tokenizer

    made = tokenizer()
    text = "the quick brown fox. " * 20
    found = windows([text], made, samples=3, seqlen=30)
    assert all(made.decode(row).replace(" ", "") in text.replace(" ", "") for row in found)
    assert not caplog.records  # 420 tokens are more than the 64 that the model reads at once


def test_batches_pad_and_say_where():
    from tests.hf.tiny import tokenizer

    made = tokenizer(encoder=True)
    found = batches(["one\n\nthree and more", "a"], made, samples=10, seqlen=9, batch=2)
    assert [len(batch["input_ids"]) for batch in found] == [2, 1]
    rows = [
        (ids[mask.bool()].tolist())
        for batch in found
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(map(len, rows)) == [3, 5, 9]  # [CLS] and [SEP] around; the long one is cut
    assert all(row[0] == 2 and row[-1] == 3 for row in rows)
    again = batches(["one\n\nthree and more", "a"], made, samples=10, seqlen=9, batch=2)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(found, again, strict=True))
    assert len(batches(["a\nb\nc"], made, samples=2, seqlen=9, batch=5)[0]["input_ids"]) == 2
