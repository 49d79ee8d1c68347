"""A finished simulation on disk: `result.npz` holds the arrays, `result.json`, written last, everything else."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import to_json

from limner.imaging.grid import Grid
from limner_server.errors import WrongStateError
from limner_server.explain.checks import CheckResult, Verdict
from limner_server.explain.faithfulness import FaithfulnessCurve
from limner_server.explain.pipeline import Recipe
from limner_server.explain.simulation import LayerLineage, SimulationOutcome, SubjectLineage
from limner_server.explain.stages import load_arrays, save_arrays
from limner_server.files import write_atomic

ARRAYS_FILE = "result.npz"
FACTS_FILE = "result.json"
_ARRAYS = ("images", "logits", "probabilities", "distances", "nearest")


@dataclass(frozen=True)
class Source:
    """What a simulation was made from, and how.

    Attributes
    ----------
    model, version, digest
        The artifact.
    cohort, cohort_digest
        The cohort, as it was at the time.
    grid
        Of all images.
    recipe
        Method, steps and seed.
    """

    model: str
    version: int
    digest: str
    cohort: str
    cohort_digest: str
    grid: Grid
    recipe: Recipe


@dataclass(frozen=True)
class _Facts:
    """All of a result but its arrays."""

    source: Source
    nearest_instances: tuple[str, ...]
    nearest_subjects: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    verdict: Verdict
    layers: tuple[LayerLineage, ...]
    subjects: tuple[SubjectLineage, ...]
    faithfulness: tuple[FaithfulnessCurve, ...] = ()


_ADAPTER = TypeAdapter(_Facts)


def save_result(folder: Path, source: Source, outcome: SimulationOutcome) -> None:
    """Write a result; StorageFullError where the disk is full."""
    save_arrays(folder / ARRAYS_FILE, {name: getattr(outcome, name) for name in _ARRAYS})
    shared = {field.name: getattr(outcome, field.name) for field in fields(_Facts) if field.name != "source"}
    facts = _ADAPTER.dump_python(_Facts(source=source, **shared), mode="json")
    # A figure may be infinite, for which JSON has no number.
    write_atomic(folder / FACTS_FILE, to_json(facts, indent=2, inf_nan_mode="strings"))


def load_result(folder: Path) -> tuple[Source, SimulationOutcome]:
    """Read the result of a simulation's folder.

    Raises
    ------
    WrongStateError
        There is no finished result in it.
    """
    try:
        facts = _ADAPTER.validate_json((folder / FACTS_FILE).read_bytes())
        arrays = load_arrays(folder / ARRAYS_FILE)
    except FileNotFoundError as error:
        raise WrongStateError(
            f"simulation {folder.name} has no result: {Path(error.filename).name} is missing"
        ) from error
    outcome = SimulationOutcome(
        images=arrays["images"],
        logits=arrays["logits"],
        probabilities=arrays["probabilities"],
        # Results of older versions have none.
        distances=arrays.get("distances", np.full((len(arrays["images"]), 1), np.nan, np.float32)),
        nearest=arrays["nearest"],
        nearest_instances=facts.nearest_instances,
        nearest_subjects=facts.nearest_subjects,
        checks=facts.checks,
        verdict=facts.verdict,
        layers=facts.layers,
        subjects=facts.subjects,
        faithfulness=facts.faithfulness,
    )
    return facts.source, outcome
