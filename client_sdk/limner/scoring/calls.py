"""Which call a run makes for its images: `Predict`, or `ExtractFeatures` where features are wanted of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from limner import wire
from limner.channel import EXTRACT_FEATURES, PREDICT
from limner.requests import extract_features, predict
from limner.types import FeatureOptions, ImageFeatures, ImageResult, ScoreOptions
from limner.v1 import common_pb2, feature_pb2, inference_pb2

Request: TypeAlias = "inference_pb2.PredictRequest | feature_pb2.ExtractFeaturesRequest"
Reply: TypeAlias = "inference_pb2.PredictResponse | feature_pb2.ExtractFeaturesResponse"
Scored: TypeAlias = "ImageResult | ImageFeatures"

# As many as no layer has: all of them.
_ALL_CHANNELS = 1 << 16


@dataclass(frozen=True)
class Kind:
    """One call of the contract; each takes some images and answers each of them, in their order.

    Attributes
    ----------
    path
        Of the method.
    request, reply
        Its messages.
    build
        Makes a request of the name of a model and images, in whatever process.
    """

    path: str
    request: Callable[[], Request]
    reply: Callable[[], Reply]
    build: Callable[[str, list[common_pb2.Image]], Request]

    @property
    def name(self) -> str:
        """Of the method, without its service."""
        return self.path.rpartition("/")[2]

    def parse(self, payload: bytes) -> Request:
        """Return a request as it was before it was serialised."""
        request = self.request()
        request.ParseFromString(payload)
        return request

    def parse_reply(self, payload: bytes) -> Reply:
        """Return a reply."""
        reply = self.reply()
        reply.ParseFromString(payload)
        return reply


def kind_of(options: ScoreOptions) -> Kind:
    """Return the call that gives what is wanted."""
    if not options.features:
        build = partial(predict, priority=options.priority, embedding=options.embeddings)
        return Kind(PREDICT, inference_pb2.PredictRequest, inference_pb2.PredictResponse, build)
    wanted = FeatureOptions(
        layers=options.features, method=options.method, top_k=_ALL_CHANNELS, embedding=options.embeddings
    )
    messages = feature_pb2.ExtractFeaturesRequest, feature_pb2.ExtractFeaturesResponse
    return Kind(EXTRACT_FEATURES, *messages, partial(extract_features, options=wanted))


def results_of(reply: Reply) -> list[Scored]:
    """Return the results of a reply, in the order of the images."""
    if isinstance(reply, inference_pb2.PredictResponse):
        return list(map(wire.image_result, reply.results))
    return list(map(wire.image_features, reply.results))
