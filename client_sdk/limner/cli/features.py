"""`limner features`: what a model looks at in each slice, as tables and as heat maps over the slices."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image as Picture
from pydicom import dcmread
from rich.text import Text

from limner.cli.common import (
    SERVER,
    AsJson,
    ModelArgument,
    Server,
    connect,
    make_table,
    note,
    print_json,
    print_table,
    progress_bar,
)
from limner.cli.predict import Paths, SendDicom, finish
from limner.cli.rules import Rules, find_images
from limner.images import Image, load
from limner.imaging import Importance, ModelReference, Slice, heat_map_dicom
from limner.imaging.files import file_name, replace_file
from limner.imaging.nifti import is_nifti
from limner.imaging.pictures import grey, overlay
from limner.types import FeatureOptions, ImageFeatures, ImportanceMethod, ModelIdentity

SHOWN_CHANNELS = 5


def features(
    model: ModelArgument,
    paths: Paths,
    rules: Rules = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="stem, layer1 ... layer4; may be given again. Default layer4.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Channels of each layer; default a tenth.")] = None,
    method: Annotated[
        ImportanceMethod, typer.Option(help="How importance is measured.")
    ] = ImportanceMethod.GRADIENT_X_DEVIATION,
    target: Annotated[str | None, typer.Option(help="Label that is explained; default: the predicted one.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Write heat maps over the slices here, as PNG.")] = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="With --out: write them as Secondary Capture too.")] = False,
    send_dicom: SendDicom = False,
    server: Server = SERVER,
    as_json: AsJson = False,
) -> None:
    """Find the most important channels of each slice, and show where they look.

    \b
    Examples:
      limner features cervix study/ --layer layer3 --layer layer4 --top-k 8
      limner features cervix study/0007.dcm --out maps/ --dicom
    """  # noqa: D301  \b keeps the lines apart
    if dicom and folder is None:
        raise typer.BadParameter("needs --out", param_hint="--dicom")
    if dicom and find_spec("highdicom") is None:
        raise typer.BadParameter("needs highdicom: pip install 'limner[gateway]'", param_hint="--dicom")
    sources = find_images(paths, rules)
    sources.report()
    images = {image.id or str(image.content): image for image in sources.images}
    if dicom and any(is_nifti(str(image.content)) for image in images.values()):
        raise typer.BadParameter("not with NIfTI, which is of no DICOM study", param_hint="--dicom")
    options = FeatureOptions(
        layers=tuple(layer or ("layer4",)), method=method, target=target, top_k=top_k, heat_maps=folder is not None
    )
    with connect(server) as client, progress_bar() as bar:
        stream = client.extract_features_stream(model, images.values(), options, send_dicom=send_dicom)
        results: list[ImageFeatures] = []
        for number, result in enumerate(bar.track(stream, total=len(images), description="extracting")):
            results.append(result)
            if folder is not None and result.ok and stream.model is not None:
                path = folder / f"{number:04d}-{file_name(Path(result.id).stem)}"
                _write(path, images[result.id], result)
                if dicom:
                    _write_dicom(path, images[result.id], result, stream.model, method)
    if as_json:
        shown = [result.to_dict() for result in results]
        print_json({"model": stream.model and stream.model.to_dict(), "labels": stream.labels, "results": shown})
    else:
        _show(results)
    if folder is not None:
        note(f"wrote heat maps to {folder}")
    finish(results)


def _show(results: list[ImageFeatures]) -> None:
    table = make_table("most important channels", "image", "explains", "layer", "channel: importance in logits")
    for result in results:
        for layer in result.layers:
            top = ", ".join(f"{channel.index}: {channel.importance:+.3f}" for channel in layer.top[:SHOWN_CHANNELS])
            more = len(layer.top) - SHOWN_CHANNELS
            listed = top + (f" and {more} more" if more > 0 else "")
            table.add_row(Text(result.id), Text(result.target), layer.layer, listed)
    print_table(table)


def _write(path: Path, image: Image, result: ImageFeatures) -> None:
    """Write the heat map of each layer over the slice, as PNG; `path` is what the files' names begin with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = load(image.content, image.frame)
    for layer in result.layers:
        if layer.source_heat_map is not None and isinstance(source, Slice):
            picture = Picture.fromarray(overlay(grey(source.pixels), layer.source_heat_map))
            with replace_file(path.with_name(f"{path.name}-{layer.layer}.png")) as temporary:
                picture.save(temporary, format="PNG")


def _write_dicom(
    path: Path, image: Image, result: ImageFeatures, model: ModelIdentity, method: ImportanceMethod
) -> None:
    """Write the same as Secondary Capture."""
    reference = ModelReference(**model.to_dict())
    source = dcmread(str(image.content))
    for layer in result.layers:
        if layer.source_heat_map is not None:
            importance = Importance(reference, result.target, layer.layer, method, len(layer.top))
            file = path.with_name(f"{path.name}-{layer.layer}.dcm")
            heat_map_dicom(file, source, layer.source_heat_map, importance, image.frame or 0)
