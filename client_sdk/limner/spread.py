"""One channel over those of several servers, synchronous and asynchronous: each call goes to the next that is ready.

gRPC itself says which are: the channel of a server is ready where it is connected and its health service says that it
is serving. A call whose server is lost goes to another one where it may be made twice (`limner.channel.repeatable`),
to each of them once at most; a stream never does, since who reads it has to know what was answered.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import count
from typing import Any, Self

import grpc
from grpc import aio

from limner.channel import repeatable

WAIT_S = 2.0
"""How long a call waits for a server that is ready, before it tries one that is not."""

_READY = grpc.ChannelConnectivity.READY


class _Turns:
    """Whose turn it is."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._calls = count()

    def next(self, ready: Collection[int], tried: Collection[int]) -> int:
        """Return the next of those that are ready and were not tried; where there is none, of those not tried."""
        rest = [one for one in range(self._servers) if one not in tried]
        among = [one for one in rest if one in ready] or rest
        return among[next(self._calls) % len(among)]


class _Attempts:
    """The servers that one call was sent to, and the time it has left, by gRPC's arguments."""

    def __init__(self, most: int, timeout: float | None, wait_for_ready: bool | None) -> None:
        self.tried: set[int] = set()
        self._most = most
        longest = WAIT_S if timeout is None else timeout if wait_for_ready else min(WAIT_S, timeout)
        self._patience = time.monotonic() + longest
        self._deadline = None if timeout is None else time.monotonic() + timeout

    @property
    def wait_s(self) -> float:
        """How long to wait for a server that is ready; may be below 0."""
        return self._patience - time.monotonic()

    @property
    def left_s(self) -> float | None:
        """What is left of its timeout."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def ended_by(self, error: grpc.RpcError) -> bool:
        """Whether an error is the call's: its server was not lost, or there is none to go to."""
        lost = isinstance(error, grpc.Call | aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
        return not lost or len(self.tried) >= self._most


class _Streams:
    """What opens streams: each at the server whose turn it is."""

    _channels: Sequence[Any]

    def choose(self) -> int:
        raise NotImplementedError

    def _one(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        calls = [getattr(channel, kind)(method, *args, **kwargs) for channel in self._channels]
        return lambda *what, **how: calls[self.choose()](*what, **how)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return the method, of the server whose turn it is at each call."""
        return self._one("unary_stream", method, *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `unary_stream`."""
        return self._one("stream_unary", method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `unary_stream`."""
        return self._one("stream_stream", method, *args, **kwargs)


class Spread(_Streams, grpc.Channel):
    """A channel over several.

    Parameters
    ----------
    channels
        Of a server each, made for `limner.channel.Role.MEMBER`; closed with this one.
    """

    def __init__(self, channels: Sequence[grpc.Channel]) -> None:
        self._channels = channels
        self._turns = _Turns(len(channels))
        self._ready: set[int] = set()
        self._changed = threading.Condition()
        for index, channel in enumerate(channels):
            channel.subscribe(partial(self._note, index), try_to_connect=True)

    def _note(self, index: int, state: grpc.ChannelConnectivity) -> None:
        with self._changed:
            (self._ready.add if state is _READY else self._ready.discard)(index)
            self._changed.notify_all()

    def choose(self, tried: Collection[int] = (), wait_s: float = WAIT_S) -> int:
        """Return the number of the next server that is ready; where none is within `wait_s`, of the next one."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready.difference(tried), wait_s)
            return self._turns.next(self._ready, tried)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return the method, repeated at another server where that is safe."""
        calls = [channel.unary_unary(method, *args, **kwargs) for channel in self._channels]
        return partial(self._call, calls, len(calls) if repeatable(method) else 1)

    def _call(
        self,
        calls: Sequence[Callable[..., Any]],
        most: int,
        request: Any,
        timeout: float | None = None,
        wait_for_ready: bool | None = None,
        **how: Any,
    ) -> Any:
        attempts = _Attempts(most, timeout, wait_for_ready)
        while True:
            attempts.tried.add(chosen := self.choose(attempts.tried, attempts.wait_s))
            try:
                return calls[chosen](request, timeout=attempts.left_s, wait_for_ready=wait_for_ready, **how)
            except grpc.RpcError as error:
                if attempts.ended_by(error):
                    raise

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """Not of any use here: each server has a state of its own."""
        raise NotImplementedError

    def unsubscribe(self, callback: Any) -> None:
        """As `subscribe`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSpread(_Streams, aio.Channel):
    """As `Spread`, for asyncio.

    What it opens streams with does not wait: `wait_ready` has to be awaited before.
    """

    def __init__(self, channels: Sequence[aio.Channel]) -> None:
        self._channels = channels
        self._turns = _Turns(len(channels))

    def _ready(self) -> set[int]:
        return {i for i, channel in enumerate(self._channels) if channel.get_state(try_to_connect=True) is _READY}

    async def wait_ready(self, tried: Collection[int] = (), wait_s: float = WAIT_S) -> None:
        """Wait until a server is ready that was not tried, `wait_s` at most."""
        if self._ready().difference(tried):
            return
        rest = [channel for index, channel in enumerate(self._channels) if index not in tried]
        waits = [asyncio.ensure_future(channel.channel_ready()) for channel in rest]
        await asyncio.wait(waits, timeout=max(wait_s, 0), return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def choose(self, tried: Collection[int] = ()) -> int:
        """Return the number of the next server that is ready; where none is, of the next one."""
        return self._turns.next(self._ready(), tried)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """As `Spread.unary_unary`."""
        calls = [channel.unary_unary(method, *args, **kwargs) for channel in self._channels]
        return partial(self._call, calls, len(calls) if repeatable(method) else 1)

    async def _call(
        self,
        calls: Sequence[Callable[..., Any]],
        most: int,
        request: Any,
        timeout: float | None = None,  # noqa: ASYNC109  gRPC's own name
        wait_for_ready: bool | None = None,
        **how: Any,
    ) -> Any:
        attempts = _Attempts(most, timeout, wait_for_ready)
        while True:
            await self.wait_ready(attempts.tried, attempts.wait_s)
            attempts.tried.add(chosen := self.choose(attempts.tried))
            try:
                return await calls[chosen](request, timeout=attempts.left_s, wait_for_ready=wait_for_ready, **how)
            except grpc.RpcError as error:
                if attempts.ended_by(error):
                    raise

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Not of any use here: each server has a state of its own."""
        raise NotImplementedError

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As `get_state`."""
        raise NotImplementedError

    async def channel_ready(self) -> None:
        """As `get_state`."""
        raise NotImplementedError

    async def close(self, grace: float | None = None) -> None:
        """Close all."""
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
