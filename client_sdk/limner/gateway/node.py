"""The node itself: a receiver, and one thread that takes study after study from the journal to the destination.

Whatever goes wrong with a study is kept in the journal, and tried again with growing pauses; what is wrong with the
study itself is given up after `attempts`. A server or a PACS that is away is waited for, however long it takes.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from limner.client import Client
from limner.errors import LimnerError, UnavailableError
from limner.gateway.destinations import Destination, DestinationError, UnreachableError
from limner.gateway.journal import Journal, State, Study
from limner.gateway.kinds import DEFAULT, Kind
from limner.gateway.receiver import ListenSettings, Receiver
from limner.gateway.results import series_results
from limner.gateway.scoring import score_study
from limner.imaging.derived import write_dicom
from limner.imaging.rules import SelectionRules

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0
PRUNE_EVERY_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GatewaySettings:
    """How a gateway works.

    Attributes
    ----------
    model
        NAME, NAME:VERSION or NAME:ALIAS.
    rules
        Which series are scored.
    quiet_s
        A study is complete when no instance of it has come for so long.
    attempts
        How often scoring a study may fail before it is given up; a server that is away does not count.
    keep_s
        How long the instances of a study that is done are kept, for instances that come late.
    poll_s
        Pause between two looks into the journal.
    send
        The kinds of results that go back to the PACS.
    """

    model: str
    rules: SelectionRules
    quiet_s: float = 30.0
    attempts: int = 5
    keep_s: float = 86400.0
    poll_s: float = 0.5
    send: tuple[Kind, ...] = DEFAULT


class Worker:
    """Takes one study after the other from the journal to the destination.

    Parameters
    ----------
    connect
        Returns a client of the server.
    """

    def __init__(
        self, journal: Journal, connect: Callable[[], Client], destination: Destination, settings: GatewaySettings
    ) -> None:
        self._journal = journal
        self._client = connect()
        self._destination = destination
        self._settings = settings

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()

    def step(self) -> bool:
        """Do the next step of the study that has waited longest; return False where there is nothing to do."""
        study = self._journal.next_due(self._settings.quiet_s)
        if study is None:
            return False
        try:
            if study.state is State.OPEN:
                self._score(study)
            else:
                self._send(study)
        except (UnavailableError, UnreachableError) as error:
            self._wait(study, str(error), failed=False)
        except (LimnerError, DestinationError, OSError) as error:
            self._fail(study, str(error))
        except Exception as error:  # one study must not stop the others
            _log.exception("a study failed for a reason of ours")
            self._fail(study, f"{type(error).__name__}: {error}")
        return True

    def _score(self, study: Study) -> None:
        """Have a study scored, and keep its results."""
        score = score_study(
            self._client, self._settings.model, self._journal.study_folder(study.uid), self._settings.rules
        )
        kept, missing = [], list(score.left_out)
        for series in score.series:
            results = series_results(self._client, series, self._settings.send)
            for result in results.objects:
                write_dicom(self._journal.result_file(result.SOPInstanceUID), result, private=True)
                kept.append(str(result.SOPInstanceUID))
            missing += results.missing
        if self._journal.keep_results(study, kept, score.dead, "; ".join(missing)):
            _log.info("scored a study: %d series, %d dead instances", len(score.series), len(score.dead))

    def _send(self, study: Study) -> None:
        """Send what is not sent yet."""
        for uid in self._journal.unsent(study):
            self._destination.store([self._journal.result_file(uid)])
            self._journal.mark_sent(uid)
        self._journal.finish(study)

    def _wait(self, study: Study, reason: str, *, failed: bool) -> None:
        pause = min(FIRST_PAUSE_S * 2 ** min(study.waits, 30), LONGEST_PAUSE_S)
        _log.warning("a study waits %.3g s: %s", pause, reason)
        self._journal.postpone(study, reason, pause, failed=failed)

    def _fail(self, study: Study, reason: str) -> None:
        if study.failures + 1 >= self._settings.attempts:
            _log.error("gave a study up: %s", reason)
            self._journal.bury(study, reason)
        else:
            self._wait(study, reason, failed=True)


def run(
    journal: Journal,
    listen: ListenSettings,
    connect: Callable[[], Client],
    destination: Destination,
    settings: GatewaySettings,
    stopped: threading.Event,
    announce: Callable[[int], None],
) -> None:
    """Receive, score and send until `stopped` is set; `announce` is called with the port once it listens.

    Raises
    ------
    OSError
        The port is taken, or the address not here.
    """
    receiver = Receiver(journal, listen)
    worker = Worker(journal, connect, destination, settings)
    announce(receiver.port)
    try:
        pruned = float("-inf")
        while not stopped.is_set():
            if worker.step():
                continue
            if (now := time.monotonic()) - pruned > PRUNE_EVERY_S:
                journal.forget_files(settings.keep_s)
                pruned = now
            stopped.wait(settings.poll_s)
    finally:
        receiver.close()
        worker.close()
