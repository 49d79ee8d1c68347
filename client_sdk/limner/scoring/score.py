"""A run from its beginning, or from where it stopped, to its tables."""

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import LimnerError, wrong_input
from limner.scoring.fleet import Fleet
from limner.scoring.flow import Answer, Flow
from limner.scoring.journal import Journal
from limner.scoring.plan import begin, make_folder, resume
from limner.scoring.readers import readers
from limner.scoring.rows import to_row
from limner.scoring.run import ITEMS, LAYERS, ROWS, Run, Tell, read_run, run_model
from limner.scoring.sources import Census, Item, given, listed, named
from limner.scoring.tables import check_format, finish
from limner.scoring.vectors import Keeper
from limner.types import Model, ScoreOptions, Scores

if TYPE_CHECKING:
    from limner.images import Images
    from limner.scoring.sources import Source


def score(model: Model, fleet: Fleet, source: "Source", out: Path, options: ScoreOptions, tell: Tell) -> Scores:
    """Score a source into a folder by a model of the fleet's servers; see `limner.Client.score`."""
    _check(options)
    sources = named(source)
    with _journal(out, options) as journal:
        run = _run(model, sources or (), out, options, journal, tell)
        census = Census()
        images = listed(out / ITEMS) if sources else _given(source, run, journal, census)
        with Keeper(out, run) as keeper:
            _score_rest(fleet, run, images, journal, keeper, options, tell)
        if not sources:
            run = run.model_copy(update={"total": census.total, "digest": census.digest})
        tell("writing tables", len(journal), len(journal))
        return finish(out, run, journal, options.format)


def _check(options: ScoreOptions) -> None:
    """See that what is wanted goes together, before the work."""
    check_format(options.format)
    if options.shard >= options.shards:
        raise wrong_input(
            "shard", f"shard is {options.shard}", f"0 to {options.shards - 1}, as there are {options.shards}"
        )
    if unknown := [layer for layer in options.features if layer not in LAYERS]:
        raise wrong_input("features", f"features has {unknown[0]!r}", f"of {', '.join(LAYERS)}")
    if options.features and options.priority:
        raise wrong_input("priority", f"priority is {options.priority}", "none with features, which have no priority")
    if options.method and not options.features:
        raise wrong_input("method", f"method is {options.method}", "features beside it")


@contextmanager
def _journal(out: Path, options: ScoreOptions) -> Iterator[Journal]:
    """Open the journal of a folder that holds a run, or nothing yet."""
    make_folder(out)
    with Journal(out / ROWS, forget_failures=options.resume and options.retry_failed) as journal:
        yield journal


def _run(
    served: Model, sources: tuple[str, ...], out: Path, options: ScoreOptions, journal: Journal, tell: Tell
) -> Run:
    run, model = read_run(out), run_model(served)
    if run is None and not len(journal):
        return begin(model, sources, out, options, tell)
    if run is None:
        raise wrong_input("out", f"{out} holds the rows of a run whose run.json is missing", "a new or an empty folder")
    if not options.resume:
        found = f"{out} holds a run with {len(journal):,} images scored"
        raise wrong_input("out", found, "to be asked to resume it (--resume), or another folder")
    return resume(run, model, sources, out, options)


def _given(images: "Images", run: Run, journal: Journal, census: Census) -> Iterator[Item]:
    """Give the caller's images, and see that they are those of the run that is gone on with."""
    changed = "the images of the run that is resumed, in their order"
    for item in given(images):
        census.add(item.image.id, item.image.subject, "")
        if item.position in journal and (name := journal[item.position].id) != item.image.id:
            raise wrong_input("source", f"image {item.position} is {item.image.id!r} and was {name!r}", changed)
        if census.total & (census.total - 1) == 0:  # not after each, which would cost more than it saves
            _check_unique(census)
        yield item
    _check_unique(census)
    if census.total <= journal.last or (run.digest and run.digest != census.digest):
        raise wrong_input("source", f"the source has {census.total} images that are not all the same", changed)


def _check_unique(census: Census) -> None:
    if twice := census.twice():
        raise wrong_input("id", f"images {twice[0]} and {twice[1]} have one id", "an id of its own for each image")


def _keep(answers: list[Answer], run: Run, journal: Journal, keeper: Keeper) -> None:
    """Keep answers, and now and then have them on the disk: vectors first, since a line says that its are there."""
    due = journal.flush_is_due
    for item, result in answers:
        keeper[item.position // run.shards] = result
    keeper.flush(disk=due)
    journal.append(to_row(item, result, run.model.identity) for item, result in answers)
    if due:
        journal.flush()


def _score_rest(
    fleet: Fleet,
    run: Run,
    images: Iterator[Item],
    journal: Journal,
    keeper: Keeper,
    options: ScoreOptions,
    tell: Tell,
) -> None:
    """Score the images of the shard that are not in the journal."""
    tell("scoring", len(journal), run.expected)
    rest = (one for one in images if one.position % run.shards == run.shard and one.position not in journal)
    processes = options.readers if run.source else 0  # what is in memory need not be copied
    with readers(processes) as pool:
        flow = Flow(
            run.model.identity,
            fleet,
            pool,
            ahead=2 * max(1, processes) + 2,
            patience_s=options.patience_s,
        )
        try:
            with closing(flow.answers(rest)) as answers:
                for some in answers:
                    _keep(some, run, journal, keeper)
                    tell("scoring", len(journal), run.expected)
        except BrokenExecutor as error:
            raise LimnerError("a process that reads images ended abruptly; resume with fewer readers") from error
