"""Results as PNG and as DICOM that other software opens, every one marked in its pixels.

Secondary Capture (PS3.3 A.8.1) by highdicom, from the extra `limner[gateway]`. A simulated image belongs to no patient
and says so in its name; a heat map joins the patient and the study of its source and refers to it. Files are whole or
not there. It judges nothing: what kept a simulated image from being an explanation is the caller's to say, in `note`.
"""

from hashlib import sha256
from pathlib import Path
from re import sub

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from limner.imaging.derived import (
    CHARACTER_SET,
    Importance,
    ModelReference,
    describe,
    equipment,
    finish,
    highdicom,
    series_number,
    stand_in,
    whole_number,
    write_dicom,
)
from limner.imaging.dicom import decode
from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file
from limner.imaging.headers import as_image_errors, frame_count
from limner.imaging.pictures import Window, captioned, grey, overlay, with_legend
from limner.imaging.slices import Slice

SIMULATED_MARK = "SIMULATED - NOT FOR DIAGNOSTIC USE"
HEAT_MAP_MARK = "NOT FOR DIAGNOSTIC USE"

_SERIES_OFFSET = 9000


def write_png(
    path: Path, pixels: NDArray[np.generic], window: Window | None = None, caption: str | None = None
) -> None:
    """Write a grey picture of 8 bits.

    Parameters
    ----------
    path
        In a folder that exists; replaced as a whole.
    pixels
        `(rows, columns)`, finite.
    window
        The values shown as black and as white; the 0.5th and 99.5th percentile when None.
    caption
        Burned into the lower edge, line by line; the picture is enlarged by a whole number to at least 384 columns.

    Raises
    ------
    ImageError
        When `pixels` or `window` cannot be shown.
    OSError
        When the file cannot be written; nothing is left behind.
    """
    picture = Image.fromarray(grey(pixels, window))
    if caption:
        picture = captioned(picture, caption)[0]
    with replace_file(path) as temporary:
        picture.save(temporary, format="PNG")


@as_image_errors
def simulated_dicom(
    path: Path,
    pixels: NDArray[np.generic],
    label: str,
    model: ModelReference,
    spacing_mm: float,
    window: Window | None = None,
    *,
    note: str,
) -> None:
    """Write the simulated image of a class as Secondary Capture DICOM of a patient named SIMULATED.

    Parameters
    ----------
    path
        In a folder that exists; replaced as a whole.
    pixels
        `(rows, columns)`, finite.
    label
        The class that the image stands for.
    model
        The model whose weights and feature maps it was made from.
    spacing_mm
        Of the pixels, both ways, over 0.
    window
        See `write_png`.
    note
        What keeps the image from being an explanation, such as 'failed check 2: d 0.3, expected at least 1.0', said in
        the caption and the descriptions. Empty only where every gate was passed; `SimulationResult.export` knows that.

    Raises
    ------
    ImageError
        When an argument is out of its range.
    ModuleNotFoundError
        When the extra `limner[gateway]` is not installed.
    OSError
        When the file cannot be written; nothing is left behind.
    """
    if not 0 < spacing_mm <= 100:
        raise ImageError("spacing_mm", spacing_mm, "a number over 0 and at most 100, in mm")
    caption = "\n".join(filter(None, (note, f"simulated class: {label}", SIMULATED_MARK)))
    picture, factor = captioned(Image.fromarray(grey(pixels, window)), caption)
    identity = [SIMULATED_MARK, str(model), label, note, _digest(np.asarray(picture))]
    name = sub(r"[^A-Z0-9 -]", "_", label.upper())[:50]
    image: Dataset = highdicom().sc.SCImage(
        pixel_array=np.asarray(picture),
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        patient_id=f"SIMULATED-{name}",
        patient_name=f"SIMULATED^{name}",
        # A study has one patient (PS3.3 A.1.2), here the class.
        study_instance_uid=generate_uid(entropy_srcs=[SIMULATED_MARK, str(model), label]),
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]),
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, "instance"]),
        series_number=1,
        instance_number=1,
        pixel_spacing=(spacing_mm / factor, spacing_mm / factor),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=CHARACTER_SET,
        **equipment(model),
    )
    # The grid of a cohort may lie in any plane, so the image's orientation is not known.
    image.PatientOrientation = ""
    made = f"Image of class {label} simulated from the weights and feature maps of {model}."
    _mark(image)
    title = f"No explanation: simulated {label}" if note else f"Simulated {label}"
    describe(image, title, " ".join(filter(None, (made, note, SIMULATED_MARK))))
    write_dicom(path, image)


