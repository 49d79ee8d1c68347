"""server-kills: a server is killed (SIGKILL) at random moments while it imports, trains, scores and promotes.

After each kill, with nobody there, its database and folders are read as they lie: whatever was acknowledged is in them,
and what is in them is whole. In the end every training that was acknowledged has published one version.
"""

import hashlib
import json
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.cohorts import noise_plan
from benchmarks.harness import PAIRS, Result
from benchmarks.models import publish_untrained, random_slices
from limner import Client
from limner.errors import LimnerError, UnavailableError
from limner.imaging.phantom import write_phantom
from limner.types import JobState
from tests.e2e.phantoms import QUICK, import_phantom
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

NAME = "server-kills"
SUMMARY = "kills after which state is whole and all that was acknowledged is there / all (50 under load)"

_MODEL, _SIZE, _IMPORTED = "kills", 32, 40
_TRAINING = QUICK.model_copy(update={"epochs": 2})
_IMAGES = random_slices(4, _SIZE)


@dataclass(frozen=True)
class Plan:
    """How many kills, for how many seconds the server serves before each at most, and the seed of the moments."""

    kills: int = 50
    longest_s: float = 6.0
    seed: int = 0


PLAN = Plan()


@dataclass
class Acknowledged:
    """What the server has said is done, and what it may have done without having said so."""

    imported: dict[str, int] = field(default_factory=dict)
    trainings: list[str] = field(default_factory=list)
    alias: str = ""
    asked: set[str] = field(default_factory=set)
    """Where the alias may be: where it was acknowledged last, and where it was asked to since without an answer."""
    logits: set[tuple[float, ...]] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held where it is written to and where what is there is compared with it."""


@dataclass(frozen=True)
class Outcome:
    """What the callers saw, and for each kill what was wrong with what it left."""

    acknowledged: Acknowledged
    kills: tuple[tuple[str, ...], ...]

    @property
    def faults(self) -> list[str]:
        """All that was wrong."""
        return [*self.acknowledged.faults, *(fault for faults in self.kills for fault in faults)]


def run(pairs: int = PAIRS, plan: Plan = PLAN) -> Result:
    """Make one run, whatever `pairs`."""
    with TemporaryDirectory() as folder:
        outcome = kill_run(Path(folder), plan)
    for fault in outcome.faults:
        print(f"{NAME}: {fault}")
    whole = sum(not faults for faults in outcome.kills) - bool(outcome.acknowledged.faults)
    done = outcome.acknowledged
    figures = {f"{kind}_acknowledged": float(number) for kind, number in done.calls.items()}
    figures |= {f"{kind}_cut": float(number) for kind, number in done.lost.items()}
    figures |= {"kills": len(outcome.kills), "faults": len(outcome.faults)}
    return Result(NAME, "kills that left all whole / all", 1.0, False, (whole / len(outcome.kills),), figures)


def kill_run(folder: Path, plan: Plan) -> Outcome:
    """Kill a server below `folder` as planned, under load."""
    chance = random.Random(plan.seed)  # noqa: S311 - of the moments
    done, ended = Acknowledged(), threading.Event()
    write_phantom(folder / "phantom", subjects=4, seed=3)
    published = publish_untrained(folder / "model_repository", _MODEL, size=_SIZE).path.parent
    shutil.copytree(published, published.with_name("2"))
    with LiveServer(folder, port=free_port(), load=_MODEL) as server:
        with Client(server.address) as client:
            import_phantom(client, folder / "phantom", "trained", bytes(32))
        loads = [threading.Thread(target=_keep, args=(server, done, ended, *each)) for each in _KINDS.items()]
        for load in loads:
            load.start()
        kills = []
        try:
            for _ in range(plan.kills):
                time.sleep(chance.uniform(0.05, plan.longest_s))
                server.kill()
                with done.lock:
                    kills.append(tuple(_faults(folder, done)))
                server.start()
        finally:
            ended.set()
            for load in loads:
                load.join()
        done.faults.extend(_end(server, done))
        status = server.stop()
    done.faults.extend([f"the server ended with status {status}"] if status else [])
    kills[-1] = (*kills[-1], *_faults(folder, done))
    return Outcome(done, tuple(kills))


def _keep(
    server: LiveServer,
    done: Acknowledged,
    ended: threading.Event,
    kind: str,
    call: Callable[[Client, Acknowledged, int], None],
) -> None:
    """Make calls of one kind; what a kill cuts is made again, anything else is a fault."""
    with Client(server.address, timeout=30) as client:
        number = 0
        while not ended.is_set():
            number += 1
            try:
                call(client, done, number)
                done.calls[kind] += 1
            except UnavailableError:
                done.lost[kind] += 1
                time.sleep(0.1)
            except (LimnerError, AssertionError) as error:
                done.faults.append(f"{kind}: {error!r}")


def _import(client: Client, done: Acknowledged, number: int) -> None:
    name = f"imported-{number}"
    result = client.import_cohort(name, noise_plan(_IMPORTED, 32, seed=number))
    assert (result.added + result.unchanged, result.rejected) == (_IMPORTED, ()), result
    with done.lock:
        done.imported[name] = _IMPORTED


def _train(client: Client, done: Acknowledged, number: int) -> None:
    training = client.start_training("trained", "trained", _TRAINING)
    with done.lock:
        done.trainings.append(training.id)
    *_, last = client.watch_training(training.id)
    assert last.state is JobState.SUCCEEDED, last.error


def _score(client: Client, done: Acknowledged, number: int) -> None:
    results = client.predict(f"{_MODEL}:1", _IMAGES).results
    for result in results:
        assert result.prediction is not None, result.error
        done.logits.add((int(result.id), *np.round(result.prediction.logits, 3).tolist()))


def _promote(client: Client, done: Acknowledged, number: int) -> None:
    version = str(number % 2 + 1)
    with done.lock:
        done.asked.add(version)
    client.promote_model(f"{_MODEL}:{version}")
    with done.lock:
        done.alias, done.asked = version, {version}


_KINDS: dict[str, Callable[[Client, Acknowledged, int], None]] = {
    "imports": _import,
    "trainings": _train,
    "scorings": _score,
    "promotions": _promote,
}


def _end(server: LiveServer, done: Acknowledged) -> Iterator[str]:
    """What is not as it has to be once everything that was begun has ended."""
    with Client(server.address) as client:
        client.wait_ready()
        # All that there are: one whose answer was cut has begun, too, and what asked for it has started another.
        trainings = client.trainings()
        for training in trainings:
            *_, last = client.watch_training(training.id)
            if last.state is not JobState.SUCCEEDED:
                yield f"training {training.id} {last.state}: {last.error}"
        published = [model for model in client.models() if model.identity.name == "trained"]
    if len(published) != len(trainings):
        yield f"{len(published)} versions of {len(trainings)} trainings"
    if len(done.logits) > len(_IMAGES):
        yield f"{len(_IMAGES)} images had {len(done.logits)} different scores"


def _faults(folder: Path, done: Acknowledged) -> Iterator[str]:
    """What is wrong with database and folders as they lie."""
    with closing(sqlite3.connect(folder / "data/limner.sqlite")) as database:
        (sound,) = database.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            yield f"the database is damaged: {sound}"
        rows = database.execute("SELECT cohort, instance, pixels_sha256 FROM slices").fetchall()
        jobs = {job for (job,) in database.execute("SELECT id FROM jobs")}
        aliases = dict(database.execute("SELECT model, version FROM aliases").fetchall())
    for cohort, instance, digest in rows:
        if _sha256(folder / "data/cohorts" / cohort / f"{instance}.npy") != digest:
            yield f"slice {instance} of {cohort} has a row and not its pixels"
    there = Counter(cohort for cohort, _, _ in rows)
    for cohort, slices in done.imported.items():
        if there[cohort] != slices:
            yield f"{slices} slices of {cohort} were acknowledged, and {there[cohort]} are there"
    for training in {*done.trainings} - jobs:
        yield f"training {training} was acknowledged and is not there"
    if done.alias and (found := aliases.get(_MODEL)) not in done.asked:
        yield f"the alias was acknowledged at {done.alias}, may be at {sorted(done.asked)}, and is at {found}"
    yield from _damaged_models(folder / "model_repository")


def _damaged_models(repository: Path) -> Iterator[str]:
    for version in repository.glob("*/[0-9]*"):
        card = json.loads((version / "card.json").read_bytes())
        if _sha256(version / "model.pt") != card["digest"]:
            yield f"version {version.name} of {version.parent.name} is not what its card says"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "none"
