"""What the calls of the SDK return: frozen pydantic models that mirror `limner.v1`, with arrays for images.

Not for the wire: `limner.wire` is the only place that knows both these and the protobuf messages.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, GetPydanticSchema, JsonValue
from pydantic_core import core_schema, from_json, to_json

from limner.imaging.grid import Grid as Grid

_ARRAY = core_schema.is_instance_schema(
    np.ndarray,
    serialization=core_schema.plain_serializer_function_ser_schema(np.ndarray.tolist, when_used="json"),
)

FloatArray = Annotated[NDArray[np.float32], GetPydanticSchema(lambda _type, _handler: _ARRAY)]
"""A float32 array; nested lists in JSON."""


class Result(BaseModel):
    """Base of everything here: immutable, and JSON-ready by `to_dict()`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts: arrays become nested lists, times ISO 8601.

        A figure that is infinite or not a number becomes None, since JSON has neither; the text beside it says why.
        """
        fields: dict[str, Any] = from_json(to_json(self, inf_nan_mode="null"))
        return fields


# What several services share


class Failure(Result):
    """Why one image, slice or file failed while its neighbours went on.

    Attributes
    ----------
    code
        Name of the gRPC status, "INVALID_ARGUMENT" for example.
    message
        The whole sentence.
    field, expected
        What was wrong and what would have been accepted; empty where the server named no field.
    """

    code: str
    message: str
    field: str = ""
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


# Cohorts


class CohortSubject(Result):
    """One subject: pseudonym, label (with slice labels the most frequent), number of slices."""

    subject: str
    label: str
    slices: int


class Cohort(Result):
    """A cohort: labels in order, the class of interest last; `digest` is equal for equal cohorts.

    `instances` holds the sorted ids of all slices where they were asked for, else nothing.
    """

    name: str
    labels: tuple[str, ...]
    subjects: tuple[CohortSubject, ...]
    slices: int
    digest: str
    created: datetime
    instances: tuple[str, ...] = ()


class ImportResult(Result):
    """What became of an import: the cohort after it, slices added, there already, and refused with the reason."""

    cohort: Cohort
    added: int
    unchanged: int
    rejected: tuple[Rejection, ...]


# Training


class JobState(StrEnum):
    """Life of a training."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether it will change no more."""
        return self in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class FoldUnit(StrEnum):
    """What a fold keeps together. The server refuses `SLICE`: slices of one subject on both sides leak the label."""

    SUBJECT = "subject"
    SLICE = "slice"


class TrainingConfig(Result):
    """How a model is trained; None stands for the server's default.

    Attributes
    ----------
    architecture
        "resnet18" (default), "resnet34", "resnet50", "resnet101" or "resnet152".
    grid
        The raster slices are resampled to; default 128 mm in 64 pixels.
    folds
        Cross-validation folds, 2 to the number of subjects of the rarest label; default 3.
    fold_unit
        What a fold keeps together; only the subject is accepted.
    epochs
        Passes over the training slices, 1 to 1000; default 8.
    batch_size
        Slices in a step, 2 to 1024; default 32.
    learning_rate
        Peak of the one-cycle schedule, over 0; default 1e-3.
    weight_decay
        AdamW's, 0 or more; default 1e-2.
    label_smoothing
        0 to 0.5; default 0.05.
    seed
        Of folds, weights, order and augmentation; default 0.
    pretrained
        Name of a file of torchvision weights in the server's weights folder; default: from scratch.
    halves
        Whether to train the two half-cohort models that check 2 of a simulation needs; default True.
    repeats
        Repeats of the cross-validation, each with folds and weights of its own, 1 to 20; default 1.
    class_weights
        Whether to weigh each slice by the rarity of its label; default False.
    augmentation
        "none", "light" (default: flips, shifts, gain, offset) or "full" (those, rotation, scale, gamma, bias, noise).
    patience
        Early stopping: epochs without a better loss on subjects held out inside the fold; 0 (default): never.
    ensemble
        Whether to serve the mean of the fold networks in place of one network on all subjects; default False.
    learning_curve
        Whether to train on shares of the training subjects too, to see what more subjects would bring; default False.
    sibling
        Whether to train one more network on all subjects from another seed, for check 8 of a simulation; default False.
    """

    architecture: str | None = None
    grid: Grid | None = None
    folds: int | None = None
    fold_unit: FoldUnit | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    seed: int | None = None
    pretrained: str | None = None
    halves: bool | None = None
    repeats: int | None = None
    class_weights: bool | None = None
    augmentation: str | None = None
    patience: int | None = None
    ensemble: bool | None = None
    learning_curve: bool | None = None
    sibling: bool | None = None


class TrainingProgress(Result):
    """The latest figures of a running training.

    Attributes
    ----------
    progress
        What is being trained, and how far the whole job is.
    epoch, epochs
        Of the current network, from 1.
    loss
        Mean cross-entropy of the epoch's training slices, in nats.
    accuracy
        Share of them classified rightly, 0 to 1.
    images_per_second
        Through forward and backward pass.
    """

    progress: Progress
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    images_per_second: float


