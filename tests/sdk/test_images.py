"""Images on the wire and back: every form, neutral names, failures in their place."""

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner import AsyncClient, Client, Image, Slice
from limner.errors import InternalError
from limner.images import Ledger, each_image
from limner.types import ImageResult, ItemResult, SubjectResult
from limner.v1 import common_pb2
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from tests.sdk.servers import Inference, Swapped, serving

LOUD = np.full((4, 4), 255, np.uint8)


@pytest.fixture(scope="module")
def dicom(phantom: Path) -> Path:
    return phantom / "PH-000" / "0001.dcm"


def _images(dicom: Path) -> dict[str, object]:
    decoded = Slice(np.zeros((3, 5), np.int16), 0.5, 0.7, orientation=(1, 0, 0, 0, 1, 0), position=(1, 2, 3))
    return {
        "path": dicom,
        "text": str(dicom),
        "bytes": dicom.read_bytes(),
        "dataset": pydicom.dcmread(dicom),
        "slice": decoded,
        "grid": LOUD,
        "image": Image(LOUD, id="named"),
    }


@pytest.mark.parametrize("form", ["path", "text", "bytes", "dataset", "slice", "grid", "image"])
def test_one_image_of_every_form_alone_and_in_a_list(dicom: Path, form: str) -> None:
    content = _images(dicom)[form]
    inference = Inference()
    with serving(add_inference, inference) as address, Client(address) as client:
        alone = client.predict("m", content)  # type: ignore[arg-type]
        listed = client.predict("m", [content])  # type: ignore[list-item]
    assert [result.ok for result in (*alone.results, *listed.results)] == [True, True]
    assert alone.results[0].id == {"path": str(dicom), "text": str(dicom), "image": "named"}.get(form, "0")
    kind = inference.seen[0].WhichOneof("content")
    assert kind == ("grid" if form in {"grid", "image"} else "pixels")
    assert inference.seen[0] == inference.seen[1]


def test_nothing_that_identifies_is_sent_unless_asked(dicom: Path) -> None:
    inference = Inference()
    image = Image(dicom, id="Jane Doe, 0001.dcm", subject="DOE^JANE")
    with serving(add_inference, inference) as address, Client(address) as client:
        result = client.predict("m", [image])
        client.predict("m", [image], send_dicom=True)
        client.predict("m", [image], send_dicom="identified")
    pixels, deidentified, whole = inference.seen
    assert result.results[0].id == "Jane Doe, 0001.dcm"
    assert result.subjects[0].subject == "DOE^JANE"
    for name in (b"DOE", b"Jane", b"PH-000", b"PHANTOM"):
        assert name not in pixels.SerializeToString()
        assert name not in deidentified.SerializeToString()
    assert whole.dicom == dicom.read_bytes()
    assert b"DOE" not in whole.SerializeToString()


def test_a_slice_keeps_geometry_and_type() -> None:
    inference = Inference()
    values = np.arange(12, dtype=">i2").reshape(3, 4).astype(np.int16)
    one = Slice(values, 0.5, 0.7, orientation=(1, 0, 0, 0, 1, 0), position=(1, 2, 3))
    with serving(add_inference, inference) as address, Client(address) as client:
        client.predict("m", [one])
    sent = inference.seen[0].pixels
    assert (sent.rows, sent.columns, sent.data_type) == (3, 4, common_pb2.DATA_TYPE_INT16)
    assert np.array_equal(np.frombuffer(sent.data, "<i2").reshape(3, 4), values)
    assert (sent.geometry.row_spacing_mm, sent.geometry.column_spacing_mm) == (0.5, 0.7)
    assert list(sent.geometry.image_position) == [1, 2, 3]


def test_floats_become_float32_and_other_types_are_refused_alone() -> None:
    inference = Inference()
    images = [np.zeros((4, 4)), np.zeros((4, 4), np.int64), np.zeros((4, 5), np.uint8), np.zeros((4, 4), np.uint16)]
    with serving(add_inference, inference) as address, Client(address) as client:
        results = client.predict("m", images).results  # type: ignore[arg-type]
    assert [image.grid.data_type for image in inference.seen] == [
        common_pb2.DATA_TYPE_FLOAT32,
        common_pb2.DATA_TYPE_UINT16,
    ]
    assert [result.error and result.error.field for result in results] == [None, "grid.dtype", "grid.shape", None]


def _mixed(tmp_path: Path) -> list[Image]:
    bad = tmp_path / "notes.txt"
    bad.write_text("not an image")
    return [
        Image(bad, subject="a"),
        Image(LOUD, id="first", subject="a"),
        Image(tmp_path / "missing.dcm", subject="b"),
        Image(b"", id="empty", subject="a"),
        Image(LOUD, id="last", subject="c"),
        Image(42, id="number"),  # type: ignore[arg-type]
    ]


