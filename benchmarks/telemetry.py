"""What metrics, logs and traces cost: the throughput of a server that tells everything over that of one that is silent.

Both serve one small network to perf_analyzer, single images by 32 clients, in turns: calls that are so short that what
each of them is told of weighs the most. The page is scraped every second, as no Prometheus would.
"""

import statistics
import threading
import timeit
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import psutil
from tritonclient.grpc import InferenceServerClient

from benchmarks import perf_analyzer
from benchmarks.harness import PAIRS, Interleaved, Result, interleaved
from benchmarks.models import publish_untrained, random_slices
from limner_server.executor.engine import Output
from limner_server.networks.triton import INPUT
from limner_server.statistics import Statistics
from tests.live import LiveServer

NAME = "telemetry"
SUMMARY = "single images by 32 clients, metrics and logs on / off (ResNet-18, 64x64)"

_BAR = 0.98
_SIZE = 64
_WINDOW_S = 2.0
_SCRAPE_S = 1.0
_COUNTED = 100_000


@dataclass(frozen=True)
class _Run:
    """Throughput in images/s, and CPU time that the server took for each image, in seconds."""

    throughput: float
    cpu_s: float


class _Server:
    """A server that is up, with the model loaded."""

    def __init__(self, live: LiveServer) -> None:
        self._process = psutil.Process(live.pid)
        self.address = live.address
        with InferenceServerClient(live.address) as client:
            client.load_model(NAME)

    def answer(self, data: Path) -> _Run:
        """Answer perf_analyzer's load."""
        before, images = self._cpu_s(), self._images()
        load = perf_analyzer.measure(self.address, NAME, data, _WINDOW_S)
        return _Run(load.throughput, (self._cpu_s() - before) / (self._images() - images))

    def _cpu_s(self) -> float:
        return sum(self._process.cpu_times()[:2])

    def _images(self) -> int:
        with InferenceServerClient(self.address) as client:
            return sum(model.inference_count for model in client.get_inference_statistics(NAME).model_stats)


def run(pairs: int = PAIRS) -> Result:
    """Let servers that tell all, that trace as well, and that tell nothing answer the same load in turns."""
    with TemporaryDirectory() as name, ExitStack() as held:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        (data / INPUT).write_bytes(random_slices(1, _SIZE).astype("<f4").tobytes())
        collector = held.enter_context(_collector())

        def start(kind: str, **settings: object) -> LiveServer:
            live = LiveServer(folder / kind, threads=0, **settings)
            publish_untrained(live.model_repository, NAME, size=_SIZE)
            return held.enter_context(live)

        silent = _Server(start("silent", log_level="error"))
        telling = start("telling", metrics_port=0)
        tracing = start("tracing", metrics_port=0, trace_endpoint=collector)
        for live in (telling, tracing):
            held.enter_context(_scraped(live))
        off = partial(silent.answer, data)
        on = interleaved(partial(_Server(telling).answer, data), off, pairs)
        traced = interleaved(partial(_Server(tracing).answer, data), off, pairs)
        page_ms = 1e3 * min(timeit.repeat(telling.metrics, number=1, repeat=20))
    throughput, cpu = on.of(lambda run: run.throughput), on.of(lambda run: run.cpu_s)
    figures = {
        "on_images_per_s": statistics.median(throughput.ours),
        "off_images_per_s": statistics.median(throughput.reference),
        "on_over_off_cpu_per_image": statistics.median(cpu.ratios),
        "traced_over_off_cpu_per_image": statistics.median(traced.of(lambda run: run.cpu_s).ratios),
        "counting_us_per_image": _counting_us(),
        "page_ms": page_ms,
    }
    return Result(
        NAME,
        "images/s with metrics scraped every second and JSON logs / with neither",
        _BAR,
        False,
        throughput.ratios,
        figures,
        (_traced(traced),),
        {"perf_analyzer": perf_analyzer.version()},
    )


def _traced(found: Interleaved[_Run]) -> Result:
    ratios = found.of(lambda run: run.throughput).ratios
    return Result(f"{NAME}, traced", "images/s with every call traced, too / with none of it", 0.8, False, ratios)


def _counting_us() -> float:
    """Time that counting takes an image, in microseconds."""
    statistics_of_model, output = Statistics(), Output({}, 0.001, 0.002, 4)

    def count() -> None:
        with statistics_of_model.request() as request:
            request.read()
            request.answered(output)

    return 1e6 * min(timeit.repeat(count, number=_COUNTED, repeat=3)) / _COUNTED


@contextmanager
def _scraped(live: LiveServer) -> Iterator[None]:
    """Read a server's page every second."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(_SCRAPE_S):
            with urllib.request.urlopen(f"http://{live.metrics_address}/metrics", timeout=30) as page:
                page.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _collector() -> Iterator[str]:
    """A collector of traces that throws them away, so that it takes no time from who is measured; gives its URL."""
    server = grpc.server(ThreadPoolExecutor(1))
    export: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda _spans, _context: b"")
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": export}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)
