"""The phantom cohort on its way into a server, as a user would bring it there, and a training on it."""

from pathlib import Path

from limner import Client, plan_import
from limner.types import Grid, ImportResult, TrainingConfig

QUICK = TrainingConfig(grid=Grid(fov_mm=160, size=32), folds=2, epochs=1, batch_size=16, halves=False)
"""A training of seconds, two networks and nothing beside them; its figures mean nothing."""


def import_phantom(client: Client, folder: Path, cohort: str, key: bytes) -> ImportResult:
    """Import a phantom folder by its own labels."""
    return client.import_cohort(cohort, plan_import(folder, labels=folder / "labels.csv", key=key).plan)
