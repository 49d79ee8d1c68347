"""The simulation job, a process of its own: `python -m limner_server.explain.job FOLDER`.

Cohort and model → images → checks → `result.json` and `result.npz` in the folder. It may be killed anywhere and started
again on its folder: stages that were finished are not done again.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.explain.cohort import spool_cohort
from limner_server.explain.pipeline import Recipe, SimulationMethod
from limner_server.explain.result import FACTS_FILE, Source, load_result, save_result
from limner_server.explain.simulation import SimulationOutcome, simulate
from limner_server.jobs.process import Reporter, run_job
from limner_server.networks.artifact import Artifact, eager, load
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository, ModelVersion
from limner_server.state.cohorts import CohortSnapshot, CohortStore

STAGES = "stages"
SLICES = "slices"


class SimulationRequest(BaseModel):
    """`request.json`: what to simulate, from where, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    version: Annotated[int, Field(ge=1)]
    cohort: str
    cohort_digest: str
    """Of the cohort when it was asked for: a result is of the cohort that the caller saw."""
    method: SimulationMethod = SimulationMethod.INVERSION
    steps: Annotated[int, Field(ge=10, le=2000)] = 150
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    checks: bool = True
    database_url: str
    data_dir: Path
    model_repository: Path
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0
    """Of the CPU; 0: one for each core."""
    model_signing_key: Path | None = None
    """As the server's setting."""

    @property
    def cores(self) -> int:
        """Number of threads, the default filled in."""
        return self.threads or os.cpu_count() or 1

    @property
    def recipe(self) -> Recipe:
        """How the images are made."""
        return Recipe(self.method, self.steps, self.seed)


def run(folder: Path, reporter: Reporter) -> None:
    """Do what `folder/request.json` asks for, or go on with it, and report verdict and model."""
    request = SimulationRequest.model_validate_json((folder / "request.json").read_bytes())
    if not (folder / FACTS_FILE).is_file():
        reporter.progress("reading the cohort", 0.0, -1.0)
        source, outcome = _simulate(request, folder, reporter)
        save_result(folder, source, outcome)
    shutil.rmtree(folder / SLICES, ignore_errors=True)
    source, outcome = load_result(folder)
    reporter.result({"verdict": outcome.verdict, "digest": source.digest, "cohort_digest": source.cohort_digest})


def _simulate(request: SimulationRequest, folder: Path, reporter: Reporter) -> tuple[Source, SimulationOutcome]:
    repository = ModelRepository(request.model_repository, request.model_signing_key)
    card = repository.card(request.model, request.version)
    snapshot = _snapshot(request, card)
    device, workers = _prepare_device(request)
    artifact, halves, sibling = _load_models(repository.get(request.model, request.version), card, device)
    for place in (STAGES, SLICES):
        (folder / place).mkdir(exist_ok=True)
    cohort = spool_cohort(snapshot, card.grid, folder / SLICES / "gridded.f32", request.cores)
    outcome = simulate(
        artifact,
        card,
        halves,
        cohort,
        request.recipe,
        folder / STAGES,
        reporter.progress,
        sibling=sibling,
        with_checks=request.checks,
        workers=workers,
    )
    source = Source(
        request.model, request.version, card.digest, request.cohort, snapshot.digest, card.grid, request.recipe
    )
    return source, outcome


def _snapshot(request: SimulationRequest, card: ModelCard) -> CohortSnapshot:
    """Read the cohort's list of slices, and refuse what cannot be simulated before any pixel is read."""
    snapshot = CohortStore(request.database_url, request.data_dir).snapshot(request.cohort)
    if snapshot.digest != request.cohort_digest:
        raise WrongStateError(f"cohort {request.cohort!r} has changed since this simulation was asked for; ask again")
    if not snapshot.slices:
        raise InvalidInputError("cohort", request.cohort, "a cohort with slices; it is empty")
    if snapshot.labels != card.labels:
        raise InvalidInputError(
            "cohort", list(snapshot.labels), f"a cohort with the model's labels, {list(card.labels)}"
        )
    return snapshot


def _load_models(
    version: ModelVersion, card: ModelCard, device: torch.device
) -> tuple[Artifact, list[Artifact], Artifact | None]:
    """Load the model, its halves and its sibling, each checked against its digest."""

    def load_one(file: str, digest: str, members: int = 1) -> Artifact:
        module = load(version.folder / file, digest, device)
        single = card.model_copy(update={"members": members})
        return eager(module, single).to(memory_format=torch.channels_last)

    halves = [load_one(half.file, half.digest) for half in card.halves]
    sibling = load_one(card.sibling.file, card.sibling.digest) if card.sibling else None
    return load_one(version.artifact.name, card.digest, card.members), halves, sibling


def _prepare_device(request: SimulationRequest) -> tuple[torch.device, int]:
    """Return where to compute, and how many stages may run at a time."""
    available = torch.cuda.is_available()
    if request.device == "cuda" and not available:
        raise WrongStateError("the server was told to simulate on cuda, and there is no CUDA device")
    torch.set_flush_denormal(True)
    if request.device != "cpu" and available:
        return torch.device("cuda"), 1
    # Batches are small: two stages on a thread each are twice as fast as one stage on two threads.
    torch.set_num_threads(1)
    return torch.device("cpu"), request.cores


if __name__ == "__main__":
    run_job(run)
