"""Parts of replies that several servicers build, and parts of requests that several read."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from scipy.special import softmax

from limner.v1 import common_pb2, training_pb2
from limner_server.errors import InvalidInputError
from limner_server.executor.engine import Output
from limner_server.networks.card import Metric as CardMetric
from limner_server.networks.card import ModelCard
from limner_server.rpc.interceptor import RpcContext
from limner_server.serving import ServedModel
from limner_server.state.jobs import Job


def deadline(context: RpcContext) -> float | None:
    """When the caller stops waiting, on the clock of `time.monotonic`; None for never."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def check_count(field: str, count: int, most: int) -> None:
    """Refuse none, and more than `most`."""
    if not 1 <= count <= most:
        raise InvalidInputError(field, f"{count} of them", f"1 to {most:,}")


def check_unique_ids(images: Iterable[common_pb2.Image]) -> None:
    """Refuse a request in which two images have one id: their results could not be told apart."""
    twice = [name for name, count in Counter(image.id for image in images).items() if count > 1]
    if twice:
        raise InvalidInputError("images.id", twice[0], "an id that no other image of the request has")


def identity(model: ServedModel) -> common_pb2.ModelIdentity:
    """Say exactly which artifact answers."""
    return common_pb2.ModelIdentity(
        name=model.version.name, version=str(model.version.number), digest=model.card.digest
    )


def timestamp(time: datetime) -> Timestamp:
    """Translate a time."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def metrics(figures: Iterable[CardMetric]) -> Iterator[training_pb2.Metric]:
    """Translate the metrics of a card."""
    for metric in figures:
        yield training_pb2.Metric(**metric.model_dump())


def job_progress(job: Job) -> common_pb2.Progress:
    """Translate how far a job has come."""
    progress = job.progress
    return common_pb2.Progress(
        phase=progress["phase"], fraction=progress["fraction"], remaining_s=progress["remaining_s"]
    )


def prediction(
    card: ModelCard,
    logits: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    distance: NDArray[np.float32] | None = None,
) -> common_pb2.Prediction:
    """Translate logits and probabilities `(k,)`, and add the label that the card chooses.

    With the engine's `distance` (1,), if not NaN, it says how far the image lies from home, where the card knows that.
    """
    message = common_pb2.Prediction(
        logits=logits.tolist(),
        probabilities=probabilities.tolist(),
        label=card.labels[card.choose(probabilities)],
    )
    value = math.nan if distance is None else distance.item()
    if card.reference is not None and not math.isnan(value):
        percentile, far = card.reference.judge(value)
        message.distance.value, message.distance.percentile, message.distance.far = value, percentile, far
    return message


def timing(output: Output, decode_s: float) -> common_pb2.Timing:
    """Translate where the time of one image went."""
    return common_pb2.Timing(
        decode_ms=decode_s * 1e3,
        queue_ms=output.queue_s * 1e3,
        compute_ms=output.compute_s * 1e3,
        batch_size=output.batch_size,
    )


class SubjectRollUp:
    """Gathers the logits of each subject's images, and how many lie far; keeps sums, not the images."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._images: dict[str, int] = defaultdict(int)
        self._failed: dict[str, int] = defaultdict(int)
        self._far: dict[str, int] = defaultdict(int)

    def add(self, subject: str, found: common_pb2.Prediction | None) -> None:
        """Count one image: its prediction, or None where it failed. An image without subject is not rolled up."""
        if not subject:
            return
        total = self._sums.setdefault(subject, np.zeros(len(self._card.labels)))
        if found is None:
            self._failed[subject] += 1
        else:
            total += found.logits
            self._images[subject] += 1
            self._far[subject] += found.distance.far

    def results(self) -> Iterator[common_pb2.SubjectResult]:
        """One result for each subject, in order of first appearance: the prediction of its mean logits."""
        for subject, total in self._sums.items():
            result = common_pb2.SubjectResult(
                subject=subject, images=self._images[subject], failed=self._failed[subject], far=self._far[subject]
            )
            if result.images:
                logits = (total / result.images).astype(np.float32)
                probabilities = softmax(logits / self._card.calibration.temperature)
                result.prediction.CopyFrom(prediction(self._card, logits, probabilities))
            yield result
