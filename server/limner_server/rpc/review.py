"""ReviewService: blinded readings made, read, closed, and what came of them."""

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
from scipy.special import softmax

from limner.v1 import common_pb2, review_pb2, review_pb2_grpc, simulation_pb2
from limner_server.access.principal import caller_name
from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.executor.engine import Item
from limner_server.executor.executor import Places
from limner_server.networks.card import ModelCard
from limner_server.review.agreement import steps
from limner_server.review.gather import Candidate, FinishedSimulation, ItemKind, Mixture, blind, gather
from limner_server.review.lexicon import LexiconEntry, check_features, check_lexicon
from limner_server.review.summary import figures, groups, rate
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.ownership import check_reading
from limner_server.rpc.streams import answer_all
from limner_server.rpc.wire import timestamp
from limner_server.serving import ModelPool
from limner_server.state.cohorts import CohortSnapshot, CohortStore
from limner_server.state.reviews import (
    Definition,
    NewVerdict,
    Reader,
    Reading,
    ReadingItem,
    ReviewStore,
    StoredVerdict,
    check_readers,
    counting,
)

REAL_PER_LABEL = 10
RESAMPLES = 2_000
MAX_COMMENT = 4_000
DAY_S = 86_400

_VERDICT_ID = re.compile(r"[A-Za-z0-9-]{8,64}")

FindSimulation = Callable[[simulation_pb2.SimulateRequest], Awaitable[FinishedSimulation]]


