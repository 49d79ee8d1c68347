"""W1 and W4: Limner's Open Inference front against the real Triton, both under perf_analyzer's load of single images.

Both serve one TorchScript file: Limner with its default settings, Triton by its Python backend with the best that a
search finds. Both are up all the time and take turns; what the idle one costs is among the figures.
"""

import functools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from google.protobuf import text_format
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from benchmarks import perf_analyzer
from benchmarks.harness import PAIRS, Interleaved, Result, interleaved
from benchmarks.models import publish_untrained, random_slices
from benchmarks.perf_analyzer import Load
from limner_server.networks.triton import INPUT
from tests.live import LiveServer
from tests.triton_server import TritonServer

_MODEL = "model"


@dataclass(frozen=True)
class TritonSettings:
    """How Triton runs a model; no preferred batch size is 0."""

    instances: int = 1
    threads: int = 2
    queue_delay_us: int = 0
    preferred_batch_size: int = 0

    def write_to(self, file: Path) -> None:
        """Change a model's configuration file accordingly."""
        config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
        config.ClearField("instance_group")
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=self.instances)
        config.parameters["INTRA_OP_THREAD_COUNT"].string_value = str(self.threads)
        batching = config.dynamic_batching
        batching.max_queue_delay_microseconds = self.queue_delay_us
        batching.preferred_batch_size[:] = [self.preferred_batch_size] if self.preferred_batch_size else []
        file.write_text(text_format.MessageToString(config))


# For the two cores of the bars. One dimension is searched after the other, each with the best of those before it.
_DIMENSIONS: tuple[tuple[Mapping[str, int], ...], ...] = (
    tuple({"instances": instances, "threads": threads} for instances in (1, 2) for threads in (1, 2)),
    tuple({"queue_delay_us": delay} for delay in (0, 1000, 5000)),
    tuple({"preferred_batch_size": size} for size in (0, 8, 16)),
)


def best_settings(throughput: Callable[[TritonSettings], float]) -> TritonSettings:
    """Find Triton's settings of highest throughput; `throughput` is asked once for each candidate."""
    measured = functools.cache(throughput)
    best = TritonSettings()
    for choices in _DIMENSIONS:
        best = max((replace(best, **choice) for choice in choices), key=measured)
    return best


@dataclass(frozen=True)
class _Run:
    """One run: what clients saw, CPU seconds of server and load for each image, and CPU/wall of the idle server."""

    load: Load
    cpu_s_per_image: float
    idle_cores: float


class _Server:
    """A server that is up, as clients and the kernel see it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._process = _listener(int(url.rpartition(":")[2]))

    def cpu_s(self) -> float:
        """CPU time of its processes so far, in seconds."""
        processes = [self._process, *self._process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def images(self) -> int:
        """Number of images that it has answered."""
        with InferenceServerClient(self.url) as client:
            return sum(model.inference_count for model in client.get_inference_statistics(_MODEL).model_stats)


def _listener(port: int) -> psutil.Process:
    """The process that listens on a port of this machine."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return psutil.Process(connection.pid)
    raise RuntimeError(f"no process listens on port {port}")


class _Triton(TritonServer):
    def stop(self) -> None:
        """End it, if it runs, so that it removes its segments of shared memory, which it cannot when it is killed."""
        if self._process is not None and self.running:
            self._process.terminate()
            self._process.wait(timeout=60)


@contextmanager
def _fastest_triton(
    published: Path, folder: Path, measure: Callable[[str], Load]
) -> Iterator[tuple[TritonServer, TritonSettings]]:
    """Triton with its best settings on a copy of a model repository."""
    repository = folder / "triton"
    shutil.copytree(published, repository)
    triton = _Triton(repository, folder)

    def start(settings: TritonSettings) -> None:
        settings.write_to(repository / _MODEL / "configs/python.pbtxt")
        triton.start()

    def throughput(settings: TritonSettings) -> float:
        start(settings)
        # In the first run TorchScript still optimises itself; something else may disturb either.
        found = max(measure(triton.url).throughput for _ in range(2))
        triton.stop()
        return found

    try:
        best = best_settings(throughput)
        start(best)
        yield triton, best
    finally:
        triton.stop()


