"""Shards: together they are the whole, and a merge says so or names what is missing."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from limner import Client
from limner.errors import InvalidInputError
from limner.scoring.merge import merge
from limner.types import ScoreOptions, TableFormat
from tests.scoring.tables import assert_same_tables, read
from tests.scoring.test_score import noise

SHARDS = 3


@pytest.fixture(scope="module")
def parts(client: Client, untrained: str, phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The shards of a phantom cohort, one slice of which cannot be read; the last folder is that of the whole."""
    folder = tmp_path_factory.mktemp("shards")
    source = [phantom, folder / "torn.dcm"]
    (folder / "torn.dcm").write_bytes((phantom / "PH-000" / "0001.dcm").read_bytes()[:-9])
    for index in range(SHARDS):
        client.score(untrained, source, folder / f"part-{index}", ScoreOptions(shard=index, shards=SHARDS))
    client.score(untrained, source, folder / "whole")
    return [*(folder / f"part-{index}" for index in range(SHARDS)), folder / "whole"]


def test_shards_merge_to_the_whole(parts: list[Path], tmp_path: Path) -> None:
    *shards, whole = parts
    counts = [len(read(part / "images.csv")) for part in shards]
    assert (sum(counts), max(counts) - min(counts)) == (73, 1)
    scores = merge(shards[::-1], tmp_path / "merged")
    assert (scores.folder, scores.images, scores.failed, scores.subjects) == (tmp_path / "merged", 73, 1, 6)
    assert_same_tables(tmp_path / "merged", whole)
    for name in ("items.csv", "left-out.csv", "run.json"):
        assert (tmp_path / "merged" / name).read_text() == (whole / name).read_text()
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in whole.iterdir()}


def test_a_merged_run_is_a_run(parts: list[Path], tmp_path: Path) -> None:
    merged = merge(parts[:SHARDS], tmp_path / "merged", TableFormat.JSONL)
    again = merge([merged.folder], tmp_path / "again")
    assert again.images == merged.images
    assert_same_tables(again.folder, parts[SHARDS])


def test_images_of_the_callers_own_in_shards(client: Client, untrained: str, tmp_path: Path) -> None:
    for index in range(2):
        client.score(untrained, noise(41), tmp_path / str(index), ScoreOptions(shard=index, shards=2))
    client.score(untrained, noise(41), tmp_path / "whole")
    assert merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged").images == 41
    assert_same_tables(tmp_path / "merged", tmp_path / "whole")


def test_embeddings_are_merged_too(client: Client, untrained: str, tmp_path: Path) -> None:
    options = ScoreOptions(embeddings=True)
    for index in range(2):
        part = options.model_copy(update={"shard": index, "shards": 2})
        client.score(untrained, noise(31), tmp_path / str(index), part)
    client.score(untrained, noise(31), tmp_path / "whole", options)
    merge([tmp_path / "1", tmp_path / "0"], tmp_path / "merged")
    ours, theirs = (load_file(tmp_path / name / "embeddings.safetensors")["embedding"] for name in ("merged", "whole"))
    assert ours.shape == (31, 512)
    assert np.allclose(ours, theirs, atol=1e-4)
    client.score(untrained, noise(31), tmp_path / "without", ScoreOptions(shard=1, shards=2))
    with pytest.raises(InvalidInputError, match=r"without is of another kind than"):
        merge([tmp_path / "0", tmp_path / "without"], tmp_path / "again")


def test_what_does_not_fit_is_named(
    client: Client, untrained: str, phantom: Path, parts: list[Path], tmp_path: Path
) -> None:
    *shards, whole = parts
    with pytest.raises(InvalidInputError, match=r"shards are missing: 1/3; expected all 3"):
        merge([shards[0], shards[2]], tmp_path / "merged")
    with pytest.raises(InvalidInputError, match=r"whole is of another source than .*part-0"):
        merge([*shards, whole], tmp_path / "merged")
    with pytest.raises(InvalidInputError, match=r"none holds no run; expected the folder of a shard"):
        merge([*shards, tmp_path / "none"], tmp_path / "merged")
    with pytest.raises(InvalidInputError, match=r"part-0 is there already; expected a new folder"):
        merge(shards, shards[0])
    client.score(untrained, phantom / "PH-000", tmp_path / "other", ScoreOptions(shard=2, shards=SHARDS))
    with pytest.raises(InvalidInputError, match=r"other is of another source than"):
        merge([*shards[:2], tmp_path / "other"], tmp_path / "merged")
    run = tmp_path / "other" / "run.json"
    run.write_text((shards[2] / "run.json").read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(InvalidInputError, match=r"other is not finished; expected a shard that was scored to its end"):
        merge([*shards[:2], tmp_path / "other"], tmp_path / "merged")
    run.write_text((shards[1] / "run.json").read_text())
    with pytest.raises(InvalidInputError, match=r"part-1 and .*other are both shard 1/3; expected each shard once"):
        merge([*shards, tmp_path / "other"], tmp_path / "merged")
    run.write_text((shards[2] / "run.json").read_text().replace('"temperature": 1.0', '"temperature": 2.0'))
    with pytest.raises(InvalidInputError, match=r"other is of another model than"):
        merge([*shards[:2], tmp_path / "other"], tmp_path / "merged")
    run.write_text("{}")
    with pytest.raises(InvalidInputError, match=r"run.json is no run's: limner: Field required; expected the file"):
        merge([*shards, tmp_path / "other"], tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"other"}
