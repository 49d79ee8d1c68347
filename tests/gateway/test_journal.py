"""The journal: what is complete, what is kept, and that threads, processes and crashes lose nothing."""

import errno
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.gateway.database import JournalError
from limner.gateway.journal import FILE, Journal, is_uid
from limner.gateway.records import Commitment, State, Study


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


def receive(journal: Journal, *uids: str, study: str = "1.2") -> None:
    for uid in uids:
        journal.receive(uid, study, "MODALITY", b"content of " + uid.encode())


def scored(journal: Journal, *results: str, study: str = "1.2", dead: dict[str, str] | None = None) -> Study:
    """Score a study to these results."""
    found = journal.study(study)
    assert found is not None
    for uid in results:
        with journal.writing_result(uid) as file:
            file.write_text(uid)
    instances = [one.uid for one in journal.instances(found) if one.uid not in (dead or {})]
    assert journal.keep_results(found, results, instances, dead or {}, "")
    return found


def test_a_study_is_complete_after_quiet_or_by_its_count(journal: Journal) -> None:
    receive(journal, "1.2.1", "1.2.2")
    assert journal.next_due(State.OPEN, quiet_s=60) is None
    assert journal.next_due(State.OPEN, quiet_s=60, count=3) is None
    assert journal.next_due(State.OPEN, quiet_s=60, count=2)
    time.sleep(0.05)
    assert journal.next_due(State.OPEN, quiet_s=0.04)
    receive(journal, "1.2.3")  # one more than the number: it has to be waited for what else may come
    assert journal.next_due(State.OPEN, quiet_s=60, count=2) is None


def test_time_in_which_nothing_could_come_is_not_quiet(journal: Journal) -> None:
    receive(journal, "1.2.1")
    time.sleep(0.05)
    assert journal.next_due(State.OPEN, quiet_s=0.04, since=time.time()) is None
    assert journal.next_due(State.OPEN, quiet_s=0.04, since=time.time() - 0.04)


def test_a_study_is_complete_when_every_instance_is_committed(journal: Journal) -> None:
    receive(journal, "1.2.1", "1.2.2")
    commit(journal, "1.9.1", "1.2.1")
    assert journal.next_due(State.OPEN, quiet_s=60) is None
    commit(journal, "1.9.2", "1.2.2")
    assert journal.next_due(State.OPEN, quiet_s=60)
    receive(journal, "1.2.3")
    assert journal.next_due(State.OPEN, quiet_s=60) is None


def commit(journal: Journal, transaction: str, *uids: str) -> None:
    journal.commit(Commitment(transaction, "MODALITY", [("1.2.840", uid) for uid in uids], [], time.time()))


def test_an_instance_by_many_associations_at_once_is_new_once(journal: Journal) -> None:
    uids = [f"1.2.{number}" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(lambda uid: journal.receive(uid, "1.2", "MODALITY", uid.encode()), uids * 4))
    assert sum(new) == len(uids)
    study = journal.study("1.2")
    assert study is not None
    assert study.revision == len(uids)
    assert sorted(one.uid for one in journal.instances(study)) == sorted(uids)
    for uid in uids:
        assert journal.instance_file("1.2", uid).read_bytes() == uid.encode()


def test_results_of_an_earlier_scoring_that_were_not_sent_are_dropped(journal: Journal) -> None:
    receive(journal, "1.2.1")
    first = scored(journal, "2.1", "2.2")
    journal.mark_sent(["2.1"])
    receive(journal, "1.2.2")
    again = scored(journal, "2.1", "2.3")
    assert journal.unsent(again) == ["2.3"]
    assert set(journal.results(first)) == {"2.1", "2.3"}
    assert [path.stem for path in (journal.result_file("2.3").parent).iterdir()] == ["2.3"]
    assert [one.scored for one in journal.instances(again)] == [2, 1]


def test_scoring_counts_for_nothing_where_another_instance_came_meanwhile(journal: Journal) -> None:
    receive(journal, "1.2.1")
    before = journal.study("1.2")
    assert before is not None
    receive(journal, "1.2.2")
    assert not journal.keep_results(before, ["2.1"], ["1.2.1"], {}, "")
    assert journal.results(before) == {}
    assert [one.scored for one in journal.instances(before)] == [0, 0]


