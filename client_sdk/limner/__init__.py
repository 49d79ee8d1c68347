"""The SDK of Limner, which trains, serves and explains MRI outcome models over gRPC. Not for diagnostic use.

    from limner import Client

    with Client("localhost:8500") as client:
        for result in client.predict_stream("cervix", Path("study").glob("*.dcm")):
            print(result.id, result.prediction or result.error)

Names are imported when they are first used, so that `import limner` itself costs nothing; torch is never imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.aio import AsyncClient
    from limner.client import Client
    from limner.cohort_import import plan_import
    from limner.cohorts import CohortPlan, CohortSlice
    from limner.endpoint import Tls
    from limner.errors import LimnerError
    from limner.images import Image
    from limner.imaging.grid import Grid
    from limner.imaging.slices import Slice
    from limner.token import TokenFile
    from limner.types import FeatureOptions, TrainingConfig

__all__ = [
    "AsyncClient",
    "Client",
    "CohortPlan",
    "CohortSlice",
    "FeatureOptions",
    "Grid",
    "Image",
    "LimnerError",
    "Slice",
    "Tls",
    "TokenFile",
    "TrainingConfig",
    "plan_import",
]

_HOME_OF = {
    "AsyncClient": "aio",
    "Client": "client",
    "CohortPlan": "cohorts",
    "CohortSlice": "cohorts",
    "FeatureOptions": "types",
    "Grid": "imaging.grid",
    "Image": "images",
    "LimnerError": "errors",
    "Slice": "imaging.slices",
    "Tls": "endpoint",
    "TokenFile": "token",
    "TrainingConfig": "types",
    "plan_import": "cohort_import",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
