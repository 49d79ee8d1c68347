"""`limner report`: one HTML file that shows what a model is worth and what it looks at, and its figures for a paper."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from limner.cli.common import NOTICE, SERVER, AsJson, ModelArgument, Server, connect, note, print_json, progress_bar
from limner.client import Client
from limner.cohort_flow import read_flow
from limner.cohort_import import default_key_file
from limner.errors import InvalidInputError
from limner.imaging import load_or_create_key
from limner.types import Cohort, Model, Progress, SimulationResult

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from limner.cohorts import CohortSlice
    from limner.report import ReportData

NEEDED = ("jinja2", "matplotlib")


def report(
    model: ModelArgument,
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Whose subjects and slices are shown.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write report.html and figures/.")],
    simulation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="result.json of `limner simulate`; default: simulate.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate/--no-simulate", help="Whether to simulate; a finished one is used at once.")
    ] = True,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="DICOM that the cohort was imported from, for heat maps; may be given again."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File of the key of that import's pseudonyms; default: in the user's folder.")
    ] = None,
    flow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="labels.flow.json: how the cohort's subjects were chosen.")
    ] = None,
    reading: Annotated[
        str, typer.Option(metavar="ID", help="A closed reading of this model and cohort, for how far readers agree.")
    ] = "",
    examples: Annotated[int, typer.Option(min=1, max=100, help="Subjects of each label under heat maps.")] = 3,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Of the heat maps: stem, layer1 ... layer4; may be given again. Default layer2 and layer3."),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Whether to write each figure as SVG and PNG too.")
    ] = True,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Write a report of a model on a cohort: report.html, which needs nothing else, and its figures for a paper.

    What the model's card does not hold is said to be not measured, with how to get it. Images that failed a check are
    marked in the picture. Slices are shown under their pseudonyms.

    \b
    Examples:
      limner report cervix cervix-cohort --out report/ --images mri/
      limner report cervix:2 cervix-cohort --out report/ --simulation simulated/result.json --flow labels.flow.json
      limner report cervix cervix-cohort --out report/ --no-simulate --no-figures
    """  # noqa: D301  \b keeps the lines apart
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise typer.BadParameter(f"needs {' and '.join(missing)}: pip install 'limner[report]'", param_hint="report")
    if simulation is not None and not simulate:
        raise typer.BadParameter("not with --no-simulate", param_hint="--simulation")
    # Imported here: matplotlib takes a second, and no other command needs it.
    from limner import report as reports

    chosen_flow = None if flow is None else read_flow(flow)
    result = None if simulation is None else reports.read_simulation(simulation)
    secret = _key(key) if images else b""
    with connect(server) as client, progress_bar() as bar:
        version = client.model(model)
        members = client.cohort(cohort, instances=bool(images))
        slices = _slices(images or [], members, version, secret, bar)
        if result is None and simulate:
            result = _simulate(client, version, members, bar)
        task = bar.add_task("heat maps", total=None)
        data = reports.collect(
            client,
            version,
            members,
            result,
            slices,
            command=shlex.join(["limner", *sys.argv[1:]]),
            examples=examples,
            layers=tuple(layer or reports.LAYERS),
            flow=chosen_flow,
            reading=client.readings.agreement(reading) if reading else None,
        )
        bar.update(task, description="writing the page", total=1, completed=1)
        folder.mkdir(parents=True, exist_ok=True)
        reports.write_report(folder / "report.html", data)
        drawn = _draw(folder / "figures", data, bar) if figures else ()
    _conclude(data, folder / "report.html", drawn, as_json)


def _key(path: Path | None) -> bytes:
    """Return the key of an import that has been: here none is made."""
    place = path or default_key_file()
    if not place.exists():
        raise InvalidInputError(
            f"key is {str(place)!r}, which does not exist; expected the key that the cohort was imported with",
            field="key",
        )
    return load_or_create_key(place)


def _slices(folders: list[Path], cohort: Cohort, model: Model, key: bytes, bar: "Bar") -> "list[CohortSlice]":
    if not folders:
        return []
    from limner.report import cohort_slices

    task = bar.add_task("reading headers", total=None)
    slices = cohort_slices(folders, cohort, model, key, progress=lambda: bar.advance(task))
    note(f"found {len(slices)} of the cohort's {cohort.slices} slices")
    return slices


def _simulate(client: Client, model: Model, cohort: Cohort, bar: "Bar") -> SimulationResult:
    task = bar.add_task("simulating", total=1.0)

    def advance(now: Progress) -> None:
        bar.update(task, completed=now.fraction, description=now.phase)

    return client.simulate(str(model.identity), cohort.name, progress=advance)


def _draw(folder: Path, data: "ReportData", bar: "Bar") -> tuple[Path, ...]:
    from limner.report import write_figures

    task = bar.add_task("drawing figures", total=None)
    return write_figures(folder, data, lambda done, total: bar.update(task, completed=done, total=total))


def _conclude(data: "ReportData", page: Path, figures: tuple[Path, ...], as_json: bool) -> None:
    from limner.report import not_measured

    verdict = None if data.simulation is None else data.simulation.verdict.value
    failed = [] if data.simulation is None else [check.name for check in data.simulation.failed_gates]
    missing = not_measured(data)
    if as_json:
        print_json(
            {
                "report": str(page),
                "figures": [str(path) for path in figures],
                "model": data.model.identity.to_dict(),
                "cohort": data.cohort.name,
                "cohort_digest": data.cohort.digest,
                "verdict": verdict,
                "failed_gates": failed,
                "far": [
                    example.source.subject
                    for example in data.examples
                    if example.prediction.distance is not None and example.prediction.distance.far
                ],
                "not_measured": [{"what": gap.what, "how": gap.how} for gap in missing],
            }
        )
    for gap in missing:
        note(f"not measured: {gap.what}; to get it: {gap.how}")
    if verdict is not None:
        note("verdict: " + verdict.replace("_", " ") + (f" ({', '.join(failed)})" if failed else ""))
    drawn = f" and {len(figures)} files of figures in {page.parent / 'figures'}" if figures else ""
    note(f"wrote {page}{drawn}; {NOTICE}")
