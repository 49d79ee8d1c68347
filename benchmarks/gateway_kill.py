"""gateway-kill: nothing lost and nothing twice, while the gateway, the server and Orthanc are killed under load.

Eight storescu send studies and repeat what was not acknowledged; meanwhile each of the three is killed (SIGKILL) and
started again several times. Studies are let out to the senders between one kill and the next, so that every kill falls
into work. What has to hold at the end is in `Outcome.faults`.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import dcmread

from benchmarks.harness import PAIRS, Result
from benchmarks.modality import write_study
from benchmarks.models import publish_untrained
from limner.gateway.journal import Journal
from limner.gateway.records import Instance, Totals
from tests.gateway.orthanc import Orthanc, free_port
from tests.gateway.processes import Gateway, acknowledged
from tests.gateway.waiting import wait_for
from tests.imaging.builders import mr_instance
from tests.live import LiveServer

NAME = "gateway-kill"
SUMMARY = "what is scored and reported exactly once / all that was acknowledged, with nine kills (2,010 instances)"

_WITHIN_S = 900.0

Victim = Gateway | LiveServer | Orthanc


@dataclass(frozen=True)
class Plan:
    """How much is sent, and how often each of the three is killed.

    Attributes
    ----------
    studies, slices
        Studies, and good slices in each.
    corrupt
        Studies that have a slice more, with too few pixels.
    senders
        storescu at a time.
    kills
        Of each of the three.
    quiet_s
        After so long without an instance a study is complete: longer than a sender's pause.
    """

    studies: int = 40
    slices: int = 50
    corrupt: int = 10
    senders: int = 8
    kills: int = 3
    quiet_s: float = 5.0


@dataclass(frozen=True)
class Outcome:
    """What was found at the end.

    Attributes
    ----------
    expected, found
        Numbers by name: instances that were acknowledged and scored once, reports, dead letters with a reason …
    repeats
        How often a sender had to send again.
    seconds
        From the first instance to the last report.
    """

    expected: dict[str, int]
    found: dict[str, int]
    repeats: int
    seconds: float

    @property
    def faults(self) -> dict[str, tuple[int, int]]:
        """What is not as it has to be: found, and expected."""
        return {
            name: (self.found[name], number) for name, number in self.expected.items() if self.found[name] != number
        }


def run(pairs: int = PAIRS) -> Result:
    """Make the full run once, whatever `pairs`."""
    with TemporaryDirectory() as folder:
        outcome = kill_run(Plan(), Path(folder))
    for name, (found, expected) in outcome.faults.items():
        print(f"{NAME}: {name}: {found}, expected {expected}")
    held = 1 - len(outcome.faults) / len(outcome.expected)
    figures = {**outcome.found, "repeats": outcome.repeats, "seconds": outcome.seconds}
    return Result(NAME, "conditions that hold / all", 1.0, False, (held,), figures)


def kill_run(plan: Plan, folder: Path) -> Outcome:
    """Send, kill and count; `folder` takes what is sent, and the state and logs of all three."""
    chance = random.Random(0)  # noqa: S311 - of the pauses
    studies = [_write_study(folder / "sent" / str(number), plan, number) for number in range(plan.studies)]
    server = LiveServer(folder / "server", port=free_port())
    publish_untrained(server.model_repository, "model", size=32)
    with server, Orthanc(folder / "orthanc") as pacs:
        flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
        with Gateway(folder / "journal", *flags, quiet_s=plan.quiet_s) as node:
            journal = Journal(node.journal)
            started = time.monotonic()
            with ThreadPoolExecutor(plan.senders) as pool:
                sendings = []
                victims: list[Victim] = [node, server, pacs] * plan.kills
                for number, victim in enumerate([*victims, None]):
                    some = studies[number :: len(victims) + 1]
                    sendings += [pool.submit(_send, node, study) for study in some]
                    if victim:
                        _wait_for_work(victim, journal, chance)
                        victim.kill()
                        time.sleep(chance.uniform(0, 1))
                        victim.start()
                repeats = sum(sending.result() for sending in sendings)
            wait_for(lambda: journal.totals().studies["done"] == plan.studies, _WITHIN_S)
            seconds = time.monotonic() - started
            expected, found = _expected(plan), _found(studies, journal, pacs)
            journal.close()
    return Outcome(expected, found, repeats, seconds)


def _wait_for_work(victim: Victim, journal: Journal, chance: random.Random) -> None:
    """Return in the middle of what it does: receiving, scoring, or storing."""
    before = journal.totals()
    match victim:
        case Gateway():
            time.sleep(chance.uniform(0.2, 1.5))
        case LiveServer():
            wait_for(lambda: _results(journal.totals()) > _results(before), pause_s=0.02)
        case Orthanc():
            wait_for(lambda: journal.totals().sent > before.sent, pause_s=0.02)


def _results(totals: Totals) -> int:
    return totals.sent + totals.unsent


def _send(node: Gateway, study: "_Study") -> int:
    """Send a study until all of it is acknowledged; return how often something had to be repeated."""
    remaining, repeats = {*study.good, *study.corrupt}, 0
    while remaining := remaining - acknowledged(node.port, sorted(remaining)):
        repeats += 1
        time.sleep(0.2)
    return repeats


@dataclass(frozen=True)
class _Study:
    """The files of a study, named by their SOPInstanceUIDs."""

    uid: str
    good: tuple[Path, ...]
    corrupt: tuple[Path, ...]


def _write_study(folder: Path, plan: Plan, number: int) -> _Study:
    pixels = np.random.default_rng(number).integers(0, 1000, (plan.slices, 128, 128), np.uint16)
    has_corrupt = number < plan.corrupt
    good = write_study(folder, plan.slices + has_corrupt, [mr_instance(one) for one in pixels])
    uid = str(dcmread(good[0], stop_before_pixels=True).StudyInstanceUID)
    if not has_corrupt:
        return _Study(uid, tuple(good), ())
    corrupt = good.pop()
    instance = dcmread(corrupt)
    instance.PixelData = instance.PixelData[:100]
    instance.save_as(corrupt)
    return _Study(uid, tuple(good), (corrupt,))


def _expected(plan: Plan) -> dict[str, int]:
    return {
        "instances": plan.studies * plan.slices + plan.corrupt,
        "scored_once": plan.studies * plan.slices,
        "studies_reported_once": plan.studies,
        "objects_in_orthanc": plan.studies,
        "dead_with_a_reason": plan.corrupt,
        "dead": plan.corrupt,
        "unfinished": 0,
        "files_to_send": 0,
    }


def _found(studies: Sequence[_Study], journal: Journal, pacs: Orthanc) -> dict[str, int]:
    instances: dict[str, Instance] = {}
    for study in studies:
        kept = journal.study(study.uid)
        assert kept
        instances |= {one.uid: one for one in journal.instances(kept)}
    good = [instances[path.stem] for study in studies for path in study.good]
    corrupt = [instances[path.stem] for study in studies for path in study.corrupt]
    return {
        "instances": journal.totals().instances,
        "scored_once": sum(one.scored == 1 and not one.reason for one in good),
        "studies_reported_once": sum(_is_reported_once(study, pacs) for study in studies),
        "objects_in_orthanc": pacs.count(),
        "dead_with_a_reason": sum(one.scored == 0 and "PixelData" in one.reason for one in corrupt),
        "dead": len(journal.dead_instances()),
        "unfinished": len(journal.unfinished()),
        "files_to_send": len(list(journal.result_file("1").parent.iterdir())),
    }


def _is_reported_once(study: _Study, pacs: Orthanc) -> bool:
    """Whether the PACS has one report of a study, which names each of its good slices once."""
    reports = pacs.instances(StudyInstanceUID=study.uid)
    if len(reports) != 1:
        return False
    report = dcmread(BytesIO(pacs.file(str(reports[0]["ID"]))))
    named = [
        str(reference.ReferencedSOPInstanceUID)
        for evidence in report.CurrentRequestedProcedureEvidenceSequence
        for series in evidence.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]
    return sorted(named) == sorted(path.stem for path in study.good)
