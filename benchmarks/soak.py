"""soak: an hour of everything at once on one server: scoring, streams, explaining, training, cancelling, bad input.

What must not grow is looked at in its second half: resident memory, threads, descriptors, and the files on the disk. Of
these a job that has succeeded may leave its folder, with what it logged. The load deletes the cohorts and models that
it makes, and what it is importing at the moment is not counted.
"""

import itertools
import os
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks.cohorts import noise_plan
from benchmarks.harness import PAIRS, Result
from benchmarks.models import publish_untrained, random_slices
from limner import Client
from limner.errors import InvalidInputError, LimnerError, NotFoundError
from limner.imaging.phantom import write_phantom
from limner.types import FeatureOptions, ItemResult, JobState
from tests.e2e.phantoms import QUICK, import_phantom
from tests.live import LiveServer

NAME = "soak"
SUMMARY = "resident memory in the last fifth of an hour of mixed load / in the third fifth"

_MODEL, _RELOADED, _SIZE = "soak", "reloaded", 64
_IMPORTED = "short-lived"
_SPENT = ("networks", "staging")
_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """For how many seconds, and how often it is looked at what is used."""

    seconds: float = 3600.0
    sample_s: float = 1.0


PLAN = Plan()


@dataclass(frozen=True)
class Sample:
    """What the server uses at one moment: MiB, threads, descriptors, and files that nothing accounts for."""

    resident: float
    threads: float
    descriptors: float
    strays: float


@dataclass(frozen=True)
class Outcome:
    """What was done, what went wrong, and what was used in the course of it."""

    done: Counter[str]
    faults: list[str]
    samples: list[Sample]

    def growth(self, what: Callable[[Sample], float]) -> float:
        """Median of the last fifth over that of the third."""
        fifth = max(1, len(self.samples) // 5)
        third, last = self.samples[2 * fifth : 3 * fifth], self.samples[-fifth:]
        return statistics.median(map(what, last)) / max(1.0, statistics.median(map(what, third)))


def run(pairs: int = PAIRS, plan: Plan = PLAN) -> Result:
    """Make one run, whatever `pairs`."""
    with TemporaryDirectory() as folder:
        outcome = soak(Path(folder), plan)
    for fault in outcome.faults:
        print(f"{NAME}: {fault}")
    last = outcome.samples[-1]
    figures = {f"{name}_done": float(number) for name, number in outcome.done.items()}
    figures |= {"faults": len(outcome.faults), "seconds": plan.seconds}
    figures |= {"resident_mib": last.resident, "threads": last.threads, "descriptors": last.descriptors}
    also = tuple(
        Result(f"{NAME}-{name}", f"{name} in the last fifth / in the third", bar, True, (outcome.growth(what),))
        for name, bar, what in (
            ("threads", 1.1, lambda sample: sample.threads),
            ("descriptors", 1.1, lambda sample: sample.descriptors),
            ("stray files", 1.0, lambda sample: sample.strays),
        )
    )
    memory = outcome.growth(lambda sample: sample.resident)
    return Result(NAME, "resident memory in the last fifth / in the third", 1.05, True, (memory,), figures, also)


def soak(folder: Path, plan: Plan) -> Outcome:
    """Load a server below `folder` with everything for as long as planned."""
    for name in (_MODEL, _RELOADED):
        publish_untrained(folder / "model_repository", name, size=_SIZE)
    write_phantom(folder / "phantom", subjects=4, seed=3)
    done: Counter[str] = Counter()
    faults: list[str] = []
    samples: list[Sample] = []
    ended = threading.Event()
    with LiveServer(folder, load=_MODEL) as server:
        with Client(server.address) as client:
            import_phantom(client, folder / "phantom", "trained", bytes(32))

        def keep(kind: str, call: Callable[[Client], None]) -> None:
            with Client(server.address) as client:
                while not ended.is_set():
                    try:
                        call(client)
                    except (LimnerError, AssertionError) as error:
                        faults.append(f"{kind}: {error!r}")
                    done[kind] += 1

        loads = [threading.Thread(target=keep, args=each) for each in _KINDS.items()]
        for load in loads:
            load.start()
        process, ends = psutil.Process(server.pid), time.monotonic() + plan.seconds
        try:
            while time.monotonic() < ends:
                time.sleep(plan.sample_s)
                samples.append(_sample(process, folder))
        finally:
            ended.set()
            for load in loads:
                load.join()
    return Outcome(done, faults, samples)


def _sample(process: psutil.Process, folder: Path) -> Sample:
    strays = count_strays(folder / "data", folder / "model_repository")
    return Sample(process.memory_info().rss / _MIB, process.num_threads(), process.num_fds(), strays)


def count_strays(data: Path, models: Path) -> int:
    """Count what must not become more: all but the cohort that is being imported and what jobs may leave or are using.

    A job that was cancelled may leave nothing, one that has succeeded neither its networks nor what it published.
    """
    jobs = data / "jobs"
    with closing(sqlite3.connect(data / "limner.sqlite")) as database:
        states: list[tuple[str, str]] = database.execute("SELECT id, state FROM jobs").fetchall()
    left = [jobs / job for job, state in states if state == "CANCELLED"]
    left += [jobs / job / spent for job, state in states if state == "SUCCEEDED" for spent in _SPENT]
    below = _count_entries(data, data / "cohorts" / _IMPORTED, jobs) + _count_entries(models)
    return below + sum(path.exists() for path in left)


def _count_entries(root: Path, *spared: Path) -> int:
    """Count files and folders; those that go meanwhile are no error."""
    number = 0
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(folder, name) not in spared]
        number += len(folders) + len(files)
    return number


