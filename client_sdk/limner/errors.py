"""The errors that the SDK raises: one family that mirrors the server's, translated from gRPC here and nowhere else."""

import re
from collections.abc import Iterable

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from limner.imaging.errors import ImageError
from limner.types import Failure

REQUEST_ID = "limner-request-id"
VERSION = "limner-version"
_PUSHBACK = "grpc-retry-pushback-ms"


class LimnerError(Exception):
    """A call failed.

    Attributes
    ----------
    code
        The gRPC status.
    request_id
        Finds the call in the server's log; empty where it never reached one.
    """

    code = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidInputError(LimnerError, ValueError):
    """Something given to a call is wrong.

    Attributes
    ----------
    field, expected
        What was wrong and what would have been accepted; empty where the server named no field.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, message: str, *, field: str = "", expected: str = "", request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.field = field
        self.expected = expected


class NotFoundError(LimnerError, LookupError):
    """There is no such cohort, training, model or version; the message names a few that there are."""

    code = grpc.StatusCode.NOT_FOUND


class WrongStateError(LimnerError):
    """The thing exists and is in a state that does not allow this."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class UnauthenticatedError(LimnerError):
    """The server does not know who calls: there is no token or certificate, or not a good one; the message says why."""

    code = grpc.StatusCode.UNAUTHENTICATED


class ForbiddenError(LimnerError, PermissionError):
    """The server knows who calls, and this is not for that principal; the message names the role or the owner."""

    code = grpc.StatusCode.PERMISSION_DENIED


class OverloadedError(LimnerError):
    """The server's queue or disk is full, or the caller asks for more than it may; nothing of the call was kept.

    Attributes
    ----------
    passing
        Whether the same call may be taken later; False of a message that is too large.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, passing: bool = True, request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.passing = passing


class DeadlineError(LimnerError, TimeoutError):
    """The answer did not come within the call's timeout."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(LimnerError, ConnectionError):
    """No server answers at the address, or it is going away; safe to try again."""

    code = grpc.StatusCode.UNAVAILABLE


class CancelledError(LimnerError):
    """The call was cancelled before its end."""

    code = grpc.StatusCode.CANCELLED


class UnsupportedError(LimnerError):
    """The server does not know this call: it is another version, or another service."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(LimnerError):
    """The server's own fault; its log has the details under `request_id`."""

    code = grpc.StatusCode.INTERNAL


_FAMILY: dict[grpc.StatusCode, type[LimnerError]] = {
    error.code: error
    for error in (
        NotFoundError,
        WrongStateError,
        DeadlineError,
        CancelledError,
        InternalError,
        ForbiddenError,
    )
}
_HOW_TO_SAY_WHO = "give Client(token=...), LIMNER_TOKEN or limner --token-file, or a certificate in Tls(...)"
_PLUGIN_FAILED = "Getting metadata from plugin failed with error: "
"""How gRPC begins to tell of what `limner.token` could not get."""


def from_rpc(error: grpc.RpcError, address: str, call: str = "") -> LimnerError:
    """Translate what a synchronous or asynchronous call to `address` raised; `call` is its name, where it is known."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return LimnerError(f"{address}: {error}")
    code, details = error.code(), error.details() or ""
    trailer = {key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)}
    request_id = trailer.get(REQUEST_ID, "")
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            status = rpc_status.from_call(error)  # type: ignore[arg-type]
            field, _, expected = _violation(status) if status else ("", "", "")
            return InvalidInputError(details, field=field, expected=expected, request_id=request_id)
        case grpc.StatusCode.UNAVAILABLE if details.startswith(_PLUGIN_FAILED):
            return UnauthenticatedError(details.removeprefix(_PLUGIN_FAILED))
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(f"{details}; {_HOW_TO_SAY_WHO}", request_id=request_id)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.INTERNAL if not request_id:
            # A proxy that loses its server in the middle of a stream says INTERNAL; a server that says it gives an id.
            return UnavailableError(f"no Limner server answers at {address} ({details})")
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"the server at {address} is going away: {details}", request_id=request_id)
        case grpc.StatusCode.UNIMPLEMENTED:
            named = f"this call, {call}" if call else "this call"
            reason = _why_unknown(trailer.get(VERSION, ""), details)
            return UnsupportedError(f"the server at {address} does not know {named}: {reason}", request_id=request_id)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            # gRPC itself, without an id, refuses what is too large; the server says by its pushback that it does so.
            passing = bool(request_id) and trailer.get(_PUSHBACK) != "-1"
            return OverloadedError(details, passing=passing, request_id=request_id)
        case grpc.StatusCode.DEADLINE_EXCEEDED if not request_id:
            return DeadlineError(f"no answer from {address} within the timeout")
        case _:
            return _FAMILY.get(code, LimnerError)(details or str(code), request_id=request_id)


def _why_unknown(theirs: str, details: str) -> str:
    """Say who has to be upgraded, from the version that the server tells; before 0.1 it told none."""
    from importlib.metadata import version  # seldom needed, and slow to import

    ours = version("limner")
    if not theirs:
        return f"it is older than this client ({ours}), and to be upgraded, or it is another service ({details})"
    if _numbers(theirs) < _numbers(ours):
        return f"it is Limner {theirs}, older than this client ({ours}); upgrade the server"
    if _numbers(theirs) > _numbers(ours):
        return f"it is Limner {theirs}, newer than this client ({ours}); upgrade the client"
    return f"it is Limner {theirs}, as this client ({details})"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", version)[:3]))


def wrong_input(field: str, found: str, expected: str) -> InvalidInputError:
    """Return the error that says what was found and what would have been accepted."""
    return InvalidInputError(f"{found}; expected {expected}", field=field, expected=expected)


def invalid_input(error: ImageError) -> InvalidInputError:
    """Translate an error of `limner.imaging` about a single argument."""
    return InvalidInputError(str(error), field=error.field, expected=error.expected)


def failure(status: status_pb2.Status) -> Failure | None:
    """Translate the status of one image, slice or file; None where it is OK."""
    if status.code == code_pb2.OK:
        return None
    field, value, expected = _violation(status)
    code = code_pb2.Code.Name(status.code)
    return Failure(code=code, message=status.message, field=field, value=value, expected=expected)


def local_failure(error: ImageError | InvalidInputError | OSError) -> Failure:
    """Translate why an image never left this machine."""
    code = code_pb2.Code.Name(code_pb2.INVALID_ARGUMENT)
    if isinstance(error, OSError):
        expected = "a file that can be read"
        value = str(error.filename or "")
        return Failure(code=code, message=str(error), field="content", value=value, expected=expected)
    value = error.value if isinstance(error, ImageError) else ""
    return Failure(code=code, message=str(error), field=error.field, value=value, expected=error.expected)


def _violation(status: status_pb2.Status) -> tuple[str, str, str]:
    """Return field, value and expectation of the first `google.rpc.BadRequest` violation, or empty strings."""
    for violation in _violations(status):
        # The server's sentence is "is VALUE; expected EXPECTED".
        found, _, expected = violation.description.rpartition("; expected ")
        return violation.field, found.removeprefix("is "), expected
    return "", "", ""


def _violations(status: status_pb2.Status) -> Iterable[error_details_pb2.BadRequest.FieldViolation]:
    for detail in status.details:
        request = error_details_pb2.BadRequest()
        if detail.Unpack(request):
            yield from request.field_violations