def test_what_was_given_up_is_taken_up_where_it_was(journal: Journal) -> None:
    receive(journal, "1.2.1", study="1.2")
    receive(journal, "1.3.1", study="1.3")
    sending = scored(journal, "2.1", study="1.2")
    scoring = journal.study("1.3")
    assert scoring is not None
    for study in (sending, scoring):
        journal.give_up(study, "no")
    assert journal.next_due(State.OPEN) is None
    assert journal.next_due(State.SCORED) is None
    assert journal.retry() == 2
    assert [study.state for study in journal.unfinished()] == [State.SCORED, State.OPEN]
    assert not any(study.given_up or study.reason for study in journal.unfinished())


def test_pauses_grow_and_end_with_retry(journal: Journal) -> None:
    receive(journal, "1.2.1")
    pauses = []
    for _ in range(12):
        study = journal.study("1")  # by its number
        assert study is not None
        pauses.append(journal.postpone(study, "away", failed=False))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert journal.next_due(State.OPEN) is None
    assert journal.retry("1.2") == 1
    assert journal.next_due(State.OPEN)


def test_what_waits_for_somebody_is_hastened_and_what_fails_by_itself_is_not(journal: Journal) -> None:
    for name in ("1.2", "1.3", "1.4"):
        receive(journal, f"{name}.1", study=name)
        study = journal.study(name)
        assert study is not None
        if name != "1.4":
            journal.postpone(study, "", failed=name == "1.2")
    scored(journal, study="1.4")
    journal.hasten(State.OPEN)
    due = journal.next_due(State.OPEN)
    assert due is not None
    assert due.uid == "1.3"


def test_a_study_with_dead_instances_is_scored_again_by_retry(journal: Journal) -> None:
    receive(journal, "1.2.1", "1.2.2")
    study = scored(journal, "2.1", dead={"1.2.2": "corrupt"})
    journal.mark_sent(["2.1"])
    journal.finish(study)
    assert [(one.uid, one.reason) for one in journal.dead_instances()] == [("1.2.2", "corrupt")]
    assert journal.retry("1.4") == 0
    assert journal.retry() == 1
    assert journal.next_due(State.OPEN)
    assert journal.unsent(scored(journal, "2.1")) == []
    assert journal.dead_instances() == []


