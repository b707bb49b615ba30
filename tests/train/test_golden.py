"""A small experiment for each method on real digits: what it reached when it was checked, and must still reach.

Validation accuracy, and mean training loss of the last 30 of 240 steps, of a perceptron of 64 - 96 - 48 - 10 units at
sparsity 0.9. Rounding may decide which connection is dropped, so another machine may take another path: the tolerances
are those of initial weights that differ in the sixth digit, and some more.
"""

import pytest
import torch

from openwork import (
    ACDC,
    BDWP,
    CHT,
    DNW,
    DSTEE,
    GMP,
    GSE,
    ISSP,
    ITOP,
    MEST,
    PGF,
    SET,
    SNFS,
    SRSTE,
    STR,
    DeepR,
    GraNet,
    GrowSCS,
    RigL,
    SRigL,
    StaticRandom,
    TopKAST,
    attach,
)
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit

RUN = {"sparsity": 0.9, "steps": 240}
OFTEN = {**RUN, "every": 12}

GOLDEN = {
    "static_random": (StaticRandom(**RUN), 0.933, 0.074),
    "set": (SET(**OFTEN), 0.924, 0.083),
    "rigl": (RigL(**OFTEN), 0.944, 0.034),
    "itop": (ITOP(**OFTEN), 0.948, 0.094),
    "dst_ee": (DSTEE(**OFTEN), 0.952, 0.028),
    "snfs": (SNFS(**OFTEN), 0.930, 0.047),
    "deep_r": (DeepR(**RUN, l1=1e-4, noise=1e-3), 0.941, 0.091),
    "gmp": (GMP(**OFTEN), 0.963, 0.023),
    "granet": (GraNet(**OFTEN), 0.944, 0.029),
    "cht": (CHT(**OFTEN, chain=("*",)), 0.933, 0.073),
    "mest": (MEST(**OFTEN), 0.922, 0.035),
    "srigl": (SRigL(**OFTEN), 0.944, 0.062),
    "gse": (GSE(**OFTEN), 0.926, 0.082),
    "top_kast": (TopKAST(**OFTEN), 0.907, 0.096),
    "acdc": (ACDC(**RUN), 0.944, 0.079),
    "str": (STR(**RUN), 0.959, 0.064),
    "iss_p": (ISSP(**RUN), 0.937, 0.127),
    "grow_scs": (GrowSCS(steps=240, sparsity=0.5, allocation="uniform", exclude=("fc3.*",)), 0.970, 0.010),
}

EVERY_STEP = {
    "dnw": (DNW(**RUN), 0.950, 0.046),
    "sr_ste": (SRSTE(steps=240, pattern="2:8"), 0.956, 0.040),
    "pgf_nm": (PGF(steps=240, pattern="2:8"), 0.967, 0.030),
    "bdwp": (BDWP(steps=240, pattern="2:8"), 0.960, 0.037),
}
"""These choose their mask anew in every step, so that paths part sooner."""


@pytest.fixture(scope="module")
def task():
    pytest.importorskip("sklearn")
    return digits()


def experiment(method, task=None):
    model = mlp([64, 96, 48, 10], seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, method)
    run = fit(model, task or digits(), optimizer=optimizer, steps=240, seed=5)
    assert sparsifier.kept == sparsifier.plan.kept
    return run.validation.accuracy, sum(run.losses[-30:]) / 30


@pytest.mark.parametrize("name", EVERY_STEP)
def test_it_is_about_as_good_as_it_was(name, task):
    method, accuracy, loss = EVERY_STEP[name]
    found = experiment(method, task)
    assert found[0] == pytest.approx(accuracy, abs=0.03)
    assert found[1] == pytest.approx(loss, abs=0.03)


def test_a_backward_mask_of_one_in_eight_is_too_far_off(task):
    """The loss of BDWP blows up where the other methods of 1:8 learn; the paper's 2:8 does well, see above."""
    lost, learned = (experiment(cls(steps=240, pattern="1:8"), task) for cls in (BDWP, PGF))
    assert lost[0] < 0.75
    assert lost[1] > 0.7
    assert learned[0] > 0.9


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_as_good_as_it_was(name, task):
    method, accuracy, loss = GOLDEN[name]
    found = experiment(method, task)
    assert found[0] == pytest.approx(accuracy, abs=0.03)
    assert found[1] == pytest.approx(loss, rel=0.25)
