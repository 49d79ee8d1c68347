"""Step E: the checks that decide whether a simulated image may be called an explanation, and every threshold they use.

Each check turns figures into a `CheckResult`; where the figures come from is `simulation`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from limner_server.training.resampling import PERMUTATIONS, permute

Scores = NDArray[np.floating[Any]]


class Verdict(StrEnum):
    """What a result may be called, named as in `limner.v1.Verdict`."""

    EXPLANATION = "EXPLANATION"
    FAILED_CHECK = "FAILED_CHECK"
    UNCHECKED = "UNCHECKED"


@dataclass(frozen=True)
class Threshold:
    """What a figure is compared with, and where the number comes from."""

    value: float
    at_most: bool
    source: str

    def met(self, figure: float) -> bool:
        """Tell whether the figure is on the right side; a figure that is not a number never is."""
        return figure <= self.value if self.at_most else figure >= self.value


@dataclass(frozen=True)
class Thresholds:
    """Every threshold of the checks; docs/explain.md shows them beside what was measured with this code."""

    own_verdict: Threshold = Threshold(0.5, False, "trained models 0.96, randomised weights at most 0.08")
    transfer: Threshold = Threshold(1.0, False, "trained models 1.64 to 2.66, permuted labels at most 0.30")
    judge: Threshold = Threshold(1.0, False, "judges of trained models 1.61 to 1.72, of permuted labels at most 0.27")
    randomised: Threshold = Threshold(0.3, True, "at most 0.15 in ten randomised networks; the trained model is 1")
    permutation: Threshold = Threshold(0.05, True, "convention; trained models 0.0002")
    stability: Threshold = Threshold(0.6, False, "trained models 0.80 and 0.86, another cohort at most 0.39")
    random_channels: Threshold = Threshold(1.0, True, "reported only: no difference was found")
    high_frequencies_low: Threshold = Threshold(0.5, False, "reported only: trained models 0.97 to 1.17")
    high_frequencies_high: Threshold = Threshold(2.0, True, "reported only: trained models 0.97 to 1.17")
    spectrum: Threshold = Threshold(2.0, True, "reported only: trained models 1.35 to 1.62")
    nearest_real: Threshold = Threshold(1.3, True, "reported only: trained models 0.98 to 1.11, class means 2.0 to 3.9")
    another_seed: Threshold = Threshold(
        0.4, False, "reported only: trained models 0.40 to 0.51, another cohort up to 0.39"
    )


THRESHOLDS = Thresholds()
RANDOMISED_NETWORKS = 5
RESAMPLES = 8

NAMES = {
    1: "own_verdict",
    2: "independent_judge",
    3: "weight_randomisation",
    4: "label_permutation",
    5: "stability",
    6: "random_channels",
    7: "realism",
    8: "another_seed",
}
GATES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CheckResult:
    """One check, as `limner.v1.Check` has it: the figure, what it is compared with, and the values behind it.

    `null` holds 101 percentiles of the distribution that the one value of check 4 is compared with; nothing for others.
    """

    number: int
    value: float
    threshold: float
    at_most: bool
    passed: bool
    ran: bool
    detail: str
    values: tuple[float, ...] = ()
    null: tuple[float, ...] = ()
    source: str = ""

    @property
    def name(self) -> str:
        """Its name in the contract."""
        return NAMES[self.number]

    @property
    def gate(self) -> bool:
        """Whether failing it makes the verdict `FAILED_CHECK`."""
        return self.number in GATES


@dataclass(frozen=True)
class Transfer:
    """What one half-cohort model says of the images made from the other.

    Attributes
    ----------
    d
        `gap` of the images over the deviation of the judge's margins on real slices.
    judge
        The same of the real slices held out from the judge: how good a judge it is.
    """

    d: float
    judge: float


@dataclass(frozen=True)
class Realism:
    """How alike real slices one image is; 1 is a real slice."""

    high_frequencies: float
    spectrum: float
    nearest_real: float


def verdict(checks: Sequence[CheckResult]) -> Verdict:
    """Return what the checks allow the result to be called."""
    gates = {check.number: check for check in checks if check.gate}
    if any(check.ran and not check.passed for check in gates.values()):
        return Verdict.FAILED_CHECK
    if all(number in gates and gates[number].ran for number in GATES):
        return Verdict.EXPLANATION
    return Verdict.UNCHECKED


def margins(logits: Scores) -> Scores:
    """Return `(n, k)`, each label's logit minus logsumexp of the others', of logits `(n, k)`."""
    labels = range(logits.shape[1])
    return np.stack([logits[:, c] - logsumexp(np.delete(logits, c, axis=1), axis=1) for c in labels], axis=1)


def label_gaps(scores: Scores) -> Scores:
    """Return for each label its score on its own image minus the mean of its scores on the others.

    Parameters
    ----------
    scores
        `(k, k)`, of the image of each label (rows) for each label (columns).

    Returns
    -------
    `(k,)`. Of two labels, margins give the same twice: the difference of the margins of the two images.
    """
    own = np.diag(scores)
    return np.asarray(own - (scores.sum(0) - own) / (len(scores) - 1))


def gap(logits: Scores) -> float:
    """Return the mean over labels of `label_gaps` of the margins of the images' logits `(k, k)`."""
    return float(label_gaps(margins(logits)).mean())


