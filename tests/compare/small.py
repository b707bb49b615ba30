"""A contest small enough for a test: the digits, a narrow network, a few steps."""

from openwork.compare.contest import Contestant, Setting
from openwork.prune.magnitude import Magnitude
from openwork.tasks import get
from openwork.tasks.mlp import mlp
from openwork.train.gmp import GMP
from openwork.train.rigl import RigL
from openwork.train.static_random import StaticRandom

STEPS = 12


def setting():
    return Setting(get("digits"), lambda seed: mlp([64, 40, 10], seed=seed), STEPS, 32, 0.01)


def contestants():
    options = {"sparsity": 0.75, "steps": STEPS}
    return [
        Contestant("dense"),
        Contestant("static random", StaticRandom(**options)),
        Contestant("RigL", RigL(**options, every=4)),
        Contestant("GMP", GMP(**options, every=3, allocation="erk")),
        Contestant("magnitude", Magnitude(sparsity=0.75, allocation="erk")),
    ]
