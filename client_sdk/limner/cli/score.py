"""`limner score` and `limner merge`: any number of slices into tables, in one run or in shards."""

import csv
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from limner.cli.common import (
    FAILED,
    NOTICE,
    SERVER,
    AsJson,
    ModelArgument,
    Server,
    connect,
    err,
    note,
    print_json,
    progress_bar,
)
from limner.cli.pull import LIMIT, DicomwebUrl, Limit, QueryTerms, pull
from limner.cli.rules import Rules
from limner.errors import LimnerError
from limner.scoring.merge import merge as merge_parts
from limner.scoring.plan import list_images, make_folder
from limner.scoring.run import ITEMS, LEFT_OUT, ROWS, read_run
from limner.types import ImportanceMethod, ScoreOptions, Scores, TableFormat

# Between two lines about how far it is, where nobody looks at a bar.
TOLD_EVERY_S = 60.0

DEFAULT = ScoreOptions()

Format = Annotated[TableFormat, typer.Option("--format", help="Of the tables; parquet needs limner[parquet].")]


def score(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results: new, or that of the run to resume.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders, files of DICOM or NIfTI, quoted patterns, manifests (.csv, .parquet); with --dicomweb "
            "further terms of --query.",
        ),
    ] = None,
    dicomweb: DicomwebUrl = "",
    query: QueryTerms = None,
    limit: Limit = LIMIT,
    table_format: Format = DEFAULT.format,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in DIR, from wherever it stopped; else begin it.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: score failures again.")] = False,
    another_model: Annotated[
        bool, typer.Option("--another-model", help="With --resume: go on though the model is another one now.")
    ] = False,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Score part I, from 0, of N; then `limner merge`.")] = "0/1",
    every_slice: Annotated[
        bool, typer.Option("--every-slice", help="Of folders: all, not only the series that an import takes.")
    ] = False,
    rules: Rules = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Keep embeddings too, as safetensors.")] = False,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER", help="Keep the importance of all channels of stem, layer1 ... too; again for more."
        ),
    ] = None,
    method: Annotated[
        ImportanceMethod | None, typer.Option(help="With --features: how importance is measured.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be scored in DIR; send nothing.")] = False,
    priority: Annotated[int, typer.Option(min=0, max=10, help="What waits with a higher one goes first.")] = 0,
    in_flight: Annotated[
        int, typer.Option(min=1, help="Images that a server has not answered, at most.")
    ] = DEFAULT.in_flight,
    readers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: a thread, 500 slices/s.")] = 0,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds of nothing but failing calls, then stop; --resume goes on.")
    ] = DEFAULT.patience_s,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Score any number of slices into tables: images, their subjects, and what failed and why.

    Pixels alone are sent. Results are kept as they come: after Ctrl-C, a crash or a lost server the same command with
    --resume goes on, and the tables are those of an undisturbed run. It ends with 1 where an image failed.

    With --dicomweb the source is a query: what it finds is pulled as by `limner pull`, with names and all, into a
    folder beside DIR that is made for its owner only, and once all of it is there, that folder is scored.

    \b
    Examples:
      limner score cervix mri/ --out scores
      limner score cervix "nifti/**/*.nii.gz" --out scores --format parquet --resume
      limner score cervix manifest.csv --out part-3 --shard 3/16
      limner score cervix --dicomweb https://pacs.example/dicom-web --query StudyDate=20240101- --out scores --resume
      limner merge scores part-*
    """  # noqa: D301  \b keeps the lines apart
    index, shards = _shard(shard)
    options = ScoreOptions(
        format=table_format,
        resume=resume,
        retry_failed=retry_failed,
        another_model=another_model,
        shard=index,
        shards=shards,
        every_slice=every_slice,
        rules=rules,
        embeddings=embeddings,
        features=tuple(features or ()),
        method=method,
        priority=priority,
        in_flight=in_flight,
        readers=readers,
        patience_s=patience,
    )
    if query and not dicomweb:
        raise typer.BadParameter("goes with --dicomweb", param_hint="--query")
    named = [*(query or ()), *(sources or ())]
    if not named:
        raise typer.BadParameter("needed, or --dicomweb and --query", param_hint="SOURCE...")
    if dicomweb:
        named = [_pulled(dicomweb, named, out, options, limit)]
    with _watch(out) as watch:
        if dry_run:
            _show_plan(named, out, options, watch, as_json)
            return
        with connect(server) as client:
            scores = client.score(model, named, out, options, progress=watch.tell)
    _show(scores, table_format, as_json)


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders of all shards, in any order.")],
    table_format: Format = DEFAULT.format,
    as_json: AsJson = False,
) -> None:
    """Merge the shards of a source into what one run of `limner score` would have written.

    All shards must be there and finished, of one source and one model.
    """
    _show(merge_parts(parts, out, table_format), table_format, as_json)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise typer.BadParameter(f"{text!r}; expected I/N with I from 0 to N - 1", param_hint="--shard")
    return int(found[1]), int(found[2])


def _pulled(url: str, terms: list[str], out: Path, options: ScoreOptions, limit: int) -> str:
    """Return the folder of a query, once everything that it finds is there.

    It is named by the query, so that shards share it and a run goes on with no other. A run that has begun has all that
    it scores: what the PACS has got since would change it.
    """
    digest = sha256(repr((url, sorted(terms))).encode()).hexdigest()
    folder = out.resolve().parent / f"dicom-{digest[:12]}"
    make_folder(out)
    note(f"images of the query are kept in {folder}")
    if read_run(out) is None:
        pull(dicomweb=url, query=terms, rules=options.rules, all_series=options.every_slice, out=folder, limit=limit)
    return str(folder)


class _Watch:
    """Shows how far a run is: by a bar, or where standard error is no terminal by a line every minute."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)
        self._begun = self._told = time.monotonic()
        self._first = 0
        self.what, self.done = "", 0

    def tell(self, what: str, done: int, total: int | None) -> None:
        """Tell what is being done, how much of it is done, and of how much."""
        if what != self.what:
            self._bar.reset(self._task, description=what, completed=done, total=total)
            self._begun, self._first = time.monotonic(), done
        self._bar.update(self._task, completed=done, total=total)
        self.what, self.done = what, done
        now = time.monotonic()
        if not err.is_terminal and now - self._told > TOLD_EVERY_S:
            self._told = now
            rate = (done - self._first) / max(now - self._begun, 1e-3)
            note(f"{what}: {done:,}" + (f" of {total:,}" if total else "") + f", {rate:,.0f}/s")


