"""The node itself: a receiver, and threads that take study after study from the journal to the destination.

Whatever goes wrong with a study is kept in the journal, and tried again with growing pauses; what is wrong with the
study itself is given up after `attempts`. A server or a PACS that is away is waited for, however long it takes; neither
holds up the other's step. Logs name studies by their number in the journal, and hold nothing of a patient.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from limner.client import Client
from limner.errors import LimnerError, NotFoundError, UnavailableError
from limner.gateway.commitment import CommitmentProvider
from limner.gateway.database import JournalError
from limner.gateway.destinations import Destination
from limner.gateway.journal import Journal
from limner.gateway.kinds import DEFAULT, Kind
from limner.gateway.peers import PeerError, UnreachableError
from limner.gateway.receiver import ListenSettings, Receiver
from limner.gateway.records import State, Study
from limner.gateway.results import series_results
from limner.gateway.scoring import score_study
from limner.imaging.rules import SelectionRules

PRUNE_EVERY_S = 3600.0
PAUSE_AFTER_FAILURE_S = 5.0
FINISH_WITHIN_S = 10.0

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
    complete_count
        It is complete at once when it has so many instances; 0: no number completes it.
    attempts
        How often a step of a study may fail before it is given up; a server or a PACS that is away does not count.
    keep_s
        How long the instances of a study that is done are kept, for instances that come late.
    commitment
        Whether storage commitment is offered.
    poll_s
        Pause between two looks into the journal.
    send
        The kinds of results that go back to the PACS.
    """

    model: str
    rules: SelectionRules
    quiet_s: float = 30.0
    complete_count: int = 0
    attempts: int = 5
    keep_s: float = 86400.0
    commitment: bool = False
    poll_s: float = 0.2
    send: tuple[Kind, ...] = DEFAULT


class Worker:
    """Takes one study after the other through one step.

    Parameters
    ----------
    next_due
        Returns the next study, None where there is none.
    take
        Takes it through the step.
    attempts
        How often that may fail.
    stopped
        Set where what fails does so since the gateway ends.
    """

    def __init__(
        self,
        journal: Journal,
        next_due: Callable[[], Study | None],
        take: Callable[[Study], None],
        attempts: int,
        stopped: threading.Event,
    ) -> None:
        self._journal = journal
        self._next_due = next_due
        self._take = take
        self._attempts = attempts
        self._stopped = stopped
        self._away = False

    def step(self) -> bool:
        """Take the study that has waited longest through the step; return False where there is none."""
        study = self._next_due()
        if study is None:
            return False
        try:
            self._take(study)
        except JournalError:
            raise
        except Exception as error:  # one study must not stop the others
            if not self._stopped.is_set():
                self._put_off(study, error)
            return True
        if self._away:
            self._journal.hasten(study.state)
            self._away = False
        return True

    def _put_off(self, study: Study, error: Exception) -> None:
        match error:
            case UnavailableError() | NotFoundError() | UnreachableError():
                self._away = True
                pause_s = self._journal.postpone(study, str(error), failed=False)
                _log.warning("study %d waits %.3g s: %s", study.number, pause_s, error)
                return
            case LimnerError() | PeerError() | OSError():
                reason = str(error)
            case _:
                reason = f"{type(error).__name__}: {error}"
                if not study.failures:
                    _log.error("study %d fails for a reason of ours\n%s", study.number, _where(error))
        # The reason may quote the patient's data: `limner gateway show` tells it, the log does not.
        if study.failures + 1 >= self._attempts:
            self._journal.give_up(study, reason)
            _log.error("study %d is given up: %s", study.number, type(error).__name__)
        else:
            pause_s = self._journal.postpone(study, reason, failed=True)
            _log.warning("study %d failed and waits %.3g s: %s", study.number, pause_s, type(error).__name__)


