"""FeatureService: feature maps, importance of channels, heat maps. One bad image fails alone."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
from numpy.typing import NDArray

from limner.imaging.errors import ImageError
from limner.v1 import common_pb2, feature_pb2, feature_pb2_grpc
from limner_server.errors import InvalidInputError, LimnerError
from limner_server.executor.engine import Item, Operation, Output
from limner_server.executor.executor import Places
from limner_server.explain.importance import ImportanceMethod, LayerExplanation, content_seed, explain_layer
from limner_server.networks.resnet import LAYERS
from limner_server.rpc.images import GridImage, ImageReader
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.status import to_status
from limner_server.rpc.streams import answer_all, answer_in_order, expect, opening
from limner_server.rpc.wire import check_count, check_unique_ids, deadline, identity, prediction, timing
from limner_server.serving import ModelPool, ServedModel

MAX_IMAGES = 64
WINDOW = 4
"""Images of one call at work at a time: their maps take some MiB each."""

_METHODS = {
    feature_pb2.ImportanceMethod.Value(f"IMPORTANCE_METHOD_{method.name}"): method for method in ImportanceMethod
}
_DEFAULT_METHOD = feature_pb2.IMPORTANCE_METHOD_GRADIENT_X_DEVIATION


class FeatureOptions:
    """The options of a request, checked against a model, with every default filled in."""

    def __init__(self, options: feature_pb2.FeatureOptions, model: ServedModel) -> None:
        self.method_number = options.method or _DEFAULT_METHOD
        if self.method_number not in _METHODS:
            raise InvalidInputError("options.method", options.method, "one of limner.v1.ImportanceMethod")
        self.method = _METHODS[self.method_number]
        self.ablates = self.method is ImportanceMethod.MEAN_ABLATION
        self.layers = tuple(dict.fromkeys(options.layers)) or (LAYERS[-1],)
        for layer in self.layers:
            if layer not in LAYERS:
                raise InvalidInputError("options.layers", layer, f"of {', '.join(LAYERS)}")
        labels = model.card.labels
        if options.target and options.target not in labels:
            raise InvalidInputError("options.target", options.target, f"one of {', '.join(labels)}, or none")
        self.target = labels.index(options.target) if options.target else -1
        self.top_k = options.top_k
        self.maps = options.include_maps
        self.heat_map = options.include_heat_map
        self.embedding = options.include_embedding


class FeatureService(feature_pb2_grpc.FeatureServiceServicer):
    """Translates between the wire, the executor and `explain.importance`."""

    def __init__(self, models: ModelPool, images: ImageReader) -> None:
        self._models = models
        self._images = images

    async def ExtractFeatures(
        self, request: feature_pb2.ExtractFeaturesRequest, context: RpcContext
    ) -> feature_pb2.ExtractFeaturesResponse:
        """Explain the images of one request."""
        check_count("images", len(request.images), MAX_IMAGES)
        check_unique_ids(request.images)
        model = await self._models.acquire(request.model.name, request.model.version)
        options = FeatureOptions(request.options, model)
        expires = deadline(context)

        with model.admitted(len(request.images), deadline=expires, runs=1 + options.ablates) as places:

            async def extract(image: common_pb2.Image) -> feature_pb2.ImageFeatures:
                return await self._extract(model, options, image, expires, places)

            results = await answer_all(request.images, extract, WINDOW)
        return feature_pb2.ExtractFeaturesResponse(
            model=identity(model), labels=model.card.labels, method=options.method_number, results=results
        )

    async def ExtractFeaturesStream(
        self, request_iterator: AsyncIterator[feature_pb2.ExtractFeaturesStreamRequest], context: RpcContext
    ) -> AsyncIterator[feature_pb2.ExtractFeaturesStreamResponse]:
        """Explain a stream of images."""
        header = (await opening(request_iterator)).header
        model = await self._models.acquire(header.model.name, header.model.version)
        options = FeatureOptions(header.options, model)
        start = feature_pb2.ExtractFeaturesStreamStart(
            model=identity(model), labels=model.card.labels, method=options.method_number
        )
        yield feature_pb2.ExtractFeaturesStreamResponse(start=start)

        async def extract(request: feature_pb2.ExtractFeaturesStreamRequest) -> feature_pb2.ImageFeatures:
            return await self._extract(model, options, expect(request, "image").image, deadline(context))

        async for results in answer_in_order(request_iterator, extract, WINDOW):
            for result in results:
                yield feature_pb2.ExtractFeaturesStreamResponse(result=result)

    async def _extract(
        self,
        model: ServedModel,
        options: FeatureOptions,
        image: common_pb2.Image,
        expires: float | None,
        places: Places | None = None,
    ) -> feature_pb2.ImageFeatures:
        """Explain one image; whatever is wrong with it becomes its status."""
        try:
            with model.statistics.request() as counted:
                grid_image = await self._images.read(image, model.grid)
                counted.read()
                item = Item(grid_image.values, Operation.EXPLAIN, options.target, options.layers)
                output = await model.run(item, deadline=expires, places=places)
                ablation: Output | None = None
                if options.ablates:
                    item = Item(grid_image.values, Operation.ABLATE, options.target, options.layers)
                    ablation = await model.run(item, deadline=expires, places=places)
                counted.answered(output)
                return await asyncio.to_thread(_features, model, options, image, grid_image, output, ablation)
        except (LimnerError, ImageError) as error:
            return feature_pb2.ImageFeatures(id=image.id, subject=image.subject, status=to_status(error))


def _features(
    model: ServedModel,
    options: FeatureOptions,
    image: common_pb2.Image,
    grid_image: GridImage,
    output: Output,
    ablation: Output | None,
) -> feature_pb2.ImageFeatures:
    arrays = output.arrays
    message = feature_pb2.ImageFeatures(
        id=image.id,
        subject=image.subject,
        status={},
        prediction=prediction(model.card, arrays["logits"], arrays["probabilities"], arrays.get("distance")),
        target=model.card.labels[int(arrays["target"])],
        timing=timing(output, grid_image.decode_s),
    )
    if options.embedding:
        message.embedding.extend(arrays["embedding"].tolist())
    for layer in options.layers:
        explanation = explain_layer(
            layer,
            arrays[f"maps.{layer}"],
            arrays[f"gradients.{layer}"],
            model.channel_means[layer],
            size=model.grid.size,
            method=options.method,
            top_k=min(options.top_k, len(arrays[f"maps.{layer}"])),
            ablation=None if ablation is None else ablation.arrays[f"ablation.{layer}"],
            seed=content_seed(grid_image.values),
        )
        message.layers.append(_layer(model, options, layer, arrays[f"maps.{layer}"], explanation, grid_image))
    return message


def _layer(
    model: ServedModel,
    options: FeatureOptions,
    layer: str,
    maps: NDArray[np.float32],
    explanation: LayerExplanation,
    grid_image: GridImage,
) -> feature_pb2.LayerFeatures:
    channels, height, width = maps.shape
    message = feature_pb2.LayerFeatures(layer=layer, channels=channels, height=height, width=width)
    for index, weight in zip(explanation.order.tolist(), explanation.weights.tolist(), strict=True):
        channel = message.top.add(index=index, importance=float(explanation.importance[index]), weight=weight)
        if options.maps:
            channel.map.extend(maps[index].ravel().tolist())
    if options.heat_map:
        message.grid_heat_map.CopyFrom(_heat_map(explanation.heat_map))
        if grid_image.source is not None:
            projected = model.grid.project(explanation.heat_map, grid_image.source, grid_image.center)
            message.source_heat_map.CopyFrom(_heat_map(projected))
    return message


def _heat_map(values: NDArray[np.float32]) -> feature_pb2.HeatMap:
    rows, columns = values.shape
    return feature_pb2.HeatMap(values=values.ravel(), rows=rows, columns=columns)
