"""Freed memory is kept when asked for: the system then hands out no new pages for it."""

import subprocess
import sys

PAGE_FAULTS = """
import resource, torch, openwork as ow
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = sum(faults() for _ in range(4))
can = ow.keep_freed_memory()
print(given_back, can, [faults() for _ in range(30)][-4:])
"""


def test_freed_memory_is_kept_if_asked_for():
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True, capture_output=True, text=True)
    given_back, can, *kept = done.stdout.split()
    assert int(given_back) > 0
    assert can == "False" or sum(int(n.strip("[],")) for n in kept) < int(given_back) / 10
