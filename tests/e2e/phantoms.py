"""The phantom cohort on its way into a server, as a user would bring it there."""

from pathlib import Path

from limner import Client, plan_import
from limner.types import ImportResult


def import_phantom(client: Client, folder: Path, cohort: str, key: bytes) -> ImportResult:
    """Import a phantom folder by its own labels."""
    return client.import_cohort(cohort, plan_import(folder, labels=folder / "labels.csv", key=key).plan)
