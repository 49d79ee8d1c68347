"""InferenceService: images in, predictions out. One bad image fails alone."""

from collections.abc import AsyncIterator

from limner.imaging.errors import ImageError
from limner.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from limner_server.access.limits import MAX_IMAGES
from limner_server.errors import InvalidInputError, LimnerError
from limner_server.executor.batcher import MAX_PRIORITY
from limner_server.executor.engine import Item
from limner_server.executor.executor import Places
from limner_server.networks.card import DISTANCE
from limner_server.rpc.images import ImageReader
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.status import to_status
from limner_server.rpc.streams import answer_all, answer_in_order
from limner_server.rpc.wire import (
    SubjectRollUp,
    check_count,
    check_unique_ids,
    deadline,
    identity,
    prediction,
    timing,
)
from limner_server.serving import ModelPool, ServedModel

_Wanted = inference_pb2.PredictRequest | inference_pb2.PredictStreamHeader


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Translates between the wire, the image path and the executor."""

    def __init__(self, models: ModelPool, images: ImageReader) -> None:
        self._models = models
        self._images = images

    async def Predict(
        self, request: inference_pb2.PredictRequest, context: RpcContext
    ) -> inference_pb2.PredictResponse:
        """Score the images of one request, in batches with everybody else's."""
        check_count("images", len(request.images), MAX_IMAGES)
        check_unique_ids(request.images)
        _check_priority(request.priority)
        model = await self._models.acquire(request.model.name, request.model.version)
        expires = deadline(context)

        # The call is refused as a whole, and before anything is done for it: its caller's retry policy sends it again.
        with model.admitted(len(request.images), request.priority, expires) as places:

            async def score(image: common_pb2.Image) -> inference_pb2.ImageResult:
                return await self._score(model, image, request, expires, places)

            results = await answer_all(request.images, score, model.executor.window)
        roll_up = SubjectRollUp(model.card)
        for result in results:
            _count(roll_up, result)
        return inference_pb2.PredictResponse(
            model=identity(model), labels=model.card.labels, results=results, subjects=roll_up.results()
        )

    async def PredictStream(
        self, request_iterator: AsyncIterator[inference_pb2.PredictStreamRequest], context: RpcContext
    ) -> AsyncIterator[inference_pb2.PredictStreamResponse]:
        """Score a stream of images; a full queue refuses single images, with their ids."""
        header = await _opening(request_iterator)
        _check_priority(header.priority)
        model = await self._models.acquire(header.model.name, header.model.version)
        start = inference_pb2.PredictStreamStart(model=identity(model), labels=model.card.labels)
        yield inference_pb2.PredictStreamResponse(start=start)
        expires = deadline(context)

        async def score(image: common_pb2.Image) -> inference_pb2.ImageResult:
            return await self._score(model, image, header, expires)

        end = inference_pb2.PredictStreamEnd()
        roll_up = SubjectRollUp(model.card)
        async for results in answer_in_order(_images(request_iterator), score, model.executor.window):
            for result in results:
                end.images += 1
                end.failed += not result.HasField("prediction")
                _count(roll_up, result)
            yield inference_pb2.PredictStreamResponse(results=results)
        end.subjects.extend(roll_up.results())
        yield inference_pb2.PredictStreamResponse(end=end)

    async def _score(
        self,
        model: ServedModel,
        image: common_pb2.Image,
        wanted: _Wanted,
        expires: float | None,
        places: Places | None = None,
    ) -> inference_pb2.ImageResult:
        """Score one image; whatever is wrong with it becomes its status."""
        try:
            with model.statistics.request() as counted:
                grid_image = await self._images.read(image, model.grid)
                counted.read()
                output = await model.run(Item(grid_image.values), wanted.priority, expires, places)
                counted.answered(output)
                return inference_pb2.ImageResult(
                    id=image.id,
                    subject=image.subject,
                    status={},
                    prediction=prediction(
                        model.card, output.arrays["logits"], output.arrays["probabilities"], output.arrays.get(DISTANCE)
                    ),
                    timing=timing(output, grid_image.decode_s),
                    embedding=output.arrays["embedding"].tolist() if wanted.include_embedding else None,
                )
        except (LimnerError, ImageError) as error:
            return inference_pb2.ImageResult(id=image.id, subject=image.subject, status=to_status(error))


async def _opening(
    requests: AsyncIterator[inference_pb2.PredictStreamRequest],
) -> inference_pb2.PredictStreamHeader:
    async for request in requests:
        if request.HasField("header") and not request.images:
            return request.header
        raise InvalidInputError("header", "missing or with images beside it", "a header alone in the first message")
    raise InvalidInputError("stream", "empty", "a header, then any number of images")


async def _images(requests: AsyncIterator[inference_pb2.PredictStreamRequest]) -> AsyncIterator[common_pb2.Image]:
    async for request in requests:
        if request.HasField("header"):
            raise InvalidInputError("header", "in a later message", "in the first message only")
        check_count("images", len(request.images), MAX_IMAGES)
        for image in request.images:
            yield image


def _count(roll_up: SubjectRollUp, result: inference_pb2.ImageResult) -> None:
    roll_up.add(result.subject, result.prediction if result.HasField("prediction") else None)


def _check_priority(priority: int) -> None:
    if priority > MAX_PRIORITY:
        raise InvalidInputError("priority", priority, f"0 to {MAX_PRIORITY}")
