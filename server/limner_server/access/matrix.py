"""The authorisation matrix: the role that each method of each service needs. One table; what is not in it is refused.

Roles include those before them. What a `train` principal may change is its own only (`rpc.ownership`).
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum


class Role(IntEnum):
    """What a principal may do; each includes those before it."""

    NOBODY = 0
    """Everybody, known or not: for what probes ask."""
    READ = 1
    """Look at cohorts, trainings, models and figures."""
    SCORE = 2
    """Have images scored and explained, and load models for it."""
    TRAIN = 3
    """Import cohorts, train, simulate, and change what is one's own."""
    ADMIN = 4
    """Change what is anybody's, and reach into the machine."""

    @classmethod
    def names(cls) -> list[str]:
        """As they are written in an access file."""
        return [role.name.lower() for role in cls if role is not cls.NOBODY]

    @classmethod
    def highest(cls, names: Iterable[str]) -> "Role":
        """Return the highest role that is named; what names none is ignored."""
        return max((cls[name.upper()] for name in names if name in cls.names()), default=cls.NOBODY)


_TABLE: Mapping[str, Mapping[Role, str]] = {
    "grpc.health.v1.Health": {Role.NOBODY: "Check Watch"},
    "grpc.reflection.v1alpha.ServerReflection": {Role.READ: "ServerReflectionInfo"},
    "limner.v1.CohortService": {Role.READ: "GetCohort ListCohorts", Role.TRAIN: "ImportCohort DeleteCohort"},
    "limner.v1.TrainingService": {
        Role.READ: "GetTraining ListTrainings WatchTraining",
        Role.TRAIN: "StartTraining CancelTraining",
    },
    "limner.v1.InferenceService": {Role.SCORE: "Predict PredictStream"},
    "limner.v1.FeatureService": {Role.SCORE: "ExtractFeatures ExtractFeaturesStream"},
    "limner.v1.SimulationService": {Role.TRAIN: "Simulate"},
    "limner.v1.ModelService": {
        Role.READ: "ListModels GetModel",
        Role.SCORE: "LoadModel",
        Role.TRAIN: "UnloadModel PromoteModel DeleteModel",
    },
    "inference.GRPCInferenceService": {
        Role.READ: "ServerLive ServerReady ServerMetadata ModelReady ModelMetadata ModelConfig ModelStatistics"
        " RepositoryIndex SystemSharedMemoryStatus CudaSharedMemoryStatus",
        Role.SCORE: "ModelInfer ModelStreamInfer RepositoryModelLoad",
        Role.TRAIN: "RepositoryModelUnload",
        # A region is memory of this machine, by whatever name the caller gives.
        Role.ADMIN: "SystemSharedMemoryRegister SystemSharedMemoryUnregister CudaSharedMemoryRegister"
        " CudaSharedMemoryUnregister TraceSetting LogSettings",
    },
}

MATRIX: Mapping[str, Role] = {
    f"{service}/{method}": role
    for service, rows in _TABLE.items()
    for role, methods in rows.items()
    for method in methods.split()
}
"""The role that a method needs, by "package.Service/Method"."""
