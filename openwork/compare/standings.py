"""The state of a contest: which networks are trained, what was proven of them, and the table so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from openwork.compare.contest import Contestant, Setting, Trained, train
from openwork.compare.proof import Bench, Proof
from openwork.compare.table import Row
from openwork.progress import phase


class Standings:
    """What is known so far. Complete, or of fewer seeds where a contest was interrupted.

    Attributes:
        trained: contestant, in words -> its networks, one a seed.
        proofs: contestant, in words -> what was measured on its first network.
    """

    def __init__(self) -> None:
        self.trained: dict[str, list[Trained]] = {}
        self.proofs: dict[str, Proof] = {}

    def add(self, trained: Trained) -> None:
        """Enter a network that was trained."""
        self.trained.setdefault(str(trained.contestant), []).append(trained)

    def rows(self) -> list[Row]:
        """The table, in the order of the contest."""
        return [self._row(name) for name in self.trained if name in self.proofs]

    def best(self) -> Trained | None:
        """The sparse network that is best on the validation part; the sparser one among equals."""
        sparse = (
            t for networks in self.trained.values() for t in networks if t.contestant.method is not None
        )
        return max(
            sparse, key=lambda t: (t.validation.accuracy, t.sparsity, -t.validation.loss), default=None
        )

    def _row(self, name: str) -> Row:
        networks, proof = self.trained[name], self.proofs[name]
        accuracies = tuple(network.test.accuracy for network in networks)
        first, contestant = networks[0], networks[0].contestant
        return Row(
            method=contestant.name,
            sparsity_asked=contestant.sparsity,
            sparsity=first.sparsity,
            kept=first.kept,
            accuracy_mean=mean(accuracies),
            accuracy_std=stdev(accuracies) if len(accuracies) > 1 else None,
            accuracies=accuracies,
            validation_mean=mean(network.validation.accuracy for network in networks),
            train_seconds=mean(network.run.seconds for network in networks),
            file_bytes=proof.file_bytes,
            parameter_bytes=proof.parameter_bytes,
            train_state_bytes=first.state.total,
            latency_ms=proof.latency_ms,
            layouts=proof.layouts,
        )


def compete(
    setting: Setting,
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    batches: Sequence[int],
    *,
    seconds: float = 0.2,
) -> Iterator[tuple[Standings, Trained]]:
    """Train all contestants on the first seed, then on the next: whoever stops early has all methods, on
    fewer seeds.

    Args:
        setting: common to all.
        contestants: the first one is the dense network; methods that prune take it, of the same seed.
        seeds: at least one.
        batches: sizes of batch to time.
        seconds: to spend on each measurement, about.

    Yields:
        The standings, always the same object, and the network that was just added.
    """
    if not contestants or contestants[0].method is not None:
        raise ValueError("a contest begins with the dense network: the first contestant has no method")
    standings = Standings()
    bench: Bench | None = None
    with phase(f"{len(contestants)} networks, {len(seeds)} seeds", len(contestants) * len(seeds)) as whole:
        for seed in seeds:
            dense: Trained | None = None
            for contestant in contestants:
                trained = train(setting, contestant, seed, dense)
                dense = dense or trained
                if bench is None:
                    with phase("timing dense kernels"):
                        bench = Bench(dense.model, setting.task.train.inputs, batches, seconds=seconds)
                if str(contestant) not in standings.proofs:
                    with phase(f"saving, loading, packing and timing {contestant}"):
                        proof = bench.prove(trained, setting.model(seed + 1))
                    standings.proofs[str(contestant)] = proof
                standings.add(trained)
                whole.advance()
                yield standings, trained
