"""Predictions of images and subjects."""

from typing import TYPE_CHECKING

from limner.types.common import Failure, FloatArray, ModelIdentity, Prediction, Result, SubjectResult, Timing

if TYPE_CHECKING:
    import pandas as pd


class ItemResult(Result):
    """Base of what is returned for each image: exactly one of a result and an `error`."""

    id: str
    subject: str
    error: Failure | None = None
    prediction: Prediction | None = None
    timing: Timing | None = None

    @property
    def ok(self) -> bool:
        """Whether the image was answered."""
        return self.error is None


class ImageResult(ItemResult):
    """The prediction of one image and where its time went, or why it failed.

    `embedding` is `(512,)` or `(2048,)` float32, the pooled last layer; only where asked for.
    """

    embedding: FloatArray | None = None


class PredictResult(Result):
    """Predictions of several images, in the order given, and of their subjects, in order of first appearance."""

    model: ModelIdentity
    labels: tuple[str, ...]
    results: tuple[ImageResult, ...]
    subjects: tuple[SubjectResult, ...]

    def to_pandas(self, *, subjects: bool = False) -> "pd.DataFrame":
        """Return one row for each image, or for each of their `subjects`, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.subject_rows(self) if subjects else notebook.rows(self))
