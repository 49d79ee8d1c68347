"""Measuring two things fairly on a machine that is never quiet: in turns, as ratios, with their spread."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

PAIRS = 7

Run = TypeVar("Run")


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    Attributes
    ----------
    name
        Of the benchmark.
    unit
        What each ratio divides by what.
    bar
        What the median ratio is held against.
    at_most
        True where the ratio must not be over the bar, False where not under it.
    pairs
        The ratio of each pair of runs, ours over the reference's.
    figures
        What stands behind them, by name, in units that the names tell.
    also
        Further ratios of the same runs, each with a name and a bar of its own.
    versions
        Of the programs that took part beside Limner, by name.
    """

    name: str
    unit: str
    bar: float
    at_most: bool
    pairs: tuple[float, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    also: tuple["Result", ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of the pairs."""
        return statistics.median(self.pairs)

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar

    @property
    def bound(self) -> str:
        """The bar in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.bar:g}"

    def to_dict(self) -> dict[str, object]:
        """Everything, as JSON has it."""
        return {
            "name": self.name,
            "ratio": round(self.ratio, 4),
            "bar": self.bar,
            "at_most": self.at_most,
            "met": self.met,
            "pairs": [round(pair, 4) for pair in self.pairs],
            "unit": self.unit,
            **{name: round(value, 4) for name, value in self.figures.items()},
            **({"also": [result.to_dict() for result in self.also]} if self.also else {}),
            **({"versions": dict(self.versions)} if self.versions else {}),
        }


@dataclass(frozen=True)
class Interleaved(Generic[Run]):
    """What pairs of runs found, in the order they were made."""

    ours: tuple[Run, ...]
    reference: tuple[Run, ...]

    def of(self, figure: Callable[[Run], float]) -> "Interleaved[float]":
        """One figure of each run."""
        return Interleaved(tuple(map(figure, self.ours)), tuple(map(figure, self.reference)))

    @property
    def ratios(self: "Interleaved[float]") -> tuple[float, ...]:
        """Ours over the reference's, pair by pair."""
        return tuple(ours / reference for ours, reference in zip(self.ours, self.reference, strict=True))


def interleaved(ours: Callable[[], Run], reference: Callable[[], Run], pairs: int = PAIRS) -> Interleaved[Run]:
    """Measure two things in turns, each once unmeasured first; every other pair begins with the reference.

    Parameters
    ----------
    ours, reference
        Each makes one run and returns what it found; figures that are to be divided are over 0.
    pairs
        Number of pairs, 1 or more.
    """
    ours()
    reference()
    found: list[tuple[Run, Run]] = []
    for pair in range(pairs):
        if pair % 2:
            theirs = reference()
            found.append((ours(), theirs))
        else:
            found.append((ours(), reference()))
    return Interleaved(*zip(*found, strict=True))
