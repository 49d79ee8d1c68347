"""Heat maps as Parametric Map (PS3.3 A.75): the values themselves, where their slices lie in the patient.

By highdicom. For viewers that lay one object over another, and for whoever wants to compute with heat maps;
`export.heat_map_capture` is the picture for all others. A map has the raster, the positions and the frame of reference
of its source, so a source that lacks one of these has no map, and the error says which.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from limner.imaging.derived import (
    CHARACTER_SET,
    Importance,
    check_source,
    equipment,
    finish,
    highdicom,
    long_string,
    private_code,
    series_number,
    stand_in,
)
from limner.imaging.errors import ImageError
from limner.imaging.export import HEAT_MAP_MARK
from limner.imaging.headers import (
    as_image_errors,
    frame_count,
    frame_value,
    numbers,
    orientation,
    pixel_spacing,
    position,
)
from limner.imaging.pictures import check_heat_map

_SERIES_OFFSET = 9200


@dataclass(frozen=True, eq=False)
class MappedSlice:
    """A slice and its heat map.

    Attributes
    ----------
    source
        The MR instance as read by pydicom, with its pixels or without.
    frame
        In a multi-frame source, from 0.
    heat_map
        `(rows, columns)` of the source, 0 to 1; see `Grid.project`.
    """

    source: Dataset
    frame: int
    heat_map: NDArray[np.generic]


@as_image_errors
def parametric_maps(slices: Sequence[MappedSlice], importance: Importance) -> tuple[Dataset, ...]:
    """Return the heat maps of a series as Parametric Map: one object, or one for each raster that the series has.

    Slices share an object when they have the same size, spacing, orientation, frame of reference and SeriesInstanceUID,
    lie at different positions, and, of multi-frame sources, are of the same instance. The same question has the same
    SOPInstanceUID: it follows from the sources and the importance.

    Parameters
    ----------
    slices
        Of one series, in any order.
    importance
        What the heat maps show.

    Returns
    -------
    tuple[Dataset, ...]
        Each with a frame for every slice, float32 from 0 to 1, in the order of positions.

    Raises
    ------
    ImageError
        When a source has no frame of reference, position, orientation, spacing or thickness, or a heat map has another
        shape or range.
    ModuleNotFoundError
        When the extra `limner[gateway]` is not installed.
    """
    groups: dict[tuple[object, ...], list[MappedSlice]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for one in slices:
        check_source(one.source)
        raster = _raster(one)
        place = (*raster, _along(one))
        # A place may come again, with another echo or at another time.
        groups.setdefault((*raster, seen[place]), []).append(one)
        seen[place] += 1
    return tuple(_parametric_map(group, importance, number) for number, group in enumerate(groups.values(), 1))


def _parametric_map(group: list[MappedSlice], importance: Importance, number: int) -> Dataset:
    """Return the map of slices that share a raster, under its number in the series of maps."""
    group = sorted(group, key=_along)
    first, model, library = group[0].source, importance.model, highdicom()
    several = _is_multi_frame(first)
    identity = [str(first.SeriesInstanceUID), str(model), str(importance)]
    of_slices = [f"{one.source.SOPInstanceUID}:{one.frame}" for one in group]
    sources = [_multi_frame(group)] if several else [_single_frame(one, group) for one in group]
    result: Dataset = library.pm.ParametricMap(
        source_images=sources,
        pixel_array=np.stack([_checked(one) for one in group]),
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "map series"]),
        series_number=series_number(sources[0], _SERIES_OFFSET),
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, *of_slices]),
        instance_number=number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(importance)],
        voi_lut_transformations=[library.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        plane_positions=[library.PlanePositionSequence("PATIENT", _position(one)) for one in group]
        if several
        else None,
        content_label="HEAT_MAP",
        content_description=long_string(str(importance)),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=CHARACTER_SET,
        **equipment(model),
    )
    result.Laterality = ""
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[*identity, *of_slices, "dimensions"])
    if several:
        _keep_references(result, {one.frame + 1 for one in group})
    made = f"Heat map of the {importance}, each slice relative to its largest value, by {model}. {HEAT_MAP_MARK}"
    finish(result, first, f"Heat map {importance.label}", made)
    return result


def _mapping(importance: Importance) -> Dataset:
    """Say what the stored values are: themselves, without unit, and of what (PS3.3 C.7.6.16.2.11)."""
    sr = highdicom().sr
    mapping: Dataset = highdicom().pm.RealWorldValueMapping(
        lut_label="importance",
        lut_explanation=long_string(str(importance)),
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        # Of the kinds of visual explanation (PS3.16 CID 217) the nearest: deviations weighted by gradients.
        quantity_definition=codes.DCM.GradientWeightedClassActivation,
    )
    method = private_code(importance.method, importance.method.replace("_", " "))
    mapping.QuantityDefinitionSequence.extend(
        [
            sr.CodeContentItem(codes.SCT.MeasurementMethod, method),
            sr.TextContentItem(private_code("LAYER", "Layer of the network"), importance.layer),
            sr.TextContentItem(private_code("CLASS", "Class that the importance is for"), importance.label),
        ]
    )
    return mapping


def _single_frame(one: MappedSlice, group: list[MappedSlice]) -> Dataset:
    """Return a source of one frame as highdicom takes it: of one orientation with the others, with a thickness."""
    header = stand_in(one.source)
    # That between the mapped slices is computed: some of the series may be missing among them.
    header.pop("SpacingBetweenSlices", None)
    header.add_new("ImageOrientationPatient", "DS", list(_orientation(group[0])))
    header.add_new("SliceThickness", "DS", _thickness(group))
    return header


def _multi_frame(group: list[MappedSlice]) -> Dataset:
    """Return a multi-frame source as highdicom takes it: its slices' orientation and spacing shared by all frames."""
    library, first = highdicom(), group[0]
    spacing = pixel_spacing(first.source, first.frame)
    shared = Dataset()
    shared.PixelMeasuresSequence = library.PixelMeasuresSequence(spacing, _thickness(group))
    shared.PlaneOrientationSequence = library.PlaneOrientationSequence("PATIENT", _orientation(first))
    header = stand_in(first.source)
    header.add_new("SharedFunctionalGroupsSequence", "SQ", [shared])
    return header


