"""Does a method keep its promises? The conformance suite, for the methods of this library and for yours::

    from openwork.testing import check_method

    def test_my_method():
        check_method(MyMethod, strength=0.5)

Every promise is a function in :mod:`openwork.testing.promises`, named after what it promises; :func:`checks` lists them.
They run a method on small networks for a few steps: the whole suite takes about a second a method. What they find goes
into the error: the promise that was broken, and the parameter, setting or step where it was.

- :mod:`openwork.testing.suite`: a method is put through every promise.
- :mod:`openwork.testing.registry`: the promises by name; yours joins them with :func:`promise`.
- :mod:`openwork.testing.networks`: the networks and batches that methods are tried on.
- :mod:`openwork.testing.trial`: how a method of each kind is carried out.
- :mod:`openwork.testing.bits`, :mod:`openwork.testing.exactness`: what most promises come down to.
"""

from openwork.testing.networks import batches, narrow, network, perceptron, residual, tuned
from openwork.testing.registry import BrokenPromise, Check, promise
from openwork.testing.suite import check_method, checks
from openwork.testing.trial import SHORT, Outcome, Trial, attached, plant_zeros, step

__all__ = [
    "SHORT",
    "BrokenPromise",
    "Check",
    "Outcome",
    "Trial",
    "attached",
    "batches",
    "check_method",
    "checks",
    "narrow",
    "network",
    "perceptron",
    "plant_zeros",
    "promise",
    "residual",
    "step",
    "tuned",
]
