"""The calls of blinded readings: `client.readings`, of both clients. docs/reading.md tells how a study is run."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from limner import review_wire as wire
from limner import types
from limner.v1 import review_pb2

if TYPE_CHECKING:
    from limner.v1.review_pb2_grpc import ReviewServiceAsyncStub, ReviewServiceStub


class Readings:
    """Readings: made, watched, read, closed, and what came of them. Errors are those of `limner.Client`."""

    def __init__(self, stub: "ReviewServiceStub", call: Callable[[Any, Any], Any]) -> None:
        self._stub = stub
        self._call = call

    def create(
        self,
        title: str,
        model: str,
        cohort: str,
        readers: Sequence[str],
        *,
        simulations: Sequence[types.SimulationQuestion | types.SimulationResult] = (),
        real: int | None = None,
        resampled: int = 0,
        randomised: int = 0,
        class_means: bool = False,
        label: str = "",
        question: str = "",
        lexicon: Sequence[types.LexiconEntry] = (),
        seed: int | None = None,
    ) -> types.NewReading:
        """Make a reading, and the tokens of its readers, which are told this once.

        Parameters
        ----------
        title
            What readers see at the top; it must not tell what the images are.
        readers
            Their names; "model" is taken.
        simulations
            Finished ones whose images are read: results of `simulate`, or the questions that they answer.
        real
            Slices of each label, one of each subject first; default 10.
        resampled
            Images of bootstrap resamples for each label and simulation.
        randomised
            Control: images of randomised networks, likewise. Both want a simulation with checks.
        class_means
            Control: whether to add the mean image of each label.
        label
            Whose likelihood is asked; default the class of interest.
        question
            Default "How likely is LABEL?".
        lexicon
            The features asked for; default those of a report on T2-weighted MRI of the cervix.
        seed
            Of the choice of slices and of the readers' orders; default random. It is recorded.
        """
        request = wire.create(
            title,
            model,
            cohort,
            readers,
            simulations=simulations,
            real=real,
            resampled=resampled,
            randomised=randomised,
            class_means=class_means,
            label=label,
            question=question,
            lexicon=lexicon,
            seed=seed,
        )
        return wire.new_reading(self._call(self._stub.CreateReading, request))

    def list(self) -> tuple[types.Reading, ...]:
        """Return all readings, newest first."""
        return wire.readings(self._call(self._stub.ListReadings, review_pb2.ListReadingsRequest()))

    def get(self, reading: str) -> types.Reading:
        """Return one reading, with how far each reader is."""
        return wire.reading(self._call(self._stub.GetReading, review_pb2.GetReadingRequest(id=reading)))

    def issue_token(self, reading: str, reader: str) -> types.ReaderToken:
        """Make a new token for a reader, whose old one ends, or take a new reader in."""
        request = review_pb2.IssueTokenRequest(id=reading, reader=reader)
        return wire.token(self._call(self._stub.IssueToken, request))

    def close(self, reading: str) -> types.Reading:
        """End a reading for all its readers; its results are told from now on."""
        return wire.reading(self._call(self._stub.CloseReading, review_pb2.CloseReadingRequest(id=reading)))

    def agreement(self, reading: str, *, resamples: int = 0, seed: int = 0) -> types.Agreement:
        """Return how far readers and model agree; a `WrongStateError` before the reading is closed.

        Parameters
        ----------
        resamples
            Of the bootstrap, 100 to 10,000; default 2,000.
        seed
            Of the bootstrap.
        """
        request = review_pb2.GetAgreementRequest(id=reading, resamples=resamples, seed=seed)
        return wire.agreement(self._call(self._stub.GetAgreement, request))

    def export(self, reading: str, *, images: bool = False) -> types.ReadingExport:
        """Return every image with what it is, and every verdict; a `WrongStateError` before the reading is closed."""
        request = review_pb2.ExportReadingRequest(id=reading, include_images=images)
        return wire.export(self._call(self._stub.ExportReading, request))

    def open(self, token: str) -> types.ReadingForm:
        """For a reader: what is asked, and how far they are; a `NotFoundError` where nobody has the token."""
        return wire.form(self._call(self._stub.OpenReading, review_pb2.OpenReadingRequest(token=token)))

    def case(self, token: str, position: int = 0) -> types.Case | None:
        """For a reader: a case by its place; by default the first that they have not judged, None where all are."""
        request = review_pb2.NextCaseRequest(token=token, position=position)
        return wire.case(self._call(self._stub.NextCase, request))

    def submit(self, token: str, verdict: types.ReaderVerdict) -> types.Receipt:
        """For a reader: hand in a verdict; the same one may be handed in again after a lost answer."""
        request = review_pb2.SubmitVerdictRequest(token=token, verdict=wire.verdict_message(verdict))
        return wire.receipt(self._call(self._stub.SubmitVerdict, request))


class AsyncReadings:
    """As `Readings`, awaited."""

    def __init__(self, stub: "ReviewServiceAsyncStub", call: Callable[[Any, Any], Awaitable[Any]]) -> None:
        self._stub = stub
        self._call = call

    async def create(
        self,
        title: str,
        model: str,
        cohort: str,
        readers: Sequence[str],
        *,
        simulations: Sequence[types.SimulationQuestion | types.SimulationResult] = (),
        real: int | None = None,
        resampled: int = 0,
        randomised: int = 0,
        class_means: bool = False,
        label: str = "",
        question: str = "",
        lexicon: Sequence[types.LexiconEntry] = (),
        seed: int | None = None,
    ) -> types.NewReading:
        """As `Readings.create`."""
        request = wire.create(
            title,
            model,
            cohort,
            readers,
            simulations=simulations,
            real=real,
            resampled=resampled,
            randomised=randomised,
            class_means=class_means,
            label=label,
            question=question,
            lexicon=lexicon,
            seed=seed,
        )
        return wire.new_reading(await self._call(self._stub.CreateReading, request))

    async def list(self) -> tuple[types.Reading, ...]:
        """As `Readings.list`."""
        return wire.readings(await self._call(self._stub.ListReadings, review_pb2.ListReadingsRequest()))

    async def get(self, reading: str) -> types.Reading:
        """As `Readings.get`."""
        return wire.reading(await self._call(self._stub.GetReading, review_pb2.GetReadingRequest(id=reading)))

    async def issue_token(self, reading: str, reader: str) -> types.ReaderToken:
        """As `Readings.issue_token`."""
        request = review_pb2.IssueTokenRequest(id=reading, reader=reader)
        return wire.token(await self._call(self._stub.IssueToken, request))

    async def close(self, reading: str) -> types.Reading:
        """As `Readings.close`."""
        return wire.reading(await self._call(self._stub.CloseReading, review_pb2.CloseReadingRequest(id=reading)))

    async def agreement(self, reading: str, *, resamples: int = 0, seed: int = 0) -> types.Agreement:
        """As `Readings.agreement`."""
        request = review_pb2.GetAgreementRequest(id=reading, resamples=resamples, seed=seed)
        return wire.agreement(await self._call(self._stub.GetAgreement, request))

    async def export(self, reading: str, *, images: bool = False) -> types.ReadingExport:
        """As `Readings.export`."""
        request = review_pb2.ExportReadingRequest(id=reading, include_images=images)
        return wire.export(await self._call(self._stub.ExportReading, request))

    async def open(self, token: str) -> types.ReadingForm:
        """As `Readings.open`."""
        return wire.form(await self._call(self._stub.OpenReading, review_pb2.OpenReadingRequest(token=token)))

    async def case(self, token: str, position: int = 0) -> types.Case | None:
        """As `Readings.case`."""
        request = review_pb2.NextCaseRequest(token=token, position=position)
        return wire.case(await self._call(self._stub.NextCase, request))

    async def submit(self, token: str, verdict: types.ReaderVerdict) -> types.Receipt:
        """As `Readings.submit`."""
        request = review_pb2.SubmitVerdictRequest(token=token, verdict=wire.verdict_message(verdict))
        return wire.receipt(await self._call(self._stub.SubmitVerdict, request))
