"""Results: the measurements, and the ratios computed from them."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.measuring import Measurement, Role


@dataclass
class ContenderResult:
    """One contender's measurements, or its error.

    Attributes:
        name: Name in reports.
        role: Ours, a peer, or a reference.
        measurements: The measurements in order; the i-th measurements of all contenders are
            adjacent in time.
        memory_mib: Peak memory by kind: of the process, of its loader's workers, on the GPU.
        error: One line that says why the contender failed.
        options: What it was created with.
    """

    name: str
    role: Role
    measurements: list[Measurement] = field(default_factory=list)
    memory_mib: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """Work per second, by measurement."""
        return [each.work / each.seconds for each in self.measurements]

    @property
    def rate(self) -> float | None:
        """The median rate; None if the contender failed."""
        return statistics.median(self.rates) if self.rates and self.error is None else None

    @property
    def stages(self) -> dict[str, float]:
        """Seconds per unit of work and stage, over all measurements."""
        work = sum(each.work for each in self.measurements)
        names = dict.fromkeys(name for each in self.measurements for name in each.stages)
        return {
            name: sum(each.stages.get(name, 0.0) for each in self.measurements) / work
            for name in names
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the form of the JSON file."""
        return {
            "name": self.name,
            "role": self.role,
            "options": self.options,
            "rate": self.rate,
            "rates": self.rates,
            "stage_seconds": self.stages,
            "memory_mib": self.memory_mib,
            "measurements": [asdict(each) for each in self.measurements],
            "error": self.error,
        }


@dataclass
class ComparisonResult:
    """The results of one comparison; `unit` is that of the rates."""

    name: str
    title: str
    unit: str
    contenders: list[ContenderResult]

    @property
    def ours(self) -> ContenderResult | None:
        """Our contender; None if it was not measured."""
        return next((s for s in self.contenders if s.role == "ours" and s.rate is not None), None)

    @property
    def best_peer(self) -> ContenderResult | None:
        """The fastest peer; None if none was measured."""
        peers = [s for s in self.contenders if s.role == "peer" and s.rate is not None]
        return max(peers, key=lambda peer: peer.rate or 0.0, default=None)

    @property
    def ratio(self) -> float | None:
        """Our median rate over that of the fastest peer; greater than 1 if ours is faster."""
        ours, peer = self.ours, self.best_peer
        if ours is None or peer is None or not ours.rate or not peer.rate:
            return None
        return ours.rate / peer.rate

    @property
    def pair_ratios(self) -> list[float]:
        """The ratios of adjacent measurements."""
        ours, peer = self.ours, self.best_peer
        if ours is None or peer is None:
            return []
        return [a / b for a, b in zip(ours.rates, peer.rates, strict=True)]

    @property
    def outcome_difference(self) -> float | None:
        """The largest difference between contenders' outcomes; None if fewer than two have one."""
        outcomes = [s.measurements[0].outcome for s in self.contenders if s.rate is not None]
        outcomes = [outcome for outcome in outcomes if outcome]
        if len(outcomes) < 2:
            return None
        first, *others = outcomes
        return max(abs(other[name] - value) for other in others for name, value in first.items())

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the form of the JSON file."""
        peer = self.best_peer
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "ratio": self.ratio,
            "pair_ratios": self.pair_ratios,
            "best_peer": peer.name if peer is not None else None,
            "outcome_difference": self.outcome_difference,
            "subjects": [each.as_dict() for each in self.contenders],
        }