def _score(client: Client) -> None:
    _check_ok(client.predict(_MODEL, random_slices(16, _SIZE)).results)
    time.sleep(0.05)


def _stream(client: Client) -> None:
    results = list(client.predict_stream(_MODEL, list(random_slices(100, _SIZE))))
    assert len(results) == 100
    _check_ok(results)
    time.sleep(0.2)


def _leave(client: Client) -> None:
    """Go away in the middle of a stream."""
    stream = client.predict_stream(_MODEL, itertools.repeat(random_slices(1, _SIZE)[0]))
    for _, result in zip(range(20), stream, strict=False):
        assert result.ok
    stream.close()
    time.sleep(0.3)


def _check_ok(results: Iterable[ItemResult]) -> None:
    failed = [str(result.error) for result in results if not result.ok]
    assert not failed, failed[0]


def _explain(client: Client) -> None:
    options = FeatureOptions(heat_maps=True)
    _check_ok(client.extract_features(_MODEL, random_slices(2, _SIZE), options).results)
    time.sleep(0.3)


def _train(client: Client) -> None:
    state = client.train("trained", "short-lived", QUICK)
    assert state.state is JobState.SUCCEEDED, state.error
    assert state.result is not None
    client.delete_model(f"short-lived:{state.result.version}")


def _cancel(client: Client) -> None:
    training = client.start_training("trained", "cancelled", QUICK)
    time.sleep(2)
    client.cancel_training(training.id)
    time.sleep(3)


def _import(client: Client) -> None:
    assert client.import_cohort(_IMPORTED, noise_plan(40, 64, seed=0)).added == 40
    client.delete_cohort(_IMPORTED)
    time.sleep(0.5)


def _reload(client: Client) -> None:
    """Take a model in and out again."""
    assert client.predict(_RELOADED, random_slices(1, _SIZE)).results[0].ok
    client.unload_model(_RELOADED)
    time.sleep(5)


def _err(client: Client) -> None:
    """Send what is wrong in several ways."""
    for wrong, kind in (
        (lambda: client.predict("nothing", random_slices(1, _SIZE)), NotFoundError),
        (lambda: client.predict(_MODEL, random_slices(1, _SIZE), priority=99), InvalidInputError),
        (lambda: client.start_training("nowhere", "m"), NotFoundError),
    ):
        try:
            wrong()
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} was expected")
    bad = [*random_slices(3, _SIZE), np.full((_SIZE, _SIZE), np.nan, np.float32), np.zeros((7, 7), np.float32)]
    assert [result.ok for result in client.predict(_MODEL, bad).results] == [True, True, True, False, False]
    time.sleep(0.3)


_KINDS: dict[str, Callable[[Client], None]] = {
    "scorings": _score,
    "streams": _stream,
    "streams left": _leave,
    "explanations": _explain,
    "trainings": _train,
    "cancellations": _cancel,
    "imports": _import,
    "reloads": _reload,
    "errors": _err,
}
