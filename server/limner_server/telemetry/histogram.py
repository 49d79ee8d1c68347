"""Histograms that are counted as plain numbers, on their way to the page."""

from collections.abc import Sequence
from itertools import accumulate


def buckets(bounds: Sequence[float], classes: Sequence[int]) -> list[tuple[str, float]]:
    """Return the cumulative counts of the text format.

    Parameters
    ----------
    bounds
        Upper bounds of the classes, ascending.
    classes
        How often something was in each, and last how often it was above all of them.
    """
    names = [*map(str, map(float, bounds)), "+Inf"]
    return list(zip(names, accumulate(classes), strict=True))
