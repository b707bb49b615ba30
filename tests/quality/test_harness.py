"""lm-eval is asked for by name; what it says is handed on as numbers."""

import sys
import types

import pytest

from openwork.extras import MissingExtra
from openwork.quality.harness import harness


def test_it_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"to run arc_easy, lm_eval is needed.*openwork\[eval\]"):
        harness(None, None, ["arc_easy"])


def test_model_and_questions_are_handed_over(monkeypatch):
    asked = {}

    def simple_evaluate(**options):
        asked.update(options)
        return {"results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.25, "acc_stderr,none": 0.1}}}

    monkeypatch.setitem(sys.modules, "lm_eval", types.SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setitem(sys.modules, "lm_eval.models", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", types.SimpleNamespace(HFLM=dict))
    assert harness("model", "words", ["arc_easy"], limit=4) == {
        "arc_easy": {"acc,none": 0.25, "acc_stderr,none": 0.1}
    }
    assert asked == {
        "model": {"pretrained": "model", "tokenizer": "words", "batch_size": 8},
        "tasks": ["arc_easy"],
        "limit": 4,
    }
