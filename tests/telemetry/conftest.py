"""A server with metrics, on a machine with two GPUs as far as its driver's library says."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from limner import Client
from tests.e2e.phantoms import QUICK, import_phantom
from tests.live import LiveServer
from tests.telemetry import obedient
from tests.telemetry.scraped import Page, wait_for

LONG = QUICK.model_copy(update={"epochs": 500})


@dataclass
class Metered:
    """A server, and a page of it from while a training ran."""

    server: LiveServer
    training: str = ""
    page: Page = field(default_factory=lambda: Page(""))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a `libnvidia-ml.so.1`."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("nvml.c")
    library = folder / "libnvidia-ml.so.1"
    compiler = shutil.which("cc")
    assert compiler, "a C compiler, Debian's gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-nostdlib", "-o", library, source], check=True)
    return folder


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Iterator[LiveServer]:
    """A server that has loaded a model that does as it is told, one image at a time, while at most four may wait."""
    server = LiveServer(
        tmp_path_factory.mktemp("metered"),
        metrics_port=0,
        max_batch_size=1,
        max_queue_images=4,
        max_queue_ms=60_000,  # so that it refuses for its length alone, however slow the machine
        log_level="debug",
    )
    obedient.publish(server.model_repository)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LD_LIBRARY_PATH", f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}")
        server.start()
    with Client(server.address) as client:
        client.wait_ready()
        client.load_model(obedient.NAME)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def metered(live: LiveServer, phantom: Path, key: bytes) -> Metered:
    """That server, and its page from while it trained; the training is cancelled by now."""
    with Client(live.address) as client:
        import_phantom(client, phantom, "pelvis", key)
        training = client.start_training("pelvis", "endless", LONG).id
        page = wait_for(live, lambda page: page("limner_training_epoch") >= 2)
        client.cancel_training(training)
    return Metered(live, training, page)
