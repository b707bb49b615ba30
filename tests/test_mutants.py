"""The script that breaks the package on purpose still finds what it breaks, and the tests that should notice."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_mutant_finds_its_place(monkeypatch):
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    mutants = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutants", mutants)
    spec.loader.exec_module(mutants)
    for mutant in mutants.MUTANTS:
        page = ROOT / "openwork" / mutant.page
        assert page.exists(), mutant
        assert mutant.sound in page.read_text(), mutant
        assert (ROOT / mutant.tests.split()[0]).exists(), mutant
