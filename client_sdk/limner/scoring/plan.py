"""How a run begins, and whether it may go on: what it scores is written down once, and has to be the same later."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import WrongStateError, invalid_input, wrong_input
from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file
from limner.imaging.rule_files import default_rules, read_rules
from limner.imaging.rules import SelectionRules
from limner.scoring.manifest import Row, write_manifest
from limner.scoring.run import ITEMS, LEFT_OUT, ROWS, Run, RunModel, Tell, write_run
from limner.scoring.sources import Census, clean, expanded, fingerprint, listed, of_a_run
from limner.types import ImportanceMethod, ScoreOptions

if TYPE_CHECKING:
    import _csv


def make_folder(out: Path) -> None:
    """Make the folder of a run, where it is missing; InvalidInputError where it is somebody else's."""
    out.mkdir(parents=True, exist_ok=True)
    # Hidden files may be what a kill has left of a list that was being written.
    others = [path.name for path in out.iterdir() if path.name not in (ITEMS, LEFT_OUT) and path.name[0] != "."]
    if others and ROWS not in others:
        raise wrong_input("out", f"{out} holds something else than a run, {others[0]}", "a new or an empty folder")


def begin(model: RunModel, sources: Sequence[str], out: Path, options: ScoreOptions, tell: Tell) -> Run:
    """Write down what is to be scored, and return it as a run; without sources that is not known yet.

    Raises
    ------
    InvalidInputError
        Where something that the sources name is not there or cannot be used, or two images have one id.
    """
    run = Run(
        limner=version("limner"),
        model=model,
        source=tuple(sources),
        selection=_selection(sources, options),
        fingerprint=fingerprint(sources),
        shard=options.shard,
        shards=options.shards,
        embeddings=options.embeddings,
        features=options.features,
        method=_method(options),
    )
    if sources:
        census, left_out = list_images(sources, out, options, tell)
        run = run.model_copy(update={"total": census.total, "digest": census.digest, "left_out": left_out})
    write_run(out, run)
    return run


def resume(run: Run, model: RunModel, sources: Sequence[str], out: Path, options: ScoreOptions) -> Run:
    """Return the run that is to be gone on with.

    Raises
    ------
    InvalidInputError
        Where it was begun with another source, selection or shard, or the source has changed.
    WrongStateError
        Where it was begun with another model, and that is not allowed.
    """
    for field, begun, now in (
        ("source", _words(run.source), _words(sources)),
        ("selection", run.selection, _selection(sources, options)),
        ("shard", f"{run.shard}/{run.shards}", f"{options.shard}/{options.shards}"),
        ("embeddings", str(run.embeddings), str(options.embeddings)),
        ("features", ", ".join((*run.features, run.method)), ", ".join((*options.features, _method(options)))),
    ):
        if begun != now:
            raise wrong_input(field, f"{field} is {now}", f"{begun}, with which the run in {out} was begun")
    if fingerprint(sources) != run.fingerprint:
        found = f"the files of {_words(sources)} are others than when the run in {out} was begun"
        raise wrong_input("source", found, f"the same names and sizes; {out / ITEMS} is a manifest of what they were")
    if model.identity.digest == run.model.identity.digest:
        return run
    changed = f"the run in {out} was begun with {_named(run.model)}; the server has {_named(model)} now"
    if _shape(model, run) != _shape(run.model, run):
        raise WrongStateError(f"{changed}, whose labels, embeddings or features are others: begin another run")
    if not options.another_model:
        raise WrongStateError(f"{changed}: name the former, begin another run, or allow another model")
    run = run.model_copy(update={"model": model})
    write_run(out, run)
    return run


def list_images(sources: Sequence[str], out: Path, options: ScoreOptions, tell: Tell) -> tuple[Census, int]:
    """Write the images that sources name, and the files that are left out; return the former and how many the latter.

    Raises
    ------
    InvalidInputError
        As `begin`.
    """
    census, files = Census(), count(1)
    with replace_file(out / ITEMS) as items, _left_out(out) as left_out:
        rows = expanded(sources, _rules(options), left_out, lambda: tell("reading headers", next(files), None))
        write_manifest(items, _counted(rows, census))
        if twice := census.twice():
            name = next(item.image.id for item in listed(items) if item.position in twice)
            raise wrong_input("id", f"{name!r} is the id of two images", "each image once, under an id of its own")
        if not census.total:
            raise wrong_input("source", f"{_words(sources)} holds no image to score{left_out.example}", "one or more")
    return census, left_out.count


def _counted(rows: Iterator[Row], census: Census) -> Iterator[Row]:
    for row in rows:
        census.add(row.id, row.subject, row.label)
        yield row


class _LeftOut:
    """Notes which files are not scored, and why."""

    def __init__(self, table: "_csv.Writer") -> None:
        self._table = table
        self.count = 0
        self.example = ""

    def __call__(self, path: Path, reason: str) -> None:
        if not of_a_run(path):
            self.count += 1
            self.example = self.example or f"; {path} for example is left out: {reason}"
            self._table.writerow([clean(str(path)), clean(reason)])


@contextmanager
def _left_out(out: Path) -> Iterator[_LeftOut]:
    with replace_file(out / LEFT_OUT) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "reason"])
        yield _LeftOut(table)


def _rules(options: ScoreOptions) -> SelectionRules | None:
    if options.every_slice:
        return None
    try:
        return default_rules() if options.rules is None else read_rules(options.rules)
    except ImageError as error:
        raise invalid_input(error) from error


def _selection(sources: Sequence[str], options: ScoreOptions) -> str:
    if not sources:
        return ""
    rules = _rules(options)
    if rules is None:
        return "every slice"
    said = rules.model_dump_json(exclude={"planes"}) + str(sorted(rules.planes or ()))  # a set has no order
    digest = sha256(said.encode()).hexdigest()
    return f"series by {options.rules or 'the default rules'} (digest {digest[:12]})"


def _method(options: ScoreOptions) -> str:
    return str(options.method or ImportanceMethod.GRADIENT_X_DEVIATION) if options.features else ""


def _shape(model: RunModel, run: Run) -> tuple[object, ...]:
    """Return what the results of one run must have in common, by whichever model they are."""
    return model.labels, model.width, *(model.channels.get(layer) for layer in run.features)


def _words(sources: Sequence[str]) -> str:
    return ", ".join(sources) or "images of the caller's own"


def _named(model: RunModel) -> str:
    return f"{model.identity}, digest {model.identity.digest[:12]}"
