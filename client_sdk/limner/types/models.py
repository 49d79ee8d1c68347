"""Models and their versions."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import JsonValue

from limner.imaging.grid import Grid
from limner.types.common import Metric, ModelIdentity, Result

if TYPE_CHECKING:
    import pandas as pd


class ModelState(StrEnum):
    """Whether a version can answer: the first request loads an `AVAILABLE` one; a `BROKEN` one says why in `error`."""

    AVAILABLE = "available"
    LOADED = "loaded"
    BROKEN = "broken"


class Model(Result):
    """One version of a model.

    Attributes
    ----------
    labels
        In the order of probabilities and logits, the class of interest last.
    threshold
        With two labels: probability of the second from which it is chosen, 0 to 1.
    metrics
        Out-of-fold, by subject.
    card
        The whole model card; docs/artifact.md describes it. Empty for a broken version.
    """

    identity: ModelIdentity
    state: ModelState
    aliases: tuple[str, ...]
    labels: tuple[str, ...]
    grid: Grid | None
    architecture: str
    threshold: float
    metrics: tuple[Metric, ...]
    created: datetime | None
    card: Mapping[str, JsonValue]
    error: str

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row for each metric, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.rows(self))