class ReviewService(review_pb2_grpc.ReviewServiceServicer):
    """Translates between the wire, the images of a reading and the store.

    `find_simulation` finds the result of a simulation by its question.
    """

    def __init__(
        self, reviews: ReviewStore, models: ModelPool, cohorts: CohortStore, find_simulation: FindSimulation
    ) -> None:
        self._reviews = reviews
        self._models = models
        self._cohorts = cohorts
        self._find_simulation = find_simulation

    async def CreateReading(
        self, request: review_pb2.CreateReadingRequest, context: RpcContext
    ) -> review_pb2.CreateReadingResponse:
        """Gather the images, have the model judge them, and keep both before the tokens are told."""
        version = await self._models.resolve(request.model.name, request.model.version)
        card = await asyncio.to_thread(self._models.repository.card, version.name, version.number)
        snapshot = await asyncio.to_thread(self._cohorts.snapshot, request.cohort)
        definition, mixture = _definition(request, version.number, card, snapshot)
        simulations = [await self._simulation(one, request, card) for one in request.simulations]
        found = await asyncio.to_thread(gather, snapshot, card.grid, simulations, mixture, definition.seed)
        items = await self._judged(found, version.name, version.number, card)
        images = await asyncio.to_thread(lambda: blind(np.stack([one.image for one in found])))
        reading, tokens = await asyncio.to_thread(
            self._reviews.create, definition, items, images, list(request.readers)
        )
        return review_pb2.CreateReadingResponse(
            reading=await self._message(reading),
            tokens=[
                review_pb2.ReaderToken(reader=reader, token=token)
                for reader, token in zip(request.readers, tokens, strict=True)
            ],
        )

    async def GetReading(self, request: review_pb2.GetReadingRequest, context: RpcContext) -> review_pb2.Reading:
        """Return one reading."""
        return await self._message(await asyncio.to_thread(self._reviews.get, request.id))

    async def ListReadings(
        self, request: review_pb2.ListReadingsRequest, context: RpcContext
    ) -> review_pb2.ListReadingsResponse:
        """Return all readings."""
        found = await asyncio.to_thread(self._reviews.all)
        return review_pb2.ListReadingsResponse(readings=[await self._message(reading) for reading in found])

    async def IssueToken(self, request: review_pb2.IssueTokenRequest, context: RpcContext) -> review_pb2.ReaderToken:
        """Give a reader a new token."""
        check_reading(await asyncio.to_thread(self._reviews.get, request.id))
        token = await asyncio.to_thread(self._reviews.issue_token, request.id, request.reader)
        return review_pb2.ReaderToken(reader=request.reader, token=token)

    async def CloseReading(self, request: review_pb2.CloseReadingRequest, context: RpcContext) -> review_pb2.Reading:
        """Close a reading."""
        check_reading(await asyncio.to_thread(self._reviews.get, request.id))
        return await self._message(await asyncio.to_thread(self._reviews.close, request.id))

    async def OpenReading(self, request: review_pb2.OpenReadingRequest, context: RpcContext) -> review_pb2.ReadingForm:
        """Tell a reader what is asked."""
        reading, reader = await asyncio.to_thread(self._reviews.reader, request.token)
        done = await asyncio.to_thread(self._reviews.done, reader)
        asked = reading.definition
        return review_pb2.ReadingForm(
            title=asked.title,
            question=asked.question,
            lexicon=_lexicon(asked),
            reader=reader.name,
            size=asked.size,
            spacing_mm=asked.fov_mm / asked.size,
            cases=[reading.case_id(reader, item) for item in reader.order],
            done=[place for place, item in enumerate(reader.order, start=1) if item in done],
            closed=reading.closed is not None,
        )

    async def NextCase(self, request: review_pb2.NextCaseRequest, context: RpcContext) -> review_pb2.NextCaseResponse:
        """Give a reader an image: whatever it is, the same steps and the same number of bytes."""
        reading, reader = await asyncio.to_thread(self._reviews.reader, request.token)
        done = await asyncio.to_thread(self._reviews.done, reader)
        response = review_pb2.NextCaseResponse(done=len(done), total=len(reader.order))
        position = request.position or _first_open(reader, done)
        if position > len(reader.order):
            raise InvalidInputError("position", position, f"1 to {len(reader.order)}")
        if position:
            item = reader.order[position - 1]
            response.case.CopyFrom(await asyncio.to_thread(self._case, reading, reader, position, item))
        return response

    async def SubmitVerdict(
        self, request: review_pb2.SubmitVerdictRequest, context: RpcContext
    ) -> review_pb2.SubmitVerdictResponse:
        """Keep a verdict; it is on the disk when this returns."""
        reading, reader = await asyncio.to_thread(self._reviews.reader, request.token)
        verdict = _new_verdict(reading, reader, request.verdict)
        added = await asyncio.to_thread(self._reviews.add, reader, verdict)
        done = await asyncio.to_thread(self._reviews.done, reader)
        return review_pb2.SubmitVerdictResponse(
            id=verdict.id, repeated=not added, done=len(done), total=len(reader.order)
        )

    async def GetAgreement(self, request: review_pb2.GetAgreementRequest, context: RpcContext) -> review_pb2.Agreement:
        """Compute how far readers and model agree."""
        reading = await self._closed(request.id)
        resamples = request.resamples or RESAMPLES
        if not 100 <= resamples <= 10_000:
            raise InvalidInputError("resamples", resamples, "100 to 10,000")
        items = await asyncio.to_thread(self._reviews.items, reading.id)
        verdicts = await asyncio.to_thread(self._reviews.verdicts, reading.id)
        if not verdicts:
            raise WrongStateError(f"reading {reading.id} was closed without a verdict")

        asked = reading.definition

        def compute() -> review_pb2.Agreement:
            ratings = rate(items, asked.labels, asked.label, verdicts, resamples, request.seed)
            return review_pb2.Agreement(
                figures=[review_pb2.AgreementFigure(**figure._asdict()) for figure in figures(ratings)],
                groups=[
                    review_pb2.GroupSummary(**{**group._asdict(), "kind": _kind(group.kind)})
                    for group in groups(ratings)
                ],
                resamples=resamples,
                seed=request.seed,
            )

        agreement = await asyncio.to_thread(compute)
        agreement.reading.CopyFrom(await self._message(reading))
        return agreement

    async def ExportReading(
        self, request: review_pb2.ExportReadingRequest, context: RpcContext
    ) -> review_pb2.ExportReadingResponse:
        """Return everything of a closed reading."""
        reading = await self._closed(request.id)
        check_reading(reading)
        items = await asyncio.to_thread(self._reviews.items, reading.id)
        verdicts = await asyncio.to_thread(self._reviews.verdicts, reading.id)
        pixels = [b""] * len(items)
        if request.include_images:
            pixels = await asyncio.to_thread(
                lambda: [self._reviews.image(reading.id, number) for number in range(len(items))]
            )
        return review_pb2.ExportReadingResponse(
            reading=await self._message(reading),
            items=[_item(number, item, pixels[number]) for number, item in enumerate(items)],
            verdicts=_recorded(reading, verdicts),
        )

    async def _simulation(
        self, wanted: simulation_pb2.SimulateRequest, request: review_pb2.CreateReadingRequest, card: ModelCard
    ) -> FinishedSimulation:
        """Find a simulation, whose model and cohort default to the reading's."""
        question = simulation_pb2.SimulateRequest()
        question.model.CopyFrom(request.model)
        question.cohort = request.cohort
        question.MergeFrom(wanted)
        found = await self._find_simulation(question)
        if found.source.grid != card.grid or len(found.outcome.images) != len(card.labels):
            raise InvalidInputError("simulations", question.cohort, f"one on the model's grid, {card.grid}")
        return found

    async def _judged(self, found: list[Candidate], name: str, number: int, card: ModelCard) -> list[ReadingItem]:
        """Have the model judge each image as Predict does; of slices it was trained on, its card knows better."""
        model = await self._models.acquire(name, str(number))
        held_out = {
            one.instance: tuple(softmax(np.array(one.logits) / card.calibration.temperature).tolist())
            for subject in card.out_of_fold
            for one in subject.slices
        }

        async def predict(one: Candidate, places: Places) -> tuple[float, ...]:
            with model.statistics.request() as counted:
                counted.read()
                output = await model.run(Item(one.image), places=places)
                counted.answered(output)
                return tuple(output.arrays["probabilities"].tolist())

        # A reading is made of all its images or not at all, so it is refused before the first of them is judged.
        with model.admitted(sum(one.instance not in held_out for one in found)) as places:

            async def judge(one: Candidate) -> ReadingItem:
                known = held_out.get(one.instance)
                return ReadingItem(
                    one.kind,
                    one.label,
                    one.subject,
                    one.instance,
                    one.simulation,
                    one.verdict,
                    known or await predict(one, places),
                    out_of_fold=known is not None,
                )

            return await answer_all(found, judge, model.executor.window)

    async def _closed(self, reading_id: str) -> Reading:
        reading = await asyncio.to_thread(self._reviews.get, reading_id)
        if reading.closed is None:
            raise WrongStateError(f"reading {reading.id} is open: what its images are is told once it is closed")
        return reading

    def _case(self, reading: Reading, reader: Reader, position: int, item: int) -> review_pb2.Case:
        asked = reading.definition
        case = review_pb2.Case(
            id=reading.case_id(reader, item),
            position=position,
            pixels=self._reviews.image(reading.id, item),
            size=asked.size,
            spacing_mm=asked.fov_mm / asked.size,
        )
        given = self._reviews.verdicts(reading.id, reader.name, item)
        if given:
            case.verdict.CopyFrom(_verdict(given[-1].verdict, case.id))
            case.verdict.id = ""
        return case

    async def _message(self, reading: Reading) -> review_pb2.Reading:
        return await asyncio.to_thread(partial(_reading, reading, self._reviews))


