"""`limner gateway status`, `show` and `retry`: what the gateway has received, what became of it, and what to do."""

import shutil
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from limner.cli.common import FAILED, AsJson, make_table, note, print_json, print_table

if TYPE_CHECKING:
    from limner.gateway.journal import Journal
    from limner.gateway.records import Instance, Study

Folder = Annotated[
    Path,
    typer.Option("--journal", envvar="LIMNER_GATEWAY_JOURNAL", help="Folder of the journal; holds patients' images."),
]
FOLDER = Path("limner-gateway")


def status(
    folder: Folder = FOLDER,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where no gateway runs, or anything was given up or is dead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show whether the gateway runs, how many studies stand where, and what is not well, with the reason.

    \b
    Examples:
      limner gateway status
      limner gateway status --check --json      for a monitor: its exit status is 1 where something needs a person
    """  # noqa: D301  \b keeps the lines apart
    journal = _open(folder)
    process, totals, studies = journal.gateway_process(), journal.totals(), journal.unfinished()
    dead, commitments = journal.dead_instances(), journal.commitments()
    given_up = [study for study in studies if study.given_up]
    waiting = [study for study in studies if study.reason and not study.given_up]
    counts = {
        **{state: sum(study.state == state for study in studies if not study.given_up) for state in ("open", "scored")},
        "done": totals.done,
        "dead": len(given_up),
    }
    if as_json:
        print_json(
            {
                "process": process,
                "free_bytes": shutil.disk_usage(folder).free,
                "studies": counts,
                "instances": totals.instances,
                "results": {"sent": totals.sent, "unsent": totals.unsent},
                "oldest_s": max((time.time() - study.received for study in studies), default=0.0),
                "dead": [_study_fields(study) for study in given_up],
                "waiting": [_study_fields(study) for study in waiting],
                "dead_instances": [_instance_fields(one) for one in dead],
                "unreported_commitments": [{"peer": one.peer, "reason": one.reason} for one in commitments],
            }
        )
    else:
        runs = f"runs, process {process}" if process else "does not run"
        note(f"gateway {runs}; {shutil.disk_usage(folder).free / 2**30:.1f} GiB free")
        note("studies: " + ", ".join(f"{number} {state}" for state, number in counts.items()))
        note(f"instances: {totals.instances} received; results: {totals.sent} sent, {totals.unsent} to be sent")
        if commitments:
            note(f"storage commitments to be reported: {len(commitments)}")
        if given_up or waiting:
            _print_studies([*given_up, *waiting])
        if dead:
            _print_instances("dead instances, which could not be scored", dead)
        if given_up or dead:
            note("`limner gateway retry` takes all of them up again, `show STUDY` tells more of one")
    if check and (process is None or given_up or dead):
        raise typer.Exit(FAILED)


def show(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its number, as in the log, or its StudyInstanceUID.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show where one study stands, its results, and what was left out of it."""
    journal = _open(folder)
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
        str, typer.Argument(metavar="[STUDY]", help="Its number or StudyInstanceUID; none: all that are not well.")
    ] = "",
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Take up again, now, what was given up, what waits for its next try, and studies with dead instances."""
    count = _open(folder).retry(study)
    if study and not count:
        raise typer.BadParameter(f"no study {study!r} in {folder} that is not well", param_hint="STUDY")
    if as_json:
        print_json({"studies": count})
    else:
        note(f"{count} {'study is' if count == 1 else 'studies are'} taken up again")


def _open(folder: Path) -> "Journal":
    from limner.gateway.journal import FILE, Journal

    if not (folder / FILE).is_file():
        raise typer.BadParameter(
            f"{folder} holds no journal; expected the folder of `limner gateway run`", param_hint="--journal"
        )
    return Journal(folder)


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
        "peer": instance.peer,
        "scored": instance.scored,
        "reason": instance.reason,
    }


def _print_studies(studies: "list[Study]") -> None:
    table = make_table("studies that are not well", "number", "state", "since", "next try", "reason")
    for study in studies:
        since = _duration(time.time() - study.received)
        state = "dead" if study.given_up else str(study.state)
        table.add_row(str(study.number), state, since, _next_try(study) or "none", Text(study.reason))
    print_table(table)


def _print_instances(title: str, instances: "list[Instance]") -> None:
    table = make_table(title, "instance", "from", "reason")
    for one in instances:
        table.add_row(one.uid, one.peer, Text(one.reason))
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
