"""A second port for probes: grpc.health.v1 and nothing else, in the clear, since Kubernetes' probes speak no TLS."""

import logging

from grpc import aio
from grpc_health.v1 import health_pb2_grpc

_MAX_MESSAGE_BYTES = 4096
_log = logging.getLogger(__name__)


class ProbePort:
    """The port. Belongs to the event loop's thread.

    Parameters
    ----------
    health
        What the other port answers with too.
    place
        "host:port"; port 0 takes a free one, which the log tells.
    shared
        Whether several workers listen on it.
    """

    def __init__(self, health: health_pb2_grpc.HealthServicer, place: str, *, shared: bool) -> None:
        self._place = place
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", int(shared)),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)

    async def open(self) -> None:
        """Listen. OSError if the port cannot be had."""
        try:
            port = self._server.add_insecure_port(self._place)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._place}: the port is taken or the address not here") from error
        await self._server.start()
        _log.info("health is answered in the clear on %s:%d", self._place.rpartition(":")[0], port)

    async def close(self) -> None:
        """Stop listening, and end every watch."""
        await self._server.stop(None)
