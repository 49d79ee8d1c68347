"""The servers of one client: one address, a name that stands for several, or a list of them.

An address is gRPC's own business, and so is a name, "dns:///host:port": it looks the name up again when a server is
lost, goes round those that serve, and repeats elsewhere what may be repeated. Of a list each server has a channel of
its own, since one channel holds the certificates of all its addresses against one host; `limner.spread` goes round
them by the same rules.
"""

import socket
from collections.abc import Sequence

import grpc
from grpc import aio

from limner.channel import Role
from limner.endpoint import Endpoint, Tls, split
from limner.errors import InvalidInputError, LimnerError, UnavailableError, from_rpc
from limner.spread import AsyncSpread, Spread
from limner.token import Token

_NAME = "dns:"
EXPECTED = '"host:port", several of them as a list or with commas between, or "dns:///host:port"'


def addresses(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses that are given as one text, with commas between, or as a list.

    Raises
    ------
    InvalidInputError
        Where there is none, one is empty or there twice, or a name lacks its host or port.
    """
    parts = given.split(",") if isinstance(given, str) else list(given)
    found = [part.strip() for part in parts]
    wrong = [] if found and all(found) else [f"{given!r}"]
    wrong += [f"{one!r} twice" for one in found if found.count(one) > 1]
    wrong += [f"{one!r}" for one in found if one.startswith(_NAME) and not _is_whole(one)]
    if wrong:
        raise InvalidInputError(f"address is {wrong[0]}; expected {EXPECTED}", field="address", expected=EXPECTED)
    return tuple(found)


class Servers:
    """Where the calls of a client go.

    Parameters
    ----------
    address
        "host:port", "dns:///host:port", or several of them as a list or with commas between.
    tls, token, tracing
        Of each of them, as `Endpoint` takes them.
    """

    def __init__(
        self, address: str | Sequence[str], tls: Tls | None, token: Token | None = None, tracing: bool = False
    ) -> None:
        self._addresses = addresses(address)

        def endpoint(one: str, role: Role, host: str = "") -> Endpoint:
            return Endpoint(one, tls, token, tracing, role, host)

        self._endpoint = endpoint  # a closure, so that the token is in nothing that can be shown
        role = Role.MEMBER if len(self._addresses) > 1 else Role.ALONE
        self._endpoints = [endpoint(one, Role.NAME if one.startswith(_NAME) else role) for one in self._addresses]
        self._resolved: dict[str, Endpoint] = {}
        self.address = ", ".join(self._addresses)

    def open(self) -> grpc.Channel:
        """Return a channel to them; nothing is sent yet."""
        channels = [endpoint.open() for endpoint in self._endpoints]
        return channels[0] if len(channels) == 1 else Spread(channels)

    def open_async(self) -> aio.Channel:
        """Return a channel for asyncio; nothing is sent yet."""
        channels = [endpoint.open_async() for endpoint in self._endpoints]
        return channels[0] if len(channels) == 1 else AsyncSpread(channels)

    @property
    def changing(self) -> bool:
        """Whether there is a name among them, whose addresses may be others later."""
        return any(one.startswith(_NAME) for one in self._addresses)

    def each(self) -> list[Endpoint]:
        """Return every single server, with names looked up now.

        Raises
        ------
        UnavailableError
            A name stands for nothing.
        """
        if not self.changing:
            return self._endpoints
        found: dict[str, Endpoint] = {}
        for one in self._addresses:
            host, port = split(one)
            resolved = _looked_up(host, port) if one.startswith(_NAME) else [one]
            for address in resolved:
                known = self._resolved.get(address)
                found[address] = known or self._endpoint(address, Role.MEMBER, host)
        self._resolved = found
        return list(found.values())

    def explain(self, error: grpc.RpcError, call: str = "") -> LimnerError:
        """Translate what a call raised; where it reached no server, looks at what is there, for seconds at most."""
        translated = from_rpc(error, self.address, call)
        if isinstance(translated, UnavailableError) and not translated.request_id and (obstacle := self._obstacle()):
            return UnavailableError(f"no Limner server answers at {self.address}: {obstacle}")
        return translated

    def not_ready(self, waited_s: float) -> UnavailableError:
        """Return the error of having waited for nothing; looks at the servers as `explain` does."""
        obstacle = self._obstacle()
        reason = f": {obstacle}" if obstacle else ""
        return UnavailableError(f"no Limner server is ready at {self.address} after {waited_s:g} s{reason}")

    def _obstacle(self) -> str:
        """Return what of TLS stands between here and a server, empty where it is something else."""
        for endpoint in self._endpoints:
            if obstacle := endpoint.obstacle():
                return obstacle if len(self._endpoints) == 1 else f"{endpoint.address}: {obstacle}"
        return ""


def _is_whole(name: str) -> bool:
    try:
        host, port = split(name)
    except ValueError:
        return False
    return bool(host) and 0 < port < 2**16


def _looked_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"{host} cannot be looked up: {error.strerror or error}") from error
    # Of IPv6 the address has four parts.
    return [f"[{at[0]}]:{port}" if family == socket.AF_INET6 else f"{at[0]}:{port}" for family, *_, at in found]
