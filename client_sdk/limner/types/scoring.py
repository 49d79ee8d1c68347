"""What is wanted of a scoring run, and what came of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from limner.types.common import ModelIdentity, Result
from limner.types.features import ImportanceMethod


class TableFormat(StrEnum):
    """How tables are written; Parquet needs the extra `limner[parquet]`."""

    CSV = "csv"
    PARQUET = "parquet"
    JSONL = "jsonl"


class ScoreOptions(Result):
    """How a source is scored.

    Attributes
    ----------
    format
        Of the tables.
    resume
        Whether to go on with the run that the folder holds; where it holds none, one is begun.
    retry_failed
        Whether a resumed run scores again what failed.
    another_model
        Whether a resumed run may go on although the model is not the one that it was begun with.
    shard, shards
        Which part of the source is scored, from 0, and of how many: image number i is of shard i modulo `shards`.
    rules
        YAML file of the series of a folder that are scored; default those that an import takes.
    every_slice
        Whether all slices of a folder are scored instead.
    embeddings
        Whether the pooled last layer of each image is kept too, in `embeddings.safetensors`.
    features
        Layers of whose every channel the importance is kept too, a row for each image, in `features-LAYER.safetensors`:
        of "stem", "layer1", "layer2", "layer3", "layer4". It takes as long as `extract_features`.
    method
        How that importance is measured; None: gradient times deviation. `activation` gives the mean activations.
    priority
        0, the lowest, to 10: what waits with a higher one is batched first. Not with `features`.
    in_flight
        Images that a server is sent and has not answered, at most.
    readers
        Processes that read and decode files ahead of the sending; 0: a thread of this one, good for some 500 slices a
        second. A script that asks for processes needs the guard `if __name__ == "__main__"`.
    patience_s
        Seconds of failing calls and no answer after which a run stops; it can be resumed.
    """

    format: TableFormat = TableFormat.CSV
    resume: bool = False
    retry_failed: bool = False
    another_model: bool = False
    shard: Annotated[int, Field(ge=0)] = 0
    shards: Annotated[int, Field(ge=1)] = 1
    rules: Path | None = None
    every_slice: bool = False
    embeddings: bool = False
    features: tuple[str, ...] = ()
    method: ImportanceMethod | None = None
    priority: Annotated[int, Field(ge=0, le=10)] = 0
    in_flight: Annotated[int, Field(ge=1)] = 256
    readers: Annotated[int, Field(ge=0)] = 0
    patience_s: Annotated[float, Field(gt=0)] = 300.0


class Scores(Result):
    """What came of a run, or of a merge.

    Attributes
    ----------
    folder
        Where the tables `images`, `subjects` and `failures` are, and embeddings and features where asked for.
    model, labels
        The artifact that answered, and its labels in the order of probabilities.
    images, failed, far
        Number of images; of those that failed; and of those that lie far from what the model was trained on.
    subjects
        Number of subjects.
    left_out
        Number of files that the source holds and that were not scored; `left-out.csv` says why.
    """

    folder: Path
    model: ModelIdentity
    labels: tuple[str, ...]
    images: int
    failed: int
    far: int
    subjects: int
    left_out: int
