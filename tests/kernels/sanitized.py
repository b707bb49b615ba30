"""A pytest plugin (`-p tests.kernels.sanitized`): tests run with the kernels built at OPENWORK_SANITIZED, see `make sanitize`
and `make sanitize-threads`.

Those watch every access to memory and stop the process at the first that is wrong, so few examples go a long way.
"""

import importlib.util
import os
import sys

import torch  # noqa: F401  (first, as in openwork.kernels.native)
from hypothesis import settings

NAME = "openwork.kernels._native"

spec = importlib.util.spec_from_file_location(NAME, os.environ["OPENWORK_SANITIZED"])
assert spec is not None
assert spec.loader is not None
sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

settings.register_profile("sanitized", max_examples=10, deadline=None)
settings.load_profile("sanitized")
