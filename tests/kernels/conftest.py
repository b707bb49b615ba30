"""Every kernel test runs on every instruction set level that this machine has."""

from collections.abc import Iterator

import pytest
import torch

from openwork.kernels import native


@pytest.fixture(scope="module", params=native.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    if name not in native.library().levels:
        pytest.skip(f"this machine cannot run {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", lambda: getattr(native.library(), name))
        yield name


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
