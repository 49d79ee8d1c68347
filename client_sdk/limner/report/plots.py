"""Which figures a report has, by their names: the page shows them, and the figure set holds them as files.

A figure is there only where what it shows was measured. Not for drawing: `figures` and `explanation_figures` do that.
"""

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from math import isnan

from limner.report import explanation_figures, figures, reading_figures
from limner.report.card import Card
from limner.report.data import ReportData
from limner.report.drawing import Plot
from limner.report.flow import steps
from limner.report.scores import SubjectScore, subject_scores
from limner.report.words import agreement_name, number, words
from limner.simulated import shortcoming
from limner.types import Agreement, Check, SimulationResult, Verdict

# Slices in the figure of heat maps, spread over the labels: what a page of a journal holds. The report shows all.
HEAT_MAP_ROWS = 6

# Plots of the page alone: the figure set has them in one file together.
PAGE_ONLY = ("calibration-", "check-", "null-", "lineage-")


def make_plots(data: ReportData, card: Card) -> dict[str, Plot]:
    """Return every figure that can be drawn, by its name."""
    cohort = steps(data, card)
    alt = "; ".join(f"{step.count} {step.what}" for step in cohort)
    drawn = [*_performance(data, card), Plot("flow", alt, partial(figures.flow, steps=cohort)), *_distance(data, card)]
    if data.simulation is not None:
        drawn += [*_simulation(data.simulation), *_faithfulness(data.simulation)]
    if data.reading is not None:
        drawn += _reading(data.reading)
    if data.examples:
        shown = data.examples[:: -(-len(data.examples) // HEAT_MAP_ROWS)]
        alt = f"{len(shown)} slices and the same under heat maps of {', '.join(shown[0].heat_maps)}"
        drawn.append(Plot("heat-maps", alt, partial(explanation_figures.heat_maps, examples=shown)))
    return {plot.name: plot for plot in drawn}


def in_files(plot: Plot) -> bool:
    """Return whether a plot belongs to the figure set."""
    return not plot.name.startswith(PAGE_ONLY)


def _performance(data: ReportData, card: Card) -> Iterator[Plot]:
    scores, labels = subject_scores(data.model, card), data.model.labels
    if _has_both_classes(scores, labels[-1]):
        alt = f"ROC curve of {labels[-1]} by subject, out of fold, with its 95 % band"
        yield Plot("roc", alt, partial(figures.roc, scores=scores, label=labels[-1]))
    threshold = data.model.threshold if len(labels) == 2 else None
    alt = f"Out-of-fold probability of {labels[-1]} of each of {len(scores)} subjects, by true label"
    yield Plot("scores", alt, partial(figures.scores, scores=scores, labels=labels, threshold=threshold))
    found = card.evaluation
    if found is None:
        return
    if found.confusion:
        alt = "Subjects by true label and by the label they were taken for, at the thresholds of the metrics"
        yield Plot("confusion", alt, partial(figures.confusion, counts=found.confusion, labels=labels))
    curves = {"before scaling": found.calibration_before, "after scaling": found.calibration_after}
    measured = [(title, bins) for title, bins in curves.items() if bins]
    if measured:
        alt = f"Calibration of the probability of {labels[-1]} by slice, before and after scaling, with 95 % bands"
        yield Plot("calibration", alt, partial(figures.calibration, curves=measured, label=labels[-1]))
    for title, bins in measured:
        alt = f"Calibration of the probability of {labels[-1]} by slice, {title}, with its 95 % band"
        draw = partial(figures.calibration, curves=[(title, bins)], label=labels[-1])
        yield Plot(f"calibration-{title.partition(' ')[0]}", alt, draw)
    auc = next((metric.value for metric in data.model.metrics if metric.name == "auc"), None)
    if found.permutation is not None and auc is not None:
        test = found.permutation
        alt = f"AUC under {test.permutations} permutations of the labels, and the AUC {number(auc)}; p {number(test.p)}"
        null = partial(figures.null_distribution, null=test.null, found=auc, xlabel="AUC under permuted labels")
        yield Plot("permutation", alt, partial(null, good=test.p <= 0.05))
    if len(found.per_repeat) > 1 and auc is not None:
        alt = f"AUC by subject of each of {len(found.per_repeat)} repeats of the cross-validation"
        yield Plot("repeats", alt, partial(figures.repeats, values=found.per_repeat, overall=auc))
    if found.learning_curve:
        points = found.learning_curve
        alt = "AUC by number of training subjects: " + "; ".join(
            f"{point.subjects} subjects {number(point.auc.value)}" for point in points
        )
        yield Plot("learning-curve", alt, partial(figures.learning_curve, points=points))


def _distance(data: ReportData, card: Card) -> Iterator[Plot]:
    if card.reference is not None:
        found = [example.prediction.distance for example in data.examples]
        shown = [(distance.value, distance.far) for distance in found if distance is not None]
        far = sum(far for _, far in shown)
        alt = f"Distances of held-out training slices, the limit {number(card.reference.limit)}"
        alt += f", and {len(shown)} slices of this report, {far} of them far" if shown else ""
        draw = partial(
            figures.distance, percentiles=card.reference.percentiles, limit=card.reference.limit, shown=shown
        )
        yield Plot("distance", alt, draw)


def _simulation(simulation: SimulationResult) -> Iterator[Plot]:
    # What is no explanation says so in its file's name too, as the files of `limner simulate` do.
    passed = simulation.verdict is Verdict.EXPLANATION
    name = "simulated" if passed else f"{simulation.verdict.value.replace('_', '-')}-simulated"
    mark = shortcoming(simulation)
    alt = f"Simulated images of {' and '.join(image.label for image in simulation.images)}" + (
        f": {mark}" if mark else ""
    )
    yield Plot(name, alt, partial(explanation_figures.simulated, simulation=simulation, mark=mark))
    ran = [check for check in simulation.checks if check.ran]
    for check in ran:
        yield Plot(f"check-{check.number}", _check_alt(check), partial(explanation_figures.check_strip, check=check))
        if check.null:
            alt = f"Null distribution of {words(check.name)}, and what was found"
            yield Plot(f"null-{check.number}", alt, partial(explanation_figures.check_null, check=check))
    if ran:
        alt = "The figure of each check, its threshold, and the values behind it"
        yield Plot("checks", alt, partial(explanation_figures.checks, ran=ran))
    if simulation.layers:
        alt = "Weights of the selected channels of each layer, the most important first"
        yield Plot("lineage", alt, partial(explanation_figures.lineage, layers=simulation.layers))
        for layer in simulation.layers:
            alt = f"Weights of the selected channels of {layer.layer}, the most important first"
            yield Plot(f"lineage-{layer.layer}", alt, partial(explanation_figures.lineage, layers=[layer]))


def _faithfulness(simulation: SimulationResult) -> Iterator[Plot]:
    for layer, curves in groupby(simulation.faithfulness, key=lambda curve: curve.layer):
        alt = (
            f"Drop of the margin with channels of {layer} at their means, by importance and at random, with 95 % bands"
        )
        yield Plot(f"faithfulness-{layer}", alt, partial(explanation_figures.faithfulness, curves=list(curves)))


def _reading(agreement: Agreement) -> Iterator[Plot]:
    for name, prefixes in reading_figures.PANELS.items():
        shown = [one for one in agreement.figures if one.name.startswith(prefixes) and not isnan(one.value)]
        if shown:
            alt = f"{name.replace('-', ' ')}: " + "; ".join(
                f"{agreement_name(one)} of {one.raters} {number(one.value)}" for one in shown
            )
            yield Plot(name, alt, partial(reading_figures.forest, figures=shown))
    kinds = ", ".join(dict.fromkeys(words(group.kind) for group in agreement.groups))
    alt = f"Mean likelihood of {agreement.reading.label} by each reader and the model, of {kinds} images of each label"
    yield Plot("reading-likelihoods", alt, partial(reading_figures.likelihoods, agreement=agreement))


def _check_alt(check: Check) -> str:
    relation = "at most" if check.at_most else "at least"
    outcome = "passed" if check.passed else "failed"
    return f"{words(check.name)}: {number(check.value)}, {relation} {number(check.threshold)}, {outcome}"


def _has_both_classes(scores: tuple[SubjectScore, ...], label: str) -> bool:
    return len({score.label == label for score in scores}) == 2