@dataclass(frozen=True)
class Scoring:
    """The step from `open` to `scored`."""

    journal: Journal
    client: Client
    settings: GatewaySettings

    def take(self, study: Study) -> None:
        """Have a study scored, and keep its results."""
        score = score_study(self.client, self.settings.model, self.journal.study_folder(study.uid), self.settings.rules)
        kept, missing = [], list(score.left_out)
        for series in score.series:
            results = series_results(self.client, series, self.settings.send)
            for result in results.objects:
                with self.journal.writing_result(result.SOPInstanceUID) as file:
                    result.save_as(file, enforce_file_format=True)
                kept.append(str(result.SOPInstanceUID))
            missing += results.missing
        scored = {part.instance_uid for series in score.series for part, _ in series.scored}
        if self.journal.keep_results(study, kept, scored, score.dead, "; ".join(missing)):
            _log.info(
                "study %d is scored: %d series, %d instances, %d dead",
                *(study.number, len(score.series), len(scored), len(score.dead)),
            )


@dataclass(frozen=True)
class Sending:
    """The step from `scored` to `done`."""

    journal: Journal
    destination: Destination

    def take(self, study: Study) -> None:
        """Send what is not sent yet."""
        files = {uid: self.journal.result_file(uid) for uid in self.journal.unsent(study)}
        refused = self.destination.store(list(files.values())) if files else {}
        self.journal.mark_sent([uid for uid, file in files.items() if file not in refused])
        if refused:
            raise PeerError("; ".join(sorted(set(refused.values()))))
        self.journal.finish(study)
        _log.info("study %d is done: %d results sent", study.number, len(files))


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
        The port is taken, or the address not here; another gateway has the journal.
    """
    journal.claim()
    tls = listen.tls.client_context() if listen.tls else None
    commitment = CommitmentProvider(journal, listen.ae_title, listen.limits.peers, tls, settings.keep_s)
    receiver = Receiver(journal, listen, commitment.answer if settings.commitment else None)
    since = time.time()
    client = connect()
    scoring, sending = Scoring(journal, client, settings), Sending(journal, destination)
    complete = partial(journal.next_due, State.OPEN, settings.quiet_s, since, settings.complete_count)
    scored = partial(journal.next_due, State.SCORED)
    steps: tuple[tuple[Callable[[], object], float], ...] = (
        (Worker(journal, complete, scoring.take, settings.attempts, stopped).step, settings.poll_s),
        (Worker(journal, scored, sending.take, settings.attempts, stopped).step, settings.poll_s),
        (commitment.report_due, settings.poll_s),
        (partial(journal.forget_files, settings.keep_s), PRUNE_EVERY_S),
    )
    # Daemons: what does not finish in time is begun again at the next start.
    threads = [threading.Thread(target=_repeat, args=(*step, stopped), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    announce(receiver.port)
    # Any thread may be given the signal that sets it, and Python handles one only once the main thread moves.
    while not stopped.wait(settings.poll_s):
        pass
    receiver.close()
    ends = time.monotonic() + FINISH_WITHIN_S
    for thread in threads:
        thread.join(max(ends - time.monotonic(), 0))
    client.close()


def _repeat(step: Callable[[], object], pause_s: float, stopped: threading.Event) -> None:
    """Do a step again and again, with a pause where it returns that there was nothing to do."""
    while not stopped.is_set():
        try:
            if not step():
                stopped.wait(pause_s)
        except Exception as error:  # a thread that ends would leave its step undone in silence
            told = str(error) if isinstance(error, JournalError) else f"{type(error).__name__}\n{_where(error)}"
            _log.error("goes on in %.3g s after a failure of ours: %s", PAUSE_AFTER_FAILURE_S, told)
            stopped.wait(PAUSE_AFTER_FAILURE_S)


def _where(error: Exception) -> str:
    """Return where an error was raised, and not what it says: that may quote the patient's data."""
    return "".join(traceback.format_tb(error.__traceback__))