def test_a_dead_instance_gives_way_to_what_comes_again(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    receive(journal, "1.2.1", "1.2.2")
    study = scored(journal, "2.1", dead={"1.2.2": "corrupt"})
    journal.mark_sent(["2.1"])
    journal.finish(study)
    receive(journal, "1.2.2")  # as it was
    assert not journal.receive("1.2.2", "1.3", "MODALITY", b"of another study")
    assert journal.totals().studies == {"open": 0, "scored": 0, "done": 1, "dead": 0}
    assert not journal.receive("1.2.1", "1.2", "MODALITY", b"other, though the first was healthy")
    assert "of study 1 came again from MODALITY with another content" in caplog.text
    assert "1.2.1" not in caplog.text
    assert journal.receive("1.2.2", "1.2", "MODALITY", b"whole")
    contents = {uid: journal.instance_file("1.2", uid).read_bytes() for uid in ("1.2.1", "1.2.2")}
    assert contents == {"1.2.1": b"content of 1.2.1", "1.2.2": b"whole"}
    assert journal.dead_instances() == []
    assert not journal.keep_results(study, [], [], {}, "")  # a scoring of what was there before
    assert journal.next_due(State.OPEN, quiet_s=60) is None
    assert journal.next_due(State.OPEN, quiet_s=60, count=2)
    again = scored(journal, "2.2")
    assert journal.unsent(again) == ["2.2"]
    assert [one.scored for one in journal.instances(again)] == [2, 1]


def test_a_correction_that_a_crash_cuts_short_can_come_again(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    receive(journal, "1.2.1")
    scored(journal, dead={"1.2.1": "corrupt"})
    for flushes in (0, 1):  # before the file is in its place, and after
        left = iter(range(flushes))

        def crash(_descriptor: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError("crash")

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", crash)
            with pytest.raises(OSError, match="crash"):
                journal.receive("1.2.1", "1.2", "MODALITY", b"whole")
        assert journal.next_due(State.OPEN)
        if not flushes:
            scored(journal, dead={"1.2.1": "corrupt"})
    scored(journal)
    assert journal.instance_file("1.2", "1.2.1").read_bytes() == b"whole"
    assert not journal.receive("1.2.1", "1.2", "MODALITY", b"whole")


def test_what_is_dead_is_dismissed(journal: Journal) -> None:
    receive(journal, "1.2.1", "1.2.2")
    receive(journal, "1.3.1", study="1.3")
    receive(journal, "1.4.1", study="1.4")
    scored(journal, "2.1", dead={"1.2.2": "corrupt"})
    given_up = scored(journal, "3.1", study="1.3")
    journal.give_up(given_up, "no")
    assert journal.dismiss("1.4") == 0
    assert journal.dismiss("1") == 1
    assert journal.dead_instances() == []
    assert journal.result_file("2.1").exists()  # its neighbours' result is still to be sent
    assert journal.dismiss() == 1
    assert [study.uid for study in journal.unfinished()] == ["1.2", "1.4"]
    assert journal.unsent(given_up) == []
    assert not journal.result_file("3.1").exists()


def test_files_are_forgotten_and_kept_again_without_another_scoring(journal: Journal) -> None:
    receive(journal, "1.2.1")
    receive(journal, "1.3.1", study="1.3")
    journal.finish(scored(journal))
    assert journal.forget_files(older_than_s=60) == 0
    assert journal.forget_files(older_than_s=0) == 1
    assert journal.locate("1.2.1") is None
    assert journal.locate("1.3.1") == journal.instance_file("1.3", "1.3.1")
    assert not journal.receive("1.2.1", "1.2", "MODALITY", b"again")
    kept = journal.locate("1.2.1")
    assert kept is not None
    assert kept.read_bytes() == b"again"
    assert journal.totals().studies["done"] == 1


def test_nothing_is_lost_between_receiving_and_forgetting(journal: Journal) -> None:
    """Late instances come for a study that is done while its files are being removed, again and again."""
    receive(journal, "1.2.0")
    stopped = threading.Event()

    def forget() -> None:
        while not stopped.is_set():
            study = journal.study("1.2")
            assert study is not None
            journal.keep_results(study, [], [], {}, "")
            journal.finish(study)
            journal.forget_files(older_than_s=0)

    def late(first: int) -> None:
        for number in range(first, first + 100):
            receive(journal, f"1.2.{number}")

    with ThreadPoolExecutor(3) as pool:
        forgetting = pool.submit(forget)
        for sender in [pool.submit(late, first) for first in (100, 200)]:
            sender.result()
        stopped.set()
        forgetting.result()
    rows = sqlite3.connect(journal.instance_file("1.2", "1.2.0").parents[2] / FILE).execute(
        "SELECT uid FROM instances WHERE kept"
    )
    for (uid,) in rows:
        assert journal.instance_file("1.2", uid).exists(), uid


def test_the_disk_is_left_a_floor(tmp_path: Path) -> None:
    journal = Journal(tmp_path, min_free_bytes=shutil.disk_usage(tmp_path).free + 2**30)
    with pytest.raises(OSError, match="less than") as refused:
        receive(journal, "1.2.1")
    assert refused.value.errno == errno.ENOSPC
    assert journal.study("1.2") is None


def test_one_gateway_has_the_journal(tmp_path: Path, journal: Journal) -> None:
    assert journal.gateway_process() is None
    code = (
        "import sys, pathlib; from limner.gateway.journal import Journal\n"
        "j = Journal(pathlib.Path(sys.argv[1])); j.claim(); print('claimed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "journal")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        assert journal.gateway_process() == other.pid
        with pytest.raises(JournalError, match=f"another gateway, process {other.pid}"):
            journal.claim()
        other.kill()
    journal.claim()


def test_results_that_a_killed_gateway_left_are_removed(tmp_path: Path, journal: Journal) -> None:
    receive(journal, "1.2.1")
    scored(journal, "2.1")
    (tmp_path / "journal/results/2.2.dcm").touch()
    (tmp_path / "journal/results/.2.3.dcm.abc").touch()
    journal.claim()
    assert [path.name for path in (tmp_path / "journal/results").iterdir()] == ["2.1.dcm"]


def test_the_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("CREATE TABLE studies (uid TEXT)")
    with pytest.raises(JournalError, match="is a journal of version 0; expected version"):
        Journal(tmp_path)
    (tmp_path / FILE).write_bytes(b"no database at all, but some text that is long enough to be read as one" * 20)
    with pytest.raises(JournalError, match="not a database"):
        Journal(tmp_path)


@given(st.text(alphabet=" ./\\0123456789a\n\x00", max_size=70))
def test_a_uid_is_a_name_that_stays_in_its_folder(text: str) -> None:
    parts = text.split(".")
    assert is_uid(text) == (len(text) <= 64 and all(part.isascii() and part.isdecimal() for part in parts))