@dataclass(frozen=True)
class TritonBenchmark:
    """Single images by many clients, a Limner and a real Triton in turns.

    Attributes
    ----------
    bar
        Least ratio of the throughputs.
    size
        Edge of the model's grid.
    window_s
        Length of a window of perf_analyzer, in seconds: several times what the slower server takes to answer.
    """

    NAME: str
    SUMMARY: str
    bar: float
    size: int
    window_s: float

    def run(self, pairs: int = PAIRS) -> Result:
        """Search Triton's best settings, and let both servers answer the same load in turns."""
        versions = {"perf_analyzer": perf_analyzer.version()}
        with TemporaryDirectory() as name:
            folder = Path(name)
            data = folder / "data"
            data.mkdir()
            (data / INPUT).write_bytes(random_slices(1, self.size).astype("<f4").tobytes())
            live = LiveServer(folder, threads=0)
            publish_untrained(live.model_repository, _MODEL, size=self.size)
            measure = functools.partial(perf_analyzer.measure, model=_MODEL, data=data, window_s=self.window_s)
            with live, _fastest_triton(live.model_repository, folder, measure) as (triton, settings):
                ours, theirs = _Server(live.address), _Server(triton.url)
                with InferenceServerClient(ours.url) as client:
                    client.load_model(_MODEL)
                with InferenceServerClient(theirs.url) as client:
                    versions["Triton"] = client.get_server_metadata().version

                def answer(busy: _Server, idle: _Server) -> _Run:
                    images, cpu_s, idle_s, started = busy.images(), busy.cpu_s(), idle.cpu_s(), time.perf_counter()
                    load = measure(busy.url)
                    idle_cores = (idle.cpu_s() - idle_s) / (time.perf_counter() - started)
                    cpu_s = busy.cpu_s() - cpu_s + load.cpu_s
                    return _Run(load, cpu_s / (busy.images() - images), idle_cores)

                found = interleaved(lambda: answer(ours, theirs), lambda: answer(theirs, ours), pairs)
        return self._result(found, settings, versions)

    def _result(self, found: Interleaved[_Run], settings: TritonSettings, versions: Mapping[str, str]) -> Result:
        throughput = found.of(lambda run: run.load.throughput)
        p99 = found.of(lambda run: run.load.p99_ms)
        cpu = found.of(lambda run: run.cpu_s_per_image)
        figures = {
            "ours_images_per_s": statistics.median(throughput.ours),
            "triton_images_per_s": statistics.median(throughput.reference),
            "ours_p99_ms": statistics.median(p99.ours),
            "triton_p99_ms": statistics.median(p99.reference),
            "ours_cpu_ms_per_image": 1e3 * statistics.median(cpu.ours),
            "triton_cpu_ms_per_image": 1e3 * statistics.median(cpu.reference),
            "idle_server_cores": max(run.idle_cores for run in (*found.ours, *found.reference)),
            **{f"triton_{name}": value for name, value in asdict(settings).items()},
        }
        latency = Result(f"{self.NAME} p99", "p99 latency of Limner / of Triton", 1.0, True, p99.ratios)
        unit = "images/s of Limner / of Triton"
        return Result(self.NAME, unit, self.bar, False, throughput.ratios, figures, (latency,), versions)


W1 = TritonBenchmark(
    "W1",
    "single images by 32 clients / a real Triton with its best settings (ResNet-18, 224x224)",
    bar=1.05,
    size=224,
    window_s=6,
)
W4 = TritonBenchmark(
    "W4",
    "single images by 32 clients / a real Triton with its best settings (ResNet-18, 64x64)",
    bar=1.2,
    size=64,
    window_s=4,
)
