"""A whole report's data from synthetic arrays: what a trained model and a simulation look like, without either."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.cohort_flow import Flow
from limner.imaging.grid import Grid
from limner.imaging.phantom_anatomy import phantom_subject
from limner.imaging.slices import Slice
from limner.report import HeatMapExample, RealSlice, ReportData
from limner.report.report import render_report
from limner.types import (
    Check,
    Cohort,
    CohortSubject,
    Distance,
    FaithfulnessCurve,
    ImportanceMethod,
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
from tests.report.sample_reading import sample_agreement

LABELS = ("non-recurrent", "recurrent")
CREATED = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
IDENTITY = ModelIdentity(name="cervix", version="1", digest="5f" * 32)
GRID = Grid()
METHODS = (ImportanceMethod.GRADIENT_X_DEVIATION, ImportanceMethod.RANDOM)
FLOW = Flow.model_validate(
    {
        "preset": "tcga-cesc-gdc",
        "rules": [
            {"name": "recurrent", "rule": "a new tumour event at any time"},
            {"name": "non-recurrent", "rule": "none, and followed for 24 months"},
        ],
        "read": 307,
        "excluded": [
            {"reason": "followed for less than 24 months", "subjects": ["TCGA-XX-0001"] * 180},
            {"reason": "recurrence unknown", "subjects": ["TCGA-XX-0002"] * 73},
        ],
        "labels": {"non-recurrent": 39, "recurrent": 15},
    }
)


@cache
def report_data(*, failed: bool = False, old: bool = False) -> ReportData:
    """Return a report's data.

    `failed` gives a simulation that failed check 5 and could not run check 2; `old` the card and the simulation of a
    version that knew no evaluation, distances and faithfulness.
    """
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
        model=_model(subjects, rng, old=old),
        simulation=_simulation(
            subjects, {label: pair[0][1] for label, pair in volumes.items()}, rng, failed=failed, old=old
        ),
        slices=slices,
        examples=tuple(_example(slices[index], far=index == 13, old=old) for index in (1, 5, 9, 13)),
        command="python examples/demo.py --out demo --subjects 27 --seed 0",
        created=CREATED,
        versions={"python": "3.11.7", "limner": "0.1.0", "matplotlib": "3.11.2"},
        flow=None if old else FLOW,
        seconds={"import": 4.2, "train": 151.3, "simulate": 88.0},
        reading=None if old else sample_agreement(IDENTITY, cohort.name, cohort.digest, LABELS),
    )


@cache
def report_html(*, failed: bool = False, old: bool = False) -> str:
    """Return the page of that report, drawn once for all tests."""
    return render_report(report_data(failed=failed, old=old))


def _example(source: RealSlice, *, far: bool, old: bool) -> HeatMapExample:
    rows, columns = np.indices(source.image.pixels.shape)
    heat_maps = {
        layer: np.exp(-((rows - 74) ** 2 + (columns - 64) ** 2) / (2 * width**2)).astype(np.float32)
        for layer, width in (("layer2", 5), ("layer4", 12))
    }
    distance = None if old else Distance(value=2.9 if far else 1.1, percentile=100.0 if far else 61.0, far=far)
    prediction = Prediction(label=source.label, probabilities=(0.12, 0.88), logits=(-1.0, 1.0), distance=distance)
    return HeatMapExample(source=source, target="recurrent", prediction=prediction, heat_maps=heat_maps)


def _model(subjects: tuple[CohortSubject, ...], rng: np.random.Generator, *, old: bool) -> Model:
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
            "cohort": {"name": "phantom", "digest": "c0" * 32, "subjects": {LABELS[0]: 16, LABELS[1]: 11}},
            "folds": 3,
            "seed": 0,
            "threshold": {"value": 0.47, "rule": "largest Youden index of out-of-fold subjects"},
            "calibration": {
                "temperature": 1.4,
                "brier_before": 0.12,
                "brier_after": 0.1,
                "ece_before": 0.09,
                "ece_after": 0.04,
            },
            **({} if old else _new_records(subjects, rng)),
            "out_of_fold": [
                {
                    "subject": subject.subject,
                    "label": subject.label,
                    "fold": index % 3,
                    "logits": [-margin / 2, margin / 2],
                    "slices": [],
                    "chosen": "" if old else LABELS[int(margin > 0)],
                }
                for index, (subject, margin) in enumerate(zip(subjects, margins, strict=True))
            ],
            "versions": {"python": "3.11.7", "torch": "2.15.0", "limner": "0.1.0"},
        },
        error="",
    )


def _new_records(subjects: tuple[CohortSubject, ...], rng: np.random.Generator) -> dict[str, Any]:
    """What a card holds since it knows evaluation, distances and siblings."""
    slices = [_metric(name, value) for name, value in (("auc", 0.91), ("accuracy", 0.84), ("sensitivity", 0.8))]
    return {
        "evaluation": {
            "repeats": 5,
            "per_repeat": [0.94, 0.965, 0.97, 0.955, 0.972],
            "slices": slices,
            "roll_ups": {"mean_logit": _metric("auc", 0.965), "median_logit": _metric("auc", 0.952)},
            "confusion": [[15, 1], [1, 10]],
            "calibration_before": _bins(1.6),
            "calibration_after": _bins(1.0),
            "permutation": {
                "p": 0.0002,
                "permutations": 5000,
                "null": np.quantile(rng.normal(0.5, 0.11, 5000), np.linspace(0, 1, 101)).tolist(),
            },
            "delong": _metric("auc", 0.965),
            "bootstrap": _metric("auc", 0.962),
            "learning_curve": [
                {"subjects": subjects, "auc": _metric("auc", auc)}
                for subjects, auc in ((5, 0.78), (9, 0.88), (14, 0.93), (18, 0.965))
            ],
            "similar": [
                {
                    "first": "i-1",
                    "first_subject": subjects[0].subject,
                    "second": "i-2",
                    "second_subject": subjects[20].subject,
                    "similarity": 0.99871,
                }
            ],
            "similar_found": 1,
            "epochs": [8, 7, 8],
        },
        "reference": {
            "neighbours": 5,
            "slices": 324,
            "percentiles": np.quantile(rng.gamma(16, 1 / 16, 5000), np.linspace(0, 1, 101)).tolist(),
        },
        "sibling": {"file": "sibling.pt", "digest": "ab" * 32, "seed": 1},
        "halves": [{"subjects": ["a"] * 13}, {"subjects": ["b"] * 14}],
    }


def _metric(name: str, value: float) -> dict[str, Any]:
    return {"name": name, "value": value, "low": value - 0.08, "high": min(1.0, value + 0.05), "interval": "bootstrap"}


def _bins(slope: float) -> list[dict[str, float]]:
    predicted = np.linspace(0.05, 0.95, 10)
    observed = np.clip(0.5 + (predicted - 0.5) / slope, 0, 1)
    return [
        {"predicted": p, "observed": o, "low": max(0, o - 0.1), "high": min(1, o + 0.1), "count": count}
        for p, o, count in zip(
            predicted.tolist(), observed.tolist(), (90, 40, 20, 12, 9, 8, 14, 21, 35, 75), strict=True
        )
    ]


def _simulation(
    subjects: tuple[CohortSubject, ...],
    real: dict[str, NDArray[np.float32]],
    rng: np.random.Generator,
    *,
    failed: bool,
    old: bool,
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
        faithfulness=() if old else _faithfulness(),
    )


def _faithfulness() -> tuple[FaithfulnessCurve, ...]:
    fractions = np.linspace(0, 1, 11)
    return tuple(_curve(layer, method, fractions) for layer in ("layer2", "layer3", "layer4") for method in METHODS)


def _curve(layer: str, method: ImportanceMethod, fractions: NDArray[np.float64]) -> FaithfulnessCurve:
    deletion = 4 * fractions ** (1.2 if method is ImportanceMethod.RANDOM else 0.3)
    insertion = 4 * (1 - fractions) ** (1.2 if method is ImportanceMethod.RANDOM else 3.0)
    return FaithfulnessCurve(
        layer=layer,
        method=method,
        fractions=tuple(fractions),
        deletion=tuple(deletion),
        deletion_low=tuple(0.8 * deletion),
        deletion_high=tuple(1.2 * deletion),
        insertion=tuple(insertion),
        insertion_low=tuple(0.8 * insertion),
        insertion_high=tuple(1.2 * insertion),
        areas=(Metric(name="deletion", value=float(deletion.mean()), low=1.9, high=3.2),),
        slices=60,
    )


def _checks(*, failed: bool) -> tuple[Check, ...]:
    stability = 0.41 if failed else 0.83
    rows = (
        ("own_verdict", 0.96, 0.5, False, True, (0.98, 0.02)),
        ("independent_judge", 1.92, 1.0, False, True, (1.7, 2.14)),
        ("weight_randomisation", 0.09, 0.3, True, True, (0.02, 0.05, 0.07, 0.08, 0.09)),
        ("label_permutation", 0.0002, 0.05, True, True, (1.9,)),
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
            null=tuple(np.linspace(-0.8, 0.9, 101)) if name == "label_permutation" else (),
            source="what trained and randomised models reached",
        )
        for number, (name, value, threshold, at_most, gate, values) in enumerate(rows, start=1)
    )


def _weights(top: int) -> tuple[float, ...]:
    shares = 1 / np.arange(1, top + 1)
    return tuple((shares / shares.sum()).tolist())


def _normalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    crop = pixels[16:112, 16:112]
    return np.clip((crop - crop.mean()) / crop.std(), -3, 4)
