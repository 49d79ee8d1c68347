"""What the server says of itself and its models: metadata, configuration, statistics."""

import json
from collections.abc import Sequence

from tritonclient.grpc import model_config_pb2, service_pb2

from limner_server.networks.card import ModelCard
from limner_server.networks.triton import INPUT, model_config
from limner_server.serving import ServedModel, Version
from limner_server.statistics import Duration, Statistics

PLATFORM = "pytorch_libtorch"
"""Triton's name for models that are TorchScript."""

_BATCH_DIMENSION = -1


def model_metadata(version: Version, numbers: Sequence[int], card: ModelCard) -> service_pb2.ModelMetadataResponse:
    """Tell the tensors of a version, and the numbers of all versions of its model."""
    edge = card.grid.size
    reply = service_pb2.ModelMetadataResponse(name=version.name, versions=map(str, numbers), platform=PLATFORM)
    reply.inputs.add(name=INPUT, datatype="FP32", shape=[_BATCH_DIMENSION, edge, edge])
    for name, width in card.outputs.items():
        reply.outputs.add(name=name, datatype="FP32", shape=[_BATCH_DIMENSION, width])
    return reply


def served_config(
    version: Version, card: ModelCard, max_images: int, batch_size: int, delay_us: int, priority_levels: int
) -> model_config_pb2.ModelConfig:
    """Tell how this server runs a version: what a real Triton is told, with the limits of this one.

    Two parameters say what clients need beside the tensors: `fov_mm`, edge of the grid in mm, and `labels`, a JSON list
    in the order of logits and probabilities.

    Parameters
    ----------
    version, card
        The version.
    max_images
        Images of one request, at most: larger than a batch, since requests are split.
    batch_size
        Images of one forward pass, at most.
    delay_us
        Longest wait for a batch to fill, in microseconds.
    priority_levels
        Number of priorities; the last is the default.
    """
    config = model_config(version.name, {version.number: card}, "pytorch")
    config.platform = PLATFORM
    config.max_batch_size = max_images
    config.ClearField("model_warmup")
    config.parameters["fov_mm"].string_value = str(card.grid.fov_mm)
    config.parameters["labels"].string_value = json.dumps(card.labels)
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(batch_size)
    batching.max_queue_delay_microseconds = delay_us
    batching.priority_levels = batching.default_priority_level = priority_levels
    return config


def model_statistics(model: ServedModel) -> service_pb2.ModelStatistics:
    """Tell what a loaded version has answered."""
    counted = model.statistics
    reply = unused_statistics(model.version)
    reply.last_inference = counted.last_inference_ms
    reply.inference_count = counted.inferences
    reply.execution_count = model.executor.counts.batches
    for kind in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        duration: Duration = getattr(counted, kind)
        getattr(reply.inference_stats, kind).MergeFrom(_duration(duration.count, duration.ns))
    _add_batches(reply, counted)
    return reply


def unused_statistics(version: Version) -> service_pb2.ModelStatistics:
    """Tell that a version has answered nothing."""
    return service_pb2.ModelStatistics(name=version.name, version=str(version.number))


def _add_batches(reply: service_pb2.ModelStatistics, counted: Statistics) -> None:
    for size, batch in sorted(counted.batches.items()):
        # The mates of these images in their batches may have failed or been cancelled: no whole number of batches.
        executions = round(batch.images / size)
        reply.batch_stats.add(
            batch_size=size,
            compute_input=_duration(executions, batch.input_ns),
            compute_infer=_duration(executions, batch.infer_ns),
            compute_output=_duration(executions, batch.output_ns),
        )


def _duration(count: int, ns: float) -> service_pb2.StatisticDuration:
    return service_pb2.StatisticDuration(count=count, ns=round(ns))