class Training(Result):
    """One training: what was asked for, where it stands, and what came of it.

    `result` and the out-of-fold subject `metrics` are there once it has succeeded, `error` once it has failed;
    `resumed` counts restarts from a checkpoint.
    """

    id: str
    cohort: str
    model: str
    config: TrainingConfig
    state: JobState
    progress: TrainingProgress | None
    error: str
    result: ModelIdentity | None
    metrics: tuple[Metric, ...]
    resumed: int
    created: datetime
    ended: datetime | None


# Prediction


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
    """The prediction of one image and where its time went, or why it failed."""


class PredictResult(Result):
    """Predictions of several images, in the order given, and of their subjects, in order of first appearance."""

    model: ModelIdentity
    labels: tuple[str, ...]
    results: tuple[ImageResult, ...]
    subjects: tuple[SubjectResult, ...]


# Features


class ImportanceMethod(StrEnum):
    """How the importance of a channel for an image is measured; docs/explain.md gives the formulas."""

    GRADIENT_X_DEVIATION = "gradient_x_deviation"
    GRADIENT_X_ACTIVATION = "gradient_x_activation"
    GRAD_CAM = "grad_cam"
    CAM = "cam"
    ACTIVATION = "activation"
    MEAN_ABLATION = "mean_ablation"
    RANDOM = "random"


class FeatureOptions(Result):
    """What is wanted of each image.

    Attributes
    ----------
    layers
        Of "stem", "layer1", "layer2", "layer3", "layer4"; default the last.
    method
        How importance is measured; None: gradient times deviation.
    target
        The label whose margin is explained; None: the one predicted for the image.
    top_k
        Number of channels returned for each layer, from 1; None: a tenth of them, at least 4.
    maps
        Whether to return the maps of the top channels.
    heat_maps
        Whether to return a heat map for each layer, on the grid and, where the image has another raster, on that.
    embedding
        Whether to return the pooled last layer.
    """

    layers: tuple[str, ...] = ("layer4",)
    method: ImportanceMethod | None = None
    target: str | None = None
    top_k: int | None = None
    maps: bool = False
    heat_maps: bool = False
    embedding: bool = False


class Channel(Result):
    """One channel of one layer, for one image.

    Attributes
    ----------
    index
        In its layer, from 0.
    importance
        Signed, in logits of the margin (without unit for `activation` and `random`).
    weight
        Share among the layer's top channels, 0 to 1, summing to 1.
    map
        `(height, width)` float32, after ReLU; only where asked for.
    """

    index: int
    importance: float
    weight: float
    map: FloatArray | None = None


class LayerFeatures(Result):
    """One layer of one image: its `channels` maps of `height` x `width`, the `top` channels, the most important first.

    `grid_heat_map` is `(size, size)` and `source_heat_map` `(rows, columns)`, float32, 0 to 1, only where asked for;
    the latter is None for images sent as grid arrays.
    """

    layer: str
    channels: int
    height: int
    width: int
    top: tuple[Channel, ...]
    grid_heat_map: FloatArray | None = None
    source_heat_map: FloatArray | None = None


class ImageFeatures(ItemResult):
    """The features of one image: of the label whose margin was explained (`target`), or why it failed.

    `embedding` is `(512,)` or `(2048,)` float32, the pooled last layer; only where asked for.
    """

    target: str = ""
    layers: tuple[LayerFeatures, ...] = ()
    embedding: FloatArray | None = None


class FeaturesResult(Result):
    """Features of several images, in the order given."""

    model: ModelIdentity
    labels: tuple[str, ...]
    method: ImportanceMethod
    results: tuple[ImageFeatures, ...]


# Simulation


class SimulationMethod(StrEnum):
    """How simulated images are made: optimised, or averaged as in the paper (`COMPOSITE`, known to fail the checks)."""

    INVERSION = "inversion"
    COMPOSITE = "composite"


class Verdict(StrEnum):
    """What a result may be called; only an `EXPLANATION` may be shown as one."""

    EXPLANATION = "explanation"
    FAILED_CHECK = "failed_check"
    UNCHECKED = "unchecked"


class SimulatedImage(Result):
    """The image that stands for one label, and the nearest real slice of that label.

    Attributes
    ----------
    image, nearest
        `(size, size)` float32 on the model's grid, in standard deviations of a normalised slice, about -3 to 4.
    prediction
        What the served model says of `image`.
    nearest_instance, nearest_subject
        Pseudonymous ids of the nearest real slice.
    """

    label: str
    image: FloatArray
    prediction: Prediction
    nearest_instance: str
    nearest_subject: str
    nearest: FloatArray


