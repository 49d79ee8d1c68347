"""What a pull asks for: keywords and values, and work lists as people write them."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import InvalidInputError
from limner.gateway.pull.query import KEYS, parse_query, read_work_list, study_query


def read(text: str | bytes) -> list[Mapping[str, str]]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "list.txt")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return [query.study for query in read_work_list(path)]


def test_terms_are_of_the_study_or_of_its_series() -> None:
    query = parse_query(["PatientID=A=B", "StudyDate=20200101-", "Modality=MR", "SeriesDescription=*t2*"])
    assert query.study == {"PatientID": "A=B", "StudyDate": "20200101-"}
    assert query.series == {"Modality": "MR", "SeriesDescription": "*t2*"}
    assert "A=B" not in str(query)


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (["PatientId=1"], "PatientId is no keyword of DICOM; expected PatientID perhaps"),
        (["0020000D=1.2"], "0020000D is no keyword of DICOM; expected one of StudyInstanceUID"),
        (["EchoTime=90"], "EchoTime is no key that studies or series are found by; expected one of StudyInstanceUID"),
        (["PatientID"], "PatientID is 'PatientID'; expected KEYWORD=VALUE"),
        (["PatientID= "], "PatientID is 'PatientID= '; expected KEYWORD=VALUE"),
        (["PatientID=1", "PatientID=2"], "PatientID is given twice"),
        (["StudyDate=2020-01-01"], "StudyDate is '2020-01-01'; expected a date as 20200131"),
        (["StudyDate=2020*"], "StudyDate is '2020*'"),
        (["StudyTime=9"], "StudyTime is '9'; expected a time as 0930"),
        (["ModalitiesInStudy=mr"], "ModalitiesInStudy is 'mr'; expected capitals"),
        (["AccessionNumber=12345678901234567"], "AccessionNumber is '12345678901234567'; expected a value of SH"),
        (["StudyInstanceUID=1.2\\1.x"], "StudyInstanceUID is '1.2\\\\1.x'; expected numbers with dots"),
        (["PatientName=Doe\x00"], "PatientName is 'Doe\\x00'; expected a value of PN"),
        (["Modality=MR"], "query names no key of a study: Modality=MR"),
    ],
)
def test_what_a_pacs_could_only_ignore_is_refused(terms: list[str], told: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_query(terms)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("term", ["ModalitiesInStudy=M*", "PatientName=Doe^J?n*", "StudyInstanceUID=1.2\\1.02.3"])
def test_patterns_and_lists_are_let_pass(term: str) -> None:
    assert parse_query([term]).study


def test_every_key_is_a_keyword_of_dicom() -> None:
    values = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2", "StudyDate": "20200101", "StudyTime": "1200"}
    values |= {"PatientBirthDate": "20200101", "PerformedProcedureStepStartDate": "20200101", "SeriesNumber": "1"}
    for keyword in (*KEYS["STUDY"], *KEYS["SERIES"]):
        assert parse_query(
            ["PatientID=1" if keyword != "PatientID" else "StudyID=1", f"{keyword}={values.get(keyword, 'A')}"]
        )


def test_a_work_list_of_lines_holds_uids_and_accession_numbers() -> None:
    found = read("\ufeff# of March\n1.2.840.1\r\n\nACC 17\n  20371451\n1.2.840.1\n")
    assert found == [{"StudyInstanceUID": "1.2.840.1"}, {"AccessionNumber": "ACC 17"}, {"AccessionNumber": "20371451"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_work_list_may_be_a_table(delimiter: str) -> None:
    rows = [
        ("label", "Accession Number", "study_instance_uid"),
        ("yes", "A1", "1.2"),
        ("no", "A2", ""),
        ("no", "", "1.3"),
    ]
    found = read("\n".join(map(delimiter.join, rows)))
    assert found == [{"StudyInstanceUID": "1.2"}, {"AccessionNumber": "A2"}, {"StudyInstanceUID": "1.3"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("# nothing\n\n", "is empty"),
        ("1.2.3\nA*\n", "list.txt, line 2 holds 'A*'; expected a StudyInstanceUID, or an AccessionNumber"),
        ("1.2.3\n12345678901234567\n", "line 2 holds '12345678901234567'"),
        ("1.2.3\n\x00\n", "line 2 holds '\\x00'"),
        ("StudyInstanceUID,x\n1.2,\n,y\n", "line 3 holds ''"),
        ("StudyInstanceUID,x\n1.2.a,\n", "line 2 holds '1.2.a'"),
        ("StudyInstanceUID\n", "has no rows"),
        (b"PK\x03\x04\xff\xfe", "cannot be read"),
    ],
)
def test_a_work_list_that_names_no_study_is_refused(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidInputError, match=None) as error:
        read(text)
    assert told in str(error.value)


uids = st.lists(st.integers(0, 10**6), min_size=2, max_size=6).map(lambda parts: ".".join(map(str, parts)))
accession_numbers = st.from_regex(r"[A-Z0-9][A-Z0-9 _-]{0,14}[A-Z0-9]", fullmatch=True)


@given(st.lists(uids | accession_numbers, min_size=1))
def test_every_entry_of_a_list_is_asked_for_once_in_order(entries: list[str]) -> None:
    asked = [value for query in read("\n".join(entries)) for value in query.values()]
    assert asked == list(dict.fromkeys(entries))


@given(st.text() | st.binary())
def test_whatever_a_list_holds_is_read_or_refused(text: str | bytes) -> None:
    try:
        found = read(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    except InvalidInputError:
        return
    assert all(value and not set("*?\\") & set(value) for query in found for value in query.values())


@given(st.lists(st.text()))
def test_whatever_terms_are_they_are_understood_or_refused(terms: list[str]) -> None:
    try:
        query = parse_query(terms)
    except InvalidInputError:
        return
    assert query.study


def test_a_study_is_named_by_a_uid() -> None:
    assert study_query("1.2.840").names_a_study
    for uid in ("", "..", "1..2", "1.2/3", "1" * 65):
        with pytest.raises(InvalidInputError):
            study_query(uid)
