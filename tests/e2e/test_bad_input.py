"""Bad input over the wire: each refusal names what was wrong, and a good neighbour is answered all the same."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless

from limner import Client, Image
from limner.errors import DeadlineError, InvalidInputError, NotFoundError
from limner.images import SendDicom
from limner.v1 import common_pb2, feature_pb2, inference_pb2, training_pb2
from limner.v1.feature_pb2_grpc import FeatureServiceStub
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from limner.v1.training_pb2_grpc import TrainingServiceStub
from tests.live import LiveServer


@pytest.fixture(scope="module")
def dicom(phantom: Path) -> bytes:
    return (phantom / "PH-000" / "0001.dcm").read_bytes()


def edited(dicom: bytes, edit: Callable[[Dataset], Any]) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(dicom))
    edit(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def assign(**values: Any) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def drop(keyword: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, keyword)


def colour(dataset: Dataset) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns)


def half_the_pixels(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


def damaged_jpeg(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no JPEG-LS here \xff\xd9"])
    dataset["PixelData"].VR = "OB"


BAD_DICOM = {
    "not DICOM": (lambda dicom: b"GIF89a, not DICOM", "file"),
    "without pixels": (lambda dicom: edited(dicom, drop("PixelData")), "PixelData"),
    "truncated pixels": (lambda dicom: edited(dicom, half_the_pixels), "PixelData"),
    "truncated file": (lambda dicom: dicom[: len(dicom) // 2], "PixelData"),
    "damaged compression": (lambda dicom: edited(dicom, damaged_jpeg), "PixelData"),
    "colour": (lambda dicom: edited(dicom, colour), "SamplesPerPixel"),
    "wrong modality": (lambda dicom: edited(dicom, assign(Modality="CT")), "Modality"),
    "no spacing": (lambda dicom: edited(dicom, drop("PixelSpacing")), "PixelSpacing"),
    "zero spacing": (lambda dicom: edited(dicom, assign(PixelSpacing=[0, 0])), "PixelSpacing"),
    "1 x 1": (lambda dicom: edited(dicom, assign(Rows=1, Columns=1, PixelData=b"\0\0")), "Rows"),
    "20000 x 20000": (lambda dicom: edited(dicom, assign(Rows=20000, Columns=20000)), "Rows"),
}


@pytest.mark.parametrize(
    "send_dicom", [False, True, "identified"], ids=["decoded here", "de-identified here", "decoded by the server"]
)
@pytest.mark.parametrize("case", BAD_DICOM)
def test_a_bad_image_is_named_and_fails_alone(
    client: Client, model: str, dicom: bytes, case: str, send_dicom: SendDicom
) -> None:
    spoil, field = BAD_DICOM[case]
    images = [Image(dicom, id="good 1"), Image(spoil(dicom), id="bad"), Image(dicom, id="good 2")]
    good, bad, also_good = client.predict(model, images, send_dicom=send_dicom).results
    assert [good.id, bad.id, also_good.id] == ["good 1", "bad", "good 2"]
    assert good.error is None
    # Their batches may differ in size, and so the order in which floats are added.
    assert also_good.prediction is not None
    assert good.prediction is not None
    assert also_good.prediction.probabilities == pytest.approx(good.prediction.probabilities, abs=1e-5)
    assert bad.prediction is None
    assert bad.error is not None
    assert bad.error.code == "INVALID_ARGUMENT"
    assert field in bad.error.field
    assert bad.error.expected


def grid(**changes: Any) -> common_pb2.Image:
    values = np.zeros((32, 32), np.float32)
    array: dict[str, Any] = {"data": values.tobytes(), "data_type": common_pb2.DATA_TYPE_FLOAT32, "size": 32}
    return common_pb2.Image(id="bad", grid=common_pb2.GridArray(**{**array, **changes}))


def pixels(geometry: tuple[float, float] | None = (1, 1), **changes: Any) -> common_pb2.Image:
    message = common_pb2.Pixels(data=bytes(32), data_type=common_pb2.DATA_TYPE_UINT16, rows=4, columns=4)
    if geometry is not None:
        message.geometry.row_spacing_mm, message.geometry.column_spacing_mm = geometry
    for name, value in changes.items():
        setattr(message, name, value)
    return common_pb2.Image(id="bad", pixels=message)


BAD_MESSAGES = {
    "NaN": (grid(data=struct.pack("<f", float("nan")) * 32 * 32), "image"),
    "infinite": (grid(data=struct.pack("<f", float("inf")) * 32 * 32), "image"),
    "another grid": (grid(size=64), "grid.size"),
    "too few bytes": (grid(data=bytes(12)), "grid.data"),
    "no type": (grid(data_type=0), "grid.data_type"),
    "unknown type": (grid(data_type=77), "grid.data_type"),
    "no content": (common_pb2.Image(id="bad"), "content"),
    "no geometry": (pixels(geometry=None), "pixels.geometry"),
    "negative spacing": (pixels(geometry=(-1, 1)), "row_spacing_mm"),
    "NaN spacing": (pixels(geometry=(1, float("nan"))), "column_spacing_mm"),
    "rows that are not there": (pixels(rows=400), "pixels.data"),
    "no rows": (pixels(rows=0, data=b""), "pixels.shape"),
    "center with a grid": (
        common_pb2.Image(id="bad", grid=grid().grid, center=common_pb2.Point(row=1, column=1)),
        "center",
    ),
    "an id that is too long": (common_pb2.Image(id="x" * 300, grid=grid().grid), "id"),
    "no id": (common_pb2.Image(grid=grid().grid), "id"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_bad_tensor_of_any_client_is_named_and_fails_alone(server: LiveServer, model: str, case: str) -> None:
    bad, field = BAD_MESSAGES[case]
    good = common_pb2.Image(id="good", grid=grid().grid)
    with grpc.insecure_channel(server.address) as channel:
        spec = common_pb2.ModelSpec(name=model)
        reply = InferenceServiceStub(channel).Predict(inference_pb2.PredictRequest(model=spec, images=[bad, good]))
    refused, answered = reply.results
    assert refused.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.status.message.startswith(field)
    assert "expected" in refused.status.message
    assert not refused.HasField("prediction")
    assert answered.HasField("prediction")


def test_requests_that_are_wrong_as_a_whole(server: LiveServer, model: str) -> None:
    def predict(**request: Any) -> str:
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            InferenceServiceStub(channel).Predict(inference_pb2.PredictRequest(**request))
        return f"{caught.value.code().name}: {caught.value.details()}"

    spec, image = common_pb2.ModelSpec(name=model), grid()
    assert predict(model=spec) == "INVALID_ARGUMENT: images is '0 of them'; expected 1 to 1,024"
    assert "images is '1025 of them'" in predict(model=spec, images=[image] * 1025)
    assert "images.id is 'bad'" in predict(model=spec, images=[image, image])
    assert "priority is '11'; expected 0 to 10" in predict(model=spec, images=[image], priority=11)
    assert predict(images=[image]).startswith("INVALID_ARGUMENT: model.name")
    assert "model.name is '../x'" in predict(model=common_pb2.ModelSpec(name="../x"), images=[image])
    missing = common_pb2.ModelSpec(name="nobody")
    assert predict(model=missing, images=[image]).startswith("NOT_FOUND: no model 'nobody'; there is: ")
    missing = common_pb2.ModelSpec(name=model, version="99")
    assert predict(model=missing, images=[image]).startswith(f"NOT_FOUND: no version of model '{model}' '99'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": ["layer9"]}, "options.layers is 'layer9'; expected of stem, layer1"),
        ({"target": "perhaps"}, "options.target is 'perhaps'; expected one of non-recurrent, recurrent"),
        ({"method": 99}, "options.method is '99'"),
    ],
)
def test_features_of_what_is_not_there(server: LiveServer, model: str, options: dict[str, Any], words: str) -> None:
    request = feature_pb2.ExtractFeaturesRequest(
        model=common_pb2.ModelSpec(name=model), images=[grid()], options=feature_pb2.FeatureOptions(**options)
    )
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        FeatureServiceStub(channel).ExtractFeatures(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in caught.value.details()


def test_an_empty_stream_and_a_stream_without_header(server: LiveServer, model: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = InferenceServiceStub(channel)
        for messages in ([], [inference_pb2.PredictStreamRequest(images=[grid()])]):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.PredictStream(iter(messages)))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "header" in caught.value.details()


@pytest.mark.parametrize("second", ["header", "nothing"])
def test_a_stream_that_goes_on_with_anything_but_images(server: LiveServer, model: str, second: str) -> None:
    header = inference_pb2.PredictStreamHeader(model=common_pb2.ModelSpec(name=model))
    opening = inference_pb2.PredictStreamRequest(header=header)
    messages = {"header": opening, "nothing": inference_pb2.PredictStreamRequest()}
    with grpc.insecure_channel(server.address) as channel:
        replies = InferenceServiceStub(channel).PredictStream(iter([opening, messages[second]]))
        assert next(replies).start.model.name == model
        with pytest.raises(grpc.RpcError) as caught:
            list(replies)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert {"header": "header", "nothing": "images"}[second] in caught.value.details()


def test_folds_of_slices_are_refused_with_the_reason(server: LiveServer, cohort: str) -> None:
    config = training_pb2.TrainingConfig(fold_unit=training_pb2.FOLD_UNIT_SLICE)
    request = training_pb2.StartTrainingRequest(cohort=cohort, model="m", config=config)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        TrainingServiceStub(channel).StartTraining(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "config.fold_unit" in caught.value.details()
    assert "leak" in caught.value.details()


def test_a_deadline_that_has_passed(server: LiveServer, model: str, dicom: bytes) -> None:
    images = [
        Image(dicom, id=str(number)) for number in range(64)
    ]  # more than is answered before gRPC looks at its clock
    with Client(server.address, timeout=1e-6) as impatient, pytest.raises(DeadlineError):
        impatient.predict(model, images)


def test_training_on_what_is_not_there_or_cannot_be(client: Client, cohort: str) -> None:
    from limner.types import TrainingConfig

    with pytest.raises(NotFoundError, match=f"no cohort 'nobody'; there is: .*{cohort}"):
        client.start_training("nobody", "m")
    with pytest.raises(InvalidInputError, match="model is 'a/b'"):
        client.start_training(cohort, "a/b")
    with pytest.raises(InvalidInputError, match="folds"):
        client.start_training(cohort, "m", TrainingConfig(folds=7))
    with pytest.raises(InvalidInputError, match=r"config\.architecture.*resnet18"):
        client.start_training(cohort, "m", TrainingConfig(architecture="alexnet"))
    with pytest.raises(InvalidInputError, match=r"config\.pretrained.*no weights folder"):
        client.start_training(cohort, "m", TrainingConfig(folds=2, pretrained="none.pt"))
    with pytest.raises(NotFoundError, match="training 'nobody'"):
        list(client.watch_training("nobody"))