def not_run(number: int, threshold: Threshold, reason: str) -> CheckResult:
    """Return the result of a check that could not be run."""
    return CheckResult(
        number,
        0.0,
        threshold.value,
        threshold.at_most,
        passed=False,
        ran=False,
        detail=reason,
        source=threshold.source,
    )


def own_verdict(probabilities: Scores, chosen: Sequence[int]) -> CheckResult:
    """Check 1: the served model takes each image for what it stands for.

    Parameters
    ----------
    probabilities
        `(k, k)`, of the image of each label (rows) for each label (columns).
    chosen
        `(k,)`, the label that the served model chooses for each image.
    """
    gaps = label_gaps(probabilities)
    right = sum(label == index for index, label in enumerate(chosen))
    return _result(
        1,
        float(gaps.min()),
        THRESHOLDS.own_verdict,
        f"{right} of {len(chosen)} images taken for their own label; probabilities differ by {gaps.min():.2f} or more",
        gaps,
        also=right == len(chosen),
    )


def independent_judge(transfers: Sequence[Transfer]) -> CheckResult:
    """Check 2: images from one half of the subjects convince a model of the other half, which is itself any good."""
    found, judges = [item.d for item in transfers], [item.judge for item in transfers]
    judge = float(np.mean(judges))
    return _result(
        2,
        float(np.mean(found)),
        THRESHOLDS.transfer,
        f"mean d {np.mean(found):.2f} ({_list(found)}); the judges themselves {judge:.2f} on held-out slices"
        f" ({_list(judges)}), at least {THRESHOLDS.judge.value:g}",
        found,
        also=THRESHOLDS.judge.met(judge),
    )


def weight_randomisation(gaps: Sequence[float], own: float) -> CheckResult:
    """Check 3: the same pipeline on networks that learned nothing says nothing to the trained model.

    Parameters
    ----------
    gaps
        `gap` by the trained model of the images of each randomised network.
    own
        `gap` by the trained model of its own images; the check fails where that is not over 0.
    """
    shares = _shares(gaps, own)
    detail = f"{len(gaps)} randomised networks reach {_list(shares)} of the model's own gap"
    return _result(3, float(shares.max()), THRESHOLDS.randomised, detail if own > 0 else _no_gap(own), shares)


def label_permutation(logits: Scores, labels: NDArray[np.int64], subjects: Sequence[str], seed: int) -> CheckResult:
    """Check 4: the model's out-of-fold logits know the labels better than permuted labels.

    Parameters
    ----------
    logits
        `(n, k)` mean out-of-fold logits of each subject, or of each subject's slices of one label.
    labels
        `(n,)`. Permuted among subjects, or within them where a subject has several: only those are exchangeable.
    subjects
        `(n,)`.
    seed
        Of the permutations.
    """
    scores, everyone = margins(logits), np.arange(len(labels))
    found = permute(lambda given: float(scores[everyone, given].mean()), labels, np.asarray(subjects), seed)
    detail = f"mean margin {found.found:.2f}, p {found.p:.4f} in {PERMUTATIONS} permutations of {len(labels)} labels"
    return _result(4, found.p, THRESHOLDS.permutation, detail, (found.found,), null=found.null)


