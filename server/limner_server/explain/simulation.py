"""Steps D and E: one image for each class of a cohort, what the served model says of it, and every check of it.

Brings the pieces together: `pipeline` makes the images, `checks` judges the figures, `stages` keeps what is done.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from limner_server.errors import InvalidInputError
from limner_server.explain import checks
from limner_server.explain.assessment import assess, no_cross_judging
from limner_server.explain.checks import CheckResult, Verdict
from limner_server.explain.cohort import Rows, SliceCohort
from limner_server.explain.faithfulness import COST, SLICES, FaithfulnessCurve, curves
from limner_server.explain.pipeline import CONTROL_SLICES, Floats, Pipeline, Recipe, judge_images
from limner_server.explain.realism import RealSlices, nearest, some_rows
from limner_server.explain.stages import Arrays, Progress, Stage, run_stages
from limner_server.networks.artifact import Artifact
from limner_server.networks.card import ModelCard
from limner_server.networks.resnet import LAYERS


@dataclass(frozen=True)
class LayerLineage:
    """Which channels of a layer went into the images, the most important first, and their shares of importance."""

    layer: str
    channels: int
    selected: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SubjectLineage:
    """One subject's slices of one label, and their share of that class's accumulated importance, 0 to 1."""

    subject: str
    label: str
    slices: int
    weight: float


@dataclass(frozen=True, eq=False)
class SimulationOutcome:
    """The images, and everything needed to judge them.

    Attributes
    ----------
    images
        `(k, s, s)` float32, one for each label, in standard deviations of a normalised slice, -3 to 4.
    logits, probabilities
        `(k, k)` float32, what the served model says of each image (rows).
    distances
        `(k, 1)` float32, from the slices it was trained on; NaN where it does not know them.
    nearest
        `(k, s, s)` float32, the nearest real slice of the same label, normalised.
    nearest_instances, nearest_subjects
        Which slices these are.
    checks
        By number; empty where they were not asked for.
    verdict
        What the result may be called.
    layers, subjects
        What went into the images.
    faithfulness
        Whether importance finds the channels that matter; empty where the checks were not asked for.
    """

    images: Floats
    logits: Floats
    probabilities: Floats
    distances: Floats
    nearest: Floats
    nearest_instances: tuple[str, ...]
    nearest_subjects: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    verdict: Verdict
    layers: tuple[LayerLineage, ...]
    subjects: tuple[SubjectLineage, ...]
    faithfulness: tuple[FaithfulnessCurve, ...] = ()


def simulate(
    artifact: Artifact,
    card: ModelCard,
    halves: Sequence[Artifact],
    cohort: SliceCohort,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    *,
    sibling: Artifact | None = None,
    with_checks: bool = True,
    workers: int = 1,
) -> SimulationOutcome:
    """Make the images, have them judged, and check them. The same for the same arguments on one machine.

    Parameters
    ----------
    artifact, card
        The model that is explained.
    halves
        The two half-cohort models, in the order of `card.halves`; empty where there are none: check 2 is then not run.
    cohort
        The slices, on the model's grid, with the model's labels.
    recipe
        How the images are made.
    folder
        Where finished stages are kept: a run that was killed goes on from there.
    progress
        Told how far it is, from several threads, one call at a time.
    sibling
        The network of another seed; None where there is none: check 8 is then not run.
    with_checks
        False to skip the checks.
    workers
        Stages that run at a time.

    Raises
    ------
    InvalidInputError
        The cohort's labels are not the model's, or a label has no slice.
    """
    check_cohort(card, cohort)
    pipeline = Pipeline(artifact, cohort, recipe, checks.RESAMPLES if with_checks else 0)
    stages = _stages(pipeline, card, halves, sibling, cohort, recipe, with_checks)
    results = run_stages(stages, folder, workers, progress)
    images = results["images"]["images"].astype(np.float32)
    judged = judge_images(artifact, images)
    rows, real = zip(*(_nearest(artifact, cohort, label, image) for label, image in enumerate(images)), strict=True)
    found: tuple[CheckResult, ...] = ()
    faithfulness: tuple[FaithfulnessCurve, ...] = ()
    if with_checks:
        found = assess(card, cohort, recipe, results, _real_slices(artifact, cohort), judged)
        faithfulness = curves(results["faithfulness"], recipe.seed)
    return SimulationOutcome(
        images=images,
        logits=judged.logits,
        probabilities=judged.probabilities,
        distances=judged.distances,
        nearest=np.stack(real),
        nearest_instances=tuple(cohort.instances[list(rows)].tolist()),
        nearest_subjects=tuple(cohort.subjects[list(rows)].tolist()),
        checks=found,
        verdict=checks.verdict(found),
        layers=_layer_lineage(artifact, results["images"]),
        subjects=_subject_lineage(cohort, results["images"]),
        faithfulness=faithfulness,
    )


def check_cohort(card: ModelCard, cohort: SliceCohort) -> None:
    """Refuse a cohort whose labels are not the model's, or that has no slice of one of them."""
    if cohort.classes != card.labels:
        raise InvalidInputError(
            "cohort", list(cohort.classes), f"a cohort with the model's labels, {list(card.labels)}"
        )
    for index, label in enumerate(cohort.classes):
        if not (cohort.labels == index).any():
            raise InvalidInputError(
                "cohort", cohort.name, f"a cohort with slices of every label; it has none of {label!r}"
            )


