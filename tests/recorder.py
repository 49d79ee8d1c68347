"""A TCP proxy before a real server, which keeps every byte that passes, and finds the messages of gRPC in them."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEADER = 9
_DATA = 0


class Recorder:
    """Forwards connections from a free port of the loopback address to a server.

    Attributes
    ----------
    address
        HOST:PORT to connect to.
    """

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        # Of each connection what the client sent, then what the server did.
        self._connections: list[tuple[bytearray, bytearray]] = []
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.address = ""

    def __enter__(self) -> "Recorder":
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(timeout=10)

    def content(self) -> bytes:
        """Everything that passed, as it passed: frames cut what is long into pieces, and lie between them."""
        return b"".join(part for connection in self._connections for part in connection)

    def messages(self) -> list[bytes]:
        """Every message of gRPC that passed, whole; AssertionError where one is compressed."""
        streams: dict[tuple[int, int, int], bytearray] = defaultdict(bytearray)
        for number, connection in enumerate(self._connections):
            for side, content in enumerate(connection):
                for stream, payload in _data_frames(bytes(content).removeprefix(_PREFACE)):
                    streams[number, side, stream] += payload
        return [message for content in streams.values() for message in _messages(bytes(content))]

    def _run(self) -> None:
        # A runner ends what is under way when it is left.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._ended.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, answered = bytearray(), bytearray()
        self._connections.append((sent, answered))
        there, back = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(_pass(reader, back, sent), _pass(there, writer, answered))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    try:
        while piece := await reader.read(1 << 16):
            kept += piece
            writer.write(piece)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def _data_frames(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give stream and payload of every DATA frame (RFC 9113, 4.1 and 6.1)."""
    while len(content) >= _FRAME_HEADER:
        length, kind = int.from_bytes(content[:3]), content[3]
        if kind == _DATA:
            assert not content[4] & 0x8, "gRPC pads nothing"
            yield int.from_bytes(content[5:9]) & 0x7FFFFFFF, content[_FRAME_HEADER : _FRAME_HEADER + length]
        content = content[_FRAME_HEADER + length :]


def _messages(content: bytes) -> Iterator[bytes]:
    """Give the messages of a stream, each after its flag and its length (gRPC over HTTP2)."""
    while content:
        assert content[0] == 0, "a compressed message hides what is in it"
        length = int.from_bytes(content[1:5])
        yield content[5 : 5 + length]
        content = content[5 + length :]
