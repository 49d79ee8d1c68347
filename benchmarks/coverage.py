"""`python -m benchmarks.coverage`: how often 95 % intervals hold the truth, on simulated scores whose truth is known.

Scores of 11 positive and 16 negative subjects, as many as the paper's and the phantom's, are drawn from two normal
distributions a known AUC apart, rolled into folds and put through the evaluation that every training goes through.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import expit, logit, softmax
from scipy.stats import norm

from limner.report.scores import SubjectScore, roc_band, roc_curve
from limner_server.networks.card import Metric
from limner_server.training.evaluation import (
    Units,
    cross_fitted_thresholds,
    evaluate,
    judge,
    resampled_metrics,
)
from limner_server.training.intervals import delong, delong_interval
from limner_server.training.resampling import resample

POSITIVE, NEGATIVE, FOLDS = 11, 16, 3
AUCS = (0.7, 0.8, 0.9, 0.95, 0.98)
ROC_AT = (0.1, 0.3, 0.5)
"""1 - specificity at which the report's band of the ROC curve is held against the truth."""
BAR = (0.92, 0.98)

Floats = NDArray[np.float64]


def main(
    sets: Annotated[int, typer.Option(min=1, help="Simulated score sets for each AUC.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of all chance.")] = 0,
    bootstrap: Annotated[bool, typer.Option(help="Whether to resample too, for comparison; slower.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Simulate, evaluate, and print the share of intervals that hold the truth."""
    covered: dict[tuple[str, str], dict[float, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for auc in AUCS:
        for number in track(range(sets), f"AUC {auc}", transient=True, disable=as_json):
            for metric, truth in simulate(auc, np.random.default_rng([seed, number, round(1e3 * auc)]), bootstrap):
                covered[metric.name, metric.interval][auc].append(metric.low <= truth <= metric.high)
    shares = {key: {auc: float(np.mean(held)) for auc, held in of_auc.items()} for key, of_auc in covered.items()}
    reported = shares["auc", "newcombe"]
    met = all(BAR[0] <= share <= BAR[1] for share in reported.values())
    if as_json:
        rows = [{"figure": name, "interval": kind, "coverage": found} for (name, kind), found in shares.items()]
        print(json.dumps({"sets": sets, "seed": seed, "bar": BAR, "met": met, "coverage": rows}))
        return
    table = Table("figure", "interval", *(f"AUC {auc}" for auc in AUCS))
    for (name, kind), found in shares.items():
        table.add_row(name, kind, *(f"{found[auc]:.3f}" if auc in found else "" for auc in AUCS))
    console = Console()
    console.print(table)
    console.print(
        f"{sets} sets; AUC by newcombe within {BAR[0]} to {BAR[1]} at every AUC: {'met' if met else 'missed'}"
    )


def simulate(auc: float, generator: np.random.Generator, bootstrap: bool) -> Iterator[tuple[Metric, float]]:
    """Draw one score set of a true AUC; yield each figure's interval, and the truth that it should hold.

    Shares are judged at the thresholds that this set gave, so theirs is the truth at those.
    """
    distance = np.sqrt(2) * norm.ppf(auc)
    positive = np.arange(POSITIVE + NEGATIVE) < POSITIVE
    # Log odds of the positive label at equal variances: the probabilities are calibrated.
    prior = np.log(POSITIVE / NEGATIVE)
    scores = distance * (generator.normal(size=len(positive)) + distance * (positive - 0.5)) + prior
    rows = np.arange(len(positive))
    units = Units(
        np.array([f"s{row:02d}" for row in rows]),
        positive.astype(np.int64),
        generator.permutation(rows) % FOLDS,
        np.stack([np.zeros(len(rows)), scores], axis=1),
        rows,
    )
    truths = {"auc": auc, "brier": _true_brier(distance, prior)} | _true_shares(units, distance, prior)
    for metric in evaluate(units, 1.0)[0]:
        yield metric, truths[metric.name]
    yield from _roc(scores, positive, distance)
    estimate, variance = delong(scores, positive, units.subjects)
    low, high = delong_interval(estimate, variance)
    yield Metric(name="auc", value=estimate, low=low, high=high, interval="delong"), auc
    if bootstrap:
        drawn = resample(units.subjects, units.labels, 2, int(generator.integers(2**31)))
        for metric in resampled_metrics(judge(units, 1.0), drawn):
            yield metric, truths[metric.name]


def _roc(scores: Floats, positive: NDArray[np.bool_], distance: float) -> Iterator[tuple[Metric, float]]:
    """Yield some points of the ROC curve's band as the report draws it, each as the metric that it is of."""
    rows = zip(positive.tolist(), expit(scores).tolist(), strict=True)
    subjects = [
        SubjectScore(subject=str(row), label=str(label), fold=0, probability=probability, predicted="")
        for row, (label, probability) in enumerate(rows)
    ]
    found = np.interp(ROC_AT, *roc_curve(positive, scores)).tolist()
    band = roc_band(subjects, str(True), np.array(ROC_AT))
    for at, value, low, high in zip(ROC_AT, found, *(end.tolist() for end in band), strict=True):
        metric = Metric(name=f"roc at {at:g}", value=value, low=low, high=high, interval="wilson, both rates")
        yield metric, float(norm.sf(norm.isf(at) - distance))


def _true_shares(units: Units, distance: float, prior: float) -> dict[str, float]:
    """What accuracy and the like would be on subjects without end, at the thresholds of these."""
    probabilities = softmax(units.logits, axis=1)[:, 1]
    cuts = (logit(cross_fitted_thresholds(probabilities, units)) - prior) / distance
    hit = float(norm.sf(cuts[units.labels == 1] - distance / 2).mean())
    spared = float(norm.cdf(cuts[units.labels == 0] + distance / 2).mean())
    right, called = POSITIVE * hit, POSITIVE * hit + NEGATIVE * (1 - spared)
    return {
        "accuracy": (right + NEGATIVE * spared) / (POSITIVE + NEGATIVE),
        "balanced_accuracy": (hit + spared) / 2,
        "sensitivity": hit,
        "specificity": spared,
        "ppv": right / called,
        "npv": NEGATIVE * spared / (POSITIVE + NEGATIVE - called),
    }


def _true_brier(distance: float, prior: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    of_positive = np.square(1 - expit(distance * (nodes + distance / 2) + prior)) @ weights
    of_negative = np.square(expit(distance * (nodes - distance / 2) + prior)) @ weights
    return float((POSITIVE * of_positive + NEGATIVE * of_negative) / (POSITIVE + NEGATIVE))


if __name__ == "__main__":
    typer.run(main)
