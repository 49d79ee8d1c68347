"""Triton's model configuration of our models: a real Triton serves the same artifacts from the same folders.

Two of its backends can. LibTorch (`config.pbtxt`) runs `model.pt` itself: it finds the argument of `forward` by its
name, and takes outputs whose names have no `__INDEX` in the order of the configuration
(https://github.com/triton-inference-server/pytorch_backend, `GetNamingConvention`). The Python backend
(`configs/python.pbtxt`, chosen by `--model-config-name=python`) runs `triton_model.py`, copied to each version.

Triton has one configuration for all versions of a model: where they differ in a dimension, it says -1, any.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from tritonclient.grpc import model_config_pb2

from limner_server.networks.card import ModelCard

Backend = Literal["pytorch", "python"]

INPUT = "images"

MAX_BATCH_SIZE = 64
WARM_UP_RUNS = 2
"""TorchScript watches the first run of a batch size and optimises itself in the second."""


def model_config(name: str, cards: Mapping[int, ModelCard], backend: Backend) -> model_config_pb2.ModelConfig:
    """Triton's configuration of a model: one input `(s, s)`, the outputs of `forward`, dynamic batching.

    Only where every version knows distances is there an output for them.

    An idle model runs at once and a busy one gathers meanwhile, Triton's default; the number of instances and their
    devices are Triton's choice too.

    Parameters
    ----------
    name
        The model.
    cards
        Card of each version to be served, by its number; one or more.
    backend
        The one that is to run it.

    Returns
    -------
    ModelConfig
        Its parameters `digest.<version>` hold the sha256 of each version's artifact.
    """
    edge = _common(card.grid.size for card in cards.values())
    outputs = [card.outputs for card in cards.values()]
    config = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.extend(sorted(cards))
    config.input.add(name=INPUT, data_type=model_config_pb2.TYPE_FP32, dims=[edge, edge])
    for name in min(outputs, key=len):
        size = _common(each[name] for each in outputs)
        config.output.add(name=name, data_type=model_config_pb2.TYPE_FP32, dims=[size])
    config.dynamic_batching.SetInParent()
    for version, card in cards.items():
        config.parameters[digest_parameter(version)].string_value = card.digest
    if backend == "pytorch":
        config.parameters["INFERENCE_MODE"].string_value = "true"
    if edge > 0:
        _add_warm_up(config, edge)
    return config


def digest_parameter(version: int) -> str:
    """Name of the configuration's parameter that holds the digest of a version."""
    return f"digest.{version}"


def _common(sizes: Iterable[int]) -> int:
    """The size that all versions have, else -1, which stands for any."""
    found = set(sizes)
    return found.pop() if len(found) == 1 else -1


def _add_warm_up(config: model_config_pb2.ModelConfig, edge: int) -> None:
    """Have Triton run the smallest and the largest batch before it calls the model ready."""
    for size in (1, MAX_BATCH_SIZE):
        sample = config.model_warmup.add(name=f"batch of {size}", batch_size=size, count=WARM_UP_RUNS)
        images = sample.inputs[INPUT]
        images.data_type = model_config_pb2.TYPE_FP32
        images.dims.extend([edge, edge])
        images.zero_data = True
