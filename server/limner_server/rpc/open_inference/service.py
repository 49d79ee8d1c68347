"""GRPCInferenceService: the servicer. RPCs of Triton's that are not served answer UNIMPLEMENTED."""

import asyncio
import contextlib
import importlib.metadata
import time
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from limner_server.access.limits import MAX_IMAGES
from limner_server.errors import InvalidInputError, LimnerError, NotFoundError, WrongStateError
from limner_server.executor.engine import Item, Output
from limner_server.rpc.health import Health
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.open_inference.description import (
    model_metadata,
    model_statistics,
    served_config,
    unused_statistics,
)
from limner_server.rpc.open_inference.inference import (
    PRIORITY_LEVELS,
    build_reply,
    read_images,
    read_priority,
    read_timeout_s,
    read_wanted,
)
from limner_server.rpc.open_inference.shared_memory import SharedMemory
from limner_server.rpc.ownership import Ownership
from limner_server.rpc.streams import answer_all, answer_in_order
from limner_server.rpc.wire import deadline
from limner_server.serving import ModelPool, ServedModel, Version
from limner_server.settings import Settings

_EXTENSIONS = ("model_configuration", "model_repository", "parameters", "schedule_policy")
_EXTENSIONS_OF_ONE_PROCESS = ("statistics", "system_shared_memory")
"""What these tell or keep, each worker has for itself, and a client cannot choose its worker."""

STREAM_WINDOW = 64
"""Requests of one stream at work at a time."""

_SERVICE = "inference.GRPCInferenceService"
_READY = "READY"
_UNAVAILABLE = "UNAVAILABLE"


