"""The files that let a Triton serve the model repository, read with Triton's own types."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from limner.imaging.grid import Grid
from limner_server.networks.repository import CODE_FILE, CONFIG_FILES, ModelRepository
from limner_server.networks.triton import Backend, model_config
from tests.server.networks.cards import REFERENCE, make_card
from tests.server.networks.test_repository import stage


def read(repository: ModelRepository, file: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse((repository.root / "m" / file).read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize(("file", "backend"), CONFIG_FILES.items())
def test_tritons_own_parser_reads_each_configuration(tmp_path: Path, file: str, backend: Backend) -> None:
    repository = ModelRepository(tmp_path / "models")
    repository.publish("m", stage(tmp_path / "staged", "t", digest="a" * 64, reference=REFERENCE))
    config = read(repository, file)
    assert (config.name, config.backend) == ("m", backend)
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert [(t.name, list(t.dims)) for t in config.input] == [("images", [32, 32])]
    assert [(t.name, list(t.dims)) for t in config.output] == [
        ("logits", [2]),
        ("probabilities", [2]),
        ("embedding", [512]),
        ("distance", [1]),
    ]
    assert all(t.data_type == model_config_pb2.TYPE_FP32 for t in (*config.input, *config.output))
    assert config.parameters["digest.1"].string_value == "a" * 64
    assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]


@pytest.mark.parametrize("file", CONFIG_FILES)
def test_every_whole_version_is_served_under_its_digest(tmp_path: Path, file: str) -> None:
    repository = ModelRepository(tmp_path / "models")
    for number in range(1, 5):
        repository.publish("m", stage(tmp_path / str(number), f"t{number}", digest=str(number) * 64))
    (repository.root / "m/3/model.pt").unlink()
    repository.delete("m", 2)
    config = read(repository, file)
    assert list(config.version_policy.specific.versions) == [1, 4]
    digests = {key: value.string_value for key, value in config.parameters.items() if key.startswith("digest.")}
    assert digests == {"digest.1": "1" * 64, "digest.4": "4" * 64}
    assert all((repository.root / "m" / version / CODE_FILE).is_file() for version in ("1", "4"))


def test_publishers_at_the_same_time_leave_nobody_out(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "models")
    staged = [stage(tmp_path / str(number), f"t{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: repository.publish("m", folder), staged))
    for file in CONFIG_FILES:
        assert list(read(repository, file).version_policy.specific.versions) == list(range(1, 9))


def test_versions_that_differ_have_any_size_and_no_warm_up() -> None:
    cards = {1: make_card(), 2: make_card(grid=Grid(160, 64)), 3: make_card(labels=("x", "y", "z"))}
    config = model_config("m", cards, "python")
    assert list(config.input[0].dims) == [-1, -1]
    assert [list(output.dims) for output in config.output] == [[-1], [-1], [512]]
    assert not config.model_warmup
    alone = model_config("m", {3: cards[3]}, "python")
    assert [list(output.dims) for output in alone.output] == [[3], [3], [512]]


def test_a_version_without_reference_leaves_the_others_without_distance() -> None:
    """One configuration stands for all, and Triton's LibTorch backend fails on an output that a version lacks."""
    cards = {1: make_card(), 2: make_card(reference=REFERENCE)}
    assert "distance" not in {output.name for output in model_config("m", cards, "pytorch").output}
    assert "distance" in {output.name for output in model_config("m", {2: cards[2]}, "pytorch").output}


def test_a_model_that_is_gone_leaves_nothing_for_triton(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "models")
    repository.publish("m", stage(tmp_path / "staged", "t"))
    repository.delete("m", 1)
    assert list(repository.root.iterdir()) == []
    repository.publish("m", stage(tmp_path / "again", "t"))
    (repository.root / "m/configs/a100.pbtxt").write_text("# the operator's own")
    repository.delete("m", 1)
    assert [path.name for path in repository.root.rglob("*.pbtxt")] == ["a100.pbtxt"]
