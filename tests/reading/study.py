"""A study to read, made in seconds: a cohort of noise with a bright spot, an untrained model, a checked simulation."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import publish_untrained
from limner import Client, CohortPlan, CohortSlice, Slice
from limner.types import NewReading, SimulationResult
from tests.live import LiveServer

MODEL, COHORT = "untrained", "spots"
LABELS = ("no", "yes")
SIZE, SUBJECTS = 32, 8


def publish(folder: Path) -> None:
    """Publish the model where a `LiveServer` of this folder looks for it."""
    publish_untrained(folder / "model_repository", MODEL, size=SIZE)


def import_cohort(client: Client) -> None:
    """Import two slices each of four subjects of either label."""
    client.import_cohort(COHORT, CohortPlan(LABELS, [_slice(number) for number in range(2 * SUBJECTS)]))


def simulate(client: Client, *, checks: bool = False) -> SimulationResult:
    """Simulate as fast as it goes."""
    return client.simulate(MODEL, COHORT, steps=10, checks=checks)


def create(client: Client, readers: tuple[str, ...] = ("ann",), **options: object) -> NewReading:
    """Make a reading of three real slices of each label and the simulated images."""
    asked = {"real": 3, "simulations": [simulate(client)], "seed": 1, **options}
    return client.readings.create("Pelvis, autumn", MODEL, COHORT, readers, **asked)  # type: ignore[arg-type]


def start(folder: Path, **settings: object) -> LiveServer:
    """Start a server that has model and cohort."""
    publish(folder)
    server = LiveServer(folder, **settings)
    server.start()
    with Client(server.address) as client:
        client.wait_ready()
        import_cohort(client)
    return server


def _slice(number: int) -> CohortSlice:
    subject = number // 2
    return CohortSlice(
        f"instance-{number:02}", f"subject-{subject}", LABELS[subject % 2], Slice(_pixels(number), 2.0, 2.0)
    )


def _pixels(number: int) -> NDArray[np.uint16]:
    rng = np.random.default_rng(number)
    pixels = rng.integers(200, 400, (64, 64), np.uint16)
    pixels[24:40, 24:40] += np.uint16(300 + 200 * (number // 2 % 2))
    return pixels
