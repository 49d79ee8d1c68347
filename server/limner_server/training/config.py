"""How a model is trained: `TrainingConfig` of training.proto, with its defaults and ranges."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from limner.imaging.grid import Grid
from limner_server.errors import InvalidInputError
from limner_server.names import check_name
from limner_server.networks.resnet import ARCHITECTURES


class Augmentation(StrEnum):
    """How slices are varied in training."""

    NONE = "none"
    LIGHT = "light"
    """Flips, shifts, gain and offset."""
    FULL = "full"
    """Those, rotation, scale, gamma, bias field and noise."""


class TrainingConfig(BaseModel):
    """Every choice of a training; docs/training.md says where the defaults come from.

    `make` raises the server's own error; the constructor raises pydantic's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = "resnet18"
    """One of `ARCHITECTURES`."""
    grid: Grid = Grid()
    """What slices are resampled to."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 3
    """Cross-validation folds, by subject; at most the number of subjects of the rarest label."""
    fold_unit: str = "subject"
    """What a fold keeps together; nothing else is accepted."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 8
    """Passes over the training slices."""
    batch_size: Annotated[int, Field(ge=2, le=1024)] = 32
    """Slices in a step, at most."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Peak of the one-cycle schedule."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-2
    """AdamW's."""
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the target spread over all labels."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """Of folds, weights, order, augmentation and bootstrap."""
    pretrained: str = ""
    """Name of a file of torchvision weights in the server's weights folder; empty: from scratch."""
    halves: bool = True
    """Whether the two half-cohort models that check 2 of a simulation needs are trained too."""
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    """Repeats of the cross-validation, each with folds and weights of its own."""
    class_weights: bool = False
    """Whether a slice weighs in the loss by the rarity of its label, so that labels count alike."""
    augmentation: Augmentation = Augmentation.LIGHT
    """How slices are varied in training."""
    patience: Annotated[int, Field(ge=0, le=1000)] = 0
    """Epochs without a better loss on subjects held out inside the fold before it stops; 0: never."""
    ensemble: bool = False
    """Whether the mean of the first repeat's fold networks is served in place of one network on all subjects."""
    learning_curve: bool = False
    """Whether networks are trained on shares of the training subjects too."""
    sibling: bool = False
    """Whether one more network is trained on all subjects from another seed, for check 8 of a simulation."""

    @classmethod
    def make(cls, **choices: object) -> "TrainingConfig":
        """Build a configuration from a caller's choices.

        Raises
        ------
        InvalidInputError
            Naming the first field that is out of its range, and the range.
        """
        try:
            return cls.model_validate(choices)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(("config", *map(str, first["loc"])))
            expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            raise InvalidInputError(field, first["input"], expected) from error

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise ValueError("one of " + ", ".join(ARCHITECTURES))
        return value

    @field_validator("fold_unit")
    @classmethod
    def _by_subject(cls, value: str) -> str:
        if value != "subject":
            raise ValueError("'subject': slices of one subject on both sides of a fold leak its label")
        return value

    @field_validator("pretrained")
    @classmethod
    def _file_name(cls, value: str) -> str:
        return check_name("config.pretrained", value, 128) if value else value
