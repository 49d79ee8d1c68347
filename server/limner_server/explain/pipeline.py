"""The same way from slices to images for the model, its halves, its resamples and its randomised copies: fair controls.

Each method is one stage's work: it returns the arrays that are kept of it. What they mean is `assessment`'s business.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.explain.cohort import SliceCohort
from limner_server.explain.composite import composite
from limner_server.explain.faithfulness import SLICES as FAITHFULNESS_SLICES
from limner_server.explain.faithfulness import measure
from limner_server.explain.importance import alive_channels
from limner_server.explain.inversion import class_aims, invert
from limner_server.explain.randomise import randomised
from limner_server.explain.stages import Arrays, Tell
from limner_server.explain.statistics import Statistics, Sums, gather, pooled, select_channels
from limner_server.networks.artifact import Artifact
from limner_server.networks.resnet import LAYERS

CONTROL_STEPS = 60
CONTROL_SLICES = 1_000
QUANTILES = 1001
QUANTILE_SLICES = 64

Floats = NDArray[np.float32]
Draft = tuple[Sequence[Sums], Sequence[Tensor]]
"""What one set of images is made from: the sums of each class, and the channels of each layer that count."""


class Judgement(NamedTuple):
    """What a model says of the image of each label (rows)."""

    logits: Floats
    """`(k, k)`."""
    probabilities: Floats
    """`(k, k)`."""
    distances: Floats
    """`(k, 1)`, from its training slices; NaN where it does not know them."""


class SimulationMethod(StrEnum):
    """How the images are made, named as in `limner.v1.SimulationMethod`."""

    INVERSION = "inversion"
    COMPOSITE = "composite"


@dataclass(frozen=True)
class Recipe:
    """How images are made: the method, the steps of its optimiser, and the seed of everything random."""

    method: SimulationMethod = SimulationMethod.INVERSION
    steps: int = 150
    seed: int = 0

    @property
    def control_steps(self) -> int:
        """Steps of the images of checks 2, 5 and 8: enough for them, at less than half of the cost."""
        return min(self.steps, CONTROL_STEPS)


class Pipeline:
    """From a cohort's slices to one image for each class.

    Parameters
    ----------
    artifact
        The model that is explained.
    cohort
        The slices, with at least one of every class.
    recipe
        How.
    resamples
        Number of bootstrap resamples of the subjects.
    """

    def __init__(self, artifact: Artifact, cohort: SliceCohort, recipe: Recipe, resamples: int) -> None:
        self._artifact = artifact
        self._cohort = cohort
        self._recipe = recipe
        self._multiplicities = resample_subjects(cohort, resamples, recipe.seed)
        self._intensities = _intensities(artifact, cohort)
        self._lock = threading.Lock()
        self._gathered: Statistics | None = None

    def images(self, tell: Tell) -> Arrays:
        """Make the images themselves, and those of random channels for comparison.

        Returns
        -------
        `images` `(k, s, s)`; `random_logits` `(k, k)` by the model; `channels.<layer>` and `shares.<layer>` `(k_l,)`;
        and, one for each subject and class, `subjects`, `labels` and `weights`, the share of accumulated importance.
        """
        making = 2 * len(self._cohort.classes) * self._recipe.steps
        gathering = len(self._cohort) / (len(self._cohort) + making)
        statistics = self._statistics(_part(tell, 0.0, gathering))
        classes = statistics.cohort
        selected = select_channels(classes)
        channels = [order for order, _ in selected]
        drafts: list[Draft] = [(classes, channels), (classes, _random_channels(classes, channels, self._recipe.seed))]
        images, random = self._make(self._artifact, drafts, self._recipe.steps, _part(tell, gathering, 1.0))
        arrays: Arrays = {
            "images": images,
            "random_logits": judge_images(self._artifact, random).logits,
            **_subject_shares(statistics, channels),
        }
        for layer, (order, shares) in zip(LAYERS, selected, strict=True):
            arrays[f"channels.{layer}"] = order.cpu().numpy()
            arrays[f"shares.{layer}"] = shares.cpu().numpy()
        return arrays

    def resamples(self, tell: Tell) -> Arrays:
        """Make the images of the cohort and of every bootstrap resample, alike: `images` `(1 + r, k, s, s)`."""
        resamples = self._statistics(lambda _: None).resamples
        drafts = [(classes, [order for order, _ in select_channels(classes)]) for classes in resamples]
        return {"images": self._make(self._artifact, drafts, self._recipe.control_steps, tell)}

    def half(self, artifact: Artifact, judge: Artifact, judge_subjects: Sequence[str], tell: Tell) -> Arrays:
        """Make images from a half-cohort model and slices its judge has not seen: `logits` `(k, k)` by the judge."""
        unseen = self._cohort.take(~np.isin(self._cohort.subjects, judge_subjects))
        images = self._make_alone(artifact, unseen, self._recipe.control_steps, tell)
        return {"logits": judge_images(judge, images).logits}

    def randomised(self, index: int, tell: Tell) -> Arrays:
        """Make `images` `(k, s, s)` by a randomised network, fresh or shuffled by turns; `logits` `(k, k)` by ours.

        The images are kept as controls for readers.
        """
        some = self._cohort.thin(CONTROL_SLICES)
        seed = int(np.random.SeedSequence([self._recipe.seed, index]).generate_state(1)[0])
        network = randomised(self._artifact, some, seed, shuffle=index % 2 == 1)
        # As many steps as the images that are shown: their gap is what these are compared with.
        images = self._make_alone(network, some, self._recipe.steps, tell)
        return {"images": images, "logits": judge_images(self._artifact, images).logits}

    def sibling(self, artifact: Artifact, tell: Tell) -> Arrays:
        """Make `images` `(k, s, s)` by another seed's network; `logits`, `probabilities` `(k, k)` are the model's."""
        images = self._make_alone(artifact, self._cohort, self._recipe.control_steps, tell)
        judged = judge_images(self._artifact, images)
        return {"images": images, "logits": judged.logits, "probabilities": judged.probabilities}

    def faithfulness(self, tell: Tell) -> Arrays:
        """Measure what the margin loses channel by channel, on some slices; see `faithfulness.measure`."""
        return measure(self._artifact, self._cohort.thin(FAITHFULNESS_SLICES), self._recipe.seed, tell)

    def _statistics(self, tell: Tell) -> Statistics:
        with self._lock:
            if self._gathered is None:
                self._gathered = gather(self._artifact, self._cohort, self._multiplicities, tell)
            return self._gathered

    def _make_alone(self, artifact: Artifact, cohort: SliceCohort, steps: int, tell: Tell) -> Floats:
        gathering = len(cohort) / (len(cohort) + len(cohort.classes) * steps)
        classes = gather(artifact, cohort, tell=_part(tell, 0.0, gathering)).cohort
        channels = [order for order, _ in select_channels(classes)]
        images: Floats = self._make(artifact, [(classes, channels)], steps, _part(tell, gathering, 1.0))[0]
        return images

    def _make(self, artifact: Artifact, drafts: Sequence[Draft], steps: int, tell: Tell) -> Floats:
        """Make the images `(drafts, k, s, s)` of several drafts at once."""
        if self._recipe.method is SimulationMethod.COMPOSITE:
            images = torch.cat([composite(classes, self._intensities) for classes, _ in drafts])
        else:
            aims = [aim for classes, channels in drafts for aim in class_aims(classes, channels)]
            images = invert(artifact, aims, steps, tell)
        return images.reshape(len(drafts), -1, *images.shape[1:]).cpu().numpy()


def _part(tell: Tell, start: float, end: float) -> Tell:
    """Tell the share of one part of a stage's work, which goes from `start` to `end` of the whole."""
    return lambda share: tell(start + share * (end - start))


