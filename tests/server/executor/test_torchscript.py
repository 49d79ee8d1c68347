"""The TorchScript engine against the artifact it runs: same numbers, whatever the batch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.executor.engine import Item, Operation, OutOfMemory
from limner_server.executor.executor import Executor
from limner_server.executor.torchscript import TorchScriptEngine, out_of_memory_named
from limner_server.networks.artifact import Artifact, export, load, margins
from limner_server.networks.card import ModelCard
from limner_server.networks.reference import ReferenceSlices
from limner_server.networks.resnet import LAYERS, build_network
from tests.server.networks.cards import REFERENCE, make_card

SIZE = 32
NO_TARGETS = np.full(16, -1, np.int64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    """An untrained ResNet-18 of three labels, its statistics and means drawn at random so that nothing cancels."""
    torch.manual_seed(0)
    network = build_network("resnet18", 3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = 0.2 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    means = [torch.rand(channels) for channels in network.channels()]
    reference = ReferenceSlices.of(network.eval(), torch.randn(12, 1, SIZE, SIZE))
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    digest = export(Artifact(network, 1.7, means, reference), path)
    return path, make_card(labels=("a", "b", "c"), digest=digest, reference=REFERENCE)


@pytest.fixture(scope="module")
def engine(exported: tuple[Path, ModelCard]) -> TorchScriptEngine:
    engine = TorchScriptEngine(*exported, device="cpu", threads=2)
    assert engine.warm(SIZE, 4) <= 4
    return engine


@pytest.fixture(scope="module")
def module(exported: tuple[Path, ModelCard]) -> torch.jit.ScriptModule:
    path, card = exported
    return load(path, card.digest)


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).gamma(2.0, 100.0, (16, SIZE, SIZE)).astype(np.float32)


def test_predict_equals_the_artifact(
    engine: TorchScriptEngine, module: torch.jit.ScriptModule, images: NDArray[np.float32]
):
    found = engine.run(Operation.PREDICT, (), images, NO_TARGETS)
    names = ("logits", "probabilities", "embedding", "distance")
    expected = dict(zip(names, module(torch.from_numpy(images)), strict=True))
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-4)
    assert np.ptp(found["probabilities"], axis=0).max() > 0.01, "the images must differ for this to mean anything"


@pytest.mark.parametrize("operation", Operation)
def test_only_a_card_with_a_reference_brings_a_distance(
    exported: tuple[Path, ModelCard], engine: TorchScriptEngine, images: NDArray[np.float32], operation: Operation
):
    path, card = exported
    without = TorchScriptEngine(path, card.model_copy(update={"reference": None}), threads=1)
    without.warm(SIZE, 2)
    layers = () if operation is Operation.PREDICT else ("layer4",)
    found = engine.run(operation, layers, images[:2], NO_TARGETS[:2])
    assert found.keys() - without.run(operation, layers, images[:2], NO_TARGETS[:2]).keys() == {"distance"}
    expected = engine.run(Operation.PREDICT, (), images[:2], NO_TARGETS[:2])["distance"]
    assert expected.shape == (2, 1)
    np.testing.assert_allclose(found["distance"], expected, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 16])
def test_a_slice_has_the_same_answer_alone_and_in_a_batch(
    engine: TorchScriptEngine, images: NDArray[np.float32], n: int
):
    whole = engine.run(Operation.PREDICT, (), images, NO_TARGETS)
    part = engine.run(Operation.PREDICT, (), images[:n], NO_TARGETS[:n])
    for name, array in part.items():
        np.testing.assert_allclose(array, whole[name][:n], atol=1e-4)


def test_explain_gives_the_layers_asked_for_of_the_predicted_model(
    engine: TorchScriptEngine, module: torch.jit.ScriptModule, images: NDArray[np.float32]
):
    predicted = engine.run(Operation.PREDICT, (), images[:4], NO_TARGETS[:4])
    targets = np.array([-1, 0, 1, 2])
    found = engine.run(Operation.EXPLAIN, ("stem", "layer4"), images[:4], targets)
    assert {name for name in found if "." in name} == {
        f"{a}.{b}" for a in ("maps", "gradients") for b in ("stem", "layer4")
    }
    for name, array in predicted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-4)
    assert found["target"].tolist() == [predicted["logits"][0].argmax(), 0, 1, 2]
    maps = module.maps(module.normalise(torch.from_numpy(images[:4])))
    np.testing.assert_allclose(found["maps.stem"], maps[0], atol=1e-4)
    np.testing.assert_allclose(found["maps.layer4"], maps[4], atol=1e-4)


def test_gradients_are_those_of_the_margin(
    engine: TorchScriptEngine, module: torch.jit.ScriptModule, images: NDArray[np.float32]
):
    found = engine.run(Operation.EXPLAIN, ("layer4",), images[:2], np.array([0, 2]))
    target = torch.tensor([0, 2])
    maps = torch.from_numpy(np.ascontiguousarray(found["maps.layer4"])).double()
    head = module.network.classifier
    logits = maps.requires_grad_(True).mean((2, 3)) @ head.weight.double().T + head.bias.double()
    margins(logits, target).sum().backward()
    np.testing.assert_allclose(found["gradients.layer4"], maps.grad, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_ablation_is_the_drop_of_the_margin(
    engine: TorchScriptEngine, module: torch.jit.ScriptModule, images: NDArray[np.float32], layer: str
):
    found = engine.run(Operation.ABLATE, (layer,), images[:2], np.array([-1, 1]))
    number = LAYERS.index(layer)
    target = torch.from_numpy(found["target"])
    maps = module.maps(module.normalise(torch.from_numpy(images[:2])))[number]
    for channel in (0, maps.shape[1] - 1):
        ablated = maps.clone()
        ablated[:, channel] = module.channel_means()[number][channel]
        drop = margins(module.resume(number, maps), target) - margins(module.resume(number, ablated), target)
        np.testing.assert_allclose(found[f"ablation.{layer}"][:, channel], drop, atol=1e-4)
    assert found[f"ablation.{layer}"].shape == maps.shape[:2]
    assert target[1] == 1


@pytest.fixture
def executor(exported: tuple[Path, ModelCard]) -> Iterator[Executor]:
    executor = Executor(TorchScriptEngine(*exported, threads=1), SIZE, 8, 0.002, 100)
    yield executor
    executor.close()


def test_intensities_as_large_as_may_be_are_no_overflow(executor: Executor, images: NDArray[np.float32]):
    huge = np.where(images[0] > 200, 1e37, -1e37).astype(np.float32)
    same = np.where(images[0] > 200, 1.0, 0.0).astype(np.float32)
    found, expected = (executor.submit(Item(image)).result(20).arrays["logits"] for image in (huge, same))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(InvalidInputError, match="1e\\+37"):
        executor.submit(Item(np.float32(10) * huge))


def test_answers_outlive_the_batches_after_them(executor: Executor, images: NDArray[np.float32]):
    item = Item(images[0], Operation.EXPLAIN, layers=("stem",))
    first = executor.submit(item).result(20).arrays
    kept = {name: array.copy() for name, array in first.items()}
    for image in images[1:4]:
        executor.submit(Item(image, Operation.EXPLAIN, layers=("stem",))).result(20)
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_artifact_with_another_digest_is_not_loaded(exported: tuple[Path, ModelCard]):
    with pytest.raises(WrongStateError, match="sha256"):
        TorchScriptEngine(exported[0], make_card(digest="0" * 64))


def test_torch_out_of_memory_is_named():
    with pytest.raises(OutOfMemory), out_of_memory_named():
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_named():
        torch.ones(2, 3) @ torch.ones(2, 3)
