"""The figures of the guide: a small transformer at 80 %, compressed by five recipes of equally many connections."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

EXAMPLE = Path(__file__).parents[2] / "examples" / "compress_trained.py"


def test_what_makes_up_for_more_keeps_more(capsys):
    run = runpy.run_path(str(EXAMPLE))
    results = run["results"]
    assert {kept for _, _, kept in results.values()} == {round(0.2 * run["found"].plan.numel)}
    error = {name: error for name, (_, error, _) in results.items()}
    assert error["alps, bias corrected"] < error["wanda, refit"] < error["wanda"]
    assert error["alps, bias corrected"] < error["sparsegpt"] < error["wanda"]
    accuracy = {name: accuracy for name, (accuracy, _, _) in results.items()}
    dense = run["accuracy"](run["dense"])
    assert dense > 0.85
    assert accuracy["alps, bias corrected"] > dense - 0.08
    assert accuracy["sparsegpt"] > accuracy["wanda"] + 0.02
    assert "alps" in capsys.readouterr().out
