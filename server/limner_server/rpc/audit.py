"""Notes every call that changes what the server keeps: by whom, from where, what, to what, and how it ended.

Stands outside `interceptor`, whose request id and status it writes down. Reads names and ids only, never pixels.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio
from sqlalchemy.exc import SQLAlchemyError

from limner_server.access.principal import caller_name
from limner_server.rpc.interceptor import REQUEST_ID, Continuation, Handler, RpcContext, rewrap
from limner_server.serving import DEFAULT_ALIAS
from limner_server.state.audit import AuditEntry, AuditLog

CHANGING = frozenset(
    {
        *("CohortService/ImportCohort", "CohortService/DeleteCohort"),
        *("TrainingService/StartTraining", "TrainingService/CancelTraining", "SimulationService/Simulate"),
        *("ModelService/LoadModel", "ModelService/UnloadModel"),
        *("ModelService/PromoteModel", "ModelService/DeleteModel"),
        *("ReviewService/CreateReading", "ReviewService/IssueToken", "ReviewService/CloseReading"),
        *("ReviewService/GetAgreement", "ReviewService/ExportReading"),
        *("GRPCInferenceService/RepositoryModelLoad", "GRPCInferenceService/RepositoryModelUnload"),
    }
)
"""The methods that are noted, without their packages."""

_TARGETS = ("cohort", "model", "model_name", "id")
_LONGEST = 200
"""Characters of a target that are kept: more than any name has that is taken, less than would fill a disk."""

_log = logging.getLogger(__name__)


class AuditInterceptor(aio.ServerInterceptor):
    """Notes the calls of the methods in `CHANGING` once they have ended.

    Parameters
    ----------
    only_known
        Whether callers are asked who they are: then what nobody known asks for, or asks for too often, leaves no row.
        With such rows anybody could fill the disk.
    """

    def __init__(self, audit: AuditLog, *, only_known: bool) -> None:
        self._audit = audit
        self._only_known = only_known

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler, noted where it is to be."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.rpartition(".")[2]
        if handler is None or method not in CHANGING:
            return handler
        return rewrap(handler, lambda behavior: self._noted(method, behavior))

    def _noted(self, method: str, behavior: Callable[[Any, RpcContext], Any]) -> Any:
        # The peer is asked for at the beginning: of a call that is gone, gRPC's `peer` ends the process.
        async def call(request: Any, context: RpcContext) -> Any:
            watched, peer = _Watched(request), context.peer()
            try:
                return await behavior(watched.request, context)
            finally:
                await self._note(context, peer, method, watched.targets)

        async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
            watched, peer = _Watched(request), context.peer()
            try:
                async for reply in behavior(watched.request, context):
                    yield reply
            finally:
                await self._note(context, peer, method, watched.targets)

        return stream if inspect.isasyncgenfunction(behavior) else call

    async def _note(self, context: RpcContext, peer: str, method: str, targets: Sequence[str]) -> None:
        request_id = dict(context.trailing_metadata() or ()).get(REQUEST_ID, "")
        status = "CANCELLED" if context.cancelled() else (context.code() or grpc.StatusCode.OK).name
        principal = caller_name()
        if principal is None and self._only_known:
            return
        entries = [AuditEntry(peer, method, target, status, str(request_id), principal) for target in targets or [""]]
        try:
            await asyncio.to_thread(self._audit.add, *entries)
        except SQLAlchemyError:
            _log.exception("the audit log could not be written; it lacks %s", entries)


class _Watched:
    """A request, or a stream of them, and what the first message names."""

    def __init__(self, request: Any) -> None:
        self.targets: Sequence[str] = ()
        self.request = request
        if isinstance(request, Message):
            self.targets = _targets(request)
        else:
            self.request = self._read(request)

    async def _read(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            self.targets = self.targets or _targets(request)
            yield request


def _targets(request: Message) -> list[str]:
    """Return the cohort, the model, the alias and the job that a message names, in its header or itself."""
    fields = {field.name: value for field, value in request.ListFields()}
    if "header" in fields:
        return _targets(fields["header"])
    found = [_name(fields[name]) for name in _TARGETS if name in fields]
    if "model" in fields and "alias" in request.DESCRIPTOR.fields_by_name:
        found.append(f"{fields['model'].name}:{fields.get('alias', DEFAULT_ALIAS)}")
    return [target[:_LONGEST] for target in found]


def _name(found: Message | str) -> str:
    if not isinstance(found, Message):
        return str(found)
    name, version = getattr(found, "name", ""), getattr(found, "version", "")
    return f"{name}:{version}" if version else name
