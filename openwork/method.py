"""What a method is, and the registry of them.

A method is a value: a frozen dataclass whose fields are its options. The same object is the Python argument, the options of
the command line, the block of a recipe and the record stored in a checkpoint. It holds no state; what changes while a method
works lives in the object that a verb returns (see :mod:`openwork.sparsifier` and :mod:`openwork.pruner`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import torch

from openwork.allocation import Allocation, allocation
from openwork.patterns import Pattern, pattern

SHELVES = tuple(
    f"openwork.{shelf}" for shelf in ("train", "prune", "calibrate", "finetune", "factor", "merging")
)
"""Packages whose modules hold methods, one a module."""

M = TypeVar("M", bound="type[Method]")
N = TypeVar("N", bound="Method")

_REGISTRY: dict[str, type[Method]] = {}


@dataclass(frozen=True, kw_only=True)
class Method:
    """What every method is told: how sparse, split how, in which pattern, and where.

    Args:
        sparsity: fraction of zeros over all parameters the method covers, in [0, 1).
        kept: the same as an exact number of connections; when given, ``sparsity`` is not used.
        allocation: how the total is split among parameters, see :mod:`openwork.allocation`.
        pattern: which masks are legal, see :mod:`openwork.patterns`.
        include: globs of parameters to cover although they are left dense by default (such as embeddings).
        exclude: globs of parameters to leave dense.
        overrides: glob -> sparsity of those parameters (0 = dense); they do not take part in the allocation.
        seed: of the method's own generators; the global random state is never touched.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    kind: ClassVar[str]
    shrinks: ClassVar[bool] = False
    """Whether the number of connections falls while the method works. Otherwise a layer that holds only its kept connections
    keeps as many as it has."""
    whole_units: ClassVar[bool] = False
    """Whether the units at work in a parameter have equally many connections: as many as the plan says in all, less what does
    not divide evenly among them."""
    trains: ClassVar[bool] = False
    """Whether it works while an optimizer trains the model: weights that are frozen are then left as they are."""
    splits: ClassVar[bool] = False
    """Whether finding how many connections each parameter gets is part of the method, so that with another allocation it would be
    another method."""
    reads_zeros: ClassVar[bool] = False
    """Whether the zeros of the model itself say what is kept; sparsity, allocation and pattern play no part then."""
    restructures: ClassVar[bool] = False
    """Whether it gives layers another form, so that no mask says what has become of them."""

    sparsity: float = 0.9
    kept: int | None = None
    allocation: str | Allocation = "erk"
    pattern: str | Pattern = "unstructured"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity, below_one=True)
        if self.kept is not None and (isinstance(self.kept, bool) or not hasattr(self.kept, "__index__")):
            raise ValueError(f"kept is a number of connections; got {self.kept!r}")
        for option in ("include", "exclude"):
            globs = getattr(self, option)
            if not isinstance(globs, (str, tuple, list)) or not all(isinstance(g, str) for g in globs):
                raise ValueError(f"{option} is a tuple of globs, such as ('*.weight',); got {globs!r}")
        table: object = self.overrides
        if not isinstance(table, Mapping) or not all(isinstance(glob, str) for glob in table):
            raise ValueError(f"overrides is a table glob -> sparsity; got {table!r}")
        for glob, sparsity in self.overrides.items():
            check_fraction(f"overrides[{glob!r}]", sparsity)
        pattern(self.pattern)
        allocation(self.allocation)

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator of the method's seed; different purposes, such as parameter names, get independent streams."""
        digest = hashlib.blake2b(f"{self.seed} {purpose}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

    def limits(self) -> Iterable[tuple[Method, Method]]:
        """Pairs ``(a setting of this method, a simpler method)`` that give the same network bit for bit, such as the method
        with one of its parts switched off and what remains. The conformance suite holds the method to them.
        """
        return ()

    def reduced_to(self, simpler: type[N]) -> N:
        """A simpler method with the options that both have."""
        return simpler(**{f.name: getattr(self, f.name) for f in dataclasses.fields(simpler)})

    def record(self) -> dict[str, Any]:
        """The method as plain data: its name and every option, for checkpoints and recipes."""
        options = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"method": self.name, **options}


def check_fraction(what: str, value: Any, *, below_one: bool = False) -> None:
    """Raise ValueError unless ``value`` is a fraction."""
    if not hasattr(value, "__float__") or not 0.0 <= value <= 1.0 or (below_one and value == 1.0):
        hint = ""
        if isinstance(value, (int, float)) and 1.0 < value <= 100.0:
            hint = f": for {value:g} % write {value / 100:g}"
        elif isinstance(value, str):
            hint = ": write it as a number"
        elif below_one and hasattr(value, "__float__") and value == 1.0:
            hint = ": with 1 nothing would be left"
        raise ValueError(f"{what} is a fraction in [0, 1{')' if below_one else ']'}; got {value!r}{hint}")


def require_kind(thing: object, kinds: type[Method] | tuple[type[Method], ...], otherwise: str) -> None:
    """Raise TypeError unless ``thing`` is a method of one of ``kinds``.

    Args:
        thing: what was given as a method.
        kinds: what the verb takes.
        otherwise: what to say of a method of another kind, behind its name.
    """
    if isinstance(thing, kinds):
        return
    if isinstance(thing, Method):
        raise TypeError(f"{type(thing).__name__} {otherwise}")
    if isinstance(thing, type) and issubclass(thing, Method):
        raise TypeError(
            f"a method is a value, and {thing.__name__} is its class: write {thing.__name__}(...)"
        )
    by_name = f": openwork.method.get({thing!r}) finds a class by its name" if isinstance(thing, str) else ""
    raise TypeError(f"a method is a value such as ow.RigL(sparsity=0.9); got {type(thing).__name__}{by_name}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            "type": type(value).__name__,
            **{f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)},
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def method(*, paper: str, kind: str, name: str | None = None) -> Callable[[M], M]:
    """Register a method under ``name`` (its module's name by default), with its paper and its kind (``train``, ``prune``)."""

    def register(cls: M) -> M:
        key = name or cls.__module__.rpartition(".")[2]
        if key in _REGISTRY and _REGISTRY[key].__module__ != cls.__module__:
            raise ValueError(
                f"two methods want the name {key!r}: {_REGISTRY[key].__module__} and {cls.__module__}"
            )
        cls.name, cls.paper, cls.kind = key, paper, kind
        _REGISTRY[key] = cls
        return cls

    return register


def registry() -> dict[str, type[Method]]:
    """All methods by name, those of other packages (entry point group ``openwork.methods``) included."""
    for shelf in SHELVES:
        package = importlib.import_module(shelf)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{shelf}.{module.name}")
    for point in entry_points(group="openwork.methods"):
        point.load()
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> type[Method]:
    """The method of that name, or a ValueError that lists the nearest names."""
    methods = registry()
    key = name.strip().lower().replace("-", "_")
    if key in methods:
        return methods[key]
    near = difflib.get_close_matches(key, methods, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(methods)}"
    raise ValueError(f"no method is called {name!r}: {hint}")


def pages() -> Iterator[tuple[str, str, str, str]]:
    """(name, kind, one line, paper) of every method, for listings."""
    for name, cls in registry().items():
        yield name, cls.kind, (cls.__doc__ or "").strip().split("\n")[0].rstrip(":"), cls.paper
