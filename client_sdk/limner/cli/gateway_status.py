"""`limner gateway status`, `show`, `retry` and `dismiss`: what has become of what was received, and what to do."""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.text import Text

from limner.cli.common import FAILED, AsJson, make_table, note, print_json, print_table
from limner.cli.nodes import open_journal

if TYPE_CHECKING:
    from limner.gateway.journal import Journal
    from limner.gateway.records import Commitment, Instance, Study, Totals

Folder = Annotated[
    Path,
    typer.Option("--journal", envvar="LIMNER_GATEWAY_JOURNAL", help="Folder of the journal; holds patients' images."),
]
FOLDER = Path("limner-gateway")


def status(
    folder: Folder = FOLDER,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 1 where no gateway runs, or anything was given up, is dead or waits for longer than "
            "--max-wait-s.",
        ),
    ] = False,
    max_wait_s: Annotated[
        float, typer.Option(min=0, help="With --check: how long anything may wait, a study from its last instance.")
    ] = 600,
    as_json: AsJson = False,
) -> None:
    """Show how the gateway and its studies stand.

    Whether it runs, what was received and sent, and everything that waits, was given up or is dead, with the reason.

    \b
    Examples:
      limner gateway status
      limner gateway status --check --json      for a monitor: its exit status is 1 where something needs a person
    """  # noqa: D301  \b keeps the lines apart
    found = _Situation.of(open_journal(folder), folder)
    if as_json:
        print_json(found.fields())
    else:
        found.print()
    if check and not found.is_well(max_wait_s):
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Situation:
    """How a gateway stands: its process, the disk, and what is in its journal."""

    process: int | None
    free_bytes: int
    totals: "Totals"
    unfinished: "list[Study]"
    dead: "list[Instance]"
    commitments: "list[Commitment]"

    @classmethod
    def of(cls, journal: "Journal", folder: Path) -> Self:
        return cls(
            journal.gateway_process(),
            shutil.disk_usage(folder).free,
            journal.totals(),
            journal.unfinished(),
            journal.dead_instances(),
            journal.commitments(),
        )

    def is_well(self, max_wait_s: float) -> bool:
        waits = [study.received for study in self.waiting]
        waits += [one.received for one in self.commitments if one.reason]
        is_late = time.time() - min(waits, default=math.inf) > max_wait_s
        return self.process is not None and not (self.given_up or self.dead or is_late)

    @property
    def given_up(self) -> "list[Study]":
        return [study for study in self.unfinished if study.given_up]

    @property
    def waiting(self) -> "list[Study]":
        return [study for study in self.unfinished if study.reason and not study.given_up]

    def fields(self) -> dict[str, object]:
        return {
            "process": self.process,
            "free_bytes": self.free_bytes,
            "studies": self.totals.studies,
            "instances": self.totals.instances,
            "results": {"sent": self.totals.sent, "unsent": self.totals.unsent},
            "oldest_s": max((time.time() - study.received for study in self.unfinished), default=0.0),
            "dead": [_study_fields(study) for study in self.given_up],
            "waiting": [_study_fields(study) for study in self.waiting],
            "dead_instances": [_instance_fields(one) for one in self.dead],
            "unreported_commitments": [{"peer": one.peer, "reason": one.reason} for one in self.commitments],
        }

    def print(self) -> None:
        runs = f"runs, process {self.process}" if self.process else "does not run"
        note(f"gateway {runs}; {self.free_bytes / 2**30:.1f} GiB free")
        note("studies: " + ", ".join(f"{number} {state}" for state, number in self.totals.studies.items()))
        totals = self.totals
        note(f"instances: {totals.instances} received; results: {totals.sent} sent, {totals.unsent} to be sent")
        for one in self.commitments:
            note(f"storage commitment of {one.peer} is not reported yet: {one.reason or 'its turn comes'}")
        if self.given_up or self.waiting:
            _print_studies([*self.given_up, *self.waiting])
        if self.dead:
            _print_instances("dead instances, which could not be scored", self.dead)
        if self.given_up or self.dead:
            note("`limner gateway show STUDY` tells more, `retry` takes up again, `dismiss` lists no more")


