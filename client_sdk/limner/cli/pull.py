"""`limner pull`: studies out of a PACS, into a folder or to a gateway.

What is asked for, how it is fetched and kept is `limner.gateway.pull`'s; here are its options and what it says.
"""

from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.text import Text

from limner.cli.common import FAILED, UNAVAILABLE, AsJson, make_table, note, print_json, print_table, progress_bar
from limner.cli.nodes import (
    AE_TITLE,
    HOST,
    PORT,
    AeTitle,
    TlsCa,
    TlsCertificate,
    TlsKey,
    need_gateway,
    node_tls,
    open_journal,
    own_title,
    tls_pair,
)
from limner.cli.rules import Rules, rules_of

if TYPE_CHECKING:
    from limner.gateway.pull.archive import Archive
    from limner.gateway.pull.plan import StudyPlan
    from limner.gateway.pull.puller import Puller, Summary
    from limner.gateway.pull.query import Query
    from limner.gateway.pull.sources import Source

DicomwebUrl = Annotated[
    str,
    typer.Option(
        "--dicomweb",
        metavar="URL",
        help="Pull from there by DICOMweb; credentials: LIMNER_DICOMWEB_TOKEN, or LIMNER_DICOMWEB_USER and …_PASSWORD.",
    ),
]
QueryTerms = Annotated[
    list[str] | None,
    typer.Option(
        "--query", metavar="KEYWORD=VALUE", help="Studies that match all terms: *, ? and ranges of dates will do."
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Refuse to pull more studies than this.")]
LIMIT = 500


def pull(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[KEYWORD=VALUE]...", help="Further terms of --query.")
    ] = None,
    dicomweb: DicomwebUrl = "",
    pacs: Annotated[str, typer.Option(metavar="AET@HOST:PORT", help="Pull from there by C-FIND and C-GET.")] = "",
    move: Annotated[
        bool, typer.Option("--move", help="C-MOVE in place of C-GET: the PACS calls --aet here, on --host and --port.")
    ] = False,
    study: Annotated[list[str] | None, typer.Option(metavar="UID", help="StudyInstanceUID; again for another.")] = None,
    query: QueryTerms = None,
    work_list: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Study UIDs or accession numbers, one a line or in a column of a CSV."),
    ] = None,
    rules: Rules = None,
    all_series: Annotated[bool, typer.Option("--all-series", help="All series, whatever the rules say.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep there, as STUDY/SERIES/INSTANCE.dcm: patients' images."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hand to the gateway that has this journal, to be scored.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pulled, and fetch nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Fetches at a time.")] = 4,
    retries: Annotated[int, typer.Option(min=0, help="How often to ask again where nobody answers.")] = 4,
    timeout_s: Annotated[float, typer.Option(min=1, help="How long an answer may take.")] = 60,
    limit: Limit = LIMIT,
    ae_title: AeTitle = AE_TITLE,
    host: Annotated[str, typer.Option(help="With --move: address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --move: TCP port.")] = PORT,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Pull studies from a PACS, by DICOMweb or DIMSE.

    Takes the series that the rules of `limner select` do not rule out by what the PACS tells of them. What is here
    already is not fetched again, so a pull that ended early is resumed by repeating it.

    Images come as they are, with names and all: keep the folder private (it is made for its owner only), and put
    queries that name patients into a --work-list, since other users see command lines.

    \b
    Examples:
      limner pull --dicomweb https://pacs.example/dicom-web --study 1.2.840.1 --out mri/
      limner pull --pacs ORTHANC@pacs.example:4242 --query ModalitiesInStudy=MR StudyDate=20200101-20201231 --dry-run
      limner pull --pacs ORTHANC@pacs.example:4242 --move --work-list accessions.csv --journal limner-gateway
    """  # noqa: D301  \b keeps the lines apart
    need_gateway("limner pull")
    from limner.gateway.peers import UnreachableError
    from limner.gateway.pull.puller import Puller, PullSettings

    tls = (tls_certificate, tls_key, tls_ca)
    if bool(dicomweb) == bool(pacs):
        raise typer.BadParameter("give one of --dicomweb and --pacs", param_hint="--dicomweb")
    if dicomweb and move:
        raise typer.BadParameter("goes with --pacs", param_hint="--move")
    if dicomweb:
        source = _service(dicomweb, tls, retries, timeout_s)
    else:
        source = _pacs(pacs, tls, timeout_s, own_title(ae_title), (host, port) if move else None)
    queries = _queries(study or [], [*(query or ()), *(more or ())], work_list)
    settings = PullSettings(None if all_series else rules_of(rules), jobs, retries, limit)
    with nullcontext() if dry_run else closing(_archive(out, journal)) as archive, progress_bar() as bar:
        puller = Puller(source, settings, _Bars(bar))
        plans, stopped = _run(puller, queries, archive)
    summary = puller.summary
    if as_json:
        fields = {"studies": [_plan_fields(plan) for plan in plans]} if dry_run else {}
        print_json(fields | _summary_fields(summary, str(stopped or "")))
    else:
        if dry_run:
            _show_plans(plans)
        _show_summary(summary, dry_run)
    if stopped:
        note(f"stopped: {stopped}")
    if stopped or summary.failed:
        raise typer.Exit(UNAVAILABLE if isinstance(stopped, UnreachableError) else FAILED)


class _Bars:
    """Shows how far a pull is: a bar of studies, and one of the images of the present one."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._studies = bar.add_task("studies", total=None)
        self._images = bar.add_task("images of this study", total=None)
        self._begun = 0

    def found(self, studies: int) -> None:
        self._bar.update(self._studies, total=studies)

    def planned(self, missing: int) -> None:
        self._bar.update(self._studies, completed=self._begun)
        self._begun += 1
        self._bar.reset(self._images, total=missing)

    def kept(self) -> None:
        self._bar.advance(self._images)

    def waits(self, pause_s: float, reason: str) -> None:
        note(f"asking again in {pause_s:g} s: {reason}")


def _queries(studies: list[str], terms: list[str], work_list: Path | None) -> "list[Query]":
    from limner.gateway.pull.query import parse_query, read_work_list, study_query

    queries = [study_query(uid) for uid in studies]
    if terms:
        queries.append(parse_query(terms))
    if work_list:
        queries += read_work_list(work_list)
    if not queries:
        raise typer.BadParameter("needed, or --query or --work-list", param_hint="--study")
    return queries


_TlsFiles = tuple[Path | None, Path | None, Path | None]


def _service(url: str, tls: _TlsFiles, retries: int, timeout_s: float) -> "Source":
    from limner.gateway.peers import http_session
    from limner.gateway.pull.dicomweb import DicomwebSource

    session = http_session(ca=tls[-1], certificate=tls_pair(*tls), retries=retries)
    try:
        return DicomwebSource(url, session, timeout_s)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dicomweb") from error


def _pacs(pacs: str, files: _TlsFiles, timeout_s: float, calling: str, moving_to: tuple[str, int] | None) -> "Source":
    from limner.gateway.peers import Node
    from limner.gateway.pull.dimse import MovingPacsSource, PacsSource
    from limner.gateway.receiver import ListenSettings

    tls = node_tls(*files)
    try:
        node = Node.parse(pacs, calling, tls.client_context() if tls else None, timeout_s)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--pacs") from error
    if moving_to is None:
        return PacsSource(node)
    host, port = moving_to
    return MovingPacsSource(node, ListenSettings(ae_title=calling, host=host, port=port, tls=tls))


def _archive(out: Path | None, journal: Path | None) -> "Archive":
    from limner.gateway.pull.archive import Folder, JournalArchive

    if out and not journal:
        return Folder(out)
    if journal and not out:
        return JournalArchive(open_journal(journal))
    raise typer.BadParameter("give one of --out and --journal, or --dry-run", param_hint="--out")


def _run(
    puller: "Puller", queries: "list[Query]", archive: "Archive | None"
) -> "tuple[list[StudyPlan], Exception | None]":
    """Pull, or only plan where there is no archive; return the plans then, and what put an early end to it."""
    from limner.gateway.peers import RefusedError, UnreachableError

    plans: list[StudyPlan] = []
    try:
        studies = puller.find(queries)
        if archive:
            puller.pull(studies, archive)
        else:
            plans.extend(puller.plans(studies))
    except (UnreachableError, RefusedError, OSError) as error:
        return plans, error
    return plans, None


def _plan_fields(plan: "StudyPlan") -> dict[str, Any]:
    study = plan.study
    return {
        "study": study.uid,
        "date": study.date,
        "patient": study.patient_id,
        "accession_number": study.accession_number,
        "description": study.description,
        "series": [
            {
                "series": series.uid,
                "modality": series.modality,
                "description": series.description,
                "images": series.images,
                "pulled": not series.reasons,
                "reasons": series.reasons,
            }
            for series in plan.series
        ],
    }


def _show_plans(plans: "list[StudyPlan]") -> None:
    if not plans:
        return
    table = make_table("series", "date", "patient", "study", "series", "modality", "images", "verdict")
    for plan in plans:
        for series in plan.series:
            verdict = Text("; ".join(series.reasons) or "pulled", style="yellow" if series.reasons else "green")
            names = (plan.study.date, plan.study.patient_id, plan.study.uid, series.description, series.modality)
            images = "" if series.images is None else str(series.images)
            table.add_row(*map(Text, names), images, verdict)
    print_table(table)


def _summary_fields(summary: "Summary", stopped: str) -> dict[str, Any]:
    return {
        "looked_into": summary.studies,
        "pulled": summary.pulled,
        "present": summary.present,
        "failed": summary.failed,
        "left_out": [vars(one) for one in summary.left_out],
        "stopped": stopped,
    }


def _show_summary(summary: "Summary", dry_run: bool) -> None:
    if not dry_run:
        alike = Counter((one.description, one.reasons) for one in summary.left_out)
        for (description, reasons), times in alike.items():
            note(f"left out, {times} series {description!r}: {'; '.join(reasons)}")
    for name, reason in summary.failed.items():
        note(f"failed: {name}: {reason}")
    if dry_run:
        note(f"{summary.studies} studies match")
    else:
        note(
            f"{summary.studies} studies: {summary.pulled} images pulled, {summary.present} here already, "
            f"{len(summary.failed)} failed"
        )
