"""`limner phantom`: a simulated cohort as DICOM, for trying everything out."""

from pathlib import Path
from typing import Annotated

import typer

from limner.cli.common import AsJson, note, print_json, progress_bar
from limner.imaging import write_phantom


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if need be.")],
    subjects: Annotated[int, typer.Option(min=1, max=100_000, help="Number of subjects.")] = 27,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
    separation: Annotated[float, typer.Option(help="Distance of the classes in the latent severity, d'.")] = 3.5,
    correlation: Annotated[float, typer.Option(help="Of each trait with the severity, -1 to 1.")] = 0.9,
    as_json: AsJson = False,
) -> None:
    """Write a simulated cohort of T2-weighted pelvic MR as DICOM, with labels.csv.

    \b
    Example:
      limner phantom cohort/ --subjects 27 --seed 0
    """  # noqa: D301  \b keeps the lines apart
    with progress_bar() as bar:
        task = bar.add_task("writing subjects", total=subjects)
        write_phantom(folder, subjects, seed, separation, correlation, progress=lambda: bar.advance(task))
    labels = folder / "labels.csv"
    if as_json:
        print_json({"folder": str(folder), "subjects": subjects, "seed": seed, "labels": str(labels)})
    else:
        note(f"wrote {subjects} simulated subjects to {folder}, and {labels}")
