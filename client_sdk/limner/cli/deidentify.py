"""`limner deidentify`: DICOM that may leave the site, and the map that may not."""

import os
from pathlib import Path
from typing import Annotated

import typer

from limner.cli.common import FAILED, AsJson, note, print_json, progress_bar
from limner.cli.rules import no_dicom
from limner.cohort_import import default_key_file
from limner.deidentified_folder import deidentify_folder
from limner.imaging import load_or_create_key
from limner.imaging.profile import Retain
from limner.imaging.pseudonym_map import PseudonymMap


def deidentify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of DICOM, in any arrangement.")],
    out: Annotated[Path, typer.Option(help="Where to write, outside DIR; made if need be, for its owner only.")],
    retain: Annotated[
        list[Retain] | None,
        typer.Option(
            help="Keep dates (shifted), device (which one it was), patient (sex, age, size, weight) or descriptions "
            "(of series, where they hold words of MR protocols only); may be given again."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File of the pseudonyms' key; default: that of `limner cohort import`.")
    ] = None,
    pseudonyms: Annotated[
        Path | None,
        typer.Option("--map", help="CSV of who is who, for the way back; default: beside the key. Keep it here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the MR images of a folder without what identifies, after the basic profile of DICOM PS3.15 annex E.

    One key gives one pseudonym to a patient and to a UID, here and in `limner cohort import`. Pixels are not looked at:
    what may hold text in them is refused and named. An interrupted run is resumed by repeating it.

    \b
    Examples:
      limner deidentify mri/ --out shared/
      limner deidentify mri/ --out shared/ --retain dates --retain patient
    """  # noqa: D301  \b keeps the lines apart
    key_file = key or default_key_file()
    names = PseudonymMap(load_or_create_key(key_file), pseudonyms or key_file.with_suffix(".csv"))
    with progress_bar() as bar:
        task = bar.add_task("de-identifying", total=sum(len(files) for _, _, files in os.walk(folder)))
        done = deidentify_folder(folder, out, names, retain or (), progress=lambda: bar.advance(task))
    for path in done.other:
        note(f"left out: {path}: not DICOM")
    for path, reason in done.failed:
        note(f"failed: {path}: {reason}")
    if as_json:
        print_json(
            {
                "written": done.written,
                "unchanged": done.unchanged,
                "failed": [{"name": str(path), "reason": reason} for path, reason in done.failed],
                "left_out": [str(path) for path in done.other],
                "map": str(names.path),
            }
        )
    elif done.written or done.unchanged or done.failed:
        counts = f"{done.written} images written, {done.unchanged} there already, {len(done.failed)} failed"
        note(f"{counts}; who is who: {names.path}, which stays here")
    if done.failed:
        raise typer.Exit(FAILED)
    if not (done.written or done.unchanged):
        raise no_dicom(folder)
