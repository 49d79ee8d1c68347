"""ModelInfer requests as they are read: an array that is right comes out, or an error that names what is wrong."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from limner_server.access.limits import MAX_IMAGES
from limner_server.errors import InvalidInputError
from limner_server.rpc.open_inference.inference import read_images, read_priority, read_timeout_s
from limner_server.rpc.open_inference.shared_memory import SharedMemory

EDGE = 3
PIXELS = EDGE * EDGE


def requests() -> st.SearchStrategy[service_pb2.ModelInferRequest]:
    """Requests that are right in some parts and wrong in others."""
    counts = st.one_of(st.integers(0, 3), st.just(MAX_IMAGES + 1), st.integers(-(2**63), 2**63 - 1))
    shapes = st.one_of(
        st.tuples(counts, st.just(EDGE), st.just(EDGE)), st.lists(st.integers(-1, 4), max_size=4).map(tuple)
    )
    lengths = st.one_of(st.integers(0, 3).map(lambda n: n * PIXELS), st.integers(0, 40))
    return st.builds(
        build,
        name=st.one_of(st.just("images"), st.text(max_size=4)),
        datatype=st.sampled_from(["FP32", "FP32", "FP64", "BYTES", ""]),
        shape=shapes,
        raw=st.lists(st.one_of(lengths.map(lambda n: bytes(4 * n)), st.binary(max_size=80)), max_size=2),
        values=st.one_of(st.just(0), lengths),
        inputs=st.sampled_from([1, 1, 1, 0, 2]),
    )


def build(
    name: str = "images",
    datatype: str = "FP32",
    shape: tuple[int, ...] = (1, EDGE, EDGE),
    raw: list[bytes] | None = None,
    values: int = 0,
    inputs: int = 1,
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(raw_input_contents=raw or [])
    for _ in range(inputs):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if values:
            tensor.contents.fp32_contents.extend(np.arange(values, dtype=np.float32))
    return request


def is_right(request: service_pb2.ModelInferRequest) -> bool:
    if len(request.inputs) != 1:
        return False
    tensor = request.inputs[0]
    contents = [bytes(each) for each in request.raw_input_contents]
    contents += [bytes(4 * len(tensor.contents.fp32_contents))] if tensor.HasField("contents") else []
    images = tensor.shape[0] if tensor.shape else 0
    return (
        (tensor.name, tensor.datatype, list(tensor.shape)) == ("images", "FP32", [images, EDGE, EDGE])
        and 1 <= images <= MAX_IMAGES
        and [len(content) for content in contents] == [4 * images * PIXELS]
    )


@given(requests())
@example(build(raw=[bytes(4 * PIXELS)]))
@example(build(shape=(2, EDGE, EDGE), values=2 * PIXELS))
@example(build(shape=(MAX_IMAGES, EDGE, EDGE), raw=[bytes(4 * MAX_IMAGES * PIXELS)]))
@example(build(shape=(MAX_IMAGES + 1, EDGE, EDGE), raw=[bytes(4 * (MAX_IMAGES + 1) * PIXELS)]))
@example(build(raw=[bytes(4 * PIXELS)], values=PIXELS))
@example(build(raw=[bytes(4 * PIXELS - 1)]))
def test_a_request_is_read_exactly_when_it_is_right(request: service_pb2.ModelInferRequest) -> None:
    if not is_right(request):
        with pytest.raises(InvalidInputError):
            read_images(request, EDGE, SharedMemory())
        return
    images = read_images(request, EDGE, SharedMemory())
    tensor = request.inputs[0]
    sent = (
        np.frombuffer(request.raw_input_contents[0], "<f4")
        if request.raw_input_contents
        else np.array(tensor.contents.fp32_contents, np.float32)
    )
    assert images.dtype == np.float32
    assert images.shape == tuple(tensor.shape)
    assert images.tobytes() == sent.tobytes()


def test_values_of_another_type_are_not_taken_for_fp32() -> None:
    request = build()
    request.inputs[0].contents.fp64_contents.extend(range(PIXELS))
    with pytest.raises(InvalidInputError, match=r"0 bytes.*expected 36 bytes of FP32"):
        read_images(request, EDGE, SharedMemory())


def numbers(name: str) -> Iterator[tuple[service_pb2.ModelInferRequest, int]]:
    for kind in ("int64_param", "uint64_param"):
        for value in (1, 10, 11, 12, 2**40):
            request = service_pb2.ModelInferRequest()
            setattr(request.parameters[name], kind, value)
            yield request, value


def test_priorities_run_the_other_way_round() -> None:
    assert read_priority(service_pb2.ModelInferRequest()) == 0
    for request, level in numbers("priority"):
        assert read_priority(request) == {1: 10, 10: 1}.get(level, 0)


def test_timeouts_are_microseconds() -> None:
    assert read_timeout_s(service_pb2.ModelInferRequest()) is None
    for request, microseconds in numbers("timeout"):
        assert read_timeout_s(request) == pytest.approx(microseconds / 1e6)


@pytest.mark.parametrize(
    "wrong", [{"int64_param": -1}, {"string_param": "1"}, {"bool_param": True}, {"double_param": 1.0}, {}], ids=str
)
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_parameters_of_another_kind_are_refused_by_name(name: str, wrong: dict[str, object]) -> None:
    request = service_pb2.ModelInferRequest()
    request.parameters[name].CopyFrom(service_pb2.InferParameter(**wrong))
    read = {"priority": read_priority, "timeout": read_timeout_s}[name]
    with pytest.raises(InvalidInputError, match=f"^{name} is .*a whole number, 0 or more"):
        read(request)