class Check(Result):
    """One check of a simulation, numbered 1 to 8: its figure, what that is compared with, and what follows.

    Attributes
    ----------
    value, threshold, at_most
        The figure has to be at most the threshold where `at_most`, else at least.
    gate
        Whether failing it makes the verdict `FAILED_CHECK`; others are only reported.
    ran
        False where it could not be run; `detail` then says why.
    values
        The values behind the figure: each randomised network, each bootstrap resample, ...; of `label_permutation` the
        mean margin that was found.
    null
        Percentiles 0 to 100, 101 of them, of that mean margin under permuted labels; `label_permutation` only.
    source
        Where the threshold comes from.
    """

    number: int
    name: str
    value: float
    threshold: float
    at_most: bool
    passed: bool
    gate: bool
    ran: bool
    detail: str
    values: tuple[float, ...]
    null: tuple[float, ...] = ()
    source: str = ""


class FaithfulnessCurve(Result):
    """What becomes of the margin when channels of a layer are set to their means, over some of the cohort's slices.

    Attributes
    ----------
    layer
        "stem", "layer1" ... "layer4".
    method
        What the channels were ordered by, the most important first; `RANDOM` is the control.
    fractions
        Shares of the layer's channels, ascending from 0 to 1; every list below has one value for each.
    deletion
        Mean drop of the margin, in logits, with that share of the most important channels at their means.
    deletion_low, deletion_high
        Its 95 % bootstrap interval over subjects.
    insertion
        Mean drop of the margin with all but that share of the most important channels at their means.
    insertion_low, insertion_high
        Its 95 % bootstrap interval over subjects.
    areas
        Under the curves, in logits: "deletion", "insertion"; and, but for the control, "deletion_over_random" (better
        over 0) and "insertion_over_random" (better under 0), the differences from the control's on the same slices.
    slices
        Number of slices.
    """

    layer: str
    method: ImportanceMethod
    fractions: tuple[float, ...]
    deletion: tuple[float, ...]
    deletion_low: tuple[float, ...]
    deletion_high: tuple[float, ...]
    insertion: tuple[float, ...]
    insertion_low: tuple[float, ...]
    insertion_high: tuple[float, ...]
    areas: tuple[Metric, ...] = ()
    slices: int = 0


class LayerLineage(Result):
    """Which of a layer's channels went into the images, the most important first, with weights that sum to 1."""

    layer: str
    channels: int
    selected: tuple[int, ...]
    weights: tuple[float, ...]


class SubjectLineage(Result):
    """One subject's slices, and its share in its class's accumulated importance, 0 to 1."""

    subject: str
    label: str
    slices: int
    weight: float


class SimulationResult(Result):
    """One simulated image for each label, in the model's order, and everything needed to judge them.

    `faithfulness` tells how well importance finds the channels that matter: for each layer by gradient times deviation,
    then by chance; nothing where the checks were not run.
    """

    model: ModelIdentity
    cohort: str
    cohort_digest: str
    method: SimulationMethod
    steps: int
    seed: int
    images: tuple[SimulatedImage, ...]
    checks: tuple[Check, ...]
    verdict: Verdict
    layers: tuple[LayerLineage, ...]
    subjects: tuple[SubjectLineage, ...]
    grid: Grid
    faithfulness: tuple[FaithfulnessCurve, ...] = ()

    @property
    def failed_gates(self) -> tuple[Check, ...]:
        """The checks that keep this from being called an explanation: gates that failed or could not be run."""
        return tuple(check for check in self.checks if check.gate and not (check.ran and check.passed))

    def export(self, folder: Path, *, allow_failed: bool = False, dicom: bool = True) -> tuple[Path, ...]:
        """Write the images to a folder, as PNG and DICOM that say what they are; see `limner.simulated.export`.

        What failed a check, or was not checked, is no explanation: `WrongStateError`, or with `allow_failed` files that
        say so, and why, in their names, in the picture and in the DICOM.
        """
        from limner import simulated

        return simulated.export(self, folder, allow_failed=allow_failed, dicom=dicom)


# Models


class ModelState(StrEnum):
    """Whether a version can answer: the first request loads an `AVAILABLE` one; a `BROKEN` one says why in `error`."""

    AVAILABLE = "available"
    LOADED = "loaded"
    BROKEN = "broken"


class Model(Result):
    """One version of a model.

    Attributes
    ----------
    labels
        In the order of probabilities and logits, the class of interest last.
    threshold
        With two labels: probability of the second from which it is chosen, 0 to 1.
    metrics
        Out-of-fold, by subject.
    card
        The whole model card; docs/artifact.md describes it. Empty for a broken version.
    """

    identity: ModelIdentity
    state: ModelState
    aliases: tuple[str, ...]
    labels: tuple[str, ...]
    grid: Grid | None
    architecture: str
    threshold: float
    metrics: tuple[Metric, ...]
    created: datetime | None
    card: Mapping[str, JsonValue]
    error: str