class OpenInferenceService:
    """Translates between the Open Inference Protocol and the executors.

    A model loads when it is first asked for, so every whole version is ready, until a client unloads it: then it is not
    ready before it is loaded again, by a client's wish or by the next request.
    """

    def __init__(self, models: ModelPool, ownership: Ownership, settings: Settings, health: Health) -> None:
        self._models = models
        self._ownership = ownership
        self._settings = settings
        self._health = health
        self._extensions = _EXTENSIONS + (_EXTENSIONS_OF_ONE_PROCESS if settings.workers == 1 else ())
        self._memory = SharedMemory()
        self._unloaded: set[Version] = set()

    async def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: RpcContext
    ) -> service_pb2.ServerLiveResponse:
        """Say that the server answers."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: service_pb2.ServerReadyRequest, context: RpcContext
    ) -> service_pb2.ServerReadyResponse:
        """Say what grpc.health.v1 says of this service."""
        return service_pb2.ServerReadyResponse(ready=self._health.serves(_SERVICE))

    async def ModelReady(
        self, request: service_pb2.ModelReadyRequest, context: RpcContext
    ) -> service_pb2.ModelReadyResponse:
        """Say whether a version can answer; an unknown one cannot."""
        try:
            version = await self._models.resolve(request.name, request.version)
            found = await asyncio.to_thread(self._models.repository.get, version.name, version.number)
        except NotFoundError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=self._is_ready(version, broken=found.card is None))

    async def ServerMetadata(
        self, request: service_pb2.ServerMetadataRequest, context: RpcContext
    ) -> service_pb2.ServerMetadataResponse:
        """Tell name, version and the extensions that work."""
        return service_pb2.ServerMetadataResponse(
            name="limner", version=importlib.metadata.version("limner"), extensions=self._extensions
        )

    async def ModelMetadata(
        self, request: service_pb2.ModelMetadataRequest, context: RpcContext
    ) -> service_pb2.ModelMetadataResponse:
        """Tell the tensors of a version."""
        version = await self._models.resolve(request.name, request.version)
        repository = self._models.repository
        numbers = await asyncio.to_thread(repository.numbers, version.name)
        card = await asyncio.to_thread(repository.card, version.name, version.number)
        return model_metadata(version, numbers, card)

    async def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: RpcContext
    ) -> service_pb2.ModelConfigResponse:
        """Tell how a version is run here."""
        version = await self._models.resolve(request.name, request.version)
        card = await asyncio.to_thread(self._models.repository.card, version.name, version.number)
        settings = self._settings
        delay_us = round(settings.max_queue_delay_ms * 1000)
        config = served_config(version, card, MAX_IMAGES, settings.max_batch_size, delay_us, PRIORITY_LEVELS)
        return service_pb2.ModelConfigResponse(config=config)

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: RpcContext
    ) -> service_pb2.ModelInferResponse:
        """Run the images of one request, in batches with everybody else's."""
        return await self._infer(request, context)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[service_pb2.ModelInferRequest], context: RpcContext
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        """Answer a stream of requests in their order; one that fails is told of in its reply and ends nothing."""

        async def answer(request: service_pb2.ModelInferRequest) -> service_pb2.ModelStreamInferResponse:
            try:
                reply = await self._infer(request, context)
            except LimnerError as error:
                failed = service_pb2.ModelInferResponse(id=request.id)
                return service_pb2.ModelStreamInferResponse(error_message=str(error), infer_response=failed)
            # Every reply is the whole one, so that triton_enable_empty_final_response leaves nothing more to send.
            reply.parameters["triton_final_response"].bool_param = True
            return service_pb2.ModelStreamInferResponse(infer_response=reply)

        async for replies in answer_in_order(request_iterator, answer, STREAM_WINDOW):
            for reply in replies:
                yield reply

    async def ModelStatistics(
        self, request: service_pb2.ModelStatisticsRequest, context: RpcContext
    ) -> service_pb2.ModelStatisticsResponse:
        """Tell what the versions of a model, or of all, have answered since they were loaded."""
        if request.name:
            found = await self._models.resolve(request.name, request.version)
            numbers = await asyncio.to_thread(self._models.repository.numbers, found.name)
            versions = [found] if request.version else [Version(found.name, number) for number in numbers]
        else:
            listed = await asyncio.to_thread(self._models.repository.list_versions)
            versions = [Version(each.name, each.version) for each in listed]
        return service_pb2.ModelStatisticsResponse(model_stats=[await self._statistics(each) for each in versions])

    async def RepositoryIndex(
        self, request: service_pb2.RepositoryIndexRequest, context: RpcContext
    ) -> service_pb2.RepositoryIndexResponse:
        """List every version, broken ones with their reason; those that are ready where only they are asked for."""
        _check_repository(request.repository_name)
        reply = service_pb2.RepositoryIndexResponse()
        for found in await asyncio.to_thread(self._models.repository.list_versions):
            ready = self._is_ready(Version(found.name, found.version), broken=found.card is None)
            if request.ready and not ready:
                continue
            state = _READY if ready else _UNAVAILABLE
            reason = "" if ready else found.error or "unloaded"
            reply.models.add(name=found.name, version=str(found.version), state=state, reason=reason)
        return reply

    async def RepositoryModelLoad(
        self, request: service_pb2.RepositoryModelLoadRequest, context: RpcContext
    ) -> service_pb2.RepositoryModelLoadResponse:
        """Load and warm the version that answers where none is named."""
        _check_repository(request.repository_name)
        if request.parameters:
            raise InvalidInputError("parameters", ", ".join(request.parameters), "none: a model is what its files are")
        served = await self._models.acquire(request.model_name)
        self._unloaded = {version for version in self._unloaded if version.name != served.version.name}
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: service_pb2.RepositoryModelUnloadRequest, context: RpcContext
    ) -> service_pb2.RepositoryModelUnloadResponse:
        """Unload every version of a model once what is in it is answered."""
        _check_repository(request.repository_name)
        name = (await self._models.resolve(request.model_name)).name
        await self._ownership.check_model(name)
        for number in await asyncio.to_thread(self._models.repository.numbers, name):
            version = Version(name, number)
            self._unloaded.add(version)
            with contextlib.suppress(WrongStateError):  # it is not loaded: as wished
                await self._models.unload(version)
        return service_pb2.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: service_pb2.SystemSharedMemoryStatusRequest, context: RpcContext
    ) -> service_pb2.SystemSharedMemoryStatusResponse:
        """List the registered regions, or one."""
        reply = service_pb2.SystemSharedMemoryStatusResponse()
        for region in self._memory.regions(request.name):
            status = reply.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return reply

    async def SystemSharedMemoryRegister(
        self, request: service_pb2.SystemSharedMemoryRegisterRequest, context: RpcContext
    ) -> service_pb2.SystemSharedMemoryRegisterResponse:
        """Register a region of a client's segment."""
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: service_pb2.SystemSharedMemoryUnregisterRequest, context: RpcContext
    ) -> service_pb2.SystemSharedMemoryUnregisterResponse:
        """Forget one region, or all; requests that use it end well."""
        self._memory.unregister(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: service_pb2.CudaSharedMemoryStatusRequest, context: RpcContext
    ) -> service_pb2.CudaSharedMemoryStatusResponse:
        """List no region: none can be registered."""
        return service_pb2.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(
        self, request: service_pb2.CudaSharedMemoryUnregisterRequest, context: RpcContext
    ) -> service_pb2.CudaSharedMemoryUnregisterResponse:
        """Forget nothing: perf_analyzer does this before it uses shared memory of the other kind."""
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    async def _unserved(self, request: Message, context: RpcContext) -> NoReturn:
        """Refuse what is not advertised in `extensions`."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{request.DESCRIPTOR.name} is not served; served are: {', '.join(self._extensions)}",
        )
        raise AssertionError("abort returned")

    CudaSharedMemoryRegister = TraceSetting = LogSettings = _unserved

    async def _infer(
        self, request: service_pb2.ModelInferRequest, context: RpcContext
    ) -> service_pb2.ModelInferResponse:
        expires = _expiry(request, context)
        priority = read_priority(request)
        model = await self._models.acquire(request.model_name, request.model_version)
        with model.statistics.request() as counted:
            images = read_images(request, model.grid.size, self._memory)
            wanted = read_wanted(request, model, len(images), self._memory)
            counted.read()
            outputs = await self._run(model, images, priority, expires)
            counted.answered(*outputs)
            return build_reply(request, model, wanted, outputs)

    async def _run(
        self, model: ServedModel, images: NDArray[np.float32], priority: int, expires: float | None
    ) -> Sequence[Output]:
        """Run images `(n, s, s)`, a window of them at a time; one that fails fails all."""
        with model.executor.admitted(len(images), priority, expires) as places:
            if len(images) == 1:
                return [await model.run(Item(images[0]), priority, expires, places)]

            async def run(image: NDArray[np.float32]) -> Output:
                return await model.run(Item(image), priority, expires, places)

            return await answer_all(images, run, model.executor.window)

    async def _statistics(self, version: Version) -> service_pb2.ModelStatistics:
        if not self._models.is_loaded(version):
            return unused_statistics(version)
        return model_statistics(await self._models.acquire(version.name, str(version.number)))

    def _is_ready(self, version: Version, *, broken: bool) -> bool:
        return self._models.is_loaded(version) or not (broken or version in self._unloaded)


def _expiry(request: service_pb2.ModelInferRequest, context: RpcContext) -> float | None:
    """When the caller has no more use for the answer, on the clock of `time.monotonic`; None for never."""
    timeout_s = read_timeout_s(request)
    times = [deadline(context), None if timeout_s is None else time.monotonic() + timeout_s]
    return min((each for each in times if each is not None), default=None)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInputError("repository_name", name, "no name: there is one repository")
