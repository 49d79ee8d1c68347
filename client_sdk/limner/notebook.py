"""Results as a notebook shows them: tables of pandas, HTML, figures. What a result is belongs to `limner.types`.

pandas and matplotlib come with the extra `limner[notebook]` and are imported when they are first needed; HTML needs
neither. Figures are those of the report (`limner.report`), in print colours on a white ground.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, singledispatch
from html import escape
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.errors import InvalidInputError
from limner.imaging.export import SIMULATED_MARK
from limner.imaging.pictures import captioned, grey, overlay
from limner.imaging.slices import Slice
from limner.simulated import WINDOW, shortcoming
from limner.types import (
    Cohort,
    FeaturesResult,
    ImageFeatures,
    Model,
    Prediction,
    PredictResult,
    Result,
    SimulationResult,
    Training,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, object]

# Rows of a table in HTML; pandas shows as many before it leaves some out.
SHOWN = 60
_NOTICE = "Research use only, not for diagnostic use."


def frame(rows: Iterable[Row]) -> "pd.DataFrame":
    """Return rows as a table of pandas. ModuleNotFoundError, saying what to install, where that is missing."""
    _require("pandas")
    import pandas as pd

    return pd.DataFrame.from_records(list(rows))


@singledispatch
def rows(result: Result) -> list[Row]:
    """Return what a result lists, a row for each: images, channels, subjects, figures or checks; nothing by default."""
    return []


@rows.register
def _(result: PredictResult) -> list[Row]:
    return [
        {
            "image": one.id,
            "subject": one.subject,
            **_scores(one.prediction, result.labels),
            "error": str(one.error or ""),
        }
        for one in result.results
    ]


@rows.register
def _(result: FeaturesResult) -> list[Row]:
    return [
        {
            "image": image.id,
            "subject": image.subject,
            "target": image.target,
            "layer": layer.layer,
            "channel": channel.index,
            "importance": channel.importance,
            "weight": channel.weight,
        }
        for image in result.results
        for layer in image.layers
        for channel in layer.top
    ]


@rows.register
def _(result: Cohort) -> list[Row]:
    return [{"subject": one.subject, "label": one.label, "slices": one.slices} for one in result.subjects]


@rows.register(Model)
@rows.register(Training)
def _(result: Model | Training) -> list[Row]:
    return [metric.to_dict() for metric in result.metrics]


@rows.register
def _(result: SimulationResult) -> list[Row]:
    return [check.model_dump(exclude={"values", "null", "source"}) for check in result.checks]


def subject_rows(result: PredictResult) -> list[Row]:
    """Return a row for each subject of some predictions."""
    return [
        {
            "subject": one.subject,
            "images": one.images,
            "failed": one.failed,
            "far_images": one.far,
            **_scores(one.prediction, result.labels, distance=False),
        }
        for one in result.subjects
    ]


def _scores(prediction: Prediction | None, labels: Sequence[str], *, distance: bool = True) -> Row:
    """Return the columns of a prediction, None where there is none."""
    values = prediction.probabilities if prediction else [None] * len(labels)
    found: Row = {"label": prediction and prediction.label}
    found |= {f"p_{label}": value for label, value in zip(labels, values, strict=True)}
    if distance:
        away = prediction.distance if prediction else None
        found |= {"distance_percentile": away and away.percentile, "far": away and away.far}
    return found


def html(result: Result) -> str:
    """Return a result as HTML: what it is, its pictures if it has any, and what it lists."""
    parts = [f"<p><strong>{escape(_title(result))}</strong></p>", _pictures(result)]
    if listed := rows(result):
        parts.append(_table(listed))
    elif not parts[1]:
        parts.append(_fields(result))
    return f"<div>{''.join(parts)}<p><small>{_NOTICE}</small></p></div>"


@singledispatch
def _title(result: Result) -> str:
    return type(result).__name__


@_title.register
def _(result: PredictResult) -> str:
    failed = sum(not one.ok for one in result.results)
    return f"{len(result.results)} images by {result.model}" + (f", {failed} failed" if failed else "")


@_title.register
def _(result: FeaturesResult) -> str:
    return f"{len(result.results)} images by {result.model}, channels by {result.method}"


@_title.register
def _(result: Cohort) -> str:
    return f"cohort {result.name}: {len(result.subjects)} subjects, {result.slices} slices"


@_title.register
def _(result: Model) -> str:
    return f"model {result.identity}, {result.state}" + (f": {result.error}" if result.error else "")


@_title.register
def _(result: Training) -> str:
    return f"training {result.id} of {result.model}, {result.state}" + (f": {result.error}" if result.error else "")


@_title.register
def _(result: SimulationResult) -> str:
    return f"simulated images of {result.model}: {shortcoming(result) or 'an explanation, all gates passed'}"


def _pictures(result: Result) -> str:
    if not isinstance(result, SimulationResult):
        return ""
    mark = "\n".join(filter(None, (SIMULATED_MARK, shortcoming(result))))
    return "".join(
        f'<figure style="display:inline-block;margin:4px">{_image(one.image, mark)}'
        f"<figcaption>{escape(one.label)}</figcaption></figure>"
        for one in result.images
    )


def _image(pixels: NDArray[np.float32], caption: str) -> str:
    buffer = BytesIO()
    captioned(Image.fromarray(grey(pixels, WINDOW)), caption)[0].save(buffer, "PNG")
    return (
        f'<img alt="{escape(caption)}" width="256" src="data:image/png;base64,{b64encode(buffer.getvalue()).decode()}">'
    )


def _table(listed: Sequence[Mapping[str, object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in listed[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in listed[:SHOWN]
    )
    more = f"<p>and {len(listed) - SHOWN} more</p>" if len(listed) > SHOWN else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _fields(result: Result) -> str:
    return _table([{"field": name, "value": getattr(result, name)} for name in type(result).model_fields])


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, np.ndarray):
        return f"array {value.shape}"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def plot_simulation(result: SimulationResult) -> "Figure":
    """Draw a simulation's images, their nearest real slices, and what tells the classes apart; see the report."""
    _require("matplotlib")
    from limner.report import explanation_figures

    return _drawn(partial(explanation_figures.simulated, simulation=result, mark=shortcoming(result)))


