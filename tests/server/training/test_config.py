"""Choices out of their range are named, with the range."""

import pytest

from limner.imaging.grid import Grid
from limner_server.errors import InvalidInputError
from limner_server.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("architecture", "vgg16", "resnet18"),
        ("folds", 1, "greater than or equal to 2"),
        ("fold_unit", "slice", "leak"),
        ("epochs", 0, "greater than or equal to 1"),
        ("batch_size", 1, "greater than or equal to 2"),
        ("learning_rate", 0.0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("label_smoothing", 0.6, "less than or equal to 0.5"),
        ("seed", -1, "greater than or equal to 0"),
        ("pretrained", "../weights.pt", "letters, digits"),
        ("augmentation", "heavy", "'none', 'light' or 'full'"),
        ("patience", -1, "greater than or equal to 0"),
        ("grid", {"fov_mm": 160, "size": 8}, "32"),
    ],
)
def test_out_of_range(field: str, value: object, expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected) as caught:
        TrainingConfig.make(**{field: value})
    assert caught.value.field == f"config.{field}"


def test_defaults_and_json_round_trip() -> None:
    config = TrainingConfig.make(grid=Grid(100.0, 64), seed=2**64 - 1)
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainingConfig.make() == TrainingConfig()
