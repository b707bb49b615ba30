"""The conformance suite holds every method to its promises, and notices when one is broken."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from openwork import method as methods
from openwork.calibrate.awq import AWQ
from openwork.calibrate.coarse_to_fine import CoarseToFine
from openwork.calibrate.layer_drop import LayerDrop
from openwork.calibrate.lorc import LoRC
from openwork.calibrate.smoothquant import SmoothQuant
from openwork.calibrator.migrating import Migrating
from openwork.factor.monarch import Monarch
from openwork.growth import Gradient
from openwork.layouts.monarch import MonarchLinear
from openwork.method import Method, registry
from openwork.patterns import NM, Block, FanIn
from openwork.prune.magnitude import Magnitude
from openwork.pruner import Pruning
from openwork.regularizer import Regularization
from openwork.restructuring import Restructurings, restructure_
from openwork.testing import BrokenPromise, check_method, checks
from openwork.testing.promises import PROMISES
from openwork.thawing import Thawing
from openwork.train.gmp import GMP
from openwork.train.rigl import RigL
from openwork.train.set import SET
from openwork.train.static_random import StaticRandom

APART = (LoRC, Migrating, Thawing, Regularization)
"""Methods that put something beside layers, move scale between them, or train without a mask: they make their own promises."""

CHECKED = {name: cls for name, cls in registry().items() if cls.restructures or not issubclass(cls, APART)}
"""Methods that choose connections, work with those that are kept, or give layers another form."""

ELSEWHERE = tuple(name for name, promise in PROMISES.items() if not promise.concerns(LoRC))
"""Promises that calibrated methods do not make."""

FITTING = {
    "decompose": {"energy": 0.6},
    "gqsa": {"pattern": "block 1x2", "group": 2},
    "low_rank": {"exclude": ("0.*",)},
    "pixelfly": {"block": 4, "grid": 2, "factors": 1, "rank": 2},
    "rps": {"compression": 5.0},
}
"""Options with which a method suits the small networks of the suite."""


@pytest.mark.parametrize("name", CHECKED)
def test_every_registered_method_keeps_its_promises(name):
    check_method(CHECKED[name], **FITTING.get(name, {}))


@pytest.mark.parametrize("cls", [AWQ, CoarseToFine, SmoothQuant])
def test_stages_that_move_scale_keep_them_where_there_is_something_to_fold_it_into(cls):
    check_method(cls, [name for name in checks() if name not in ELSEWHERE and name != "one row is enough"])


def test_a_term_beside_linear_layers_keeps_them():
    """A convolution, and a network without any layer of the name, are refused by name."""
    check_method(
        LoRC, [name for name in checks() if name not in (*ELSEWHERE, "one row is enough")], exclude=("0.*",)
    )
    with pytest.raises(
        BrokenPromise, match=r"0\.weight belongs to a Conv2d: a low-rank term is put beside an nn.Linear"
    ):
        check_method(LoRC, ["budget is exact"])


@pytest.mark.parametrize("options", [{"span": True, "drop": 2, "protect": 0}, {"protect": 0, "drop": 2}])
def test_blocks_that_are_dropped_in_other_ways(options):
    check_method(LayerDrop, **options)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (RigL, {"replace": False, "pattern": FanIn()}),
        (RigL, {"grow": "momentum"}),
        (SET, {"grown_std": 0.1, "drop_by": "magnitude", "pattern": Block(3, 1), "replace": True}),
        (SET, {"pattern": NM(1, 3)}),
        (GMP, {"allocation": "lamp", "every": 1, "initial": 0.3}),
        (StaticRandom, {"repair": True, "init": "kaiming"}),
        (Magnitude, {"allocation": "lamp", "rounds": 3}),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(map(str, v)),
)
def test_options_keep_them_too(cls, options):
    check_method(cls, **options)


def test_the_list_of_promises():
    listed = checks()
    assert len(listed) >= 15
    assert {"budget is exact", "seed decides", "resuming gives the same bits"} <= listed.keys()
    assert all(promise.endswith(".") for promise in listed.values())


@pytest.fixture
def register():
    """Registers methods for one test only."""
    before = dict(methods._REGISTRY)

    def add(cls, **changes):
        return methods.method(
            **{"paper": "somebody, 2024", "kind": "train", "name": cls.__name__.lower(), **changes}
        )(cls)

    yield add
    methods._REGISTRY.clear()
    methods._REGISTRY.update(before)


def broken(cls, *promises):
    """Which of some promises a method breaks, of all if none are named."""
    with pytest.raises(BrokenPromise) as caught:
        check_method(cls, promises or None)
    return {line[2:].split(":")[0] for line in str(caught.value).splitlines()[1:] if line.startswith("- ")}


def frozen(cls):
    return dataclass(frozen=True, kw_only=True)(cls)


def test_a_good_newcomer(register):
    @frozen
    class Newcomer(SET):
        """Drops a little more, and says so.

        Args:
            more: how much more.
        """

        more: float = 0.1

    check_method(register(Newcomer))


def test_documentation_is_noticed(register):
    @frozen
    class Silent(StaticRandom):
        secret: int = 3

    @frozen
    class Vague(StaticRandom):
        """Has an option

        that nobody explains.
        """

    @frozen
    class Unexplained(StaticRandom):
        """One sentence.

        Args:
            other: something.
        """

        secret: int = 3

    promise = "is registered and documented"
    for cls in (Silent, Vague, Unexplained):
        assert broken(register(cls), promise) == {promise}
    assert broken(register(Vague, paper=" "), promise) == {promise}


def test_an_unregistered_class_is_noticed():
    @frozen
    class Stranger(StaticRandom):
        """Nobody knows it."""

    assert broken(Stranger, "is registered and documented")


def test_wrong_counts_are_noticed(register):
    @frozen
    class OneTooFew(StaticRandom):
        """Loses one connection."""

        def topology(self, row, generator):
            return super().topology(row, generator)[1:]

    @frozen
    class Creeping(SET):
        """Loses one at every update."""

        def update(self, sparsifier, step):
            super().update(sparsifier, step)
            c = sparsifier.connections.get("4.weight", None)
            if c is not None and c.kept > 1:
                c.replace(c.positions[1:])

    exact = "budget is exact", "ties are broken exactly", "one row is enough"
    assert broken(register(OneTooFew), *exact) == {*exact}
    assert broken(register(Creeping), "budget is exact", "zeros stay zero") == {
        "budget is exact",
        "zeros stay zero",
    }


def test_a_threshold_is_noticed(register):
    @frozen
    class Threshold(Pruning):
        """Keeps whatever is at least as large as the k-th, all ties included."""

        def scores(self, model, weights, data, loss):
            return {n: w.detach().abs() for n, w in weights.items()}

    from openwork.patterns import contract

    def sloppy(scores, k):
        return scores >= scores.flatten().kthvalue(scores.numel() - k + 1).values if k else scores > torch.inf

    original = contract.top_k
    contract.top_k = sloppy
    try:
        assert broken(register(Threshold), "ties are broken exactly")
    finally:
        contract.top_k = original


def test_global_randomness_is_noticed(register):
    @frozen
    class Dice(StaticRandom):
        """Rolls the dice of everybody."""

        def topology(self, row, generator):
            return torch.randperm(row.numel)[: row.kept].sort().values

    assert broken(register(Dice), "seed decides")


def test_hidden_state_is_noticed(register):
    counter = []

    @frozen
    class Forgetful(SET):
        """Keeps its state where no file sees it."""

        def update(self, sparsifier, step):
            counter.append(step)
            sparsifier.generator.manual_seed(len(counter) % 7919)
            super().update(sparsifier, step)

    promises = "seed decides", "resuming gives the same bits"
    assert broken(register(Forgetful), *promises) == {*promises}


def test_meddling_with_other_parameters_is_noticed(register):
    @frozen
    class Meddler(Pruning):
        """Scales the norms, and leaves gradients behind."""

        def scores(self, model, weights, data, loss):
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.weight.data *= 2
            return {n: w.detach().abs() for n, w in weights.items()}

    @frozen
    class Trainer(StaticRandom):
        """Moves the biases."""

        def due(self, step):
            return True

        def update(self, sparsifier, step):
            for c in sparsifier.connections.values():
                if getattr(c.weight.module, "bias", None) is not None:
                    c.weight.module.bias += 0.1

    assert broken(register(Meddler, kind="prune")) == {"what is excluded is untouched"}
    assert broken(register(Trainer), "what is excluded is untouched")


def test_a_change_of_dtype_is_noticed(register):
    @frozen
    class Precise(StaticRandom):
        """Believes in float64."""

        def attached(self, sparsifier):
            for c in sparsifier.connections.values():
                c.weight.parameter.data = c.weight.parameter.data.double()

    assert broken(register(Precise), "dtype and device are kept")


def test_half_an_update_is_noticed(register):
    @frozen
    class Hasty(RigL):
        """Changes one layer after the other, until it meets NaN."""

        def update(self, sparsifier, step):
            for c in sparsifier.connections.values():
                survivors = c.strongest(max(0, c.atoms().numel() - 3))
                c.adopt(c.rewired(survivors, Gradient(), sparsifier.generator))

        def limits(self):
            return ()

    assert broken(register(Hasty)) == {"bad gradients do no harm"}


def test_weights_outside_the_mask_are_noticed(register):
    @frozen
    class Leaky(StaticRandom):
        """Writes where nothing should be."""

        def due(self, step):
            return True

        def update(self, sparsifier, step):
            c = next(iter(sparsifier.connections.values()))
            if not c.weight.stored:
                c.weight.parameter.data += 1e-3

    assert broken(register(Leaky), "zeros stay zero", "budget is exact") == {
        "zeros stay zero",
        "budget is exact",
    }


def test_a_false_limit_is_noticed(register):
    @frozen
    class Boastful(SET):
        """Says that it is static, and is not."""

        def limits(self) -> Iterable[tuple[Method, Method]]:
            yield self, self.reduced_to(StaticRandom)

    assert broken(register(Boastful), "limits are simpler methods")


def test_what_cannot_be_recorded_is_noticed(register):
    @frozen
    class Callable(StaticRandom):
        """Takes a function.

        Args:
            rule: any function.
        """

        rule: Mapping[str, object] = torch.relu

    assert broken(register(Callable), "record is plain data")


def test_changing_values_are_noticed(register):
    @frozen
    class Unequal(StaticRandom):
        """No two are alike."""

        def __eq__(self, other):
            return self is other

        __hash__ = object.__hash__

    assert broken(register(Unequal), "is a value")


def test_forms_that_break_their_promises_are_noticed(register):
    @frozen
    class Padded(Monarch):
        """Holds a number that the table does not know, and that nothing trains."""

        def forms(self, layers):
            found = super().forms(layers)
            return {
                name: form if isinstance(form, str) else nn.Sequential(form, Idle())
                for name, form in found.items()
            }

    class Idle(nn.Identity):
        def __init__(self):
            super().__init__()
            self.number = nn.Parameter(torch.ones(()))

    @frozen
    class Secretive(Monarch):
        """Keeps a scale where no file sees it, and scales its layers by it."""

        def forms(self, layers):
            found = super().forms(layers)
            for name, form in found.items():
                if isinstance(form, MonarchLinear):
                    form.scale = float(layers[name].weight.detach().norm())
                    form.register_forward_hook(lambda module, _, y: y * module.scale)
            return found

    @frozen
    class Greedy(Monarch):
        """Changes the layers it was only shown."""

        def forms(self, layers):
            for layer in layers.values():
                layer.weight.data *= 2
            return super().forms(layers)

    @frozen
    class Single(Monarch):
        """Knows one precision."""

        def forms(self, layers):
            return {n: f if isinstance(f, str) else f.double() for n, f in super().forms(layers).items()}

    @frozen
    class Careless(Monarch):
        """Draws from everybody's generator."""

        def forms(self, layers):
            found = super().forms(layers)
            for form in found.values():
                if isinstance(form, MonarchLinear):
                    form.first.data.add_(torch.rand(()))
            return found

    kind = {"kind": "factor"}
    assert broken(register(Padded, **kind), "every number is trained") == {"every number is trained"}
    assert broken(register(Secretive, **kind)) == {
        "saved state is all there is",
        "multiplied out it is the same",
    }
    assert broken(register(Greedy, **kind)) == {"what stays is untouched"}
    assert broken(register(Single, **kind)) == {"form keeps dtype and device"}
    assert "seed decides" in broken(register(Careless, **kind))


