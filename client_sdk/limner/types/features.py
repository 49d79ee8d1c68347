"""Importance of channels, feature maps and heat maps."""

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limner.imaging.slices import Slice
from limner.types.common import FloatArray, ModelIdentity, Result
from limner.types.prediction import ItemResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class ImportanceMethod(StrEnum):
    """How the importance of a channel for an image is measured; docs/explain.md gives the formulas."""

    GRADIENT_X_DEVIATION = "gradient_x_deviation"
    GRADIENT_X_ACTIVATION = "gradient_x_activation"
    GRAD_CAM = "grad_cam"
    CAM = "cam"
    ACTIVATION = "activation"
    MEAN_ABLATION = "mean_ablation"
    RANDOM = "random"


class FeatureOptions(Result):
    """What is wanted of each image.

    Attributes
    ----------
    layers
        Of "stem", "layer1", "layer2", "layer3", "layer4"; default the last.
    method
        How importance is measured; None: gradient times deviation.
    target
        The label whose margin is explained; None: the one predicted for the image.
    top_k
        Number of channels returned for each layer, from 1, where it has so many; None: a tenth of them, at least 4.
    maps
        Whether to return the maps of the top channels.
    heat_maps
        Whether to return a heat map for each layer, on the grid and, where the image has another raster, on that.
    embedding
        Whether to return the pooled last layer.
    """

    layers: tuple[str, ...] = ("layer4",)
    method: ImportanceMethod | None = None
    target: str | None = None
    top_k: int | None = None
    maps: bool = False
    heat_maps: bool = False
    embedding: bool = False


class Channel(Result):
    """One channel of one layer, for one image.

    Attributes
    ----------
    index
        In its layer, from 0.
    importance
        Signed, in logits of the margin (without unit for `activation` and `random`).
    weight
        Share among the layer's top channels, 0 to 1, summing to 1.
    map
        `(height, width)` float32, after ReLU; only where asked for.
    """

    index: int
    importance: float
    weight: float
    map: FloatArray | None = None


class LayerFeatures(Result):
    """One layer of one image: its `channels` maps of `height` x `width`, the `top` channels, the most important first.

    `grid_heat_map` is `(size, size)` and `source_heat_map` `(rows, columns)`, float32, 0 to 1, only where asked for;
    the latter is None for images sent as grid arrays.
    """

    layer: str
    channels: int
    height: int
    width: int
    top: tuple[Channel, ...]
    grid_heat_map: FloatArray | None = None
    source_heat_map: FloatArray | None = None


class ImageFeatures(ItemResult):
    """The features of one image: of the label whose margin was explained (`target`), or why it failed.

    `embedding` is `(512,)` or `(2048,)` float32, the pooled last layer; only where asked for.
    """

    target: str = ""
    layers: tuple[LayerFeatures, ...] = ()
    embedding: FloatArray | None = None

    def plot(self, image: Slice | NDArray[np.generic] | None = None) -> "Figure":
        """Draw the heat map of each layer (`limner[notebook]`).

        Parameters
        ----------
        image
            What they are laid over: the slice or pixels `(rows, columns)` that were sent, or the grid array
            `(size, size)`. None: the heat maps alone.

        Raises
        ------
        InvalidInputError
            There are no heat maps, or the image has another shape.
        """
        from limner import notebook

        return notebook.plot_heat_maps(self, image)


class FeaturesResult(Result):
    """Features of several images, in the order given."""

    model: ModelIdentity
    labels: tuple[str, ...]
    method: ImportanceMethod
    results: tuple[ImageFeatures, ...]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row for each top channel of each layer and image, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.rows(self))
