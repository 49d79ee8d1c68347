"""What destinations answer, and what follows: sent, refused for a reason of the object's own, or to be sent later."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt

from limner.gateway.destinations import Dicomweb, Pacs, UnreachableError
from tests.imaging.builders import mr_instance


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three instances."""
    found = []
    for number in range(3):
        found.append(tmp_path / f"{number}.dcm")
        mr_instance(np.zeros((8, 8), np.uint16)).save_as(found[-1], enforce_file_format=True)
    return found


@contextmanager
def pacs(answers: Sequence[int], storage_class: str = MRImageStorage, ae_title: str = "PACS") -> Iterator[Pacs]:
    """A storage provider that answers with these statuses in turn."""
    left = list(answers)
    node = AE(ae_title=ae_title)
    node.require_called_aet = True
    node.add_supported_context(storage_class, ExplicitVRLittleEndian)
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: left.pop(0))])
    assert server is not None
    try:
        yield Pacs("PACS", "127.0.0.1", int(server.server_address[1]))
    finally:
        node.shutdown()


def test_success_a_warning_and_what_is_there_already_count_as_sent(paths: list[Path]) -> None:
    with pacs([0x0000, 0xB000, 0x0111]) as destination:
        assert destination.store(paths) == {}


def test_what_is_refused_is_named_and_does_not_hold_up_the_others(paths: list[Path]) -> None:
    with pacs([0x0000, 0xC001, 0x0000]) as destination:
        (refused,) = destination.store(paths).items()
    assert refused[0] == paths[1]
    assert "answered status C001" in refused[1]


def test_a_class_that_is_not_taken_is_refused(paths: list[Path]) -> None:
    with pacs([], storage_class=EnhancedMRImageStorage) as destination:
        refused = destination.store(paths)
    assert set(refused) == set(paths)
    assert all("takes no MR Image Storage" in reason for reason in refused.values())


@pytest.mark.parametrize(
    ("answers", "ae_title", "reason"),
    [([0x0000, 0xA700], "PACS", "is out of resources"), ([], "OTHER", "rejected the association")],
)
def test_a_pacs_that_takes_nothing_now_is_waited_for(
    paths: list[Path], answers: list[int], ae_title: str, reason: str
) -> None:
    with pacs(answers, ae_title=ae_title) as destination, pytest.raises(UnreachableError, match=reason):
        destination.store(paths)


def test_a_pacs_that_is_not_there_is_waited_for(paths: list[Path]) -> None:
    with pacs([]) as destination:
        pass
    with pytest.raises(UnreachableError, match="cannot be reached"):
        destination.store(paths)


@contextmanager
def dicomweb(status: int, body: bytes = b"") -> Iterator[Dicomweb]:
    """A STOW-RS service that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Dicomweb(f"http://127.0.0.1:{server.server_port}/dicom-web")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_a_service_that_takes_nothing_now_is_waited_for(paths: list[Path], status: int) -> None:
    with dicomweb(status) as destination, pytest.raises(UnreachableError, match=str(status)):
        destination.store(paths[:1])


def test_a_service_that_refuses_is_told_so(paths: list[Path]) -> None:
    with dicomweb(409) as destination:
        ((path, reason),) = destination.store(paths[:1]).items()
    assert path == paths[0]
    assert "409" in reason
