"""Trainings: how they are asked for, and how they stand."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from limner.imaging.grid import Grid
from limner.types.common import Metric, ModelIdentity, Progress, Result

if TYPE_CHECKING:
    import pandas as pd


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

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row for each metric, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.rows(self))