def plot_heat_maps(features: ImageFeatures, image: Slice | NDArray[np.generic] | None = None) -> "Figure":
    """Draw the heat maps of an image, one panel for each layer; see `ImageFeatures.plot`."""
    _require("matplotlib")
    if features.error is not None:
        raise InvalidInputError(f"{features.id} failed: {features.error}", field="features")
    maps = {layer.layer: (layer.grid_heat_map, layer.source_heat_map) for layer in features.layers}
    if not maps or any(grid is None for grid, _ in maps.values()):
        raise InvalidInputError("no heat maps here; ask for them by FeatureOptions(heat_maps=True)", field="features")
    pixels = image.pixels if isinstance(image, Slice) else image
    shown = {layer: _over(layer, pixels, [one for one in pair if one is not None]) for layer, pair in maps.items()}
    aspect = image.row_spacing_mm / image.column_spacing_mm if isinstance(image, Slice) else 1.0

    def draw(_colours: object) -> "Figure":
        from limner.report.drawing import panels

        figure, pairs = panels(2.4 * len(shown), 2.6, len(shown))
        for axes, (layer, picture) in zip(pairs, shown.items(), strict=True):
            _show(axes, picture, f"{layer}, for {features.target}", aspect)
        figure.supxlabel(_NOTICE, fontsize=6)
        return figure

    return _drawn(draw)


def _over(
    layer: str, pixels: NDArray[np.generic] | None, heat_maps: Sequence[NDArray[np.float32]]
) -> NDArray[np.generic]:
    """Lay the heat map that has the image's shape over it; without an image, return that of the grid."""
    if pixels is None:
        return heat_maps[0]
    for heat_map in heat_maps:
        if heat_map.shape == pixels.shape:
            return overlay(grey(pixels), heat_map)
    expected = " or ".join(str(heat_map.shape) for heat_map in heat_maps)
    message = f"image is {pixels.shape}; expected the shape of a heat map of {layer}: {expected}"
    raise InvalidInputError(message, field="image", expected=expected)


def _show(axes: "Axes", picture: NDArray[np.generic], title: str, aspect: float) -> None:
    axes.imshow(picture, cmap="inferno", vmin=0, vmax=1 if picture.ndim == 2 else None, aspect=aspect)
    axes.set_title(title)
    axes.axis("off")


def _drawn(draw: "Callable[..., Figure]") -> "Figure":
    import matplotlib.pyplot  # noqa: F401 - notebooks show a figure by themselves once this is imported

    from limner.report.drawing import Plot

    return Plot("notebook", "", draw).figure()


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"needs {package}: pip install 'limner[notebook]'", name=package)
