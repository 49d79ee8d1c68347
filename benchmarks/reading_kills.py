"""`python -m benchmarks.reading_kills`: a scripted reading through twenty random kills of the server.

Not a measurement: it ends with an error unless every verdict that was handed in is there once, as it was given.
"""

import random
import threading
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from limner import Client
from limner.errors import DeadlineError, UnavailableError
from limner.types import ReaderVerdict
from tests.live import LiveServer
from tests.reading import study

_PATIENCE_S = 240.0
_CALL_S = 5.0


def main(
    kills: Annotated[int, typer.Option(min=1, help="Of the server.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill, start again, and count."""
    with TemporaryDirectory() as name:
        server = study.start(Path(name))
        try:
            given, repeated = read_through_kills(server, kills, seed)
        finally:
            server.stop()
    print(f"{given} verdicts through {kills} kills: each is there once, as it was given; {repeated} were sent again")


def read_through_kills(server: LiveServer, kills: int, seed: int) -> tuple[int, int]:
    """Read, again and again, while the server is killed; return how many verdicts there are and how many were repeated.

    A thread kills the server a random moment after a verdict has been begun, most of them in the middle of one, and
    starts it again. A verdict without an answer is sent again under its id, as the page does.
    """
    moments = random.Random(seed)  # noqa: S311
    with Client(server.address) as client, Client(server.address, timeout=_CALL_S) as reader:
        made = study.create(client, ("ann",))
        token = made.tokens[0].token
        form = client.readings.open(token)
        given: dict[str, ReaderVerdict] = {}
        repeated = 0
        for number in range(kills):
            killer = threading.Thread(target=_kill, args=(server, moments.uniform(0, 0.04)))
            for place in range(1, made.reading.total + 1):
                verdict = _verdict(form.cases[place - 1], moments)
                if place == 1 + number % made.reading.total:
                    killer.start()
                given[verdict.id] = verdict
                repeated += _hand_in(reader, token, verdict)
            killer.join()
        client.readings.close(made.reading.id)
        kept = [one.verdict for one in client.readings.export(made.reading.id).verdicts]
    assert [verdict.id for verdict in kept] == list(given), "verdicts are lost, doubled or out of order"
    assert {verdict.id: verdict for verdict in kept} == given, "a verdict is not as it was given"
    return len(kept), repeated


def _kill(server: LiveServer, after_s: float) -> None:
    time.sleep(after_s)
    server.kill()
    server.start(server.address.rpartition(":")[2])


def _hand_in(client: Client, token: str, verdict: ReaderVerdict) -> bool:
    """Send until there is an answer; return whether it was there already."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.readings.submit(token, verdict).repeated
        except (UnavailableError, DeadlineError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _verdict(case: str, moments: random.Random) -> ReaderVerdict:
    return ReaderVerdict(
        id=uuid.UUID(int=moments.getrandbits(128)).hex,
        case=case,
        likelihood=moments.randrange(101),
        realism=moments.randint(1, 5),
        confidence=moments.randint(1, 5),
        features={"margin": moments.choice(("well defined", "ill defined"))},
        comment=f"number {moments.randrange(10**6)}",
        seconds=moments.randrange(600) / 10,
    )


if __name__ == "__main__":
    typer.run(main)