def _keep_references(result: Dataset, frames: set[int]) -> None:
    """Refer to the mapped frames only: highdicom refers to all that lie at the same place."""
    for groups in result.PerFrameFunctionalGroupsSequence:
        derived = groups.DerivationImageSequence[0]
        derived.SourceImageSequence = [
            item for item in derived.SourceImageSequence if item.ReferencedFrameNumber in frames
        ]


def _checked(one: MappedSlice) -> NDArray[np.float32]:
    shape = (int(one.source.Rows), int(one.source.Columns))
    return check_heat_map(one.heat_map, shape)


def _raster(one: MappedSlice) -> tuple[object, ...]:
    """Return what the slices of a map have in common."""
    source = one.source
    several = _is_multi_frame(source)
    if frame_count(source) > 1 and not several:
        raise ImageError("PerFrameFunctionalGroupsSequence", "missing", "the position of each frame")
    reference = source.get("FrameOfReferenceUID")
    if not reference:
        raise ImageError("FrameOfReferenceUID", "missing", "the frame of reference that positions are in")
    # What shares an object has to share these too; a series may have been split over several.
    whole = str(source.SOPInstanceUID if several else source.SeriesInstanceUID)
    cosines = tuple(round(cosine, 4) for cosine in _orientation(one))
    return whole, str(reference), source.Rows, source.Columns, pixel_spacing(source, one.frame), cosines


def _is_multi_frame(source: Dataset) -> bool:
    return bool(source.get("PerFrameFunctionalGroupsSequence"))


def _orientation(one: MappedSlice) -> tuple[float, ...]:
    found = orientation(one.source, one.frame)
    if found is None:
        raise ImageError("ImageOrientationPatient", "missing", "six direction cosines")
    return found


def _position(one: MappedSlice) -> tuple[float, ...]:
    found = position(one.source, one.frame)
    if found is None:
        raise ImageError("ImagePositionPatient", "missing", "three numbers, in mm")
    return found


def _along(one: MappedSlice) -> float:
    """Return where a slice lies along its normal, in mm."""
    cosines = _orientation(one)
    return round(float(np.dot(np.cross(cosines[:3], cosines[3:]), _position(one))), 3)


def _thickness(group: list[MappedSlice]) -> float:
    """Return the thickness of the slices, or the distance between two of them where it is not told."""
    first = group[0]
    told = frame_value(first.source, "SliceThickness", first.frame)
    if told is not None:
        return numbers("SliceThickness", told, 1, "a number, in mm")[0]
    gaps = np.diff([_along(one) for one in group])
    if not len(gaps):
        raise ImageError("SliceThickness", "missing", "a number, in mm")
    return float(np.median(gaps))
