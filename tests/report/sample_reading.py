"""A reading's agreement from made-up figures: two readers who agree with the model by halves."""

from datetime import UTC, datetime
from math import nan

from limner.imaging.grid import Grid
from limner.types import (
    Agreement,
    AgreementFigure,
    GroupSummary,
    ItemCount,
    ItemKind,
    LexiconEntry,
    ModelIdentity,
    ReaderProgress,
    Reading,
)

READERS = ("ann", "bo")
WHEN = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
KINDS = {ItemKind.REAL: 10, ItemKind.SIMULATED: 1, ItemKind.CLASS_MEAN: 1}


def sample_agreement(model: ModelIdentity, cohort: str, cohort_digest: str, labels: tuple[str, str]) -> Agreement:
    """Return how far two readers, of whom the second stopped early, and the model agree."""
    raters = (*((reader, "model") for reader in READERS), READERS, ("", "model"), ("", ""))
    figures = [
        _figure(name, *pair, 0.4 + 0.1 * place)
        for name in ("kappa_quadratic", "kappa_linear", "icc_2_1", "icc_3_1")
        for place, pair in enumerate(raters)
    ]
    figures += [
        _figure(name, reader, "", 0.55)
        for name in ("auc_real_simulated", "auc_real_class_mean", "auc_label")
        for reader in (*READERS, "")
    ]
    undefined = _figure("auc_label", "model", "", nan)
    return Agreement(
        reading=_reading(model, cohort, cohort_digest, labels),
        figures=(*figures, undefined),
        groups=tuple(
            GroupSummary(
                reader=reader,
                kind=kind,
                label=label,
                cases=count,
                likelihood=30.0 + 40 * row + 2 * len(reader),
                realism=nan if reader == "model" else 3.5,
            )
            for reader in (*READERS, "model")
            for kind, count in KINDS.items()
            for row, label in enumerate(labels)
        ),
        resamples=2000,
        seed=0,
    )


def _figure(name: str, first: str, second: str, value: float) -> AgreementFigure:
    return AgreementFigure(
        name=name,
        first=first,
        second=second,
        value=value,
        low=value - 0.2,
        high=min(value + 0.2, 1),
        cases=24,
        readers=2,
        resampled="cases" if first else "cases and readers",
    )


def _reading(model: ModelIdentity, cohort: str, cohort_digest: str, labels: tuple[str, str]) -> Reading:
    return Reading(
        id="0f3c9a51d2b47e68",
        title="Pelvis",
        question=f"How likely is {labels[-1]}?",
        label=labels[-1],
        labels=labels,
        lexicon=(LexiconEntry(name="margin", options=("well defined", "ill defined")),),
        model=model,
        cohort=cohort,
        cohort_digest=cohort_digest,
        seed=7,
        grid=Grid(),
        items=tuple(
            ItemCount(kind=kind, label=label, images=count) for kind, count in KINDS.items() for label in labels
        ),
        total=24,
        readers=tuple(
            ReaderProgress(reader=reader, done=24 - 4 * place, verdicts=24, last=WHEN)
            for place, reader in enumerate(READERS)
        ),
        created=WHEN,
        closed=WHEN,
    )
