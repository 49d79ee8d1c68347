"""Arguments of the SDK as messages of `limner.v1`: every request of both clients is built here."""

import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from limner import types
from limner.imaging.errors import ImageError
from limner.imaging.grid import Grid
from limner.imaging.slices import Slice
from limner.v1 import common_pb2, feature_pb2, inference_pb2, simulation_pb2, training_pb2

DTYPES: dict[int, np.dtype[Any]] = {
    common_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    common_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    common_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    common_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}

# Fields of `TrainingConfig` with the same name and type on either side, whose presence the wire records.
OPTIONAL_TRAINING_FIELDS = (
    "folds",
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "seed",
    "halves",
    "repeats",
    "class_weights",
    "patience",
    "ensemble",
    "learning_curve",
    "sibling",
)

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class Enum(Protocol):
    """An enumeration as the generated stubs declare it."""

    def Name(self, number: Any) -> str: ...  # noqa: D102, N802  protobuf's spelling

    def Value(self, name: str) -> Any: ...  # noqa: D102, N802


def model_spec(model: str) -> common_pb2.ModelSpec:
    """Translate "name", "name:version" or "name:alias"."""
    name, _, version = model.partition(":")
    return common_pb2.ModelSpec(name=name, version=version)


def _raw(values: NDArray[np.generic], field: str) -> tuple[bytes, Any]:
    """Return little-endian bytes and their type; other floats than float32 are converted."""
    dtype = np.dtype(np.float32) if values.dtype.kind == "f" else values.dtype
    dtype = dtype.newbyteorder("<")
    if dtype not in _NUMBERS:
        raise ImageError(f"{field}.dtype", values.dtype, "uint8, uint16, int16 or a float type")
    return np.ascontiguousarray(values, dtype).tobytes(), _NUMBERS[dtype]


def pixels(image: Slice) -> common_pb2.Pixels:
    """Translate a decoded slice."""
    data, data_type = _raw(image.pixels, "pixels")
    return common_pb2.Pixels(
        data=data,
        data_type=data_type,
        rows=image.pixels.shape[0],
        columns=image.pixels.shape[1],
        geometry=common_pb2.Geometry(
            row_spacing_mm=image.row_spacing_mm,
            column_spacing_mm=image.column_spacing_mm,
            image_orientation=image.orientation or (),
            image_position=image.position or (),
        ),
    )


def grid_array(values: NDArray[np.generic]) -> common_pb2.GridArray:
    """Translate values on the model's grid, `(size, size)`.

    Raises
    ------
    ImageError
        Where they are not square or of another type; the server checks the size and that they are finite.
    """
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ImageError("grid.shape", values.shape, "(size, size), the model's grid")
    data, data_type = _raw(values, "grid")
    return common_pb2.GridArray(data=data, data_type=data_type, size=values.shape[0])


def _grid(grid: Grid) -> common_pb2.Grid:
    return common_pb2.Grid(fov_mm=grid.fov_mm, size=grid.size)


def enum_prefix(wrapper: Enum) -> str:
    """Return what all names of an enumeration begin with: "JOB_STATE_"."""
    return wrapper.Name(0).removesuffix("UNSPECIFIED")


def _number(wrapper: Enum, value: StrEnum | None) -> Any:
    """Translate `ImportanceMethod.CAM` to the number of `IMPORTANCE_METHOD_CAM`; None to 0, the default."""
    return wrapper.Value(enum_prefix(wrapper) + value.upper()) if value else 0


def start_training(cohort: str, model: str, config: types.TrainingConfig) -> training_pb2.StartTrainingRequest:
    """Translate a training; what the caller left out is left to the server.

    The request has a key of idempotence: the same message may be sent again.
    """
    optional = {name: value for name in OPTIONAL_TRAINING_FIELDS if (value := getattr(config, name)) is not None}
    return training_pb2.StartTrainingRequest(
        cohort=cohort,
        model=model,
        request_id=uuid.uuid4().hex,
        config=training_pb2.TrainingConfig(
            architecture=config.architecture or "",
            grid=_grid(config.grid) if config.grid else None,
            fold_unit=_number(training_pb2.FoldUnit, config.fold_unit),
            pretrained=config.pretrained or "",
            augmentation=config.augmentation or "",
            **optional,
        ),
    )


def predict(
    model: str, images: Sequence[common_pb2.Image], priority: int, embedding: bool
) -> inference_pb2.PredictRequest:
    """Translate a prediction."""
    return inference_pb2.PredictRequest(
        model=model_spec(model), images=images, priority=priority, include_embedding=embedding
    )


def predict_header(model: str, priority: int, embedding: bool) -> inference_pb2.PredictStreamRequest:
    """Translate the first message of a stream of predictions."""
    header = inference_pb2.PredictStreamHeader(model=model_spec(model), priority=priority, include_embedding=embedding)
    return inference_pb2.PredictStreamRequest(header=header)


def predict_images(images: Sequence[common_pb2.Image]) -> inference_pb2.PredictStreamRequest:
    """Wrap images of a stream of predictions."""
    return inference_pb2.PredictStreamRequest(images=images)


def _feature_options(options: types.FeatureOptions) -> feature_pb2.FeatureOptions:
    return feature_pb2.FeatureOptions(
        layers=options.layers,
        method=_number(feature_pb2.ImportanceMethod, options.method),
        target=options.target or "",
        top_k=options.top_k or 0,
        include_maps=options.maps,
        include_heat_map=options.heat_maps,
        include_embedding=options.embedding,
    )


def extract_features(
    model: str, images: Sequence[common_pb2.Image], options: types.FeatureOptions
) -> feature_pb2.ExtractFeaturesRequest:
    """Translate an extraction."""
    return feature_pb2.ExtractFeaturesRequest(model=model_spec(model), images=images, options=_feature_options(options))


def features_header(model: str, options: types.FeatureOptions) -> feature_pb2.ExtractFeaturesStreamRequest:
    """Translate the first message of a stream of extractions."""
    header = feature_pb2.ExtractFeaturesStreamHeader(model=model_spec(model), options=_feature_options(options))
    return feature_pb2.ExtractFeaturesStreamRequest(header=header)


def features_image(image: common_pb2.Image) -> feature_pb2.ExtractFeaturesStreamRequest:
    """Wrap an image of a stream of extractions."""
    return feature_pb2.ExtractFeaturesStreamRequest(image=image)


def simulate(
    model: str,
    cohort: str,
    *,
    method: types.SimulationMethod | None,
    steps: int | None,
    seed: int | None,
    checks: bool | None,
) -> simulation_pb2.SimulateRequest:
    """Translate a simulation."""
    return simulation_pb2.SimulateRequest(
        model=model_spec(model),
        cohort=cohort,
        method=_number(simulation_pb2.SimulationMethod, method),
        steps=steps,
        seed=seed,
        checks=checks,
    )
