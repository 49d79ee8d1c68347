"""The command: which cases, to which targets, and what became of them."""

import json
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.malformed import decoding, sending, serving
from benchmarks.malformed.outcome import Outcome, Report, Verdict
from benchmarks.malformed.serving import live_server
from tests.live import LiveServer

TARGETS: dict[str, Callable[[range, bool, LiveServer], Report]] = {
    "decode": lambda cases, quiet, _: decoding.drive(cases, quiet),
    "predict": serving.drive_predict,
    "import": serving.drive_import,
    "gateway": sending.drive,
}


def main(
    target: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(TARGETS)}; none: all.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Malformed inputs.")] = 10_000,
    first: Annotated[int, typer.Option(min=0, help="Number of the first, to look at one again.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Drive malformed DICOM to everything that takes DICOM; exits with 1 on any violation.

    \b
    Examples:
      python -m benchmarks.malformed --count 1000
      python -m benchmarks.malformed decode --first 4711 --count 1
    """  # noqa: D301  \b keeps the lines apart
    if unknown := set(target or ()) - set(TARGETS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; expected of {', '.join(TARGETS)}", param_hint="TARGET")
    cases = range(first, first + count)
    with live_server() as server:
        reports = [drive(cases, as_json, server) for name, drive in TARGETS.items() if not target or name in target]
    if as_json:
        print(json.dumps([to_dict(report) for report in reports]))
    else:
        show(reports, Console())
    if any(report.violations for report in reports):
        raise typer.Exit(1)


def to_dict(report: Report) -> dict[str, object]:
    """Everything that is told of a target."""
    return {
        "target": report.target,
        **{verdict: report.count(verdict) for verdict in Verdict},
        "causes": dict(report.causes.most_common()),
        "peak_mib": round(report.peak_mib),
        "resident_mib": round(report.resident_mib),
        "slowest": [
            {"case": one.case, "seconds": round(one.seconds, 2), "verdict": one.verdict} for one in slowest(report)
        ],
        "violations": report.violations,
    }


def slowest(report: Report, most: int = 5) -> list[Outcome]:
    """Return the outcomes that took longest."""
    return sorted(report.outcomes, key=lambda outcome: -outcome.seconds)[:most]


def show(reports: list[Report], console: Console) -> None:
    """Print what became of the inputs, for a person."""
    table = Table("target", *Verdict, "slowest", "memory above base", "resident memory")
    for report in reports:
        counts = [f"{report.count(verdict):,}" for verdict in Verdict]
        memory = f"{report.peak_mib:.0f} MiB", f"{report.resident_mib:.0f} MiB"
        table.add_row(report.target, *counts, f"{slowest(report)[0].seconds:.1f} s", *memory)
    console.print(table)
    for report in reports:
        causes = ", ".join(f"{field} {number:,}" for field, number in report.causes.most_common(12))
        console.print(f"[bold]{report.target}[/bold] refused: {causes}", highlight=False)
        for outcome in slowest(report):
            console.print(f"  {outcome.seconds:6.2f} s  {outcome.case}: {outcome.verdict}", highlight=False)
        for violation in report.violations:
            console.print(f"  [red]violation[/red] {violation}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
