"""One ModelInfer request read and answered: tensors to images, outputs to tensors. No copy of what the client sent.

Which parameters count, and how they are read, is in docs/open-inference.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from limner_server.access.limits import MAX_IMAGES
from limner_server.errors import InvalidInputError
from limner_server.executor.batcher import MAX_PRIORITY
from limner_server.executor.engine import Output
from limner_server.networks.triton import INPUT
from limner_server.rpc.open_inference.shared_memory import SharedMemory
from limner_server.serving import ServedModel

PRIORITY_LEVELS = MAX_PRIORITY + 1
"""Triton's levels run from 1, the highest, to this, which is also the default; here from `MAX_PRIORITY` to 0."""

_Parameters = Mapping[str, service_pb2.InferParameter]

_DATATYPE = "FP32"
_FLOAT32 = np.dtype("<f4")
_REGION = "shared_memory_region"
_OFFSET = "shared_memory_offset"
_BYTE_SIZE = "shared_memory_byte_size"
_CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in shared memory a tensor is: `byte_size` bytes of a region, from `offset` on."""

    region: str
    offset: int
    view: memoryview


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that a request asks for, and the place to write it to; None: into the reply."""

    name: str
    place: Place | None = None


def read_images(request: service_pb2.ModelInferRequest, edge: int, memory: SharedMemory) -> NDArray[np.float32]:
    """Return the images `(n, edge, edge)`, a view of the request's bytes or of shared memory.

    Raises
    ------
    InvalidInputError, NotFoundError, WrongStateError
        Naming what is wrong with the input tensor.
    """
    if len(request.inputs) != 1:
        raise InvalidInputError("inputs", f"{len(request.inputs)} of them", f"one, {INPUT!r}")
    tensor = request.inputs[0]
    if tensor.name != INPUT:
        raise InvalidInputError("inputs.name", tensor.name, INPUT)
    if tensor.datatype != _DATATYPE:
        raise InvalidInputError(f"{INPUT}.datatype", tensor.datatype, _DATATYPE)
    shape = tuple(tensor.shape)
    if len(shape) != 3 or shape[1:] != (edge, edge) or not 1 <= shape[0] <= MAX_IMAGES:
        raise InvalidInputError(f"{INPUT}.shape", shape, f"(n, {edge}, {edge}) with n from 1 to {MAX_IMAGES:,}")
    content = _content(request, tensor, memory)
    expected = shape[0] * edge * edge * _FLOAT32.itemsize
    if content.nbytes != expected:
        raise InvalidInputError(INPUT, f"{content.nbytes} bytes", f"{expected} bytes of {_DATATYPE}")
    return np.frombuffer(content, _FLOAT32).reshape(shape)


def read_wanted(
    request: service_pb2.ModelInferRequest, model: ServedModel, images: int, memory: SharedMemory
) -> Sequence[Wanted]:
    """Return the outputs that are asked for, in that order; all of them where none is.

    Raises
    ------
    InvalidInputError, NotFoundError, WrongStateError
        An output that there is not or that is asked for twice; memory that it does not fit into.
    """
    known = model.card.outputs
    if not request.outputs:
        return [Wanted(name) for name in known]
    names = [output.name for output in request.outputs]
    for index, name in enumerate(names):
        if name not in known or name in names[:index]:
            raise InvalidInputError("outputs.name", name, f"each once: {', '.join(known)}")
    return [_wanted(output, model, images, memory) for output in request.outputs]


def read_priority(request: service_pb2.ModelInferRequest) -> int:
    """Return the priority of the executor for Triton's: 1 and up is 10 and down to 0, and 0 the default, 0."""
    level = _number(request.parameters, "priority")
    return max(0, PRIORITY_LEVELS - level) if level else 0


def read_timeout_s(request: service_pb2.ModelInferRequest) -> float | None:
    """Return how many seconds from now on the work may begin; None for ever."""
    microseconds = _number(request.parameters, "timeout")
    return microseconds / 1e6 if microseconds else None


def build_reply(
    request: service_pb2.ModelInferRequest, model: ServedModel, wanted: Sequence[Wanted], outputs: Sequence[Output]
) -> service_pb2.ModelInferResponse:
    """Lay the outputs of all images into one reply, or where the request wants them."""
    reply = service_pb2.ModelInferResponse(
        model_name=model.version.name, model_version=str(model.version.number), id=request.id
    )
    for output in wanted:
        rows = [each.arrays[output.name] for each in outputs]
        tensor = reply.outputs.add(name=output.name, datatype=_DATATYPE, shape=(len(rows), *rows[0].shape))
        content = b"".join([row.tobytes() for row in rows])
        if output.place is not None:
            output.place.view[: len(content)] = content
            tensor.parameters[_REGION].string_param = output.place.region
            tensor.parameters[_OFFSET].int64_param = output.place.offset
            tensor.parameters[_BYTE_SIZE].int64_param = len(content)
            content = b""
        # One entry for each output, empty for one that is elsewhere: clients find theirs by its place.
        reply.raw_output_contents.append(content)
    return reply


def _content(
    request: service_pb2.ModelInferRequest,
    tensor: service_pb2.ModelInferRequest.InferInputTensor,
    memory: SharedMemory,
) -> memoryview:
    """The bytes of the input tensor, from the one place of three where it is."""
    raw = request.raw_input_contents
    if _REGION in tensor.parameters:
        if raw or tensor.HasField("contents"):
            raise InvalidInputError(INPUT, "in shared memory and in the request", "in one of them")
        return _place(tensor.parameters, memory).view
    if not raw:
        # Contents of another type are no FP32: of such a tensor 0 bytes are found here.
        return memoryview(np.fromiter(tensor.contents.fp32_contents, _FLOAT32).tobytes())
    if tensor.HasField("contents"):
        raise InvalidInputError(f"{INPUT}.contents", "set", "none beside raw_input_contents")
    if len(raw) != 1:
        raise InvalidInputError("raw_input_contents", f"{len(raw)} of them", "one for the one input")
    return memoryview(raw[0])


def _wanted(
    output: service_pb2.ModelInferRequest.InferRequestedOutputTensor,
    model: ServedModel,
    images: int,
    memory: SharedMemory,
) -> Wanted:
    parameters = output.parameters
    if _CLASSIFICATION in parameters:
        raise InvalidInputError(f"{output.name}.{_CLASSIFICATION}", "set", "none: that extension is not served")
    if _REGION not in parameters:
        return Wanted(output.name)
    place = _place(parameters, memory)
    size = images * model.card.outputs[output.name] * _FLOAT32.itemsize
    if len(place.view) < size:
        raise InvalidInputError(f"{output.name}.{_BYTE_SIZE}", len(place.view), f"{size} or more")
    return Wanted(output.name, place)


def _place(parameters: _Parameters, memory: SharedMemory) -> Place:
    region = parameters[_REGION]
    if region.WhichOneof("parameter_choice") != "string_param":
        raise InvalidInputError(_REGION, _text(region), "the name of a region, as string_param")
    offset = _number(parameters, _OFFSET)
    view = memory.get(region.string_param).view(offset, _number(parameters, _BYTE_SIZE))
    return Place(region.string_param, offset, view)


def _number(parameters: _Parameters, name: str) -> int:
    """Return a parameter that is a whole number, 0 where it is missing."""
    if name not in parameters:
        return 0
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidInputError(name, _text(parameter), "a whole number, 0 or more, as int64_param or uint64_param")
    return int(value)


def _text(parameter: service_pb2.InferParameter) -> str:
    return str(parameter).strip() or "empty"
