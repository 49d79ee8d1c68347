"""From the shards of a source to what one run over all of it would have written."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from limner.errors import wrong_input
from limner.scoring.journal import Journal, KeptRows
from limner.scoring.run import ITEMS, LEFT_OUT, ROWS, Run, read_run
from limner.scoring.tables import check_format, finish
from limner.scoring.vectors import Vectors, each_vector, kept
from limner.types import Scores, TableFormat

# What all shards have in common, and what it is if one has not.
_COMMON = {
    **dict.fromkeys(("shards", "total", "digest"), "source"),
    "model": "model",
    **dict.fromkeys(("embeddings", "features", "method"), "kind"),
}

_T = TypeVar("_T")


def merge(parts: Sequence[Path], out: Path, kind: TableFormat = TableFormat.CSV) -> Scores:
    """Merge the folders of all shards of a source.

    Parameters
    ----------
    parts
        The folders, in any order.
    out
        A new folder; in the end it is whole or not there.

    Raises
    ------
    InvalidInputError
        Naming the folder that is unfinished, of another source or model, or of the same shard as another one; or the
        shards that are missing.
    """
    check_format(kind)
    if out.exists():
        raise wrong_input("out", f"{out} is there already", "a new folder")
    runs = _checked({part: _finished(part) for part in parts})
    staging = out.with_name(f".{out.name}.merging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in (ITEMS, LEFT_OUT):
        if (parts[0] / name).exists():
            shutil.copyfile(parts[0] / name, staging / name)
    run = runs[parts[0]].model_copy(update={"shard": 0, "shards": 1, "finished": False})
    for file, (_, width) in kept(run).items():
        with Vectors(staging / file, width) as merged:
            for row, vector in enumerate(_interleaved([each_vector(part / file, width) for part in runs])):
                merged[row] = vector
    with ExitStack() as stack:
        rows = [stack.enter_context(KeptRows(part / ROWS)) for part in runs]
        journal = stack.enter_context(Journal(staging / ROWS))
        journal.append(_interleaved([some.rows() for some in rows]))
        scores = finish(staging, run, journal, kind)
    staging.rename(out)
    return scores.model_copy(update={"folder": out})


def _finished(part: Path) -> Run:
    run = read_run(part)
    if run is None:
        raise wrong_input("parts", f"{part} holds no run", "the folder of a shard")
    if not run.finished:
        raise wrong_input("parts", f"{part} is not finished", "a shard that was scored to its end; resume it")
    return run


def _checked(runs: Mapping[Path, Run]) -> dict[Path, Run]:
    """Return the runs by shard, where they are all those of one source by one model."""
    (first, one), *others = runs.items()
    for part, run in others:
        for field, what in _COMMON.items():
            if getattr(run, field) != getattr(one, field):
                found = f"{part} is of another {what} than {first}"
                raise wrong_input("parts", found, "shards of one source by one model")
    by_shard: dict[int, Path] = {}
    for part, run in runs.items():
        if (other := by_shard.setdefault(run.shard, part)) != part:
            raise wrong_input("parts", f"{other} and {part} are both shard {run.shard}/{run.shards}", "each shard once")
    if missing := [f"{shard}/{one.shards}" for shard in range(one.shards) if shard not in by_shard]:
        raise wrong_input("parts", f"shards are missing: {', '.join(missing[:10])}", f"all {one.shards}")
    return {part: runs[part] for _, part in sorted(by_shard.items())}


def _interleaved(shards: Sequence[Iterator[_T]]) -> Iterator[_T]:
    """Give what the shards have in the order of the source: image number i is of shard i modulo their number."""
    for each in cycle(shards):
        one = next(each, None)
        if one is None:  # all end here, or one earlier, which `finish` finds
            return
        yield one
