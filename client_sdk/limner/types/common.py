"""Bases of all results, and what several services share."""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, GetPydanticSchema
from pydantic_core import core_schema, from_json, to_json

_ARRAY = core_schema.is_instance_schema(
    np.ndarray,
    serialization=core_schema.plain_serializer_function_ser_schema(np.ndarray.tolist, when_used="json"),
)

FloatArray = Annotated[NDArray[np.float32], GetPydanticSchema(lambda _type, _handler: _ARRAY)]
"""A float32 array; nested lists in JSON."""


class Result(BaseModel):
    """Base of everything here: immutable, and JSON-ready by `to_dict()`."""

    # Deferred to the first result of a kind: to build all validators at import costs a tenth of it.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts: arrays become nested lists, times ISO 8601.

        A figure that is infinite or not a number becomes None, since JSON has neither; the text beside it says why.
        """
        fields: dict[str, Any] = from_json(to_json(self, inf_nan_mode="null"))
        return fields

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from limner import notebook

        return notebook.html(self)


class Failure(Result):
    """Why one image, slice or file failed while its neighbours went on.

    Attributes
    ----------
    code
        Name of the gRPC status, "INVALID_ARGUMENT" for example.
    message
        The whole sentence.
    field, value, expected
        What was wrong, what was found there, and what would have been accepted; empty where the server named no field.
    """

    code: str
    message: str
    field: str = ""
    value: str = ""
    expected: str = ""

    def __str__(self) -> str:
        return self.message


class Rejection(Result):
    """A slice or a file that was refused: its id, and why."""

    id: str
    error: Failure


class ModelIdentity(Result):
    """Exactly which artifact answered: name, version ("1", "2", ...), sha256 of the file in hexadecimal."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Timing(Result):
    """Where the time of one image went, in milliseconds; and the number of images in its batch, from 1."""

    decode_ms: float
    queue_ms: float
    compute_ms: float
    batch_size: int


class Distance(Result):
    """How far an image lies from the slices that its model was trained on.

    Attributes
    ----------
    value
        Mean distance to the nearest training slices in the space of the embedding, 0 or more.
    percentile
        Its percentile among the slices of held-out training subjects, 0 to 100.
    far
        Whether it is over the 99th percentile: the prediction is then not to be relied on.
    """

    value: float
    percentile: float
    far: bool


class Prediction(Result):
    """What a model says of one image or one subject.

    Attributes
    ----------
    label
        The label chosen; with two labels the second where its probability reaches the card's threshold, else the most
        probable.
    probabilities
        One for each label, in the model's order, 0 to 1, temperature-scaled.
    logits
        The same before temperature scaling.
    distance
        From what the model was trained on; None for a subject, and where the card holds no reference.
    """

    label: str
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    distance: Distance | None = None


class SubjectResult(Result):
    """The roll-up of one subject's images: `images` succeeded, `failed` did not; no prediction where none did.

    `far` of the images lie far from what the model was trained on.
    """

    subject: str
    images: int
    failed: int
    prediction: Prediction | None
    far: int = 0


class Progress(Result):
    """How far a long operation is: what it does now, the share done (0 to 1), seconds left (None: not known yet)."""

    phase: str
    fraction: float
    remaining_s: float | None


class Metric(Result):
    """A figure with its 95 % interval, which counts subjects; `interval` names how it was found, empty if unknown."""

    name: str
    value: float
    low: float
    high: float
    interval: str = ""
