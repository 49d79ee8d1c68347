"""What the calls of the SDK return: frozen pydantic models that mirror `limner.v1`, with arrays for images.

Not for the wire: `limner.wire` is the only place that knows both these and the protobuf messages.
"""

from limner.imaging.grid import Grid
from limner.types.cohorts import Cohort, CohortSubject, ImportResult
from limner.types.common import (
    Distance,
    Failure,
    FloatArray,
    Metric,
    ModelIdentity,
    Prediction,
    Progress,
    Rejection,
    Result,
    SubjectResult,
    Timing,
)
from limner.types.features import (
    Channel,
    FeatureOptions,
    FeaturesResult,
    ImageFeatures,
    ImportanceMethod,
    LayerFeatures,
)
from limner.types.models import Model, ModelState
from limner.types.prediction import ImageResult, ItemResult, PredictResult
from limner.types.scoring import ScoreOptions, Scores, TableFormat
from limner.types.simulation import (
    Check,
    FaithfulnessCurve,
    LayerLineage,
    SimulatedImage,
    SimulationMethod,
    SimulationResult,
    SubjectLineage,
    Verdict,
)
from limner.types.training import FoldUnit, JobState, Training, TrainingConfig, TrainingProgress

__all__ = [
    "Channel",
    "Check",
    "Cohort",
    "CohortSubject",
    "Distance",
    "Failure",
    "FaithfulnessCurve",
    "FeatureOptions",
    "FeaturesResult",
    "FloatArray",
    "FoldUnit",
    "Grid",
    "ImageFeatures",
    "ImageResult",
    "ImportResult",
    "ImportanceMethod",
    "ItemResult",
    "JobState",
    "LayerFeatures",
    "LayerLineage",
    "Metric",
    "Model",
    "ModelIdentity",
    "ModelState",
    "PredictResult",
    "Prediction",
    "Progress",
    "Rejection",
    "Result",
    "ScoreOptions",
    "Scores",
    "SimulatedImage",
    "SimulationMethod",
    "SimulationResult",
    "SubjectLineage",
    "SubjectResult",
    "TableFormat",
    "Timing",
    "Training",
    "TrainingConfig",
    "TrainingProgress",
    "Verdict",
]
