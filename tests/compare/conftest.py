"""Measurements of tests are not remembered for the user's own models."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
