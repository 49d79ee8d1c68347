"""A small, valid card for tests that need one."""

from datetime import UTC, datetime

from limner.imaging.grid import Grid
from limner_server.networks.card import (
    Calibration,
    CohortSummary,
    HalfModel,
    HeldOutMargin,
    Metric,
    ModelCard,
    Normalisation,
    Reference,
    SliceLogits,
    SubjectPrediction,
    Threshold,
)

REFERENCE = Reference(neighbours=5, slices=12, percentiles=tuple(number / 100 for number in range(101)))
"""Distances from 0 to 1, each as frequent as any other."""


def make_card(**changes: object) -> ModelCard:
    """A card of a network that never was, with some fields changed."""
    card = ModelCard(
        name="cervix",
        training="t-1",
        labels=("no", "yes"),
        grid=Grid(160.0, 32),
        normalisation=Normalisation(low_percentile=1, high_percentile=99),
        architecture="resnet18",
        channels=(64, 64, 128, 256, 512),
        cohort=CohortSummary(name="c", digest="d", subjects={"no": 2, "yes": 1}, slices={"no": 4, "yes": 2}),
        seed=2**64 - 1,
        config={"epochs": 1},
        folds=2,
        metrics=(Metric(name="auc", value=0.1 + 0.2, low=0.0, high=1.0),),
        out_of_fold=(
            SubjectPrediction(
                subject="s",
                label="yes",
                fold=0,
                logits=(-1e-9, 1 / 3),
                slices=(SliceLogits(instance="i", logits=(-1e-9, 1 / 3)),),
            ),
        ),
        calibration=Calibration(temperature=1.3, brier_before=0.2, brier_after=0.1, ece_before=0.2, ece_after=0.1),
        threshold=Threshold(value=0.5, rule="made up"),
        versions={"torch": "0"},
        created=datetime(2025, 1, 1, tzinfo=UTC),
        digest="0" * 64,
    )
    return card.model_copy(update=changes)


def make_half() -> HalfModel:
    """A half-cohort model that lies in `half-0.pt`."""
    margin = HeldOutMargin(label="yes", difference=1.0, deviation=0.5)
    return HalfModel(file="half-0.pt", digest="1" * 64, subjects=("s",), held_out=(margin,))
