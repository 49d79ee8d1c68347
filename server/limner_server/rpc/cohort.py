"""CohortService: cohorts in, listed and out."""

import asyncio
from collections.abc import AsyncIterator

from limner.imaging.errors import ImageError
from limner.v1 import cohort_pb2, cohort_pb2_grpc
from limner_server.access.principal import caller_name
from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.rpc.images import MAX_SUBJECT, check_text, read_pixels
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.ownership import Ownership
from limner_server.rpc.status import KnownError, to_status
from limner_server.rpc.streams import expect, opening
from limner_server.rpc.wire import timestamp
from limner_server.state.cohorts import CohortSnapshot, CohortStore, NewSlice
from limner_server.state.jobs import JobStore

_BATCH = 64


class CohortService(cohort_pb2_grpc.CohortServiceServicer):
    """Translates between the wire and the cohort store."""

    def __init__(self, cohorts: CohortStore, jobs: JobStore, ownership: Ownership) -> None:
        self._cohorts = cohorts
        self._jobs = jobs
        self._ownership = ownership

    async def ImportCohort(
        self, request_iterator: AsyncIterator[cohort_pb2.ImportCohortRequest], context: RpcContext
    ) -> cohort_pb2.ImportCohortResponse:
        """Store slices as they come, in small batches; refuse bad ones alone."""
        header = (await opening(request_iterator)).header
        name = header.cohort
        await asyncio.to_thread(self._cohorts.create, name, header.labels, caller_name())
        await self._ownership.check_cohort(name)  # it may have been there
        response = cohort_pb2.ImportCohortResponse()
        batch: list[cohort_pb2.CohortSlice] = []
        async for request in request_iterator:
            batch.append(expect(request, "slice").slice)
            if len(batch) == _BATCH:
                await asyncio.to_thread(self._store, name, batch, response)
                batch = []
        await asyncio.to_thread(self._store, name, batch, response)
        response.cohort.CopyFrom(_message(await asyncio.to_thread(self._cohorts.snapshot, name)))
        return response

    async def GetCohort(self, request: cohort_pb2.GetCohortRequest, context: RpcContext) -> cohort_pb2.Cohort:
        """Return one cohort."""
        snapshot = await asyncio.to_thread(self._cohorts.snapshot, request.cohort)
        message = _message(snapshot)
        if request.include_instances:
            message.instances.extend(item.instance for item in snapshot.slices)
        return message

    async def ListCohorts(
        self, request: cohort_pb2.ListCohortsRequest, context: RpcContext
    ) -> cohort_pb2.ListCohortsResponse:
        """Return all cohorts."""
        names = await asyncio.to_thread(self._cohorts.names)
        snapshots = [await asyncio.to_thread(self._cohorts.snapshot, name) for name in names]
        return cohort_pb2.ListCohortsResponse(cohorts=map(_message, snapshots))

    async def DeleteCohort(
        self, request: cohort_pb2.DeleteCohortRequest, context: RpcContext
    ) -> cohort_pb2.DeleteCohortResponse:
        """Delete a cohort that no job is using."""
        await self._ownership.check_cohort(request.cohort)
        users = await asyncio.to_thread(self._jobs.unfinished, request.cohort)
        if users:
            raise WrongStateError(f"cohort {request.cohort!r} is in use by {users[0].kind} {users[0].id}")
        await asyncio.to_thread(self._cohorts.delete, request.cohort)
        return cohort_pb2.DeleteCohortResponse()

    def _store(
        self, name: str, messages: list[cohort_pb2.CohortSlice], response: cohort_pb2.ImportCohortResponse
    ) -> None:
        """Store a batch of slices and count what became of them."""
        slices: list[NewSlice] = []
        for message in messages:
            try:
                slices.append(_new_slice(message))
            except (InvalidInputError, ImageError) as error:
                _reject(response, message.instance, error)
        for item, outcome in zip(slices, self._cohorts.add(name, slices), strict=True):
            if isinstance(outcome, Exception):
                _reject(response, item.instance, outcome)
            elif outcome:
                response.added += 1
            else:
                response.unchanged += 1


def _new_slice(message: cohort_pb2.CohortSlice) -> NewSlice:
    check_text("series", message.series, MAX_SUBJECT)
    return NewSlice(
        message.instance,
        message.subject,
        message.series,
        message.label,
        message.slice_label,
        read_pixels(message.pixels),
    )


def _reject(response: cohort_pb2.ImportCohortResponse, instance: str, error: KnownError) -> None:
    response.rejected.add(id=instance, status=to_status(error))


def _message(snapshot: CohortSnapshot) -> cohort_pb2.Cohort:
    return cohort_pb2.Cohort(
        name=snapshot.name,
        labels=snapshot.labels,
        subjects=[
            cohort_pb2.CohortSubject(subject=subject, label=label, slices=slices)
            for subject, (label, slices) in snapshot.subjects().items()
        ],
        slices=len(snapshot.slices),
        digest=snapshot.digest,
        created=timestamp(snapshot.created),
    )