def test_a_wrong_count_and_a_weight_of_nan_are_noticed(register, monkeypatch):
    import openwork.testing.promises.forms as forms

    @frozen
    class Boasting(Monarch):
        """Is counted by somebody who cannot count."""

    def miscounted(model, method):
        done = restructure_(model, method)
        first, *others = done.rows
        return Restructurings((replace(first, after=first.after - 1), *others))

    cls = register(Boasting, kind="factor")
    monkeypatch.setattr(forms, "restructure_", miscounted)
    assert broken(cls) == {"numbers are counted exactly"}
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "isfinite", torch.ones_like)
    assert broken(cls, "bad weights are refused") == {"bad weights are refused"}


def test_every_method_of_the_shelf_of_forms_is_checked():
    shelf = {name: cls for name, cls in registry().items() if cls.__module__.startswith("openwork.factor.")}
    assert shelf
    assert all(cls.restructures for cls in shelf.values())
    assert {name for name, cls in registry().items() if cls.restructures} <= CHECKED.keys()


def test_storages_that_disagree_are_noticed(register):
    @frozen
    class Partial(SET):
        """Forgets stored layers."""

        def update(self, sparsifier, step):
            if not any(c.weight.stored for c in sparsifier.connections.values()):
                super().update(sparsifier, step)

    assert broken(register(Partial), "both storages agree")