def stability(correlations: Sequence[float]) -> CheckResult:
    """Check 5: other draws of subjects give the same difference image.

    Parameters
    ----------
    correlations
        Of the difference image of each bootstrap resample with the cohort's.
    """
    mean, least = float(np.mean(correlations)), float(np.min(correlations))
    detail = f"mean correlation {mean:.2f}, least {least:.2f}, over {len(correlations)} bootstrap resamples of subjects"
    return _result(5, mean, THRESHOLDS.stability, detail, correlations)


def random_channels(random: float, own: float) -> CheckResult:
    """Check 6, reported only: how much of the gap is left when channels are chosen at random."""
    shares = _shares([random], own)
    detail = f"gap {random:.2f} with random channels, {own:.2f} with the important ones"
    return _result(6, shares[0], THRESHOLDS.random_channels, detail if own > 0 else _no_gap(own), shares)


def realism(images: Sequence[Realism]) -> CheckResult:
    """Check 7, reported only: how alike real slices the images are. Images of randomised networks pass it too."""
    high, spectrum, nearest = (
        [getattr(image, field) for image in images] for field in ("high_frequencies", "spectrum", "nearest_real")
    )
    limits = THRESHOLDS
    return _result(
        7,
        max(nearest),
        limits.nearest_real,
        f"nearest-real distance {_list(nearest)}; high-frequency power {_list(high)},"
        f" {limits.high_frequencies_low.value:g} to {limits.high_frequencies_high.value:g};"
        f" power-spectrum ratio {_list(spectrum)}, at most {limits.spectrum.value:g}",
        nearest,
        also=all(limits.high_frequencies_low.met(value) and limits.high_frequencies_high.met(value) for value in high)
        and all(limits.spectrum.met(value) for value in spectrum),
    )


def another_seed(correlation: float, sibling: float, own: float, chosen: Sequence[int]) -> CheckResult:
    """Check 8, reported only: a network of the same subjects and another seed gives a similar image.

    Parameters
    ----------
    correlation
        Of its difference image with the model's own, see `contrast_correlation`.
    sibling, own
        `gap` by the served model of its images, and of the model's own.
    chosen
        `(k,)`, the label that the served model chooses for each of its images.
    """
    right = sum(label == index for index, label in enumerate(chosen))
    detail = (
        f"correlation {correlation:.2f} of the difference images; the served model takes {right} of {len(chosen)}"
        f" images of the other seed for their own label, with a gap of {sibling:.2f} against {own:.2f}"
    )
    return _result(8, correlation, THRESHOLDS.another_seed, detail, (correlation,))


def contrast_correlation(first: Scores, second: Scores) -> float:
    """Correlate what tells the labels' images apart, of two sets of images `(k, s, s)`.

    That is each image without the mean of all, and without its own mean. Of two labels it is exactly the correlation of
    the two difference images. Nan where a set's images are equal.
    """
    a, b = (_contrast(images) for images in (first, second))
    with np.errstate(invalid="ignore"):
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _contrast(images: Scores) -> Scores:
    # From the first: the contrast of equal images is then exactly 0.
    planes = images.astype(np.float64) - images[0]
    planes = planes - planes.mean(0)
    return np.asarray(planes - planes.mean((1, 2), keepdims=True))


def _shares(gaps: Sequence[float], own: float) -> Scores:
    """Gaps over the model's own; infinite where that is not over 0."""
    return np.asarray(gaps, np.float64) / own if own > 0 else np.full(len(gaps), np.inf)


def _no_gap(own: float) -> str:
    return f"the model's own gap is {own:.2f}: there is nothing to compare with"


def _result(
    number: int,
    value: float,
    threshold: Threshold,
    detail: str,
    values: Sequence[float] | Scores,
    *,
    also: bool = True,
    null: Sequence[float] = (),
) -> CheckResult:
    return CheckResult(
        number,
        value,
        threshold.value,
        threshold.at_most,
        passed=bool(threshold.met(value) and also),
        ran=True,
        detail=detail,
        values=tuple(float(item) for item in values),
        null=tuple(null),
        source=threshold.source,
    )


def _list(values: Sequence[float] | Scores) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
