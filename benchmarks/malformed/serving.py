"""A live server: whole files to Predict, each call with healthy ones among them, and slices to ImportCohort."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
from rich.progress import track

from benchmarks.malformed.outcome import LIMIT_S, Memory, Outcome, Report, Verdict, refused
from benchmarks.models import publish_untrained
from limner import Client, CohortPlan, CohortSlice, Image, LimnerError
from limner.errors import failure
from limner.types import Failure, ImageResult
from limner.v1 import cohort_pb2
from limner.v1.cohort_pb2_grpc import CohortServiceStub
from tests.e2e.malformed_slices import LABELS, malformed_slice
from tests.imaging.malformed import healthy, malformed, study_of
from tests.live import LiveServer

MODEL = "model"
TOGETHER = 28
"""Cases in a call."""


def drive_predict(cases: range, quiet: bool, server: LiveServer) -> Report:
    """Have every case scored as whole DICOM, with healthy slices before, between and after."""
    good = [Image(healthy(number, study_of(0))[1], id=f"healthy {number}") for number in range(4)]
    with Client(server.address, timeout=TOGETHER * LIMIT_S) as client:
        expected = client.predict(MODEL, good, send_dicom="identified").results

        def call(numbers: range) -> list[Outcome]:
            some = {str(number): malformed(number) for number in numbers}
            images = [Image(case.content, id=number) for number, case in some.items()]
            images = [good[0], *images[: len(images) // 2], *good[1:3], *images[len(images) // 2 :], good[3]]
            started = time.perf_counter()
            results = client.predict(MODEL, images, send_dicom="identified").results
            seconds = time.perf_counter() - started
            found = [_outcome(some[one.id], one.error, seconds) for one in results if one.id in some]
            served = [one for one in results if one.id not in some]
            assert all(map(_alike, served, expected)), f"the neighbours of {some[str(numbers[0])]} and those after it"
            return found

        return _drive("Predict", server, cases, call, quiet)


def drive_import(cases: range, quiet: bool, server: LiveServer) -> Report:
    """Import every case as a file, which the client decodes, and a malformed message of the same number."""
    with Client(server.address) as client:

        def call(numbers: range) -> list[Outcome]:
            started = time.perf_counter()
            found = [*_import_files(client, numbers), *_import_messages(server.address, numbers)]
            assert time.perf_counter() - started < TOGETHER * LIMIT_S, "hangs"
            return found

        return _drive("ImportCohort", server, cases, call, quiet)


def _import_files(client: Client, numbers: range) -> list[Outcome]:
    some = {str(number): malformed(number) for number in numbers}
    slices = [CohortSlice(number, f"S-{number[-1]}", LABELS[0], case.content) for number, case in some.items()]
    reply = client.import_cohort("files", CohortPlan(LABELS, slices))
    failures = {one.id: one.error for one in reply.rejected}
    assert reply.added + len(failures) == len(some)
    return [_outcome(case, failures.get(number)) for number, case in some.items()]


def _import_messages(address: str, numbers: range) -> list[Outcome]:
    messages = [malformed_slice(number) for number in numbers]
    header = cohort_pb2.ImportCohortRequest(header=cohort_pb2.ImportHeader(cohort="messages", labels=LABELS))
    requests = (header, *(cohort_pb2.ImportCohortRequest(slice=message) for message in messages))
    with grpc.insecure_channel(address) as channel:
        reply = CohortServiceStub(channel).ImportCohort(iter(requests), timeout=LIMIT_S)
    taken = reply.added + reply.unchanged
    assert taken + len(reply.rejected) == len(messages)
    found = [_outcome(f"message {one.id[:20]!r} of {numbers}", failure(one.status)) for one in reply.rejected]
    return [*found, *[_outcome("message", None)] * taken]


def _drive(name: str, server: LiveServer, cases: range, call: Callable[[range], list[Outcome]], quiet: bool) -> Report:
    """Make the calls, and see whether the server is as well as before."""
    outcomes: list[Outcome] = []
    wrong: list[str] = []
    memory = Memory(server.pid)
    logged = len(server.log())
    for start in track(range(cases.start, cases.stop, TOGETHER), name, transient=True, disable=quiet):
        numbers = range(start, min(start + TOGETHER, cases.stop))
        try:
            outcomes += call(numbers)
        except (LimnerError, grpc.RpcError, AssertionError) as error:
            wrong.append(f"cases {numbers.start} to {numbers.stop - 1}: {type(error).__name__}: {error}")
        memory.look()
    wrong += [line for line in server.log()[logged:].splitlines() if '"level": "error"' in line]
    return Report(name, tuple(outcomes), memory.peak_mib, tuple(wrong), memory.resident_mib)


def _outcome(case: object, error: Failure | None, seconds: float = 0.0) -> Outcome:
    if error is None:
        return Outcome(str(case), Verdict.TAKEN, seconds=seconds)
    if error.code != "INVALID_ARGUMENT":
        return Outcome(str(case), Verdict.VIOLATION, f"{error.code}: {error.message}", seconds)
    return refused(case, error.field, error.message, seconds)


def _alike(result: ImageResult, expected: ImageResult) -> bool:
    """Whether a neighbour is answered as it was alone; a batch of another size rounds otherwise."""
    if result.prediction is None or expected.prediction is None:
        return False
    return np.allclose(result.prediction.logits, expected.prediction.logits, atol=1e-3)


@contextmanager
def live_server() -> Iterator[LiveServer]:
    """A server with a small untrained model."""
    with TemporaryDirectory() as folder:
        publish_untrained(Path(folder) / "model_repository", MODEL, size=32)
        with LiveServer(Path(folder)) as server:
            yield server
