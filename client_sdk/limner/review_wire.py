"""Readings on the wire: arguments of the SDK as messages of `review.proto`, and its replies as `limner.types`."""

from collections.abc import Sequence

from limner import types
from limner.requests import model_spec, simulate
from limner.v1 import review_pb2, simulation_pb2
from limner.wire import enum, grid, identity, time


def create(
    title: str,
    model: str,
    cohort: str,
    readers: Sequence[str],
    *,
    simulations: Sequence[types.SimulationQuestion | types.SimulationResult],
    real: int | None,
    resampled: int,
    randomised: int,
    class_means: bool,
    label: str,
    question: str,
    lexicon: Sequence[types.LexiconEntry],
    seed: int | None,
) -> review_pb2.CreateReadingRequest:
    """Translate a new reading."""
    return review_pb2.CreateReadingRequest(
        title=title,
        model=model_spec(model),
        cohort=cohort,
        simulations=map(_question, simulations),
        real_per_label=real,
        resampled_per_label=resampled,
        randomised_per_label=randomised,
        class_means=class_means,
        readers=readers,
        label=label,
        question=question,
        lexicon=[review_pb2.LexiconEntry(name=entry.name, options=entry.options) for entry in lexicon],
        seed=seed,
    )


def _question(one: types.SimulationQuestion | types.SimulationResult) -> simulation_pb2.SimulateRequest:
    asked = types.SimulationQuestion.of(one) if isinstance(one, types.SimulationResult) else one
    return simulate(
        asked.model, asked.cohort, method=asked.method, steps=asked.steps, seed=asked.seed, checks=asked.checks
    )


def verdict_message(verdict: types.ReaderVerdict) -> review_pb2.ReaderVerdict:
    """Translate a verdict for the way out."""
    return review_pb2.ReaderVerdict(**verdict.model_dump())


def reading(message: review_pb2.Reading) -> types.Reading:
    """Translate a reading."""
    return types.Reading(
        id=message.id,
        title=message.title,
        question=message.question,
        label=message.label,
        labels=tuple(message.labels),
        lexicon=_lexicon(message.lexicon),
        model=identity(message.model),
        cohort=message.cohort,
        cohort_digest=message.cohort_digest,
        seed=message.seed,
        grid=grid(message.grid),
        items=tuple(types.ItemCount(kind=_kind(one.kind), label=one.label, images=one.images) for one in message.items),
        total=message.total,
        readers=tuple(
            types.ReaderProgress(
                reader=one.reader,
                done=one.done,
                verdicts=one.verdicts,
                last=time(one.last) if one.HasField("last") else None,
            )
            for one in message.readers
        ),
        created=time(message.created),
        closed=time(message.closed) if message.HasField("closed") else None,
    )


def readings(message: review_pb2.ListReadingsResponse) -> tuple[types.Reading, ...]:
    """Translate a list of readings."""
    return tuple(map(reading, message.readings))


def new_reading(message: review_pb2.CreateReadingResponse) -> types.NewReading:
    """Translate a reading that was made."""
    return types.NewReading(reading=reading(message.reading), tokens=tuple(map(token, message.tokens)))


def token(message: review_pb2.ReaderToken) -> types.ReaderToken:
    """Translate a token."""
    return types.ReaderToken(reader=message.reader, token=message.token)


def form(message: review_pb2.ReadingForm) -> types.ReadingForm:
    """Translate a reading as a reader sees it."""
    return types.ReadingForm(
        title=message.title,
        question=message.question,
        lexicon=_lexicon(message.lexicon),
        reader=message.reader,
        size=message.size,
        spacing_mm=message.spacing_mm,
        cases=tuple(message.cases),
        done=tuple(message.done),
        closed=message.closed,
    )


def case(message: review_pb2.NextCaseResponse) -> types.Case | None:
    """Translate a case; None where all are done."""
    if not message.HasField("case"):
        return None
    found = message.case
    return types.Case(
        id=found.id,
        position=found.position,
        pixels=found.pixels,
        size=found.size,
        spacing_mm=found.spacing_mm,
        verdict=_verdict(found.verdict) if found.HasField("verdict") else None,
    )


def receipt(message: review_pb2.SubmitVerdictResponse) -> types.Receipt:
    """Translate that a verdict is kept."""
    return types.Receipt(id=message.id, repeated=message.repeated, done=message.done, total=message.total)


def agreement(message: review_pb2.Agreement) -> types.Agreement:
    """Translate the agreement."""
    return types.Agreement(
        reading=reading(message.reading),
        figures=tuple(
            types.AgreementFigure(
                name=one.name,
                first=one.first,
                second=one.second,
                value=one.value,
                low=one.low,
                high=one.high,
                cases=one.cases,
                readers=one.readers,
                resampled=one.resampled,
            )
            for one in message.figures
        ),
        groups=tuple(
            types.GroupSummary(
                reader=one.reader,
                kind=_kind(one.kind),
                label=one.label,
                cases=one.cases,
                likelihood=one.likelihood,
                realism=one.realism,
            )
            for one in message.groups
        ),
        resamples=message.resamples,
        seed=message.seed,
    )


def export(message: review_pb2.ExportReadingResponse) -> types.ReadingExport:
    """Translate everything of a reading."""
    return types.ReadingExport(
        reading=reading(message.reading),
        items=tuple(map(_item, message.items)),
        verdicts=tuple(
            types.RecordedVerdict(
                sequence=one.sequence,
                reader=one.reader,
                item=one.item,
                position=one.position,
                verdict=_verdict(one.verdict),
                step=one.step,
                counts=one.counts,
                received=time(one.received),
            )
            for one in message.verdicts
        ),
    )


def _item(item: review_pb2.ReadingItem) -> types.ReadingItem:
    called = item.simulation_verdict
    return types.ReadingItem(
        number=item.number,
        kind=_kind(item.kind),
        label=item.label,
        subject=item.subject,
        instance=item.instance,
        simulation=item.simulation if item.HasField("simulation") else None,
        simulation_verdict=enum(types.Verdict, simulation_pb2.Verdict, called) if called else None,
        probabilities=tuple(item.probabilities),
        out_of_fold=item.out_of_fold,
        pixels=item.pixels,
    )


def _verdict(message: review_pb2.ReaderVerdict) -> types.ReaderVerdict:
    return types.ReaderVerdict(
        id=message.id,
        case=message.case,
        likelihood=message.likelihood,
        realism=message.realism,
        confidence=message.confidence,
        features=dict(message.features),
        comment=message.comment,
        seconds=message.seconds,
    )


def _lexicon(entries: Sequence[review_pb2.LexiconEntry]) -> tuple[types.LexiconEntry, ...]:
    return tuple(types.LexiconEntry(name=entry.name, options=tuple(entry.options)) for entry in entries)


def _kind(number: int) -> types.ItemKind:
    return enum(types.ItemKind, review_pb2.ItemKind, number)
