"""What the result files say about the machine."""

import json
from dataclasses import asdict

import torch

from openwork.compare.machine import machine
from openwork.kernels import isa


def test_the_machine_is_described():
    found = machine()
    assert found.cpu
    assert (found.isa, found.threads, found.torch) == (isa(), torch.get_num_threads(), torch.__version__)
    assert found.cores >= 1
    assert found.memory > 1 << 28
    assert json.loads(json.dumps(asdict(found))) == asdict(found)
    for word in (found.cpu, found.isa, found.torch, found.python):
        assert word in str(found)


def test_threads_are_those_of_now():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert machine().threads == 1
    finally:
        torch.set_num_threads(before)
