import pytest

from openwork.compare import roofline
from openwork.compare.roofline import Roof, roof
from openwork.kernels import native


def test_shares_are_of_what_was_measured():
    found = Roof(threads=1, gflops=100.0, reads={1 << 20: 50.0})
    assert found.share_of_multiply_adds(kept=1000, batch=50, seconds=2e-6) == pytest.approx(0.5)
    assert found.share_of_reads(1_000_000, 40e-6) == pytest.approx(0.5)
    assert found.share_of_reads(0, 1.0) == 0.0


def test_a_machine_has_limits(monkeypatch):
    monkeypatch.setattr(roofline, "SECONDS", 1e-4)
    found = roof()
    assert found is not None
    assert found.gflops > 0  # how much, a busy machine does not tell
    assert (found.handover > 0) == (found.threads > 1)
    assert found.read(1 << 16) > 0
    assert found.read((1 << 16) - 100) == found.reads[1 << 16]  # measured once


def test_no_native_kernels_no_roof(monkeypatch):
    monkeypatch.setattr(native, "_ENABLED", False)
    assert roof() is None
