"""A stream of images that outlives its server: what was not answered is sent again, to whichever server is next.

To score twice is as good as once. The second stream names the version that answered the first, and must be answered by
the same artifact; the roll-ups of the whole are then made here, since each server has seen a part of it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from limner.channel import Patience
from limner.errors import WrongStateError
from limner.roll_up import RollUp
from limner.v1 import common_pb2, feature_pb2, inference_pb2

if TYPE_CHECKING:
    from limner.types import Model

Parcel = list[common_pb2.Image]
Reply = inference_pb2.PredictStreamResponse | feature_pb2.ExtractFeaturesStreamResponse

_IN_VAIN = 4
"""Streams in a row that begin and are lost before they answer an image: one of the images may be what ends them."""


class _Delivery:
    """What was sent and not answered, and what is known of the answers.

    Parameters
    ----------
    model
        As the caller names it.

    Attributes
    ----------
    model
        That the next stream has to name: with the version, once one has answered.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._digest = ""
        self._streams = 0
        self._in_vain = 0
        self._patience = Patience()
        self._roll_up = RollUp()
        self._images = self._failed = 0
        self._waiting: deque[Parcel] = deque()
        self._first = 0  # number of the first parcel that waits
        self._changed = threading.Lock()

    def note(self, reply: Reply) -> None:
        """Take note of an answer; WrongStateError where another artifact goes on with the stream."""
        if reply.HasField("start"):
            self._begun(reply.start.model)
        if isinstance(reply, inference_pb2.PredictStreamResponse):
            for result in reply.results:
                found = result.prediction if result.HasField("prediction") else None
                self._failed += found is None
                self._roll_up.add(result.subject, found and found.logits, far=bool(found and found.distance.far))
            self._answered(len(reply.results))
        else:
            self._answered(int(reply.HasField("result")))

    def again(self) -> bool:
        """Whether to go on elsewhere after the stream was lost."""
        return not self._patience.exhausted() and self._in_vain < _IN_VAIN

    @property
    def resumed(self) -> bool:
        """Whether more than one stream has begun."""
        return self._streams > 1

    def mend(self, end: inference_pb2.PredictStreamEnd, model: "Model") -> None:
        """Have the end of the last stream tell of all streams."""
        from limner.scoring.run import run_model

        known = run_model(model)
        del end.subjects[:]
        end.images, end.failed = self._images, self._failed
        for one in self._roll_up.results(known.labels, temperature=known.temperature, threshold=known.threshold):
            subject = end.subjects.add(subject=one.subject, images=one.images, failed=one.failed, far=one.far)
            if one.prediction is not None:
                scores = one.prediction
                subject.prediction.MergeFrom(
                    common_pb2.Prediction(label=scores.label, probabilities=scores.probabilities, logits=scores.logits)
                )

    def _begun(self, model: common_pb2.ModelIdentity) -> None:
        if self._digest and model.digest != self._digest:
            raise WrongStateError(f"model {self.model} was replaced: its digest is now {model.digest}")
        if not self._streams:
            self._patience.renew()
        self._digest, self.model = model.digest, f"{model.name}:{model.version}"
        self._streams += 1
        self._in_vain += 1

    def _answered(self, images: int) -> None:
        if not images:
            return
        self._patience.renew()
        self._in_vain = 0
        self._images += images
        with self._changed:
            while images and self._waiting:
                answered = min(images, len(self._waiting[0]))
                del self._waiting[0][:answered]
                images -= answered
                if not self._waiting[0]:
                    self._waiting.popleft()
                    self._first += 1

    def _at(self, number: int) -> Parcel | None:
        """Return what is left of a parcel; None where it was not read yet."""
        with self._changed:
            place = number - self._first
            return list(self._waiting[place]) if place < len(self._waiting) else None

    def _add(self, parcel: Parcel) -> None:
        with self._changed:
            self._waiting.append(parcel)


class Delivery(_Delivery):
    """As `_Delivery`, of parcels that gRPC's threads ask for."""

    def __init__(self, model: str, parcels: Iterator[Parcel]) -> None:
        super().__init__(model)
        self._source = parcels
        self._reading = threading.Lock()
        self._turn = 0

    def parcels(self) -> Iterator[Parcel]:
        """Give what waits and then the rest, for the next stream; that of the one before comes to its end."""
        self._turn += 1
        turn, number = self._turn, self._first
        while turn == self._turn:
            parcel = self._at(number)
            if parcel is not None:
                yield parcel
                number += 1
            elif not self._read(number):
                return

    def _read(self, number: int) -> bool:
        """Read a parcel from the source, where the stream before has not done so meanwhile; False at its end."""
        with self._reading:
            if self._at(number) is not None:
                return True
            parcel = next(self._source, None)
            if parcel is not None:
                self._add(parcel)
            return parcel is not None


class AsyncDelivery(_Delivery):
    """As `_Delivery`, for asyncio."""

    def __init__(self, model: str, parcels: AsyncIterator[Parcel]) -> None:
        super().__init__(model)
        self._source = parcels
        self._read: asyncio.Task[bool] | None = None
        self._turn = 0

    async def parcels(self) -> AsyncIterator[Parcel]:
        """As `Delivery.parcels`."""
        self._turn += 1
        turn, number = self._turn, self._first
        while turn == self._turn:
            parcel = self._at(number)
            if parcel is not None:
                yield parcel
                number += 1
                continue
            # gRPC cancels who waits here when a stream is lost; what is being read then is not to be lost with it.
            if self._read is None or self._read.done():
                self._read = asyncio.create_task(self._read_one())
            if not await asyncio.shield(self._read):
                return

    async def _read_one(self) -> bool:
        parcel = await anext(self._source, None)
        if parcel is not None:
            self._add(parcel)
        return parcel is not None

    def close(self) -> None:
        """Read no further."""
        if self._read is not None:
            self._read.cancel()
