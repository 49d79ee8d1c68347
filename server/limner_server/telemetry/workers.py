"""One page for several serving processes: each tells the supervisor its own, who adds them up.

A worker's page comes over a socket that the worker was born with, in the text format of Prometheus, when somebody asks
the supervisor for his. What a worker has counted stays counted when it dies or unloads a model: a sum that goes down
would look to Prometheus like a restart, and its rest like a burst.
"""

import contextlib
import logging
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

SHARED = frozenset({"limner_jobs", "limner_database_unreachable"})
"""Gauges that every process on one database has alike: not to be added up."""

ANSWER_S = 2.0
"""Longest wait for the workers' pages, in seconds."""

_END = b"\0"
_OF_ONE_PROCESS = "process_"
_WORKER = "worker"

_log = logging.getLogger(__name__)

_Key = tuple[str, tuple[tuple[str, str], ...]]


def tell(line: socket.socket, source: Collector) -> None:
    """Answer every wish for the page of this worker, until the supervisor is gone; for a thread of its own."""
    with contextlib.suppress(ConnectionError):
        while line.recv(1):
            line.sendall(generate_latest(source) + _END)


class WorkerPages(Collector):
    """The pages of all workers, added up. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}
        self._families: dict[str, Metric] = {}
        self._before: defaultdict[_Key, float] = defaultdict(float)

    def add(self, pid: int, line: socket.socket) -> None:
        """Ask a worker from now on; it is known by the lowest number that no other has."""
        with self._lock:
            taken = {known.number for known in self._lines.values()}
            self._lines[pid] = _Line(line, next(number for number in count() if number not in taken))

    def drop(self, pid: int) -> None:
        """Ask a worker no more that has ended; what it had counted when it was last asked stays."""
        with self._lock:
            line = self._lines.pop(pid)
            self._bank(line.counted, {})
            line.close()

    def collect(self) -> Iterable[Metric]:
        """Yield the families of all workers; a worker that does not answer adds nothing but what it had counted."""
        with self._lock:
            gauges: dict[_Key, float] = {}
            answering = 0
            for line in self._lines.values():
                line.ask()
            deadline = time.monotonic() + ANSWER_S
            for line in self._lines.values():
                if (page := line.answer(deadline)) is not None:
                    answering += 1
                    self._read(line, page, gauges)
            totals = defaultdict(float, self._before)
            for line in self._lines.values():
                for key, value in line.counted.items():
                    totals[key] += value
            families = list(self._merged({**gauges, **totals}))
        yield GaugeMetricFamily("limner_workers_answering", "Workers that have told their metrics.", value=answering)
        yield from families

    def _read(self, line: "_Line", page: str, gauges: dict[_Key, float]) -> None:
        """Take a worker's page apart into what is counted, which stays, and what is so now, which does not."""
        counted: dict[_Key, float] = {}
        for family in text_string_to_metric_families(page):
            known = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = sample.labels
                if family.name.startswith(_OF_ONE_PROCESS):
                    labels = {**labels, _WORKER: str(line.number)}
                key = sample.name, tuple(labels.items())
                if known.type != "gauge":
                    counted[key] = sample.value
                elif family.name in SHARED:
                    gauges[key] = max(gauges.get(key, sample.value), sample.value)
                else:
                    gauges[key] = gauges.get(key, 0.0) + sample.value
        self._bank(line.counted, counted)
        line.counted = counted

    def _bank(self, last: dict[_Key, float], now: dict[_Key, float]) -> None:
        """Keep what was counted and is not any more: its process has ended, or has begun to count anew."""
        for key, value in last.items():
            if now.get(key, 0.0) < value:
                self._before[key] += value

    def _merged(self, values: dict[_Key, float]) -> Iterator[Metric]:
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for (name, labels), value in values.items():
            samples[name].append(Sample(name, dict(labels), value))
        for family in self._families.values():
            merged = Metric(family.name, family.documentation, family.type)
            for suffix in ("", "_total", "_bucket", "_sum", "_count"):
                merged.samples.extend(samples.get(family.name + suffix, ()))
            yield merged


class _Line:
    """The supervisor's end of the line to one worker."""

    def __init__(self, line: socket.socket, number: int) -> None:
        self.number = number
        self.counted: dict[_Key, float] = {}
        self._socket = line
        self._received = bytearray()
        self._owed = 0

    def ask(self) -> None:
        """Ask for the worker's page."""
        with contextlib.suppress(OSError):  # it has ended, and will not answer
            self._socket.sendall(b"?")
            self._owed += 1

    def answer(self, deadline: float) -> str | None:
        """Return the worker's page; None where it does not answer by a time of `time.monotonic`, or has ended."""
        try:
            return self._answer(deadline)
        except OSError as error:
            _log.warning("worker %d does not tell its metrics: %s", self.number, error)
            return None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _answer(self, deadline: float) -> str:
        while True:
            page, end, rest = self._received.partition(_END)
            if end:
                self._received = rest
                self._owed -= 1
                if not self._owed:  # and not the late answer to an earlier question
                    return page.decode()
                continue
            self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
            if not (more := self._socket.recv(1 << 20)):
                raise ConnectionResetError("it has ended")
            self._received += more