def _definition(
    request: review_pb2.CreateReadingRequest, version: int, card: ModelCard, snapshot: CohortSnapshot
) -> tuple[Definition, Mixture]:
    """Check a request and fill in every default."""
    if snapshot.labels != card.labels:
        raise InvalidInputError("cohort", list(snapshot.labels), f"the model's labels, {list(card.labels)}")
    check_readers(list(request.readers))
    _check_length("title", request.title, 120)
    label = request.label or card.labels[-1]
    if label not in card.labels:
        raise InvalidInputError("label", label, f"one of {', '.join(card.labels)}")
    question = request.question or f"How likely is {label}?"
    _check_length("question", question, 300)
    for field, most in (("real_per_label", 200), ("resampled_per_label", 100), ("randomised_per_label", 100)):
        if getattr(request, field) > most:
            raise InvalidInputError(field, getattr(request, field), f"0 to {most}")
    if len(request.simulations) > 16:
        raise InvalidInputError("simulations", f"{len(request.simulations)} of them", "at most 16")
    lexicon = check_lexicon([LexiconEntry(entry.name, tuple(entry.options)) for entry in request.lexicon])
    definition = Definition(
        title=request.title,
        question=question,
        label=label,
        labels=card.labels,
        lexicon=lexicon,
        model=card.name,
        version=version,
        digest=card.digest,
        cohort=snapshot.name,
        cohort_digest=snapshot.digest,
        seed=request.seed if request.HasField("seed") else secrets.randbits(32),
        fov_mm=card.grid.fov_mm,
        size=card.grid.size,
        secret=secrets.token_hex(16),
        owner=caller_name(),
    )
    real = request.real_per_label if request.HasField("real_per_label") else REAL_PER_LABEL
    return definition, Mixture(real, request.resampled_per_label, request.randomised_per_label, request.class_means)


def _check_length(field: str, text: str, most: int) -> None:
    if not 1 <= len(text.strip()) <= most:
        raise InvalidInputError(field, text, f"1 to {most} characters")


def _first_open(reader: Reader, done: set[int]) -> int:
    """Place of the first case without a verdict, from 1; 0 where there is none."""
    return next((place for place, item in enumerate(reader.order, start=1) if item not in done), 0)


