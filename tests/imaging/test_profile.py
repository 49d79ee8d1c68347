"""The profile of PS3.15: nothing of its table is left, at any depth, and what is left is a valid image."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import JPEG2000, SecondaryCaptureImageStorage, generate_uid

from limner.imaging import ImageError, Pseudonymiser, Retain, decode, deidentified
from limner.imaging.profile import BASIC, EDITION, _table, encoded, method
from tests.imaging.builders import DATA, SMALL, TRANSVERSE, content, enhanced_mr, item, items, mr_instance
from tests.imaging.conformance import assert_valid_dicom, dicom_errors
from tests.imaging.malformed import relabelled

NAMES = Pseudonymiser(bytes(range(32)))
UID = "1.2.3.777777"
# Values by VR that can only come from the source, and how they would show.
SECRETS: dict[str, object] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), "SECRET"),
    "AS": "077Y",
    "DA": "19560704",
    "TM": "235958",
    "DT": "19560704235958",
    "UI": UID,
    "DS": "777777",
    "IS": "777777",
    "OB": b"SECRET",
    "UN": b"SECRET",
    "US": 7,
}
TRACES = (b"SECRET", b"077Y", b"19560704", b"235958", UID.encode(), b"777777")


def planted(depth: int = 1) -> Dataset:
    """Return every attribute of the table that may stand in a dataset, in sequences again, and what no table knows."""
    dataset = Dataset()
    for tag in _table():
        if tag >> 16 >= 0x0008 and keyword_for_tag(tag):
            vr = dictionary_VR(tag)
            dataset.add_new(tag, vr, SECRETS[vr] if vr != "SQ" else [planted(depth - 1)] if depth else [])
    dataset.private_block(0x0019, "SECRET", create=True).add_new(0x01, "LO", "SECRET")
    for unknown in (0x00089999, 0x50000010, 0x60003000, 0x60004000):
        dataset.add_new(unknown, "LO", "SECRET")
    return dataset


def test_the_table_is_that_of_a_package_that_is_kept_up() -> None:
    found = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
    groups = {name.removesuffix("_TAGS"): tags for name, tags in found.items()}
    codes = {"Z_D": "Z/D", "X_Z": "X/Z", "X_D": "X/D", "X_Z_D": "X/Z/D", "X_Z_U_STAR": "X/Z/U*"}
    theirs = {
        tag[0] << 16 | tag[1]: codes.get(name, name)
        for name, tags in groups.items()
        for tag in tags
        if name != "ALL" and len(tag) == 2
    }
    assert _table() == theirs


@pytest.mark.parametrize("make", [mr_instance, enhanced_mr])
def test_nothing_of_the_table_is_left_at_any_depth(make: Callable[[np.ndarray], FileDataset]) -> None:
    source = make(np.stack([SMALL] * 2))
    source.DerivationCodeSequence = [item(CodeMeaning="kept")]
    for place in (source, source.DerivationCodeSequence[0]):
        for element in planted():
            place.add(element)
    source.preamble = b"SECRET" + bytes(122)
    source.file_meta.SourceApplicationEntityTitle = "SECRET"
    before = content(source)
    assert [trace for trace in TRACES if trace not in before] == []
    after = encoded(deidentified(before, NAMES))
    assert [trace for trace in TRACES if trace in after] == []
    assert dcmread(BytesIO(after)).DerivationCodeSequence[0].CodeMeaning == "kept"


def test_dates_names_and_uids_that_no_table_knows_go_by_their_vr() -> None:
    source = mr_instance(SMALL)
    source.add_new(0x00189999, "DA", "19560704")
    source.ApprovalStatusDateTime = "19560704"
    source.add_new(0x00181251, "DA", "19560704")  # TransmitCoilName, which is no date
    source.SOPInstanceUIDOfConcatenationSource = source.CodingSchemeUID = UID
    source.FrameOfReferenceUID = "1.2.840.10008.1.4.1.1"  # a standard atlas
    source.ContextIdentifier = "KEPT"
    after = deidentified(content(source), NAMES)
    assert b"19560704" not in encoded(after)
    assert after.SOPInstanceUIDOfConcatenationSource == NAMES.uid(UID)
    assert after.CodingSchemeUID == UID
    assert after.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert after.SOPClassUID == source.SOPClassUID
    assert after.ContextIdentifier == "KEPT"


def test_pseudonyms_are_those_of_the_key_and_references_still_meet() -> None:
    source = mr_instance(SMALL, PatientID=" P-1 ", PatientName="Doe^Jane", FrameOfReferenceUID="1.9")
    source.ReferencedImageSequence = items(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID="1.7")
    after = deidentified(content(source), NAMES)
    assert after.PatientID == NAMES.subject("P-1") == str(after.PatientName).rstrip("^")
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID == NAMES.uid(source.SOPInstanceUID)
    assert after.SeriesInstanceUID == NAMES.uid("1.2.3")
    assert after.ReferencedImageSequence[0].ReferencedSOPInstanceUID == NAMES.uid("1.7")
    assert after.ReferencedImageSequence[0].ReferencedSOPClassUID == source.SOPClassUID
    assert after.FrameOfReferenceUID == NAMES.uid("1.9")
    assert NAMES.uid("1.9").startswith("2.25.")
    assert Pseudonymiser(bytes(32)).uid("1.9") != NAMES.uid("1.9")


def test_what_was_done_is_declared() -> None:
    source = mr_instance(SMALL, DeidentificationMethod="by hand")
    source.DeidentificationMethodCodeSequence = items(CodeValue=BASIC[0], CodingSchemeDesignator="DCM", CodeMeaning="B")
    basic = deidentified(content(source), NAMES)
    assert basic.PatientIdentityRemoved == "YES"
    assert basic.LongitudinalTemporalInformationModified == "REMOVED"
    assert basic.DeidentificationMethod == ["by hand", method(())]
    assert [code.CodeValue for code in basic.DeidentificationMethodCodeSequence] == ["113100"]
    every = deidentified(encoded(basic), NAMES, Retain)
    assert every.LongitudinalTemporalInformationModified == "MODIFIED"
    assert every.DeidentificationMethod == ["by hand", method(()), method(tuple(Retain))]
    assert len(method(tuple(Retain))) <= 64
    found = [code.CodeValue for code in every.DeidentificationMethodCodeSequence]
    assert found == ["113100", "113107", "113105", "113109", "113108"]


def test_dates_are_shifted_alike_and_the_birth_is_not_told() -> None:
    source = mr_instance(
        SMALL,
        StudyDate="20200229",
        SeriesDate="20200302",
        AcquisitionDateTime="20200302101500.5+0100",
        StudyTime="101500",
        ContentDate="no date",
        PatientBirthDate="19560704",
    )
    after = deidentified(content(source), NAMES, [Retain.DATES])
    days = NAMES.days("patient")
    assert -4017 <= days <= -365
    shifted = np.datetime64("2020-02-29") + days
    assert after.StudyDate == str(shifted).replace("-", "")
    assert after.SeriesDate == str(shifted + 2).replace("-", "")
    assert after.AcquisitionDateTime == after.SeriesDate + "101500.5+0100"
    assert (after.StudyTime, after.ContentDate, after.PatientBirthDate) == ("101500", "", "")
    assert NAMES.days("another") != days


@pytest.mark.parametrize(
    ("retain", "kept"),
    [
        ((), set()),
        ((Retain.DEVICE,), {"StationName", "DeviceSerialNumber", "DeviceUID"}),
        ((Retain.PATIENT,), {"PatientSex", "PatientAge", "PatientWeight"}),
    ],
    ids=["basic", "device", "patient"],
)
def test_an_option_keeps_what_it_says(retain: tuple[Retain, ...], kept: set[str]) -> None:
    values = {"StationName": "MR1", "DeviceSerialNumber": "42", "DeviceUID": "1.7", "PatientSex": "F"}
    values |= {"PatientAge": "064Y", "PatientWeight": "70", "InstitutionName": "Hospital", "PatientState": "unwell"}
    after = deidentified(content(mr_instance(SMALL, **values)), NAMES, retain)
    assert {keyword for keyword, value in values.items() if str(after.get(keyword)) == value} == kept


@pytest.mark.parametrize(
    ("description", "kept"),
    [
        ("t2_tse_tra_320_p2", True),
        ("Sag T2 FRFSE", True),
        ("ep2d_diff_tra_DYNDIST_ADC", True),
        ("AX T2 PELVIS Fr. Müller", False),
        ("t2 tra 04.07.56", False),
        ("t2 1956", False),
        ("t2 ４２", True),  # digits of another script are digits
        ("", True),
    ],
)
def test_a_description_is_kept_where_it_is_of_protocols_only(description: str, kept: bool) -> None:
    source = mr_instance(SMALL, SeriesDescription=description, StudyDescription="t2", SpecificCharacterSet="ISO_IR 192")
    after = deidentified(content(source), NAMES, [Retain.DESCRIPTIONS])
    assert after.get("SeriesDescription") == (description if kept else None)
    assert "StudyDescription" not in after
    assert "SeriesDescription" not in deidentified(content(source), NAMES)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"SOPClassUID": SecondaryCaptureImageStorage}, "SOPClassUID"),
        ({"SOPClassUID": None}, "SOPClassUID"),
        ({"SOPInstanceUID": None}, "SOPInstanceUID"),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel"),
        ({"RepetitionTime": None, "EchoTime": None}, ""),
    ],
    ids=str,
)
def test_what_may_hold_text_in_its_pixels_is_refused(changes: dict[str, object], field: str) -> None:
    source = content(mr_instance(SMALL, **changes))
    if not field:
        deidentified(source, NAMES)
        return
    with pytest.raises(ImageError) as error:
        deidentified(source, NAMES)
    assert error.value.field == field


@pytest.mark.parametrize("syntax", ["", "1.2.3", "1.2.840.113619.5.2"])
def test_a_syntax_that_is_none_is_refused(syntax: str) -> None:
    source = mr_instance(SMALL)
    buffer = BytesIO()
    source.save_as(buffer, implicit_vr=False, little_endian=True)
    before = buffer.getvalue().replace(b"1.2.840.10008.1.2.1\0", syntax.encode().ljust(20, b"\0"))
    with pytest.raises(ImageError, match=r"a transfer syntax of PS3\.5"):
        deidentified(before, NAMES)


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(132, 3000), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_refused_or_written(number: int, cuts: list[tuple[int, bytes, int]]) -> None:
    damaged = bytearray(sorted(DATA.glob("*/*/*.dcm"))[number].read_bytes())
    for place, inserted, removed in cuts:
        damaged[place : place + removed] = inserted
    try:
        after = encoded(deidentified(bytes(damaged), NAMES))
    except ImageError:
        return
    assert dcmread(BytesIO(after)).PatientIdentityRemoved == "YES"


def test_what_cannot_be_written_is_refused() -> None:
    before = relabelled(content(mr_instance(SMALL)), JPEG2000)
    with pytest.raises(ImageError, match="7FE0,0010"):
        encoded(deidentified(before, NAMES))


def test_an_overlay_goes_and_one_within_the_pixels_is_refused() -> None:
    source = mr_instance(SMALL)
    source.add_new(0x60000010, "US", 6)
    source.add_new(0x60000102, "US", 0)
    source.add_new(0x60003000, "OW", bytes(6))
    assert not [element for element in deidentified(content(source), NAMES) if element.tag.group == 0x6000]
    source[0x60000102].value = 12
    with pytest.raises(ImageError, match="OverlayBitPosition is a bit of the pixels"):
        deidentified(content(source), NAMES)


def test_a_value_that_is_none_is_named_unless_it_goes() -> None:
    source = content(mr_instance(SMALL, RepetitionTime="4000", PatientWeight="7777"))
    assert deidentified(source.replace(b"7777", b"Doe^"), NAMES).PatientID
    with pytest.raises(ImageError, match=r"RepetitionTime is Doe\^; expected a number"):
        deidentified(source.replace(b"4000", b"Doe^"), NAMES)
    with pytest.raises(ImageError, match="Rows is not readable"):
        deidentified(source.replace(b"US\x02\x00\x06\x00", b"US\x01\x00\x06", 1), NAMES)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("StudyDate", "20200229Doe"), ("AcquisitionDateTime", "20200229Doe"), ("StudyTime", "Doe"), ("StudyDate", "Doe")],
)
def test_what_is_no_date_is_not_told_where_dates_are(keyword: str, value: str) -> None:
    after = deidentified(content(mr_instance(SMALL, **{keyword: value})), NAMES, [Retain.DATES])
    assert after[keyword].value == ""


@pytest.mark.parametrize(
    "name",
    [
        *("MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"),
        *("MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"),
    ],
)
def test_pixels_keep_their_values_and_their_syntax(name: str, tmp_path: Path) -> None:
    path = Path(str(get_testdata_file(name)))
    source = dcmread(path)
    after = deidentified(path, NAMES)
    assert after.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
    again = dcmread(BytesIO(encoded(after)))
    np.testing.assert_array_equal(again.pixel_array, source.pixel_array)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
        if value := str(source.get(keyword) or ""):
            assert value.encode() not in encoded(after)


@pytest.mark.parametrize("retain", [(), tuple(Retain)], ids=["basic", "all options"])
@pytest.mark.parametrize("path", sorted(DATA.glob("*/*/*.dcm"))[::3], ids=lambda path: f"{path.parts[-2]}-{path.stem}")
def test_real_images_break_their_iod_no_more_than_before(
    path: Path, retain: tuple[Retain, ...], tmp_path: Path
) -> None:
    deidentified(path, NAMES, retain).save_as(tmp_path / "after.dcm", enforce_file_format=True)
    assert dicom_errors(tmp_path / "after.dcm") <= dicom_errors(path)
    np.testing.assert_array_equal(decode(tmp_path / "after.dcm").pixels, decode(path).pixels)


def test_a_phantom_passes_as_a_whole(phantom: Path, tmp_path: Path) -> None:
    deidentified(phantom / "PH-000" / "0001.dcm", NAMES).save_as(tmp_path / "after.dcm", enforce_file_format=True)
    assert_valid_dicom(tmp_path / "after.dcm")


@pytest.mark.parametrize("retain", [(), tuple(Retain)], ids=["basic", "all options"])
def test_an_enhanced_image_keeps_what_it_must_have(retain: tuple[Retain, ...], tmp_path: Path) -> None:
    slices = [dcmread(path) for path in sorted(TRANSVERSE.glob("*.dcm"))]
    for one in slices:
        one.ReferringPhysicianName, one.FrameOfReferenceUID = "Doctor^Who", "1.9"
    made = LegacyConvertedEnhancedMRImage(slices, generate_uid(), 1, generate_uid(), 1)
    made.save_as(tmp_path / "before.dcm", enforce_file_format=True)
    deidentified(tmp_path / "before.dcm", NAMES, retain).save_as(tmp_path / "after.dcm", enforce_file_format=True)
    assert dicom_errors(tmp_path / "after.dcm") <= dicom_errors(tmp_path / "before.dcm")
    assert b"Doctor" not in (tmp_path / "after.dcm").read_bytes()