def _check_mixed(results: list[ImageResult], subjects: tuple[SubjectResult, ...], tmp_path: Path) -> None:
    names = [str(tmp_path / "notes.txt"), "first", str(tmp_path / "missing.dcm"), "empty", "last", "number"]
    assert [result.id for result in results] == names
    assert [result.ok for result in results] == [False, True, False, False, True, False]
    for result in results:
        assert (result.prediction is None) == (result.error is not None)
        assert result.error is None or result.error.code == "INVALID_ARGUMENT"
        assert result.error is None or result.error.field
    rolled = [(subject.subject, subject.images, subject.failed) for subject in subjects]
    assert rolled == [("a", 1, 2), ("b", 0, 1), ("c", 1, 0)]


def test_what_cannot_be_read_fails_alone_and_in_its_place(tmp_path: Path) -> None:
    async def predict(address: str) -> None:
        async def source() -> AsyncIterator[Image]:
            for image in _mixed(tmp_path):
                yield image

        async with AsyncClient(address) as client:
            unary = await client.predict("m", _mixed(tmp_path))
            _check_mixed(list(unary.results), unary.subjects, tmp_path)
            for images in (_mixed(tmp_path), source()):
                stream = client.predict_stream("m", images)
                _check_mixed([result async for result in stream], stream.subjects, tmp_path)

    with serving(add_inference, Inference()) as address:
        with Client(address) as client:
            unary = client.predict("m", _mixed(tmp_path))
            _check_mixed(list(unary.results), unary.subjects, tmp_path)
            stream = client.predict_stream("m", _mixed(tmp_path))
            _check_mixed(list(stream), stream.subjects, tmp_path)
            assert str(stream.model) == "m:3"
            assert stream.labels == ("quiet", "loud")
        asyncio.run(predict(address))


def test_answers_in_another_order_are_refused() -> None:
    with (
        serving(add_inference, Swapped()) as address,
        Client(address) as client,
        pytest.raises(InternalError) as error,
    ):
        client.predict("m", [LOUD, LOUD])
    assert "out of order" in str(error.value)


def test_a_stack_of_arrays_is_many_images_and_a_path_is_one() -> None:
    assert len(list(each_image(np.zeros((7, 4, 4), np.uint8)))) == 7
    assert len(list(each_image("some/path.dcm"))) == 1
    assert len(list(each_image(Path("some/path.dcm")))) == 1


def _answer(message: common_pb2.Image) -> ItemResult:
    return ItemResult(id=message.id, subject=message.subject)


@given(good=st.lists(st.booleans(), max_size=30), lag=st.integers(0, 5))
def test_results_keep_the_callers_order_whatever_fails_and_however_late(good: list[bool], lag: int) -> None:
    ledger = Ledger(ItemResult)
    images = [Image(LOUD if ok else b"bad", id=f"image {n}", subject=f"s{n % 3}") for n, ok in enumerate(good)]
    in_flight: list[common_pb2.Image] = []
    results: list[ItemResult] = []
    for message in ledger.messages(images):
        in_flight.append(message)
        if len(in_flight) > lag:
            results += ledger.answered(_answer(in_flight.pop(0)))
    for message in in_flight:
        results += ledger.answered(_answer(message))
    results += ledger.close()
    assert [result.id for result in results] == [image.id for image in images]
    assert [result.ok for result in results] == good
    assert sum(subject.failed for subject in ledger.roll_up(())) == good.count(False)


def test_an_unanswered_image_is_an_error() -> None:
    ledger = Ledger(ItemResult)
    list(ledger.messages([LOUD, LOUD]))
    with pytest.raises(InternalError, match="2 images unanswered"):
        list(ledger.close())


def test_a_dataset_is_sent_whole_where_asked_and_stays_as_it_is(dicom: Path) -> None:
    inference = Inference()
    dataset = pydicom.dcmread(dicom)
    with serving(add_inference, inference) as address, Client(address) as client:
        client.predict("m", [dataset], send_dicom="identified")
        client.predict("m", [dataset], send_dicom=True)
        client.predict("m", [dataset], send_dicom=True)
    whole, *deidentified = (pydicom.dcmread(BytesIO(seen.dicom)) for seen in inference.seen)
    assert whole.PatientID == dataset.PatientID == "PH-000"
    assert {one.PatientIdentityRemoved for one in deidentified} == {"YES"}
    # Two calls cannot be linked, neither with each other nor with the source.
    assert len({one.PatientID for one in (whole, *deidentified)}) == 3
    assert len({one.SOPInstanceUID for one in (whole, *deidentified)}) == 3
    assert deidentified[0].PixelData == whole.PixelData


def test_what_may_not_be_sent_fails_alone(dicom: Path) -> None:
    captured = pydicom.dcmread(dicom)
    captured.BurnedInAnnotation = "YES"
    with serving(add_inference, Inference()) as address, Client(address) as client:
        refused, sent = client.predict("m", [captured, dicom], send_dicom=True).results
        (trusted,) = client.predict("m", [captured], send_dicom="identified").results
    assert refused.error is not None
    assert refused.error.field == "BurnedInAnnotation"
    assert sent.ok
    assert trusted.ok