def _stages(
    pipeline: Pipeline,
    card: ModelCard,
    halves: Sequence[Artifact],
    sibling: Artifact | None,
    cohort: SliceCohort,
    recipe: Recipe,
    with_checks: bool,
) -> list[Stage]:
    """List what is to be done; costs are in images through the network, forth and back."""
    slices, classes = len(cohort.labels), len(cohort.classes)
    stages = [Stage("images", slices + 2 * classes * recipe.steps, pipeline.images)]
    if not with_checks:
        return stages
    if not no_cross_judging(card, cohort):
        for index, half in enumerate(halves):
            judge, seen = halves[1 - index], card.halves[1 - index].subjects
            compute = partial(pipeline.half, half, judge, seen)
            stages.append(Stage(f"half-{index}", slices / 2 + classes * recipe.control_steps, compute))
    if sibling is not None:
        compute = partial(pipeline.sibling, sibling)
        stages.append(Stage("sibling", slices + classes * recipe.control_steps, compute))
    cost = 2 * min(slices, CONTROL_SLICES) + classes * recipe.steps
    stages += [
        Stage(f"randomised-{index}", cost, partial(pipeline.randomised, index))
        for index in range(checks.RANDOMISED_NETWORKS)
    ]
    stages.append(Stage("faithfulness", min(slices, SLICES) * COST, pipeline.faithfulness))
    # Last: it waits for the statistics of the first, and a thread that waits does no work.
    stages.append(Stage("resamples", (1 + checks.RESAMPLES) * classes * recipe.control_steps, pipeline.resamples))
    return stages


def _normalised(artifact: Artifact, images: Floats) -> Floats:
    """Normalise slices `(n, s, s)` as the model does."""
    return artifact.normalise(torch.from_numpy(images))[:, 0].numpy()


def _nearest(artifact: Artifact, cohort: SliceCohort, label: int, image: Floats) -> tuple[int, Floats]:
    """Return the row of the real slice of a label that is nearest to an image, and the slice, normalised."""
    rows = np.flatnonzero(cohort.labels == label)
    mine = cohort.take(rows)

    def blocks() -> Iterator[tuple[Rows, Floats]]:
        for block in mine.blocks():
            yield rows[block], _normalised(artifact, mine.images[block])

    return nearest(image, blocks())


def _real_slices(artifact: Artifact, cohort: SliceCohort) -> RealSlices | None:
    if len(set(cohort.subjects.tolist())) < 2:
        return None
    rows = some_rows(len(cohort))
    return RealSlices.measure(_normalised(artifact, cohort.images[rows]), cohort.subjects[rows])


def _layer_lineage(artifact: Artifact, main: Arrays) -> tuple[LayerLineage, ...]:
    return tuple(
        LayerLineage(
            layer, len(mean), tuple(main[f"channels.{layer}"].tolist()), tuple(main[f"shares.{layer}"].tolist())
        )
        for layer, mean in zip(LAYERS, artifact.channel_means(), strict=True)
    )


def _subject_lineage(cohort: SliceCohort, main: Arrays) -> tuple[SubjectLineage, ...]:
    slices = Counter(zip(cohort.subjects.tolist(), cohort.labels.tolist(), strict=True))
    return tuple(
        SubjectLineage(subject, cohort.classes[label], slices[subject, label], weight)
        for subject, label, weight in zip(
            *(main[key].tolist() for key in ("subjects", "labels", "weights")), strict=True
        )
    )
