"""A whole report's data from synthetic arrays: what a trained model and a simulation look like, without either."""

from datetime import UTC, datetime
from functools import cache

import numpy as np
from numpy.typing import NDArray

from limner.imaging.grid import Grid
from limner.imaging.phantom_anatomy import phantom_subject
from limner.imaging.slices import Slice
from limner.report import HeatMapExample, RealSlice, ReportData
from limner.types import (
    Check,
    Cohort,
    CohortSubject,
    LayerLineage,
    Metric,
    Model,
    ModelIdentity,
    ModelState,
    Prediction,
    SimulatedImage,
    SimulationMethod,
    SimulationResult,
    SubjectLineage,
    Verdict,
)

LABELS = ("non-recurrent", "recurrent")
CREATED = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
IDENTITY = ModelIdentity(name="cervix", version="1", digest="5f" * 32)
GRID = Grid()


@cache
def report_data(*, failed: bool = False) -> ReportData:
    """Return a report's data; `failed` gives a simulation that failed check 5 and could not run check 2."""
    rng = np.random.default_rng(0)
    subjects = tuple(
        CohortSubject(subject=f"s-{rng.bytes(4).hex()}", label=LABELS[index < 11], slices=12) for index in range(27)
    )
    cohort = Cohort(name="phantom", labels=LABELS, subjects=subjects, slices=324, digest="c0" * 32, created=CREATED)
    volumes = {
        label: [phantom_subject(0, index, bool(row))[4:8] for index in range(2)] for row, label in enumerate(LABELS)
    }
    slices = tuple(
        RealSlice(
            subject=next(s.subject for s in subjects if s.label == label),
            label=label,
            image=Slice(pixels, 1.875, 1.875),
        )
        for label, pair in volumes.items()
        for pixels in np.concatenate(pair)
    )
    return ReportData(
        cohort=cohort,
        model=_model(subjects, rng),
        simulation=_simulation(subjects, {label: pair[0][1] for label, pair in volumes.items()}, rng, failed=failed),
        slices=slices,
        examples=tuple(_example(slices[index]) for index in (1, 5, 9, 13)),
        command="python examples/demo.py --out demo --subjects 27 --seed 0",
        created=CREATED,
        seconds={"import": 4.2, "train": 151.3, "simulate": 88.0},
    )


def _example(source: RealSlice) -> HeatMapExample:
    rows, columns = np.indices(source.image.pixels.shape)
    heat_maps = {
        layer: np.exp(-((rows - 74) ** 2 + (columns - 64) ** 2) / (2 * width**2)).astype(np.float32)
        for layer, width in (("layer2", 5), ("layer4", 12))
    }
    prediction = Prediction(label=source.label, probabilities=(0.12, 0.88), logits=(-1.0, 1.0))
    return HeatMapExample(source=source, target="recurrent", prediction=prediction, heat_maps=heat_maps)


def _model(subjects: tuple[CohortSubject, ...], rng: np.random.Generator) -> Model:
    margins = [rng.normal(1.2 if subject.label == LABELS[1] else -1.2, 1.2) for subject in subjects]
    return Model(
        identity=IDENTITY,
        state=ModelState.LOADED,
        aliases=("production",),
        labels=LABELS,
        grid=GRID,
        architecture="resnet18",
        threshold=0.47,
        metrics=(
            Metric(name="auc", value=0.965, low=0.884, high=1.0),
            Metric(name="accuracy", value=0.926, low=0.815, high=1.0),
            Metric(name="sensitivity", value=0.909, low=0.7, high=1.0),
            Metric(name="specificity", value=0.938, low=0.8, high=1.0),
            Metric(name="brier", value=0.081, low=0.04, high=0.13),
        ),
        created=CREATED,
        card={
            "name": "cervix",
            "architecture": "resnet18",
            "grid": {"fov_mm": 160.0, "size": 96},
            "config": {"architecture": "resnet18", "folds": 3, "epochs": 8, "learning_rate": 0.001, "pretrained": None},
            "calibration": {"temperature": 1.4, "brier_before": 0.12, "brier_after": 0.1},
            "out_of_fold": [
                {
                    "subject": subject.subject,
                    "label": subject.label,
                    "fold": index % 3,
                    "logits": [-margin / 2, margin / 2],
                    "slices": [],
                }
                for index, (subject, margin) in enumerate(zip(subjects, margins, strict=True))
            ],
            "versions": {"python": "3.11.7", "torch": "2.15.0", "limner": "0.1.0"},
        },
        error="",
    )


