"""`limner simulate`: an image of each class, its checks, and files that say whether it may be called an explanation."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.text import Text

from limner.cli.common import (
    FAILED,
    NOTICE,
    SERVER,
    AsJson,
    ModelArgument,
    Server,
    connect,
    make_table,
    note,
    percent,
    print_json,
    print_table,
    progress_bar,
)
from limner.imaging.files import replace_file
from limner.simulated import figure, shortcoming
from limner.types import Progress, SimulationMethod, SimulationResult, Verdict


def simulate(
    model: ModelArgument,
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Whose feature maps are combined.")],
    folder: Annotated[Path, typer.Option("--out", help="Where to write the images and result.json.")],
    method: Annotated[
        SimulationMethod | None, typer.Option(help="inversion (default), or composite, the paper's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=10, max=2000, help="Of the optimiser; default 150.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random; default 0.")] = None,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="Whether to run the checks.")] = True,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Write images that failed a check or were not checked; they say so.")
    ] = False,
    dicom: Annotated[bool, typer.Option("--dicom/--no-dicom", help="Write the images as DICOM too.")] = True,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Simulate an image of each class from a model's weights and feature maps, and have it checked.

    Images that fail a check are no explanation and are written only with --allow-failed. result.json is always written.

    \b
    Example:
      limner simulate cervix cervix-cohort --out simulated/
    """  # noqa: D301  \b keeps the lines apart
    if dicom and find_spec("highdicom") is None:
        raise typer.BadParameter("needs highdicom: pip install 'limner[gateway]', or --no-dicom", param_hint="--dicom")
    folder.mkdir(parents=True, exist_ok=True)
    with connect(server) as client, progress_bar() as bar:
        task = bar.add_task("simulating", total=1.0)

        def advance(now: Progress) -> None:
            bar.update(task, completed=now.fraction, description=now.phase)

        result = client.simulate(model, cohort, method=method, steps=steps, seed=seed, checks=checks, progress=advance)
    exported = result.verdict is Verdict.EXPLANATION or allow_failed
    _write_result(folder, result)
    if exported:
        result.export(folder, allow_failed=allow_failed, dicom=dicom)
    if as_json:
        print_json(result)
    else:
        _show(result)
    _conclude(folder, result, exported)


def _conclude(folder: Path, result: SimulationResult, exported: bool) -> None:
    note(f"verdict: {shortcoming(result) or 'explanation'}; {NOTICE}")
    if not exported:
        note(f"no images were written, as they are no explanation (--allow-failed writes them marked); see {folder}")
        raise typer.Exit(FAILED)
    note(f"wrote {len(result.images)} images to {folder}")


def _write_result(folder: Path, result: SimulationResult) -> None:
    fields = {"notice": NOTICE, **result.to_dict()}
    with replace_file(folder / "result.json") as temporary:
        temporary.write_bytes(to_json(fields, indent=2, inf_nan_mode="null"))


def _show(result: SimulationResult) -> None:
    images = make_table(f"simulated by {result.model} from {result.cohort}", "class", "identified as", "probability")
    for image in result.images:
        said = image.prediction
        images.add_row(Text(image.label), Text(said.label), percent(max(said.probabilities)))
    print_table(images)
    if not result.checks:
        return
    checks = make_table("checks", "check", "figure", "outcome", "detail")
    for check in result.checks:
        outcome = ("passed" if check.passed else "failed") if check.ran else "not run"
        name = f"{check.number} {check.name}" + ("" if check.gate else " (reported)")
        checks.add_row(name, figure(check), outcome, Text(check.detail))
    print_table(checks)
