"""Measuring two things fairly on a machine that is never quiet: in turns, as ratios, with their spread."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

PAIRS = 7


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
    """

    name: str
    unit: str
    bar: float
    at_most: bool
    pairs: tuple[float, ...]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of the pairs."""
        return statistics.median(self.pairs)

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar

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
        }


@dataclass(frozen=True)
class Interleaved:
    """Figures of pairs of runs, in the order they were made."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over the reference's, pair by pair."""
        return tuple(ours / reference for ours, reference in zip(self.ours, self.reference, strict=True))


def interleaved(ours: Callable[[], float], reference: Callable[[], float], pairs: int = PAIRS) -> Interleaved:
    """Measure two things in turns, each once unmeasured first; every other pair begins with the reference.

    Parameters
    ----------
    ours, reference
        Each makes one run and returns its figure, over 0.
    pairs
        Number of pairs, 1 or more.
    """
    ours()
    reference()
    found: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            theirs = reference()
            found.append((ours(), theirs))
        else:
            found.append((ours(), reference()))
    return Interleaved(*zip(*found, strict=True))
