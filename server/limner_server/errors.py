"""The one error family of the server. `rpc.interceptor` maps it to gRPC status codes; nothing else does."""

from collections.abc import Iterable

import grpc


class LimnerError(Exception):
    """Something went wrong that the caller may be told of, in the words of the exception."""

    code = grpc.StatusCode.UNKNOWN


class InvalidInputError(LimnerError):
    """The caller's input is wrong: which field, what was found, what was expected."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, value: object, expected: str) -> None:
        text = str(value)
        self.field = field
        self.value = text if len(text) <= 80 else text[:77] + "..."
        self.expected = expected
        super().__init__(f"{field} is {self.value!r}; expected {expected}")


class NotFoundError(LimnerError):
    """There is no such thing; names a few that there are."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        names = sorted(known)
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        super().__init__(f"no {kind} {name!r}" + (f"; there is: {shown}" if names else ""))


class WrongStateError(LimnerError):
    """The thing exists and is in a state that does not allow this."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class QueueFullError(LimnerError):
    """The executor takes no more for now; `retry_after_s` says when to try again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{reason}; try again in {retry_after_s:.2g} s")


class UnauthenticatedError(LimnerError):
    """The caller has not proven who it is; says what is missing or wrong, and never what was shown."""

    code = grpc.StatusCode.UNAUTHENTICATED


class ForbiddenError(LimnerError):
    """The caller is known and may not do this; names who it is and the role, or the owner, that may."""

    code = grpc.StatusCode.PERMISSION_DENIED


class RateLimitError(LimnerError):
    """The caller asks more often than it may; `retry_after_s` says when to try again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, limit: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"you may ask for {limit}; try again in {retry_after_s:.2g} s")


class MessageTooLargeError(LimnerError):
    """The message is larger than its caller may send; trying again will not help."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, size: int, limit_mb: float) -> None:
        super().__init__(f"the message has {size:,} bytes; yours may have {limit_mb:g} MiB")


class StorageFullError(LimnerError):
    """The disk of the server is full; nothing half-written was kept."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineError(LimnerError):
    """The caller's deadline passed before the work began."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(LimnerError):
    """The server, or the worker that should have answered, is going away; safe to try again."""

    code = grpc.StatusCode.UNAVAILABLE


class EngineError(LimnerError):
    """The forward pass of a batch failed; the text stays in the server's log."""

    code = grpc.StatusCode.INTERNAL


class LeftOffError(Exception):
    """A job has ended since its server goes, for another one to take up: not a failure, and nobody's answer."""
