"""The bounded, ordered window of every bidirectional stream."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner_server.errors import InvalidInputError
from limner_server.rpc.streams import answer_in_order, opening


async def stream(*items: int) -> AsyncIterator[int]:
    for item in items:
        yield item


@given(waits=st.lists(st.integers(0, 3), max_size=12), window=st.integers(1, 5))
def test_answers_keep_the_order_and_the_window(waits: list[int], window: int) -> None:
    at_work = most = 0

    async def answer(index: int) -> int:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        for _ in range(waits[index]):
            await asyncio.sleep(0)
        at_work -= 1
        return index

    async def tell() -> list[int]:
        groups = [replies async for replies in answer_in_order(stream(*range(len(waits))), answer, window)]
        assert all(groups)
        return [reply for replies in groups for reply in replies]

    assert asyncio.run(tell()) == list(range(len(waits)))
    assert most <= window


def test_when_the_caller_goes_away_what_is_under_way_is_cancelled() -> None:
    cancelled: list[int] = []

    async def answer(index: int) -> int:
        try:
            await asyncio.sleep(0 if index == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return index

    async def tell() -> None:
        replies = answer_in_order(stream(0, 1, 2, 3), answer, window=3)
        assert await anext(replies) == [0]
        await asyncio.sleep(0.01)
        await replies.aclose()
        await asyncio.sleep(0.01)

    asyncio.run(tell())
    assert cancelled == [1, 2]


def test_an_error_of_the_reading_reaches_the_caller() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 0
        raise InvalidInputError("item", "x", "y")

    async def answer(index: int) -> int:
        return index

    async def tell() -> list[list[int]]:
        return [replies async for replies in answer_in_order(broken(), answer, window=2)]

    with pytest.raises(InvalidInputError, match="item"):
        asyncio.run(tell())


def test_an_empty_stream_lacks_its_header() -> None:
    with pytest.raises(InvalidInputError, match="a header"):
        asyncio.run(opening(stream()))  # type: ignore[type-var]