@as_image_errors
def heat_map_dicom(
    path: Path, source: Dataset, heat_map: NDArray[np.generic], importance: Importance, frame: int = 0
) -> None:
    """Write a heat map over its source slice as Secondary Capture DICOM in colour, in the source's study.

    Parameters
    ----------
    path
        In a folder that exists; replaced as a whole.
    source
        The whole MR instance, as read by pydicom.
    heat_map, importance, frame
        See `heat_map_capture`.

    Raises
    ------
    ImageError
        When the source cannot be decoded, or the heat map has another shape or range.
    ModuleNotFoundError
        When the extra `limner[gateway]` is not installed.
    OSError
        When the file cannot be written; nothing is left behind.
    """
    write_dicom(path, heat_map_capture(source, decode(source, frame), heat_map, importance, frame))


@as_image_errors
def heat_map_capture(
    source: Dataset, image: Slice, heat_map: NDArray[np.generic], importance: Importance, frame: int = 0
) -> Dataset:
    """Return a heat map over its source slice as Secondary Capture in colour, in the source's study.

    Those of one source series and importance share a series. The same question has the same SOPInstanceUID: it follows
    from the source, the frame and the importance.

    Parameters
    ----------
    source
        The MR instance as read by pydicom, with its pixels or without.
    image
        Its frame, decoded.
    heat_map
        `(rows, columns)` of the source, 0 to 1; see `Grid.project`.
    importance
        What the heat map shows.
    frame
        The frame of a multi-frame source, from 0.

    Raises
    ------
    ImageError
        When the heat map has another shape or range, or the source lacks what its study needs.
    ModuleNotFoundError
        When the extra `limner[gateway]` is not installed.
    """
    header, model = stand_in(source), importance.model
    caption = f"0 to 1: {importance}\n{model.name} version {model.version}\n{HEAT_MAP_MARK}"
    picture, factor = with_legend(Image.fromarray(overlay(grey(image.pixels), heat_map)), caption)
    identity = [str(source.SeriesInstanceUID), str(model), str(importance)]
    of_instance = [str(source.SOPInstanceUID), str(frame), "picture"]
    captured: Dataset = highdicom().sc.SCImage.from_ref_dataset(
        header,
        pixel_array=np.asarray(picture),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),  # for now: highdicom knows no oblique ones
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]),
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, *of_instance]),
        series_number=series_number(header, _SERIES_OFFSET),
        instance_number=max(whole_number(header, "InstanceNumber") + frame, 1),
        pixel_spacing=(image.row_spacing_mm / factor, image.column_spacing_mm / factor),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=CHARACTER_SET,
        **equipment(model),
    )
    # Beyond what makes a patient and a study: age, weight, description.
    captured.copy_patient_and_study_information(header)
    captured.PatientOrientation = _directions(image.orientation)
    captured.SourceImageSequence = [_reference(source, frame)]
    made = f"Heat map of the {importance}, over its source image, by {model}. {HEAT_MAP_MARK}"
    _mark(captured)
    finish(captured, source, f"Heat map {importance.label}", made)
    return captured


def _digest(pixels: NDArray[np.generic]) -> str:
    return sha256(pixels.tobytes()).hexdigest()


def _directions(cosines: tuple[float, ...] | None) -> list[str] | str:
    """Return where the rows and the columns run, in letters of the patient's axes, the nearest first.

    None where that is not known (PS3.3 C.7.6.1.1.1). Less than 6° from a plane has no letter.
    """
    if cosines is None:
        return ""

    def letters(vector: tuple[float, ...]) -> str:
        parts = sorted(zip(vector, ("LR", "PA", "HF"), strict=True), key=lambda part: -abs(part[0]))
        return "".join(ends[part < 0] for part, ends in parts if abs(part) > 0.1)

    return [letters(cosines[:3]), letters(cosines[3:])]


def _reference(source: Dataset, frame: int) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if frame_count(source) > 1:
        reference.ReferencedFrameNumber = frame + 1
    return reference


def _mark(image: Dataset) -> None:
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.BurnedInAnnotation = "YES"
    image.Laterality = ""
