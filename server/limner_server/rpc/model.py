"""ModelService: the repository and what is loaded of it."""

import asyncio

from limner.v1 import common_pb2, model_pb2, model_pb2_grpc
from limner_server.networks.repository import ModelVersion
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.ownership import Ownership
from limner_server.rpc.wire import metrics, timestamp
from limner_server.serving import DEFAULT_ALIAS, ModelPool, Version


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Translates between the wire and the model pool."""

    def __init__(self, models: ModelPool, ownership: Ownership) -> None:
        self._models = models
        self._ownership = ownership

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: RpcContext
    ) -> model_pb2.ListModelsResponse:
        """Return every version, broken ones with their reason."""
        versions = await asyncio.to_thread(self._models.repository.list_versions)
        return model_pb2.ListModelsResponse(models=[await self._message(version) for version in versions])

    async def GetModel(self, request: model_pb2.GetModelRequest, context: RpcContext) -> model_pb2.Model:
        """Return one version."""
        return await self._describe(await self._resolve(request.model))

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: RpcContext) -> model_pb2.Model:
        """Load and warm a version."""
        served = await self._models.acquire(request.model.name, request.model.version)
        return await self._describe(served.version)

    async def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: RpcContext) -> model_pb2.Model:
        """Unload a version once what is in it is answered."""
        version = await self._resolve(request.model)
        await self._ownership.check_model(version.name)
        await self._models.unload(version)
        return await self._describe(version)

    async def PromoteModel(self, request: model_pb2.PromoteModelRequest, context: RpcContext) -> model_pb2.Model:
        """Move an alias."""
        version = await self._resolve(request.model)
        await self._ownership.check_model(version.name)
        await self._models.promote(version, request.alias or DEFAULT_ALIAS)
        return await self._describe(version)

    async def DeleteModel(
        self, request: model_pb2.DeleteModelRequest, context: RpcContext
    ) -> model_pb2.DeleteModelResponse:
        """Delete a version that no alias points at."""
        version = await self._resolve(request.model)
        await self._ownership.check_model(version.name)
        await self._models.delete(request.model.name, request.model.version)
        return model_pb2.DeleteModelResponse()

    async def _resolve(self, model: common_pb2.ModelSpec) -> Version:
        return await self._models.resolve(model.name, model.version)

    async def _describe(self, version: Version) -> model_pb2.Model:
        return await self._message(await asyncio.to_thread(self._models.repository.get, version.name, version.number))

    async def _message(self, found: ModelVersion) -> model_pb2.Model:
        aliases = await self._models.aliases(found.name)
        message = model_pb2.Model(
            identity=common_pb2.ModelIdentity(name=found.name, version=str(found.version)),
            aliases=[alias for alias, target in aliases.items() if target == str(found.version)],
            state=model_pb2.MODEL_STATE_BROKEN,
            error=found.error,
        )
        card = found.card
        if card is None:
            return message
        message.identity.digest = card.digest
        loaded = self._models.is_loaded(Version(found.name, found.version))
        message.state = model_pb2.MODEL_STATE_LOADED if loaded else model_pb2.MODEL_STATE_AVAILABLE
        message.labels.extend(card.labels)
        message.grid.fov_mm, message.grid.size = card.grid.fov_mm, card.grid.size
        message.architecture = card.architecture
        message.threshold = card.threshold.value
        message.metrics.extend(metrics(card.metrics))
        message.created.CopyFrom(timestamp(card.created))
        message.card_json = card.model_dump_json()
        return message
