"""`limner reading`: blinded readings made, watched, closed, and what came of them. Readers use `limner read`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from limner.cli.common import SERVER, AsJson, Server, connect, make_table, note, print_json, print_table
from limner.errors import InvalidInputError, wrong_input
from limner.reading_export import write_export
from limner.types import LexiconEntry, Reading, SimulationQuestion

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make, list, show and close blinded readings; export their verdicts and measure agreement.",
)

Id = Annotated[str, typer.Argument(metavar="READING", help="Id of the reading, as `limner reading list` shows it.")]
TITLE = "Reading"


@app.command()
def create(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="That readers are held against.")],
    cohort: Annotated[str, typer.Argument(metavar="COHORT", help="Whose slices are read.")],
    reader: Annotated[list[str], typer.Option(help="Name of a reader; again for another.")],
    title: Annotated[
        str, typer.Option(help="What readers see at the top; let it not tell what the images are.")
    ] = TITLE,
    simulation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="result.json of `limner simulate`, whose images are read; again for another."
        ),
    ] = None,
    real: Annotated[int | None, typer.Option(min=0, max=200, help="Real slices of each label; default 10.")] = None,
    resampled: Annotated[
        int, typer.Option(min=0, max=100, help="Simulated images of bootstrap resamples, of each label.")
    ] = 0,
    randomised: Annotated[
        int, typer.Option(min=0, max=100, help="Control: simulated images of randomised networks, of each label.")
    ] = 0,
    class_means: Annotated[bool, typer.Option("--class-means", help="Control: add the mean of each label.")] = False,
    label: Annotated[str, typer.Option(help="Whose likelihood is asked; default the class of interest.")] = "",
    question: Annotated[str, typer.Option(help="Default 'How likely is LABEL?'.")] = "",
    lexicon: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='JSON: [{"name": ..., "options": [...]}]. Default: T2-weighted cervix.'),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of slices and orders; default random.")] = None,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Make a reading and print each reader's token, this once.

    \b
    Example:
      limner reading create cervix cervix-cohort --reader ann --reader bo --simulation simulated/result.json \\
        --randomised 2 --class-means
    """  # noqa: D301  \b keeps the lines apart
    questions = [_question(path) for path in simulation or ()]
    entries = _lexicon(lexicon) if lexicon else ()
    with connect(server) as client:
        made = client.readings.create(
            title,
            model,
            cohort,
            reader,
            simulations=questions,
            real=real,
            resampled=resampled,
            randomised=randomised,
            class_means=class_means,
            label=label,
            question=question,
            lexicon=entries,
            seed=seed,
        )
    if as_json:
        print_json(made)
        return
    _show(made.reading)
    table = make_table("tokens, shown this once; readers open the page of `limner read`", "reader", "token")
    for token in made.tokens:
        table.add_row(token.reader, token.token)
    print_table(table)


@app.command("list")
def list_(server: Server = SERVER, as_json: AsJson = False) -> None:
    """List all readings, newest first."""
    with connect(server) as client:
        readings = client.readings.list()
    if as_json:
        print_json({"readings": [reading.to_dict() for reading in readings]})
        return
    table = make_table("readings", "id", "title", "model", "cohort", "images", "readers", "state")
    for reading in readings:
        readers = ", ".join(f"{one.reader} {one.done}/{reading.total}" for one in reading.readers)
        row = (reading.title, str(reading.model), reading.cohort, str(reading.total), readers, _state(reading))
        table.add_row(reading.id, *map(Text, row))
    print_table(table)


@app.command()
def show(reading: Id, server: Server = SERVER, as_json: AsJson = False) -> None:
    """Show a reading and how far its readers are."""
    with connect(server) as client:
        found = client.readings.get(reading)
    if as_json:
        print_json(found)
    else:
        _show(found)


