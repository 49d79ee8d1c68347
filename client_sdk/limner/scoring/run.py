"""A run: what is scored, by which model, into which folder; what it takes to go on with it, or to merge it with others.

The folder of a run, all of whose files are written whole or, the journal, line by line:

- `run.json`: this; written when the run begins and when it ends.
- `items.csv`: the images, as a manifest; not where the caller gave them himself.
- `left-out.csv`: what the source holds beside them, and why it is not scored.
- `rows.jsonl`: the results as they come (`journal`).
- `embeddings.safetensors`, `features-LAYER.safetensors`: where asked for (`vectors`).
- `images`, `subjects`, `failures`, as .csv, .parquet or .jsonl: the results, once all are there (`tables`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pydantic import Field, ValidationError

from limner.errors import WrongStateError, wrong_input
from limner.imaging.files import flush, replace_file
from limner.types import Model, ModelIdentity, Result

Tell = Callable[[str, int, int | None], None]
"""Told what is being done, how much of it is done, and of how much; None where that is not known."""

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")

RUN, ITEMS, LEFT_OUT, ROWS = "run.json", "items.csv", "left-out.csv", "rows.jsonl"


class RunModel(Result):
    """The model of a run, with what its card says of the way from logits to a label."""

    identity: ModelIdentity
    labels: tuple[str, ...]
    temperature: float
    threshold: float
    width: int
    """Numbers in an embedding."""
    channels: dict[str, int] = Field(default_factory=dict)
    """Of each layer, from input to output."""


class Run(Result):
    """What is to be known of a run.

    Attributes
    ----------
    limner
        Version of the SDK that began it.
    source
        What was to be scored, as it was named; empty where the caller gave the images himself.
    selection
        How series of folders were taken, in words.
    fingerprint
        Of the files that the source names; see `limner.scoring.sources.fingerprint`.
    shard, shards
        Which part of the source, from 0, and of how many.
    embeddings
        Whether embeddings are kept too.
    features, method
        Layers whose channels' importance is kept too, and how that is measured.
    total, digest
        Number of images of the whole source, and a digest of their ids, subjects and labels; None and empty until the
        source has been read to its end.
    left_out
        Number of lines of `left-out.csv`.
    finished
        Whether every image of the shard has a row, and the tables are written.
    """

    limner: str
    model: RunModel
    source: tuple[str, ...]
    selection: str
    fingerprint: str
    shard: int
    shards: int
    embeddings: bool
    features: tuple[str, ...] = ()
    method: str = ""
    total: int | None = None
    digest: str = ""
    left_out: int = 0
    finished: bool = False

    @property
    def expected(self) -> int | None:
        """Number of images of the shard."""
        return None if self.total is None else len(range(self.shard, self.total, self.shards))


def run_model(model: Model) -> RunModel:
    """Return what a run needs of a model; WrongStateError where it is broken."""
    if model.error:
        raise WrongStateError(f"model {model.identity} cannot be used: {model.error}")
    card = cast("dict[str, Any]", model.card)
    try:
        return RunModel(
            identity=model.identity,
            labels=model.labels,
            temperature=card["calibration"]["temperature"],
            threshold=model.threshold,
            width=card["channels"][-1],
            channels=dict(zip(LAYERS, card["channels"], strict=True)),
        )
    except (LookupError, TypeError, ValueError):
        raise WrongStateError(f"the card of model {model.identity} lacks calibration.temperature or channels") from None


def read_run(folder: Path) -> Run | None:
    """Return the run that a folder holds, None where it holds none.

    Raises
    ------
    InvalidInputError
        Where its `run.json` is none.
    """
    path = folder / RUN
    try:
        return Run.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{path} is no run's: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise wrong_input("out", found, "the file as `limner score` wrote it") from error


def write_run(folder: Path, run: Run) -> None:
    """Keep a run."""
    with replace_file(folder / RUN) as temporary:
        temporary.write_text(run.model_dump_json(indent=2) + "\n", encoding="utf-8")
        flush(temporary)
    flush(folder)