def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its number, as in the log, or its StudyInstanceUID.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show one study: its state, its results, what was left out."""
    journal = open_journal(folder)
    found = journal.study(study)
    if found is None:
        raise typer.BadParameter(f"no study {study!r} in {folder}", param_hint="STUDY")
    instances, results = journal.instances(found), journal.results(found)
    dead = [one for one in instances if one.reason]
    scored = sum(one.scored > 0 for one in instances)
    if as_json:
        print_json(
            {
                **_study_fields(found),
                "instances": [_instance_fields(one) for one in instances],
                "results": [{"instance": uid, "sent": sent} for uid, sent in results.items()],
            }
        )
        return
    peers = ", ".join(sorted({one.peer for one in instances}))
    facts: Mapping[str, str] = {
        "study": found.uid,
        "state": "dead, given up" if found.given_up else str(found.state),
        "instances": f"{len(instances)} of {peers}, {scored} scored, {len(dead)} dead",
        "last received": f"{_when(found.received)}, {_duration(time.time() - found.received)} ago",
        "reason": found.reason,
        "next try": _next_try(found),
        "left out": found.left_out,
        **{f"result {uid}": f"sent {_when(sent)}" if sent else "to be sent" for uid, sent in results.items()},
    }
    table = make_table(f"study {found.number}", "", "")
    table.show_header = False
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(value))
    print_table(table)
    if dead:
        _print_instances("dead instances, which could not be scored", dead)


def retry(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Its number or StudyInstanceUID; none: all that are not well.")
    ] = "",
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Take up again what failed.

    Now: what was given up, what waits for its next try, and studies with dead instances. Nothing is sent twice.
    """
    count = open_journal(folder).retry(study)
    if study and not count:
        raise typer.BadParameter(f"no study {study!r} in {folder} that is not well", param_hint="STUDY")
    _tell(count, "taken up again", as_json)


def dismiss(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its number or StudyInstanceUID; or --all.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All that was given up or is dead.")] = False,
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """List what is dead no more.

    What was given up, and dead instances: somebody has seen to it, or nothing can be done.
    """
    if bool(study) == everything:
        raise typer.BadParameter("give a study, or --all", param_hint="STUDY")
    count = open_journal(folder).dismiss(study)
    if study and not count:
        raise typer.BadParameter(f"no study {study!r} in {folder} that is dead or has what is", param_hint="STUDY")
    _tell(count, "dismissed", as_json)


def _tell(count: int, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"studies": count})
    else:
        note(f"{count} {'study is' if count == 1 else 'studies are'} {what}")


def _study_fields(study: "Study") -> dict[str, object]:
    return {
        "number": study.number,
        "study": study.uid,
        "state": "dead" if study.given_up else study.state,
        "received": study.received,
        "waits": study.waits,
        "next_try": study.due or None,
        "reason": study.reason,
        "left_out": study.left_out,
    }


def _instance_fields(instance: "Instance") -> dict[str, object]:
    return {
        "instance": instance.uid,
        "study": instance.study,
        "number": instance.study_number,
        "peer": instance.peer,
        "scored": instance.scored,
        "reason": instance.reason,
    }


def _print_studies(studies: "list[Study]") -> None:
    table = make_table("studies that are not well", "study", "state", "since", "next try", "reason")
    for study in studies:
        since = _duration(time.time() - study.received)
        state = "dead" if study.given_up else str(study.state)
        table.add_row(str(study.number), state, since, _next_try(study) or "none", Text(study.reason))
    print_table(table)


def _print_instances(title: str, instances: "list[Instance]") -> None:
    table = make_table(title, "study", "instance", "from", "reason")
    for one in instances:
        table.add_row(str(one.study_number), one.uid, one.peer, Text(one.reason))
    print_table(table)


def _next_try(study: "Study") -> str:
    if not study.due or study.given_up:
        return ""
    left_s = study.due - time.time()
    return f"in {_duration(left_s)}" if left_s > 0 else "now"


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.0f} s"