@app.command()
def token(
    reading: Id,
    reader: Annotated[str, typer.Argument(metavar="READER", help="One of the reading's, or a new one.")],
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Make a new token for a reader who lost theirs, which ends; or take a new reader in."""
    with connect(server) as client:
        made = client.readings.issue_token(reading, reader)
    if as_json:
        print_json(made)
    else:
        print(made.token)


@app.command()
def close(reading: Id, server: Server = SERVER, as_json: AsJson = False) -> None:
    """End a reading for all its readers; what its images are is told from now on."""
    with connect(server) as client:
        found = client.readings.close(reading)
    if as_json:
        print_json(found)
        return
    unread = [f"{one.reader} {one.done} of {found.total}" for one in found.readers if one.done < found.total]
    note(f"closed reading {found.id}" + (f"; not finished: {', '.join(unread)}" if unread else ""))


@app.command()
def export(
    reading: Id,
    folder: Annotated[Path, typer.Option("--out", help="Where to write verdicts.csv, items.csv and reading.json.")],
    images: Annotated[bool, typer.Option("--images", help="Write each image as PNG too.")] = False,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Write each image, and a structured report for each reader, as DICOM.")
    ] = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Write every verdict of a closed reading, and what each image is, as tables and, if wanted, DICOM.

    \b
    Example:
      limner reading export 0f3c9a51d2b47e68 --out reading/ --dicom
    """  # noqa: D301  \b keeps the lines apart
    with connect(server) as client:
        content = client.readings.export(reading, images=images or dicom)
    written = write_export(content, folder, images=images, dicom=dicom)
    if as_json:
        print_json({"reading": reading, "files": [str(path) for path in written]})
    note(f"wrote {len(content.verdicts)} verdicts on {len(content.items)} images to {folder}, {len(written)} files")


@app.command()
def agreement(
    reading: Id,
    resamples: Annotated[int, typer.Option(min=100, max=10_000, help="Of the bootstrap.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Show how far the readers of a closed reading and the model agree, with 95 % intervals."""
    with connect(server) as client:
        found = client.readings.agreement(reading, resamples=resamples, seed=seed)
    if as_json:
        print_json(found)
        return
    table = make_table(f"agreement, reading {reading}", "figure", "of", "value", "95 % interval", "cases", "resampled")
    for figure in found.figures:
        interval = f"{figure.low:.2f} to {figure.high:.2f}"
        table.add_row(figure.name, figure.raters, f"{figure.value:.2f}", interval, str(figure.cases), figure.resampled)
    print_table(table)
    means = make_table("means", "rater", "kind", "label", "cases", "likelihood", "realism")
    for group in found.groups:
        figures = (str(group.cases), f"{group.likelihood:.1f}", f"{group.realism:.2f}")
        means.add_row(group.reader, group.kind.value, Text(group.label), *figures)
    print_table(means)


def _state(reading: Reading) -> str:
    return f"closed {reading.closed:%Y-%m-%d}" if reading.closed else "open"


def _show(reading: Reading) -> None:
    table = make_table(f"reading {reading.id}, {_state(reading)}: {reading.question}", "images", "of", "label")
    for item in reading.items:
        table.add_row(str(item.images), item.kind.value.replace("_", " "), Text(item.label))
    print_table(table)
    readers = make_table(f"{reading.model} on {reading.cohort}, seed {reading.seed}", "reader", "done", "last verdict")
    for one in reading.readers:
        last = f"{one.last:%Y-%m-%d %H:%M} UTC" if one.last else ""
        readers.add_row(one.reader, f"{one.done} of {reading.total}", last)
    print_table(readers)


def _question(path: Path) -> SimulationQuestion:
    """Read which simulation a result.json is of."""
    try:
        content = json.loads(path.read_bytes())
        model = content["model"]
        return SimulationQuestion(
            model=f"{model['name']}:{model['version']}",
            checks=bool(content["checks"]),
            **{name: content[name] for name in ("cohort", "method", "steps", "seed")},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise wrong_input(
            "simulation", f"simulation is {str(path)!r}", "result.json as `limner simulate` writes it"
        ) from error


def _lexicon(path: Path) -> list[LexiconEntry]:
    try:
        return TypeAdapter(list[LexiconEntry]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInputError(
            f"lexicon is {str(path)!r}, wrong at {where or 'its start'}: {first['msg']}; expected "
            '[{"name": "margin", "options": ["well defined", "ill defined"]}, ...]',
            field="lexicon",
        ) from error
