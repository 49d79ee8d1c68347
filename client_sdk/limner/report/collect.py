"""Gathering a report's data: from a server, from a simulation on disk, and from the cohort's own DICOM, read here.

The server keeps no DICOM: slices and heat maps are of the folders that are given, matched to the cohort by pseudonym.
Not for showing anything: `report` does that.
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from math import inf
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from limner.client import Client
from limner.cohort_flow import Flow
from limner.cohorts import CohortSlice
from limner.errors import InvalidInputError, invalid_input
from limner.images import Image, load
from limner.imaging import Pseudonymiser, find_series
from limner.imaging.errors import ImageError
from limner.imaging.slices import Slice
from limner.report.card import read_card
from limner.report.data import HeatMapExample, RealSlice, ReportData
from limner.types import Agreement, Cohort, FeatureOptions, ImageFeatures, Model, ModelIdentity, SimulationResult

LAYERS = ("layer2", "layer3")
"""Layers of the heat maps; of the default grid of 64 pixels, layer4 is two pixels wide."""

SHOWN_SUBJECTS = 12
_TOOLS = ("limner", "numpy", "matplotlib", "jinja2", "pillow")


def collect(
    client: Client,
    model: Model,
    cohort: Cohort,
    simulation: SimulationResult | None,
    slices: Sequence[CohortSlice] = (),
    *,
    command: str,
    examples: int = 3,
    layers: Sequence[str] = LAYERS,
    flow: Flow | None = None,
    created: datetime | None = None,
    seconds: Mapping[str, float] | None = None,
    reading: Agreement | None = None,
) -> ReportData:
    """Gather what a report shows; asks the server for the heat maps of a few slices, and nothing else.

    Parameters
    ----------
    simulation
        Of this model and this cohort, by their digests; None for a report without.
    slices
        Of the cohort, as they were imported or as `cohort_slices` finds them; none for a report without their pictures.
    command
        What makes this report, as it could be typed again.
    examples
        Subjects of each label whose middle slice is put under heat maps, from 0. The first of the cohort, chosen by no
        figure of the model; the middle slices of twelve of each label are shown as they are.
    layers
        Of the heat maps.
    flow
        How the cohort's subjects were chosen.
    created
        Default now.
    seconds
        Duration of each step, by its name.
    reading
        Of this model, by its digest.

    Raises
    ------
    InvalidInputError
        Where the model's card cannot be read, the simulation or the reading is of another model or cohort, the labels
        of model and cohort differ, or a slice cannot be explained.
    """
    _check_card(model)
    _check_labels(model, cohort)
    if simulation is not None:
        _check_digests("simulation", simulation.model, simulation.cohort_digest, model, cohort)
    if reading is not None:
        _check_digests("reading", reading.reading.model, reading.reading.cohort_digest, model, cohort)
    chosen = [one for label in model.labels for one in _middle_slices(slices, label, examples)]
    found: tuple[HeatMapExample, ...] = ()
    if chosen:
        options = FeatureOptions(layers=tuple(layers), heat_maps=True)
        stream = client.extract_features_stream(str(model.identity), [_as_image(one) for one in chosen], options)
        found = tuple(_explained(one, result) for one, result in zip(chosen, stream, strict=True))
    return ReportData(
        cohort=cohort,
        model=model,
        simulation=simulation,
        slices=tuple(_real(one) for label in model.labels for one in _middle_slices(slices, label, SHOWN_SUBJECTS)),
        examples=found,
        command=command,
        created=created or datetime.now(UTC),
        versions={"python": platform.python_version(), **{tool: version(tool) for tool in _TOOLS}},
        flow=flow,
        seconds=seconds or {},
        reading=reading,
    )


def cohort_slices(
    folders: Sequence[Path], cohort: Cohort, model: Model, key: bytes, progress: Callable[[], None] | None = None
) -> list[CohortSlice]:
    """Find the slices of `cohort` in folders of DICOM, by their pseudonyms; others are left out.

    Parameters
    ----------
    cohort
        With its instances.
    model
        Whose card tells the labels of slices where they differ within a subject.
    key
        That the cohort's pseudonyms were made with.
    progress
        Called once after each file.

    Raises
    ------
    InvalidInputError
        Where a folder is none, or holds no slice of the cohort.
    """
    try:
        pseudonyms = Pseudonymiser(key)
        series = [one for folder in folders for one in find_series(folder, progress).series]
    except ImageError as error:
        raise invalid_input(error) from error
    there = frozenset(cohort.instances)
    of_subject = {subject.subject: subject.label for subject in cohort.subjects}
    of_instance = _slice_labels(model)
    found: dict[str, CohortSlice] = {}
    for one in series:
        subject = pseudonyms.subject(one.patient_id)
        for member in one.slices:
            instance = pseudonyms.instance(member.instance_uid, member.frame)
            if instance in there and subject in of_subject:
                label = of_instance.get(instance, of_subject[subject])
                found[instance] = CohortSlice(instance, subject, label, member.path, frame=member.frame)
    if not found:
        read = sum(len(one.slices) for one in series)
        named = ", ".join(str(folder) for folder in folders)
        raise InvalidInputError(
            f"images is {named!r}, whose {read} slices are none of cohort {cohort.name!r}; expected the DICOM that it "
            "was imported from, and the key of that import (--key)",
            field="images",
        )
    return list(found.values())


def read_simulation(path: Path) -> SimulationResult:
    """Read the `result.json` that `limner simulate` wrote.

    Raises
    ------
    InvalidInputError
        Where the file is none, naming the first field that is wrong.
    """
    expected = "result.json as `limner simulate` writes it"
    try:
        content = json.loads(path.read_bytes())
        return SimulationResult.model_validate(_with_arrays(content))
    except OSError as error:
        fault = error.strerror or str(error)
    except ValidationError as error:
        fault = _first_fault(error)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fault = f"no such JSON: {error}"
    raise InvalidInputError(f"simulation is {str(path)!r}: {fault}; expected {expected}", field="simulation")


def _with_arrays(content: dict[str, object]) -> dict[str, object]:
    """Return the JSON of a simulation as its fields: images as arrays, null figures as the infinite ones they were."""
    facts: dict[str, object] = {name: value for name, value in content.items() if name != "notice"}
    images, checks = facts["images"], facts["checks"]
    if not isinstance(images, list) or not isinstance(checks, list):
        raise TypeError("images and checks are no lists")
    facts["images"] = [
        {**image, **{name: np.asarray(image[name], np.float32) for name in ("image", "nearest")}} for image in images
    ]
    facts["checks"] = [
        {
            **check,
            "value": inf if check["value"] is None else check["value"],
            "values": [inf if value is None else value for value in check["values"]],
        }
        for check in checks
    ]
    return facts


def _check_card(model: Model) -> None:
    try:
        read_card(model)
    except ValidationError as error:
        fault = model.error or f"whose card cannot be read: {_first_fault(error)}"
        raise InvalidInputError(
            f"model is {str(model.identity)!r}, {fault}; expected one with the card of its training", field="model"
        ) from error


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join([".".join(map(str, first["loc"])) or "content", first["msg"]])


def _check_labels(model: Model, cohort: Cohort) -> None:
    if set(model.labels) != set(cohort.labels):
        raise InvalidInputError(
            f"cohort {cohort.name!r} has the labels {', '.join(cohort.labels)}; expected {', '.join(model.labels)}, "
            f"those of model {model.identity}",
            field="cohort",
        )


def _check_digests(field: str, of_model: ModelIdentity, of_cohort: str, model: Model, cohort: Cohort) -> None:
    """Refuse a simulation or a reading of another model or cohort."""
    for what, found, wanted in (
        ("model", of_model.digest, model.identity.digest),
        ("cohort", of_cohort, cohort.digest),
    ):
        if found != wanted:
            raise InvalidInputError(
                f"{field} is of a {what} of digest {found[:12]}; expected this report's {what}, {wanted[:12]}",
                field=field,
            )


def _slice_labels(model: Model) -> dict[str, str]:
    """Return the label of each slice that the model was trained on, by its instance."""
    entries = model.card.get("out_of_fold")
    return {
        str(one["instance"]): str(entry["label"])
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        for one in (entry.get("slices") or [])  # type: ignore[union-attr]
        if isinstance(one, dict)
    }


def _middle_slices(slices: Sequence[CohortSlice], label: str, subjects: int) -> list[CohortSlice]:
    """Return the middle slice of each of the first subjects that have the label: chosen by no figure of the model."""
    by_subject: dict[str, list[CohortSlice]] = {}
    for one in slices:
        if one.label == label:
            by_subject.setdefault(one.subject, []).append(one)
    return [of_subject[len(of_subject) // 2] for of_subject in list(by_subject.values())[:subjects]]


def _as_image(one: CohortSlice) -> Image:
    return Image(one.content, id=one.instance, subject=one.subject, frame=one.frame)


def _real(one: CohortSlice) -> RealSlice:
    image = load(one.content, one.frame)
    if not isinstance(image, Slice):
        raise ImageError(
            "content", type(image).__name__, "DICOM or a Slice: a report shows the slice as it was acquired"
        )
    return RealSlice(one.subject, one.label, image, one.instance)


def _explained(one: CohortSlice, features: ImageFeatures) -> HeatMapExample:
    if features.prediction is None:
        raise InvalidInputError(f"slice {features.id} could not be explained: {features.error}", field="images")
    maps = {layer.layer: layer.source_heat_map for layer in features.layers if layer.source_heat_map is not None}
    return HeatMapExample(_real(one), features.target, features.prediction, maps)
