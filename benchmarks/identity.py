"""W5: what SDK, wire, server and executor cost where the model costs nothing, over gRPC with nothing around it."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
from grpc import aio

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import publish_identity
from limner import Client
from tests.live import LiveServer

NAME = "W5"
SUMMARY = "stream of 224x224 uint16 through an identity model / gRPC of the same bytes to an empty handler"

_BAR = 0.8
_SIZE = 224
_SLICES = 2000
_SERVICE, _METHOD = "benchmarks.Empty", "Stream"


def run(pairs: int = PAIRS) -> Result:
    """Stream as many images through Limner, as their bare bytes to an empty handler one by one, and 16 to a message.

    The reference of the ratio sends an image in a message, as any client would that knows of nothing but gRPC.
    """
    slices = list(np.random.default_rng(0).integers(0, 4000, (_SLICES, _SIZE, _SIZE)).astype(np.uint16))
    contents = [each.tobytes() for each in slices]
    together = [b"".join(contents[first : first + 16]) for first in range(0, _SLICES, 16)]
    with TemporaryDirectory() as folder, _empty_server() as address:
        model = publish_identity(Path(folder) / "model_repository", NAME, _SIZE)
        with (
            LiveServer(Path(folder), threads=0) as server,
            Client(server.address) as client,
            grpc.insecure_channel(address, [("grpc.max_send_message_length", -1)]) as channel,
        ):
            client.wait_ready()
            client.load_model(model.name)
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")

            def stream() -> float:
                started = time.perf_counter()
                results = list(client.predict_stream(model.name, slices))
                elapsed = time.perf_counter() - started
                assert len(results) == _SLICES
                assert all(result.ok for result in results)
                return _SLICES / elapsed

            def bare(messages: Iterable[bytes]) -> float:
                started = time.perf_counter()
                for _ in call(iter(messages)):
                    pass
                return _SLICES / (time.perf_counter() - started)

            found = interleaved(stream, lambda: bare(contents), pairs)
            several = statistics.median(bare(together) for _ in range(pairs))
    figures = {
        "ours_images_per_s": statistics.median(found.ours),
        "reference_images_per_s": statistics.median(found.reference),
        "reference_16_a_message_images_per_s": several,
    }
    return Result(NAME, "images/s of the stream / messages/s of the empty handler", _BAR, False, found.ratios, figures)


@contextmanager
def _empty_server() -> Iterator[str]:
    """Address of an empty handler in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.identity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def _serve_empty() -> None:
    """Answer every message with nothing, on a free port that is printed."""

    async def handle(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield b""

    server = aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers: dict[str, Any] = {_METHOD: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve_empty())