def _simulation(
    subjects: tuple[CohortSubject, ...], real: dict[str, NDArray[np.float32]], rng: np.random.Generator, *, failed: bool
) -> SimulationResult:
    nearest = {label: _normalised(pixels) for label, pixels in real.items()}
    return SimulationResult(
        model=IDENTITY,
        cohort="phantom",
        cohort_digest="c0" * 32,
        method=SimulationMethod.INVERSION,
        steps=150,
        seed=0,
        images=tuple(
            SimulatedImage(
                label=label,
                image=image + rng.normal(0, 0.1, image.shape).astype(np.float32),
                prediction=Prediction(label=label, probabilities=(1 - row, row), logits=(-row, row)),
                nearest_instance=f"i-{label}",
                nearest_subject=next(subject.subject for subject in subjects if subject.label == label),
                nearest=image,
            )
            for (label, image), row in zip(nearest.items(), (0.02, 0.98), strict=True)
        ),
        checks=_checks(failed=failed),
        verdict=Verdict.FAILED_CHECK if failed else Verdict.EXPLANATION,
        layers=tuple(
            LayerLineage(layer=layer, channels=channels, selected=tuple(range(top)), weights=_weights(top))
            for layer, channels, top in (
                ("stem", 64, 6),
                ("layer1", 64, 6),
                ("layer2", 128, 13),
                ("layer3", 256, 26),
                ("layer4", 512, 51),
            )
        ),
        subjects=tuple(
            SubjectLineage(subject=s.subject, label=s.label, slices=12, weight=1 / (11 if s.label == LABELS[1] else 16))
            for s in subjects
        ),
        grid=GRID,
    )


def _checks(*, failed: bool) -> tuple[Check, ...]:
    stability = 0.41 if failed else 0.83
    rows = (
        ("own_verdict", 0.96, 0.5, False, True, (0.98, 0.02)),
        ("independent_judge", 1.92, 1.0, False, True, (1.7, 2.14)),
        ("weight_randomisation", 0.09, 0.3, True, True, (0.02, 0.05, 0.07, 0.08, 0.09)),
        ("label_permutation", 0.0002, 0.05, True, True, ()),
        ("stability", stability, 0.6, False, True, tuple(stability + step for step in (-0.08, -0.03, 0.0, 0.02, 0.06))),
        ("random_channels", 1.02, 0.8, True, False, ()),
        ("realism", 1.1, 1.3, True, False, (0.97, 1.35, 1.1)),
    )
    return tuple(
        Check(
            number=number,
            name=name,
            value=value,
            threshold=threshold,
            at_most=at_most,
            passed=(value <= threshold) if at_most else (value >= threshold),
            gate=gate,
            ran=not (failed and name == "independent_judge"),
            detail="no half-cohort models"
            if failed and name == "independent_judge"
            else f"{name}: what was compared with what",
            values=values,
        )
        for number, (name, value, threshold, at_most, gate, values) in enumerate(rows, start=1)
    )


def _weights(top: int) -> tuple[float, ...]:
    shares = 1 / np.arange(1, top + 1)
    return tuple((shares / shares.sum()).tolist())


def _normalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    crop = pixels[16:112, 16:112]
    return np.clip((crop - crop.mean()) / crop.std(), -3, 4)
