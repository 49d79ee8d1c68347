"""Errors of the server as `google.rpc.Status`: one translation, for whole calls and for single images."""

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from limner.imaging.errors import ImageError
from limner_server.errors import InvalidInputError, LimnerError

KnownError = LimnerError | ImageError


def to_status(error: KnownError) -> status_pb2.Status:
    """Translate an error, with BadRequest details that name the field where input was wrong."""
    if isinstance(error, InvalidInputError | ImageError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=f"is {error.value}; expected {error.expected}"
        )
        details = any_pb2.Any()
        details.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        return status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(error), details=[details])
    return status_pb2.Status(code=error.code.value[0], message=str(error))
