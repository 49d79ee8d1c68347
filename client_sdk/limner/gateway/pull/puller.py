"""Pulling studies: find them, plan each, fetch what is not here yet, and go on past whatever fails.

A source that does not answer is asked again, with growing pauses, and given up when nothing has come of `retries` of
them. An instance that fails is named and leaves the others alone. Only what came whole is kept, so that a pull which
ended early, however it did, is resumed by repeating it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from limner.errors import InvalidInputError
from limner.gateway.peers import PeerError, UnreachableError, UnwellError, is_of_one_request
from limner.gateway.pull.archive import Archive
from limner.gateway.pull.plan import FoundStudy, StudyPlan, find_studies, plan_study
from limner.gateway.pull.query import Query
from limner.gateway.pull.sources import Failure, Instance, Source
from limner.imaging.rules import SelectionRules

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

UNWELL = 3
"""After so many studies in a row of which a source says that it is not well, it is not asked for others."""


@dataclass(frozen=True)
class PullSettings:
    """How to pull.

    Attributes
    ----------
    rules
        What a series must be; None: all are taken.
    jobs
        Fetches at a time.
    retries
        How often a source that does not answer is asked again.
    most_studies
        More are refused: a PACS may have ignored a key.
    """

    rules: SelectionRules | None = None
    jobs: int = 4
    retries: int = 4
    most_studies: int = 500


@dataclass(frozen=True)
class LeftOut:
    """A series that the rules do not take, and why."""

    study: str
    series: str
    description: str
    reasons: tuple[str, ...]


@dataclass
class Summary:
    """What has come of a pull so far.

    Attributes
    ----------
    studies
        How many have been looked into.
    pulled, present
        Instances that came, and those that were here already.
    failed
        Why, by what has failed: the UID of an instance or a study, or a query.
    left_out
        Series that were not asked for.
    """

    studies: int = 0
    pulled: int = 0
    present: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


class Watch(Protocol):
    """Is told how a pull goes, from any thread."""

    def found(self, studies: int) -> None:
        """So many studies will be looked into."""
        ...

    def planned(self, missing: int) -> None:
        """Of the next study so many instances will be fetched."""
        ...

    def kept(self) -> None:
        """One of them has come."""
        ...

    def waits(self, pause_s: float, reason: str) -> None:
        """The source is asked again after a pause."""
        ...


class Puller:
    """One pull from one source.

    Attributes
    ----------
    summary
        What has come of it, also where a method has raised.
    """

    def __init__(self, source: Source, settings: PullSettings, watch: Watch) -> None:
        self._source = source
        self._settings = settings
        self._watch = watch
        self.summary = Summary()
        self._in_vain = 0

    def find(self, queries: Sequence[Query]) -> list[FoundStudy]:
        """Return the studies that match one of the queries, each once.

        Raises
        ------
        UnreachableError, RefusedError
            The source does not answer, or not to us.
        InvalidInputError
            There are more than `most_studies`.
        """
        found: dict[str, FoundStudy] = {}
        for query in queries:
            studies = self._attempt(str(query), partial(find_studies, self._source, query))
            if studies == [] and query.names_a_study:
                self.summary.failed[str(query)] = f"{self._source} has no such study"
            for study in studies or ():
                found.setdefault(study.uid, study)
            if len(found) > (most := self._settings.most_studies):
                expected = f"at most {most}: ask for less, or raise --limit"
                raise InvalidInputError(f"{query} matches {len(found)} studies; expected {expected}", field="query")
        self._watch.found(len(found))
        return list(found.values())

    def plans(self, studies: Iterable[FoundStudy]) -> Iterator[StudyPlan]:
        """Plan one study after the other, when it is its turn. Raises as `find` does."""
        for study in studies:
            plan = self._attempt(study.uid, partial(plan_study, self._source, study, self._settings.rules))
            if plan is None:
                continue
            self.summary.studies += 1
            self.summary.failed |= plan.failed
            self.summary.left_out += [
                LeftOut(study.uid, series.uid, series.description, series.reasons)
                for series in plan.series
                if series.reasons
            ]
            yield plan

    def pull(self, studies: Iterable[FoundStudy], archive: Archive) -> None:
        """Fetch what of the studies is not in the archive yet.

        Raises
        ------
        UnreachableError, RefusedError
            The source does not answer, or not to us.
        OSError
            The archive cannot keep more, or the port to listen on is taken.
        """
        keeper = _Keeper(archive, self._kept)
        with self._source.opened(keeper) as fetch, ThreadPoolExecutor(self._settings.jobs) as pool:
            for plan in self.plans(studies):
                missing = [one for one in plan.instances if not archive.holds(one)]
                self.summary.present += len(plan.instances) - len(missing)
                self._watch.planned(len(missing))
                keeper.expect(missing)
                self._fetch_study(plan, missing, keeper, lambda portion, whole: pool.submit(fetch, portion, whole))

    def _fetch_study(self, plan: StudyPlan, missing: list[Instance], keeper: "_Keeper", submit: "_Submit") -> None:
        """Fetch round after round what is missing, in ever smaller portions, until nothing comes any more."""
        size, idle = self._source.batch, 0
        # Every PACS understands being asked for a whole series, not every one for a list of instances.
        portions = _portions(plan, missing, size, whole=size > 1)
        while portions:
            before = len(keeper.kept)
            failures = self._round(portions, keeper, submit)
            idle = 0 if len(keeper.kept) > before else idle + 1
            hopeless = idle > self._settings.retries
            given_up = {one.uid: why.reason for one, why in failures.items() if hopeless or not why.passing}
            self.summary.failed |= given_up
            left = [one for one in failures if one.uid not in given_up]
            size = max(1, size // 8)  # the one among them that breaks it has to be found
            portions = _portions(plan, left, size, whole=False)
            if portions:
                self._pause(idle, failures[left[0]].reason)

    def _round(self, portions: "list[_Portion]", keeper: "_Keeper", submit: "_Submit") -> dict[Instance, Failure]:
        """Ask for each portion once; return what has not come, and why.

        Where nothing comes any more, the rest is not asked for.
        """
        failure: Failure | None = None
        failures: dict[Instance, Failure] = {}
        futures = {submit(portion, whole): portion for portion, whole in portions}
        in_vain = 0
        try:
            for future in as_completed(futures):
                failure = failure if future.cancelled() else future.result()
                lost = [one for one in futures[future] if one.uid not in keeper.kept]
                why = failure or Failure(f"{self._source} says that it was sent, and it has not come", passing=True)
                failures |= dict.fromkeys(lost, why)
                in_vain = in_vain + 1 if why.passing and len(lost) == len(futures[future]) else 0
                if in_vain == 2 * self._settings.jobs:
                    _cancel(futures)
        finally:
            _cancel(futures)
        if keeper.broken:
            raise keeper.broken
        return failures

    def _attempt(self, name: str, step: Callable[[], T]) -> T | None:
        """Take a step, again and again where nobody answers; where it alone goes wrong, note that and return None."""
        try:
            result = self._patiently(step)
        except PeerError as error:
            self._in_vain += isinstance(error, UnwellError)
            if not is_of_one_request(error) or self._in_vain == UNWELL:
                raise
            self.summary.failed[name] = str(error)
            return None
        self._in_vain = 0
        return result

    def _patiently(self, step: Callable[[], T]) -> T:
        for attempt in range(self._settings.retries):
            try:
                return step()
            except UnreachableError as error:
                self._pause(attempt, str(error))
        return step()

    def _kept(self) -> None:
        self.summary.pulled += 1
        self._watch.kept()

    def _pause(self, attempt: int, reason: str) -> None:
        pause_s = min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)
        self._watch.waits(pause_s, reason)
        time.sleep(pause_s)


class _Keeper:
    """Keeps in an archive what was asked for, and nothing else that a source may send."""

    def __init__(self, archive: Archive, on_kept: Callable[[], None]) -> None:
        self._archive = archive
        self._on_kept = on_kept
        self._lock = threading.Lock()
        self._expected: dict[str, Instance] = {}
        self.kept: set[str] = set()
        self.broken: OSError | None = None

    def expect(self, instances: Iterable[Instance]) -> None:
        """Ask for other instances."""
        with self._lock:
            self._expected = {one.uid: one for one in instances}
            self.kept = set()

    def receive(self, uid: str, study: str, peer: str, content: bytes) -> bool:
        """Keep one of them; return False where it has come before."""
        instance = self._expected.get(uid)
        if instance is None or instance.study_uid != study:
            raise ValueError("it was not asked for")
        try:
            self._archive.keep(instance, peer, content)
        except OSError as error:
            self.broken = error
            raise
        with self._lock:
            if uid in self.kept:
                return False
            self.kept.add(uid)
            self._on_kept()
        return True


_Portion = tuple[list[Instance], bool]
_Submit = Callable[[Sequence[Instance], bool], "Future[Failure | None]"]


def _portions(plan: StudyPlan, missing: Iterable[Instance], size: int, whole: bool) -> list[_Portion]:
    """Divide what is missing by series and size; `whole`: but for series of which everything is."""
    wanted = set(missing)
    portions: list[_Portion] = []
    for series in plan.series:
        left = [one for one in series.instances if one in wanted]
        if whole and left and len(left) == len(series.instances):
            portions.append((left, True))
        else:
            portions += [(left[start : start + size], False) for start in range(0, len(left), size)]
    return portions


def _cancel(futures: Iterable["Future[Failure | None]"]) -> None:
    for future in futures:
        future.cancel()