def judge_images(artifact: Artifact, images: Floats) -> Judgement:
    """Judge images `(k, s, s)` by the path that `Predict` takes."""
    with torch.no_grad():
        logits, probabilities, _, distances = artifact(torch.from_numpy(images).to(artifact.temperature.device))
    return Judgement(*(found.cpu().numpy() for found in (logits, probabilities, distances)))


def resample_subjects(cohort: SliceCohort, resamples: int, seed: int) -> NDArray[np.int64]:
    """Draw how often each bootstrap resample holds each subject, `(resamples, subjects)`; each holds every class."""
    rng = np.random.default_rng([seed, resamples])
    subjects, rows = np.unique(cohort.subjects, return_inverse=True)
    has_class = np.zeros((len(subjects), len(cohort.classes)), bool)
    has_class[rows, cohort.labels] = True
    found: list[NDArray[np.int64]] = []
    while len(found) < resamples:
        draw = rng.multinomial(len(subjects), np.full(len(subjects), 1 / len(subjects)))
        if has_class[draw > 0].any(axis=0).all():
            found.append(draw)
    return np.array(found, np.int64).reshape(resamples, len(subjects))


def _intensities(artifact: Artifact, cohort: SliceCohort) -> Tensor:
    """Quantiles `(q,)` of the normalised intensities of some slices of all classes."""
    some = torch.from_numpy(cohort.thin(QUANTILE_SLICES).load())
    values = artifact.normalise(some).numpy()
    quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES)).astype(np.float32)
    return torch.from_numpy(quantiles).to(artifact.temperature.device)


def _random_channels(classes: Sequence[Sums], like: Sequence[Tensor], seed: int) -> list[Tensor]:
    """As many channels of each layer as are in `like`, at random among those that are not dead."""
    rng = np.random.default_rng([seed, len(like)])
    total = pooled(classes)
    chosen = []
    for layer, channels in zip(total.layers, like, strict=True):
        alive = alive_channels(layer.deviation(total.count)).nonzero()[:, 0]
        order = torch.from_numpy(rng.permutation(len(alive))[: len(channels)])
        chosen.append(alive[order.to(alive.device)])
    return chosen


def _subject_shares(statistics: Statistics, channels: Sequence[Tensor]) -> Arrays:
    keys = sorted(statistics.weights)
    labels = np.array([label for _, label in keys])
    sums = np.array(
        [
            sum(float(weights[chosen].sum()) for weights, chosen in zip(statistics.weights[key], channels, strict=True))
            for key in keys
        ]
    )
    totals = np.bincount(labels, sums)[labels]
    return {
        "subjects": np.array([subject for subject, _ in keys]),
        "labels": labels,
        "weights": sums / np.where(totals > 0, totals, 1),
    }
