"""The model repository on a real file system: whole versions or none."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limner_server.errors import InvalidInputError, NotFoundError, StorageFullError, WrongStateError
from limner_server.networks.card import SiblingModel
from limner_server.networks.repository import ModelRepository
from tests.server.networks.cards import make_card, make_half


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models")


def stage(folder: Path, training: str, size: int = 10, **changes: object) -> Path:
    """A folder ready to be published; its artifact is `size` bytes of nothing."""
    folder.mkdir()
    (folder / "model.pt").write_bytes(bytes(size))
    (folder / "card.json").write_text(make_card(training=training, **changes).model_dump_json())
    return folder


def test_versions_are_numbered_and_listed_in_order(repository: ModelRepository, tmp_path: Path) -> None:
    assert repository.list_versions() == []
    published = [repository.publish("cervix", stage(tmp_path / str(n), f"t{n}")) for n in range(11)]
    repository.publish("another", stage(tmp_path / "other", "t"))
    assert published == list(range(1, 12))
    listed = [(entry.name, entry.version) for entry in repository.list_versions()]
    assert listed == [("another", 1), *(("cervix", n) for n in range(1, 12))]
    assert repository.card("cervix", 11).training == "t10"
    assert repository.get("cervix", 11).artifact.is_file()


def test_a_training_publishes_once(repository: ModelRepository, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", "t1")
    assert repository.published("cervix", "t1") is None
    assert repository.publish("cervix", staged) == repository.publish("cervix", staged) == 1
    assert repository.published("cervix", "t1") == 1
    assert len(repository.list_versions()) == 1


def test_what_is_broken_is_listed_with_the_reason(repository: ModelRepository, tmp_path: Path) -> None:
    for number in range(1, 5):
        repository.publish("m", stage(tmp_path / str(number), f"t{number}"))
    (repository.root / "m/1/card.json").unlink()
    (repository.root / "m/2/card.json").write_text('{"schema_version": 7}')
    (repository.root / "m/3/model.pt").unlink()
    (repository.root / "m/.publishing-t9").mkdir()
    errors = {entry.version: entry.error for entry in repository.list_versions()}
    assert "card.json" in errors[1]
    assert "schema_version" in errors[2]
    assert "model.pt" in errors[3]
    assert errors[4] == ""
    with pytest.raises(WrongStateError, match=r"model\.pt"):
        repository.card("m", 3)


def test_a_missing_half_or_sibling_makes_a_version_broken(repository: ModelRepository, tmp_path: Path) -> None:
    sibling = SiblingModel(file="sibling.pt", digest="2" * 64, seed=1)
    staged = stage(tmp_path / "staged", "t", halves=(make_half(),), sibling=sibling)
    repository.publish("m", staged)
    assert repository.get("m", 1).error == "half-0.pt, sibling.pt: no such file"


def test_unknown_names_and_versions_name_the_known(repository: ModelRepository, tmp_path: Path) -> None:
    repository.publish("cervix", stage(tmp_path / "staged", "t"))
    with pytest.raises(NotFoundError, match="cervix"):
        repository.get("liver", 1)
    with pytest.raises(NotFoundError, match="there is: 1"):
        repository.get("cervix", 2)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "a" * 65, "a\n"])
def test_names_that_could_leave_the_folder_are_refused(repository: ModelRepository, tmp_path: Path, name: str) -> None:
    staged = stage(tmp_path / "staged", "t")
    with pytest.raises(InvalidInputError, match=r"model\.name"):
        repository.publish(name, staged)
    with pytest.raises(InvalidInputError, match=r"model\.name"):
        repository.get(name, 1)
    assert not repository.root.exists()


def test_a_full_disk_leaves_no_version(repository: ModelRepository, tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", "t1", size=200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageFullError):
            repository.publish("m", staged)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert repository.list_versions() == []
    assert list((repository.root / "m").iterdir()) == []
    assert repository.publish("m", staged) == 1


def test_what_a_killed_publisher_left_does_not_hinder_it(repository: ModelRepository, tmp_path: Path) -> None:
    left = repository.root / "m/.publishing-t1"
    left.mkdir(parents=True)
    (left / "model.pt").write_bytes(b"half")
    assert repository.publish("m", stage(tmp_path / "staged", "t1")) == 1
    assert not left.exists()
    assert (repository.root / "m/1/model.pt").read_bytes() == bytes(10)


def test_publishers_at_the_same_time_get_versions_of_their_own(repository: ModelRepository, tmp_path: Path) -> None:
    staged = [stage(tmp_path / str(n), f"t{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda folder: repository.publish("m", folder), staged))
    assert sorted(versions) == list(range(1, 9))
    trainings = {repository.card("m", version).training for version in versions}
    assert trainings == {f"t{n}" for n in range(8)}


def test_deleting(repository: ModelRepository, tmp_path: Path) -> None:
    repository.publish("m", stage(tmp_path / "a", "ta"))
    repository.publish("m", stage(tmp_path / "b", "tb"))
    repository.delete("m", 2)
    assert [entry.version for entry in repository.list_versions()] == [1]
    repository.delete("m", 1)
    assert list(repository.root.iterdir()) == []
    with pytest.raises(NotFoundError):
        repository.delete("m", 1)
