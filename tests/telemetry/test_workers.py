"""`--workers N`: one page, which is the sum of all workers, whichever of them dies."""

import socket
import threading
from collections.abc import Iterator

import grpc
import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from limner_server.telemetry.workers import WorkerPages, tell
from tests.live import LiveServer
from tests.telemetry import obedient
from tests.telemetry.scraped import Page, scrape, wait_for
from tests.telemetry.test_metrics import PREDICT, request

CALLS = 12


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("workers"), metrics_port=0, workers=2, threads=1, drain_s=1)
    obedient.publish(server.model_repository)
    with server:
        yield server


def call(server: LiveServer, times: int) -> None:
    """Make calls, each on a connection of its own, which some worker gets."""
    for _ in range(times):
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            predict = channel.unary_unary(
                "/limner.v1.InferenceService/Predict", lambda message: message.SerializeToString()
            )
            predict(request(*[0] * 4), timeout=60)


def test_the_page_is_the_sum_of_the_workers_and_outlives_them(service: LiveServer) -> None:
    call(service, CALLS)
    page = scrape(service)
    assert page("limner_workers_answering") == 2
    assert page("limner_rpc_requests_total", **PREDICT, code="OK") == CALLS
    assert page("limner_images_total", model=obedient.NAME, version="1") == 4 * CALLS
    assert page("limner_batch_images_sum") == 4 * CALLS > page("limner_batch_images_count") >= CALLS
    assert page("limner_stage_seconds_count", stage="queue") == page("nv_inference_count_total") == 4 * CALLS
    assert page("limner_build_info") == 1
    assert page("limner_jobs", kind="training", state="QUEUED") == 0
    workers = {sample.labels["worker"]: sample.value for sample in page.families["process_open_fds"].samples}
    assert workers.keys() == {"0", "1"}
    assert 'nv_inference_count{model="obedient",version="1"} 48' in page.text

    victim, _ = psutil.Process(service.pid).children()
    victim.kill()
    page = wait_for(service, lambda page: page("limner_workers_answering") == 1)
    assert page("limner_rpc_requests_total", **PREDICT, code="OK") == CALLS
    assert page("nv_inference_count_total") == 4 * CALLS
    wait_for(service, both)


class Worker:
    """The inside of a worker: a registry that is told over a line."""

    def __init__(self, pages: WorkerPages, pid: int) -> None:
        self.registry = CollectorRegistry()
        self.done = Counter("done", "What was done.", ("kind",), registry=self.registry)
        self.waiting = Gauge("waiting", "What waits.", registry=self.registry)
        self.shared = Gauge("limner_jobs", "Alike in all.", registry=self.registry)
        ours, self.line = socket.socketpair()
        pages.add(pid, ours)
        threading.Thread(target=tell, args=(self.line, self.registry), daemon=True).start()


def both(page: Page) -> bool:
    """Whether two workers serve."""
    return len(page.families["process_open_fds"].samples) == 2


def value(pages: WorkerPages, name: str) -> float:
    return sum(sample.value for family in pages.collect() for sample in family.samples if sample.name == name)


def test_what_is_counted_stays_and_what_waits_goes_with_its_worker() -> None:
    pages = WorkerPages()
    one, two = Worker(pages, 11), Worker(pages, 12)
    for worker, done in ((one, 3), (two, 4)):
        worker.done.labels("a").inc(done)
        worker.waiting.set(done)
        worker.shared.set(5)
    assert [value(pages, name) for name in ("done_total", "waiting", "limner_jobs")] == [7, 7, 5]
    pages.drop(11)
    assert [value(pages, name) for name in ("done_total", "waiting", "limner_jobs")] == [7, 4, 5]
    Worker(pages, 13).done.labels("a").inc()
    assert value(pages, "done_total") == 8


def test_a_count_that_begins_anew_goes_on() -> None:
    """As of a model that is unloaded and loaded again."""
    pages = WorkerPages()
    worker = Worker(pages, 1)
    worker.done.labels("a").inc(5)
    assert value(pages, "done_total") == 5
    worker.done.clear()
    assert value(pages, "done_total") == 5
    worker.done.labels("a").inc(2)
    assert value(pages, "done_total") == 7


def test_a_worker_that_stands_still_holds_nobody_up_and_its_late_answer_is_no_other_ones(service: LiveServer) -> None:
    page = wait_for(service, both)
    before = page("limner_images_total")
    process, _ = psutil.Process(service.pid).children()
    process.suspend()
    try:
        page = wait_for(service, lambda page: page("limner_workers_answering") == 1)
        assert page("limner_images_total") == before
        assert len(page.families["process_open_fds"].samples) == 1
    finally:
        process.resume()
    call(service, 4)
    page = wait_for(service, lambda page: page("limner_workers_answering") == 2)
    assert page("limner_images_total") == before + 16


def test_several_may_ask_at_a_time(service: LiveServer) -> None:
    """Prometheus may ask twice at a time."""
    pages: list[Page] = []
    threads = [threading.Thread(target=lambda: pages.append(scrape(service))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pages) == 4
    assert {page("limner_images_total") for page in pages} == {pages[0]("limner_images_total")}
