import os
import subprocess
import sys

import pytest

from openwork.kernels import isa, native


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime_is_loaded():
    done = run("from openwork.kernels import native, isa; isa(); print(len(native.openmp_runtimes()))")
    assert done.stdout == "1\n", done.stderr


def test_the_level_can_be_forced():
    done = run("from openwork.kernels import isa; print(isa())", OPENWORK_ISA="portable", OPENWORK_NATIVE="1")
    assert done.stdout == "portable\n", done.stderr


def test_an_unknown_level_is_refused():
    done = run("from openwork.kernels import isa; isa()", OPENWORK_ISA="sse9", OPENWORK_NATIVE="1")
    assert "OPENWORK_ISA='sse9' is not a level" in done.stderr


def test_a_level_the_machine_lacks_is_refused():
    code = (
        "from types import SimpleNamespace; from openwork.kernels import native\n"
        "native.library = lambda: SimpleNamespace(levels=('portable',)); native.isa()"
    )
    done = run(code, OPENWORK_ISA="avx512", OPENWORK_NATIVE="1")
    assert "this machine does not have" in done.stderr


def test_a_broken_build_is_not_silent():
    code = (
        "import sys; sys.modules['openwork.kernels._native'] = None\nfrom openwork.kernels import isa; isa()"
    )
    done = run(code, OPENWORK_NATIVE="1")
    assert "ImportError" in done.stderr
    assert "pip install -e ." in done.stderr


def test_the_richest_level_is_the_default(monkeypatch):
    monkeypatch.delenv("OPENWORK_ISA", raising=False)
    native.isa.cache_clear()
    assert isa() in ("reference", native.library().levels[-1])
    native.isa.cache_clear()
