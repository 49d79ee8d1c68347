"""The door's guard, on a real gRPC server."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
from grpc import aio
from grpc._cython import cygrpc

from limner.channel import channel_options
from limner_server.door import Door, server_options
from limner_server.rpc.interceptor import Continuation, ErrorInterceptor, Handler, RpcContext
from limner_server.settings import Settings

SERVED, MADE_UP = "/a.Service/Method", "/a.Service/Other"


class Asked(aio.ServerInterceptor):
    """Counts how often it is asked for a method's handler."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        self.times[handler_call_details.method] += 1
        return await continuation(handler_call_details)


def test_grpc_knows_every_option_by_its_name() -> None:
    # What it does not know it ignores, and quiet streams ended after some pings ('too_many_pings').
    core = Path(cygrpc.__file__).read_bytes()
    options = [*server_options(Settings(port=0)), *channel_options()]
    assert [name for name, _ in options if name.encode() + b"\0" not in core] == []


async def echo(request: bytes, _context: RpcContext) -> bytes:
    return request


def test_interceptors_are_asked_once_for_a_method_that_is_served_and_nothing_else_is_kept() -> None:
    async def calls() -> None:
        door, asked = Door(Settings(port=0)), Asked()
        handlers = {SERVED.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(echo)}
        door.services.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", handlers),))
        port = await door.listen()
        try:
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                served, made_up = channel.unary_unary(SERVED), channel.unary_unary(MADE_UP)
                assert await code(served) is grpc.StatusCode.UNAVAILABLE, "it is starting"
                door.open([asked, ErrorInterceptor()])
                for number in range(3):
                    call = served(b"%d" % number)
                    assert await call == b"%d" % number
                    assert "limner-request-id" in dict(await call.trailing_metadata())
                    assert await code(made_up) is grpc.StatusCode.UNIMPLEMENTED
        finally:
            await door.shut()
        assert asked.times == {SERVED: 1, MADE_UP: 3}

    asyncio.run(calls())


async def code(method: aio.UnaryUnaryMultiCallable[bytes, bytes]) -> grpc.StatusCode | None:
    try:
        await method(b"")
    except aio.AioRpcError as error:
        return error.code()
    return None
