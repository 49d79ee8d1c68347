"""A live gateway: every dataset by C-STORE under a valid command, among healthy ones; then what its journal says."""

import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from rich.progress import track

from benchmarks.malformed.outcome import LIMIT_S, Memory, Outcome, Report, Verdict, refused
from limner.gateway.journal import Journal
from limner.gateway.receiver import SUCCESS, transfer_syntaxes
from limner.gateway.records import Instance, Study
from limner.imaging.headers import read_header
from tests.gateway.processes import Gateway
from tests.gateway.waiting import wait_for
from tests.imaging.malformed import CASES_PER_STUDY, healthy, malformed, study_of
from tests.live import LiveServer

NEIGHBOURS = 6
"""Healthy slices of each study, enough of them to be selected."""

# The transfer syntax in a file's meta information, which is told apart from the dataset by its length (PS3.10 7.1).
_SYNTAX = re.compile(rb"\x02\x00\x10\x00UI..([0-9.]+)", re.DOTALL)


def drive(cases: range, quiet: bool, server: LiveServer) -> Report:
    """Send every case in a study with healthy slices: what is acknowledged has to be scored, or dead with a reason."""
    with _pacs() as port, TemporaryDirectory() as folder:
        flags = (f"--server={server.address}", f"--pacs=PACS@127.0.0.1:{port}")
        with Gateway(Path(folder) / "journal", *flags) as node:
            modality = _Modality(node.port, Path(folder) / "sent.dcm")
            modality.send_healthy(study_of(cases.stop + CASES_PER_STUDY))
            wait_for(lambda: _is_idle(node))
            memory = Memory(node.pid)
            for number in track(cases, "gateway", transient=True, disable=quiet):
                if number % CASES_PER_STUDY == 0 or number == cases.start:
                    modality.send_healthy(study_of(number))
                    memory.look()
                modality.send_case(number)
            modality.close()
            wait_for(lambda: _is_idle(node), limit_s=LIMIT_S * 20 + len(cases), pause_s=1)
            outcomes = modality.outcomes(Journal(node.journal))
            log = node.log_file.read_text()
            peak, resident = memory.peak_mib, memory.resident_mib
    wrong = [line for line in log.splitlines() if " ERROR " in line or "Traceback" in line]
    return Report("gateway", outcomes, peak, tuple(wrong), resident)


class _Modality:
    """Sends datasets as they are, and remembers which were acknowledged."""

    def __init__(self, port: int, file: Path) -> None:
        _config.STORE_SEND_CHUNKED_DATASET = True  # from the file, unread
        self._port = port
        self._file = file
        self._association: Association | None = None
        self._refused: list[Outcome] = []
        self._cases: dict[str, tuple[str, str]] = {}  # case and study, by instance
        self._neighbours: dict[str, str] = {}  # study, by instance

    def send_healthy(self, study: str) -> None:
        """Send what has to be scored whatever is sent beside it."""
        for number in range(NEIGHBOURS):
            instance, content = healthy(number, study)
            status, comment = self._store(instance, content)
            assert status == SUCCESS, comment
            self._neighbours[instance] = study

    def send_case(self, number: int) -> None:
        """Send a case, and note what is answered at once."""
        case = malformed(number)
        started = time.perf_counter()
        status, comment = self._store(case.instance, case.content)
        seconds = time.perf_counter() - started
        if status == SUCCESS:
            header = read_header(self._file, only=("StudyInstanceUID",))
            self._cases[case.instance] = (str(case), str(header.StudyInstanceUID))
        elif status is None:
            self._refused.append(Outcome(str(case), Verdict.VIOLATION, "ended the association", seconds))
        else:
            self._refused.append(refused(case, comment.partition(" ")[0], comment, seconds))

    def close(self) -> None:
        """End the association."""
        if self._association:
            self._association.release()

    def outcomes(self, journal: Journal) -> tuple[Outcome, ...]:
        """Tell what became of everything, as the journal has it."""
        found = list(self._refused)
        for instance, (case, study) in self._cases.items():
            found.append(_kept(case, *_look_up(journal, instance, study)))
        for instance, study in self._neighbours.items():
            kept, _ = _look_up(journal, instance, study)
            if kept is None or not kept.scored:
                reason = kept.reason if kept else "not there"
                found.append(Outcome(f"healthy {instance}", Verdict.VIOLATION, f"not scored: {reason}"))
        return tuple(found)

    def _store(self, instance: str, content: bytes) -> tuple[int | None, str]:
        """Send a dataset under a valid command; return status and comment, no status where none came."""
        self._file.write_bytes(_with_valid_meta(instance, content))
        if self._association is None or not self._association.is_established:
            self._association = _associate(self._port)
        answer = self._association.send_c_store(self._file)
        return answer.get("Status"), str(answer.get("ErrorComment", ""))


def _kept(case: str, instance: Instance | None, study: Study | None) -> Outcome:
    if instance is None or study is None:
        return Outcome(case, Verdict.VIOLATION, "acknowledged, and not in the journal")
    if study.given_up:
        return Outcome(case, Verdict.VIOLATION, f"its study was given up: {study.reason}")
    if instance.reason:
        return refused(case, instance.reason.partition(" ")[0], instance.reason)
    if instance.scored or study.left_out:
        return Outcome(case, Verdict.TAKEN)
    return Outcome(case, Verdict.VIOLATION, "neither scored nor dead nor left out")


def _look_up(journal: Journal, instance: str, study: str) -> tuple[Instance | None, Study | None]:
    found = journal.study(study)
    instances = {one.uid: one for one in journal.instances(found)} if found else {}
    return instances.get(instance), found


def _with_valid_meta(instance: str, content: bytes) -> bytes:
    """Return a file whose meta information is in order and whose dataset is what is left of a file without its own."""
    syntax = _SYNTAX.search(content, 0, 4096)
    named = UID(syntax[1].decode()) if syntax else ExplicitVRLittleEndian
    if named not in transfer_syntaxes():
        named = ExplicitVRLittleEndian
    start = 0
    if content[128:132] == b"DICM" and len(content) > 144:
        start = min(144 + struct.unpack_from("<I", content, 140)[0], len(content))
    storage_class = EnhancedMRImageStorage if EnhancedMRImageStorage.encode() in content[:4096] else MRImageStorage
    meta = b"".join(
        struct.pack("<HH2sH", 2, element, b"UI", len(value) + len(value) % 2) + value + b"\0" * (len(value) % 2)
        for element, value in ((2, storage_class.encode()), (3, instance.encode()), (0x10, named.encode()))
    )
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + length + meta + content[start:]


def _associate(port: int) -> Association:
    node = AE(ae_title="MODALITY")
    node.dimse_timeout = LIMIT_S
    contexts = [
        build_context(kept, syntax)
        for kept in (MRImageStorage, EnhancedMRImageStorage)
        for syntax in transfer_syntaxes()
    ]
    association = node.associate("127.0.0.1", port, contexts=contexts, ae_title="LIMNER")
    assert association.is_established, "the gateway takes no association"
    return association


def _is_idle(node: Gateway) -> bool:
    studies = node.status()["studies"]
    assert isinstance(studies, dict)
    return not studies["open"] and not studies["scored"]


@contextmanager
def _pacs() -> Iterator[int]:
    """Take whatever is sent, on a free port."""
    node = AE(ae_title="PACS")
    node.supported_contexts = AllStoragePresentationContexts
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: SUCCESS)])
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