def test_what_is_neither_training_nor_pruning_is_refused():
    with pytest.raises(TypeError, match="neither a Training nor a Pruning nor a Calibrated"):
        check_method(Method)
    with pytest.raises(ValueError, match="no promise is called speed; there are is registered"):
        check_method(SET, ["speed"])
    with pytest.raises(
        ValueError, match="Monarch gives layers another form, and makes no promise that zeros"
    ):
        check_method(Monarch, ["zeros stay zero"])
    with pytest.raises(ValueError, match="SET leaves layers their form, and makes no promise that every"):
        check_method(SET, ["every number is trained"])


def test_the_finding_names_method_promise_and_place(register):
    @frozen
    class OneTooMany(StaticRandom):
        """Keeps one more."""

        def topology(self, row, generator):
            positions = super().topology(row, generator)
            free = set(range(row.numel)) - set(positions.tolist())
            return torch.tensor(sorted([*positions.tolist(), *sorted(free)[:1]]), dtype=torch.int64)

    with pytest.raises(BrokenPromise) as caught:
        check_method(register(OneTooMany), ["budget is exact"], sparsity=0.5)
    text = str(caught.value)
    assert text.startswith("OneTooMany breaks 1 of 1 promises")
    assert "- budget is exact: " in text
    assert "planned were" in text