def _new_verdict(reading: Reading, reader: Reader, message: review_pb2.ReaderVerdict) -> NewVerdict:
    if not _VERDICT_ID.fullmatch(message.id):
        raise InvalidInputError("verdict.id", message.id, "8 to 64 letters, digits and '-'")
    items = {reading.case_id(reader, item): item for item in reader.order}
    if message.case not in items:
        raise InvalidInputError("verdict.case", message.case, "a case of this reader")
    for field, low, high in (("likelihood", 0, 100), ("realism", 1, 5), ("confidence", 1, 5), ("seconds", 0, DAY_S)):
        if not low <= getattr(message, field) <= high:
            raise InvalidInputError(f"verdict.{field}", getattr(message, field), f"{low} to {high:,}")
    if len(message.comment) > MAX_COMMENT:
        raise InvalidInputError("verdict.comment", message.comment, f"at most {MAX_COMMENT:,} characters")
    check_features(message.features, [LexiconEntry(*entry) for entry in reading.definition.lexicon])
    return NewVerdict(
        message.id,
        items[message.case],
        message.likelihood,
        message.realism,
        message.confidence,
        dict(message.features),
        message.comment,
        message.seconds,
    )


def _verdict(verdict: NewVerdict, case: str) -> review_pb2.ReaderVerdict:
    fields = {name: value for name, value in vars(verdict).items() if name != "item"}
    return review_pb2.ReaderVerdict(case=case, **fields)


def _reading(reading: Reading, reviews: ReviewStore) -> review_pb2.Reading:
    """Describe a reading; nothing in it tells which image is which."""
    asked = reading.definition
    items = reviews.items(reading.id)
    counts = Counter((item.kind, item.label) for item in items)
    message = review_pb2.Reading(
        id=reading.id,
        title=asked.title,
        question=asked.question,
        label=asked.label,
        labels=asked.labels,
        lexicon=_lexicon(asked),
        model=common_pb2.ModelIdentity(name=asked.model, version=str(asked.version), digest=asked.digest),
        cohort=asked.cohort,
        cohort_digest=asked.cohort_digest,
        seed=asked.seed,
        grid=common_pb2.Grid(fov_mm=asked.fov_mm, size=asked.size),
        items=[
            review_pb2.ItemCount(kind=_kind(kind), label=label, images=images)
            for (kind, label), images in counts.items()
        ],
        total=len(items),
        created=timestamp(reading.created),
        closed=timestamp(reading.closed) if reading.closed else None,
    )
    verdicts = reviews.verdicts(reading.id)
    for reader in reading.readers:
        mine = [stored for stored in verdicts if stored.reader == reader.name]
        message.readers.add(
            reader=reader.name,
            done=len({stored.verdict.item for stored in mine}),
            verdicts=len(mine),
            last=timestamp(mine[-1].received) if mine else None,
        )
    return message


def _lexicon(asked: Definition) -> list[review_pb2.LexiconEntry]:
    return [review_pb2.LexiconEntry(name=name, options=options) for name, options in asked.lexicon]


def _item(number: int, item: ReadingItem, pixels: bytes) -> review_pb2.ReadingItem:
    return review_pb2.ReadingItem(
        number=number,
        kind=_kind(item.kind),
        label=item.label,
        subject=item.subject,
        instance=item.instance,
        simulation=item.simulation,
        simulation_verdict=simulation_pb2.Verdict.Value(f"VERDICT_{item.verdict or 'UNSPECIFIED'}"),
        probabilities=item.probabilities,
        out_of_fold=item.out_of_fold,
        pixels=pixels,
    )


def _recorded(reading: Reading, verdicts: list[StoredVerdict]) -> list[review_pb2.RecordedVerdict]:
    readers = {reader.name: reader for reader in reading.readers}
    last = {stored.sequence for stored in counting(verdicts).values()}
    return [
        review_pb2.RecordedVerdict(
            sequence=stored.sequence,
            reader=stored.reader,
            item=stored.verdict.item,
            position=readers[stored.reader].order.index(stored.verdict.item) + 1,
            verdict=_verdict(stored.verdict, reading.case_id(readers[stored.reader], stored.verdict.item)),
            step=int(steps(np.array(stored.verdict.likelihood))),
            counts=stored.sequence in last,
            received=timestamp(stored.received),
        )
        for stored in verdicts
    ]


def _kind(kind: str) -> review_pb2.ItemKind.ValueType:
    return review_pb2.ItemKind.Value(f"ITEM_KIND_{ItemKind(kind)}")
