"""What every method promises: a page for each kind of promise, in the order in which they are checked.

- :mod:`openwork.testing.promises.description`: what a method says of itself.
- :mod:`openwork.testing.promises.budget`: the plan, and exactly as many connections as it says.
- :mod:`openwork.testing.promises.surroundings`: random state, types, and all that is not thinned, stay as they were.
- :mod:`openwork.testing.promises.bad_input`: what cannot be done is refused, and changes nothing.
- :mod:`openwork.testing.promises.zeros`: zeros stay zero while training.
- :mod:`openwork.testing.promises.resuming`: interrupted and continued, bit for bit.
- :mod:`openwork.testing.promises.storages`: under a mask or stored alone, the same losses.
- :mod:`openwork.testing.promises.limits`: with a part switched off, the simpler method.
- :mod:`openwork.testing.promises.calibrating`: a calibration interrupted after a block and continued, bit for bit.
- :mod:`openwork.testing.promises.forms`: layers in another form: counted, trained, saved, and multiplied out.
- :mod:`openwork.testing.promises.merging`: several models in one: zeros kept, and what does not fit refused.
- :mod:`openwork.testing.promises.blocks`: fewer blocks, and those that stay untouched.

Each is about all methods, about those that choose or keep connections, those that give layers other forms, that merge models, or
that drop blocks.
"""

# A page registers its promises as it is imported, and the suite checks them in that order.
# isort: off
from openwork.testing.promises import description
from openwork.testing.promises import budget
from openwork.testing.promises import surroundings
from openwork.testing.promises import bad_input
from openwork.testing.promises import zeros
from openwork.testing.promises import resuming
from openwork.testing.promises import storages
from openwork.testing.promises import limits
from openwork.testing.promises import calibrating
from openwork.testing.promises import forms
from openwork.testing.promises import merging
from openwork.testing.promises import blocks
# isort: on

from openwork.testing.registry import PROMISES

__all__ = [
    "PROMISES",
    "bad_input",
    "blocks",
    "budget",
    "calibrating",
    "description",
    "forms",
    "limits",
    "merging",
    "resuming",
    "storages",
    "surroundings",
    "zeros",
]
