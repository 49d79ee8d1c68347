"""Whose a cohort, a training, a model or a reading is: who made it may change it, and admins may. Others may use it.

A model is whose first training it was, all its versions with it: who could add a version to another's model would
answer in its name.
"""

import asyncio
from collections.abc import Callable

from sqlalchemy.orm import Session

from limner_server.access.principal import check_owner
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortStore
from limner_server.state.jobs import Job, JobStore
from limner_server.state.reviews import Reading


class Ownership:
    """Looks up owners, and raises ForbiddenError where the caller of this RPC may not change what is theirs."""

    def __init__(self, cohorts: CohortStore, jobs: JobStore, repository: ModelRepository) -> None:
        self._cohorts = cohorts
        self._jobs = jobs
        self._repository = repository

    async def check_cohort(self, name: str) -> None:
        """Refuse a change to a cohort of somebody else. NotFoundError if there is none."""
        check_owner(f"cohort {name!r}", await asyncio.to_thread(self._cohorts.owner, name))

    async def check_model(self, name: str) -> None:
        """Refuse a change to a model of somebody else."""
        _check_model(name, await asyncio.to_thread(self._jobs.model_owners, name))

    def training_check(self, model: str) -> Callable[[Session], None]:
        """Return the check, for `JobStore.submit`, that a model is the caller's or that there is none of that name."""

        def check(session: Session) -> None:
            owners = self._jobs.model_owners(model, session)
            if owners or self._repository.numbers(model):
                _check_model(model, owners)

        return check


def check_job(job: Job) -> None:
    """Refuse a change to a job of somebody else."""
    check_owner(f"{job.kind} {job.id!r}", job.owner)


def check_reading(reading: Reading) -> None:
    """Refuse tokens, the end or the data of a reading to somebody else than who made it."""
    check_owner(f"reading {reading.id!r}", reading.definition.owner)


def _check_model(name: str, owners: list[str | None]) -> None:
    check_owner(f"model {name!r}", owners[0] if owners else None)