@contextmanager
def _watch(out: Path) -> Iterator[_Watch]:
    """Show how far a run is; where it stops, say how to go on."""
    with progress_bar(counts=True) as bar:
        watch = _Watch(bar)
        try:
            yield watch
        except (LimnerError, OSError, KeyboardInterrupt):
            bar.stop()
            if watch.what == "scoring":
                note(f"stopped; {watch.done:,} are scored and kept in {out}. Go on: the same command with --resume")
            raise


def _show_plan(sources: list[str], out: Path, options: ScoreOptions, watch: _Watch, as_json: bool) -> None:
    if (out / ROWS).exists():
        raise typer.BadParameter(f"{out} holds a run already", param_hint="--out")
    make_folder(out)
    census, left_out = list_images(sources, out, options, watch.tell)
    with (out / LEFT_OUT).open(newline="", encoding="utf-8") as file:
        reasons = Counter(row["reason"] for row in csv.DictReader(file))
    if as_json:
        print_json({"images": census.total, "left_out": left_out, "reasons": reasons})
        return
    for reason, files in reasons.most_common():
        note(f"left out, {files:,} times: {reason}")
    note(
        f"{census.total:,} slices would be scored: {out / ITEMS}, which is a manifest; {left_out:,} files are left out"
    )


def _show(scores: Scores, table_format: TableFormat, as_json: bool) -> None:
    if as_json:
        print_json(scores)
    note(
        f"scored {scores.images - scores.failed:,} of {scores.images:,} slices of {scores.subjects:,} subjects by "
        f"{scores.model}, digest {scores.model.digest[:12]}: {scores.folder / f'images.{table_format}'}"
    )
    if scores.left_out:
        note(f"left out: {scores.left_out:,} files; {scores.folder / LEFT_OUT} says why")
    if scores.far:
        note(f"far from what the model was trained on: {scores.far:,} slices; do not rely on their scores")
    if scores.failed:
        note(f"failed: {scores.failed:,} slices; {scores.folder / f'failures.{table_format}'} says why")
    note(NOTICE)
    if scores.failed:
        raise typer.Exit(FAILED)
