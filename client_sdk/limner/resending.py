"""What a stream sends, call after call: where a server is lost or leaves, the next one gets what was not answered.

The thread, or task, that sends for a lost call may still wait for the caller's next image. What that brings goes to the
call that is under way by then; what has been answered, to none.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from limner.images import Ledger, together
from limner.v1 import common_pb2

Parcel = list[common_pb2.Image]


class _Calls:
    """What the two forms share: which call is under way, and what a lost one has left behind."""

    def __init__(self, ledger: Ledger[Any]) -> None:
        self._ledger = ledger
        self._call = 0
        self._left: deque[Parcel] = deque()

    def _begin(self) -> tuple[int, Iterator[Parcel], int]:
        """Return the number of a new call, what it has to send again, and the position of the last image of that."""
        self._call += 1
        unanswered = self._ledger.unanswered()
        return self._call, together(unanswered), int(unanswered[-1].id) if unanswered else -1

    def _keep(self, call: int, parcel: Parcel | None) -> bool:
        """Leave a parcel to the call that is under way, if that is another one by now."""
        if call == self._call:
            return False
        if parcel is not None:
            self._left.append(parcel)
        return True


class Sending(_Calls):
    """The parcels of images that a ledger gives, for as many calls as it takes.

    Parameters
    ----------
    ledger
        Follows what is answered.
    parcels
        What it gives.
    """

    def __init__(self, ledger: Ledger[Any], parcels: Iterator[Parcel]) -> None:
        super().__init__(ledger)
        self._parcels = parcels
        self._reading = threading.Lock()

    def new_call(self) -> Iterator[Parcel]:
        """Return what another call has to send: what is not answered first."""
        return self._send(*self._begin())

    def _send(self, call: int, again: Iterator[Parcel], last: int) -> Iterator[Parcel]:
        yield from again
        while True:
            with self._reading:
                if call != self._call:
                    return
                parcel = self._left.popleft() if self._left else next(self._parcels, None)
                if self._keep(call, parcel) or parcel is None:
                    return
            if fresh := _after(last, parcel):
                yield fresh


class AsyncSending(_Calls):
    """As `Sending`, for asyncio."""

    def __init__(self, ledger: Ledger[Any], parcels: AsyncIterator[Parcel]) -> None:
        super().__init__(ledger)
        self._parcels = parcels
        self._reading = asyncio.Lock()

    def new_call(self) -> AsyncGenerator[Parcel, None]:
        """Return what another call has to send: what is not answered first."""
        return self._send(*self._begin())

    async def _send(self, call: int, again: Iterator[Parcel], last: int) -> AsyncGenerator[Parcel, None]:
        for parcel in again:
            yield parcel
        while True:
            async with self._reading:
                if call != self._call:
                    return
                found = self._left.popleft() if self._left else await anext(self._parcels, None)
                if self._keep(call, found) or found is None:
                    return
            if fresh := _after(last, found):
                yield fresh


def _after(last: int, parcel: Parcel) -> Parcel:
    """Return the images of a parcel that come after a position: it may have been half read when its call was lost."""
    return parcel if int(parcel[0].id) > last else [image for image in parcel if int(image.id) > last]
