"""rolling: two servers on one state are restarted in turns, while SDK clients score, stream, import and train.

Every call has to succeed: the clients know both addresses, and what a server leaves unanswered they ask the other one.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.cohorts import noise_plan
from benchmarks.harness import PAIRS, Result
from benchmarks.models import publish_untrained, random_slices
from limner import Client
from limner.errors import LimnerError
from limner.imaging.phantom import write_phantom
from limner.types import JobState
from tests.e2e.phantoms import QUICK, import_phantom
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

NAME = "rolling"
SUMMARY = "SDK calls that succeed / all, while two servers are restarted in turns under load"

_SIZE = 64
_STREAM = 200
_MODEL = "rolling"


@dataclass(frozen=True)
class Plan:
    """How often each of the two servers is restarted, and for how many seconds both serve between two restarts."""

    restarts: int = 5
    pause_s: float = 3.0


PLAN = Plan()


@dataclass
class Outcome:
    """How many calls of each kind succeeded, and what the others raised."""

    succeeded: Counter[str]
    failed: list[str]


def run(pairs: int = PAIRS, plan: Plan = PLAN) -> Result:
    """Make one run, whatever `pairs`."""
    with TemporaryDirectory() as folder:
        outcome = roll(Path(folder), plan)
    for failure in outcome.failed:
        print(f"{NAME}: {failure}")
    succeeded = sum(outcome.succeeded.values())
    figures = {name.replace(" ", "_"): float(number) for name, number in outcome.succeeded.items()}
    figures |= {"restarts": 2 * plan.restarts, "failed": len(outcome.failed)}
    share = succeeded / (succeeded + len(outcome.failed))
    return Result(NAME, "calls that succeed / all", 1.0, False, (share,), figures)


def roll(folder: Path, plan: Plan) -> Outcome:
    """Restart two servers below `folder` in turns, under load from one client for each kind of call."""
    publish_untrained(folder / "model_repository", _MODEL, size=_SIZE)
    write_phantom(folder / "phantom", subjects=6, seed=3)
    outcome, ended = Outcome(Counter(), []), threading.Event()
    servers = [LiveServer(folder, port=free_port(), threads=1, load=_MODEL) for _ in range(2)]
    for server in servers:
        server.start()
    both = ",".join(server.address for server in servers)
    with Client(both) as client:
        import_phantom(client, folder / "phantom", "trained", bytes(32))
    threads = [threading.Thread(target=_keep, args=(both, outcome, ended, *each)) for each in _KINDS.items()]
    for thread in threads:
        thread.start()
    try:
        for server in servers * plan.restarts:
            time.sleep(plan.pause_s)
            if status := server.stop():
                outcome.failed.append(f"a server ended with status {status}")
            server.start()
        time.sleep(plan.pause_s)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        for server in servers:
            server.stop()
    return outcome


def _keep(
    servers: str, outcome: Outcome, ended: threading.Event, kind: str, call: Callable[[Client, int], None]
) -> None:
    """Make calls of one kind, which all have to succeed."""
    with Client(servers) as client:
        number = 0
        while not ended.is_set():
            number += 1
            try:
                call(client, number)
                outcome.succeeded[kind] += 1
            except (LimnerError, AssertionError) as error:
                outcome.failed.append(f"{kind} {number}: {error!r}")


def _predict(client: Client, _number: int) -> None:
    results = client.predict(_MODEL, random_slices(4, _SIZE)).results
    assert all(result.ok for result in results), [result.error for result in results]


def _stream(client: Client, _number: int) -> None:
    results = list(client.predict_stream(_MODEL, list(random_slices(_STREAM, _SIZE))))
    assert [result.id for result in results] == [str(number) for number in range(_STREAM)]
    assert all(result.ok for result in results), [result.error for result in results if result.error]


def _import(client: Client, number: int) -> None:
    plan = noise_plan(60, 64, seed=number)
    result = client.import_cohort(f"imported-{number}", plan)
    assert (result.added, result.unchanged, result.rejected) == (60, 0, ()), result
    assert set(client.cohort(f"imported-{number}", instances=True).instances) == {one.instance for one in plan.slices}


def _train(client: Client, number: int) -> None:
    state = client.train("trained", f"trained-{number}", QUICK)
    assert state.state is JobState.SUCCEEDED, state.error


_KINDS: dict[str, Callable[[Client, int], None]] = {
    "predictions": _predict,
    "streams": _stream,
    "imports": _import,
    "trainings": _train,
}
