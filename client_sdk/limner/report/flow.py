"""The steps from those who might have been in a cohort to those whom each fold held out, for the page and for a figure.

Counts only: whom the rules left out is named in the flow's own file, which is not pseudonymous.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from limner.report.card import Card
from limner.report.data import ReportData


@dataclass(frozen=True)
class Step:
    """One step: how many, of what, what else there is to say, and how many were left out after it, for which reason."""

    count: int
    what: str
    note: str = ""
    left_out: tuple[tuple[int, str], ...] = ()


def steps(data: ReportData, card: Card) -> tuple[Step, ...]:
    """Return the steps, the first first; without a flow they begin with the subjects imported."""
    return tuple(_steps(data, card))


def _steps(data: ReportData, card: Card) -> Iterator[Step]:
    subjects, labels = data.cohort.subjects, data.model.labels
    if data.flow is not None:
        rules = f"rules: {data.flow.preset}" if data.flow.preset else ""
        excluded = tuple((len(exclusion.subjects), exclusion.reason) for exclusion in data.flow.excluded)
        yield Step(data.flow.read, "subjects looked at", rules, excluded)
        labelled = sum(data.flow.labels.values())
        note = ", ".join(f"{count} {label}" for label, count in data.flow.labels.items())
        missing = labelled - len(subjects)
        left_out = ((missing, "without images in the cohort"),) if missing > 0 else ()
        if missing < 0:
            note += f"; the cohort has {-missing} more than this flow labels"
        yield Step(labelled, "labelled", note, left_out)
    by_label = Counter(subject.label for subject in subjects)
    slices: Counter[str] = Counter()
    for subject in subjects:
        slices[subject.label] += subject.slices
    note = ", ".join(f"{by_label[label]} {label} ({slices[label]} slices)" for label in labels)
    yield Step(len(subjects), f"imported, {data.cohort.slices} slices", note)
    repeats = card.evaluation.repeats if card.evaluation else 1
    folds = _folds(card)
    held_out = "; ".join(f"{fold + 1}: " + " + ".join(str(counts[label]) for label in labels) for fold, counts in folds)
    what = "folds by subject" + (f", {repeats} times" if repeats > 1 else "")
    yield Step(len(folds), what, f"{held_out} ({' + '.join(labels)})")


def _folds(card: Card) -> Sequence[tuple[int, Counter[str]]]:
    """Return the subjects that each fold of the first cross-validation held out, by label."""
    folds: dict[int, Counter[str]] = {}
    for prediction in card.out_of_fold:
        folds.setdefault(prediction.fold, Counter())[prediction.label] += 1
    return sorted(folds.items())
