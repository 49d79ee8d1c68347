"""What a pull asks a PACS for: matching keys of studies and series, or a list of studies.

A PACS ignores a key that it does not know, and so answers with everything it has: what is no key is refused here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_dict
from pydicom.valuerep import validate_value

from limner.errors import InvalidInputError
from limner.gateway.journal import is_uid
from limner.presets.tables import column_name, read_table

Level = Literal["STUDY", "SERIES", "IMAGE"]

# Unique, required and the common optional keys of PS3.4 C.6.2.1 and PS3.18 10.6.1.2.
KEYS: Mapping[Level, tuple[str, ...]] = {
    "STUDY": (
        *("StudyInstanceUID", "AccessionNumber", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
        *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex"),
        *("ModalitiesInStudy", "ReferringPhysicianName"),
    ),
    "SERIES": (
        *("SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"),
        *("BodyPartExamined", "ProtocolName", "PerformedProcedureStepStartDate"),
    ),
}

# Columns of a work list, as `column_name` has them.
_COLUMNS = {
    "StudyInstanceUID": ("studyinstanceuid", "study_instance_uid"),
    "AccessionNumber": ("accessionnumber", "accession_number"),
}
_LONGEST_ACCESSION_NUMBER = 16  # SH (PS3.5 6.2)
_ENTRY = f"a StudyInstanceUID, or an AccessionNumber of at most {_LONGEST_ACCESSION_NUMBER} characters"
# Matched as a pattern (PS3.4 C.2.2.2.4), where one study is meant.
_PATTERN = re.compile(r"[*?\\]")


@dataclass(frozen=True)
class Query:
    """Studies to ask for, and which of their series.

    Attributes
    ----------
    study, series
        Values to match, by keyword: single ones, `*` and `?` in text, ranges of dates as `20200101-20201231`.
    """

    study: Mapping[str, str]
    series: Mapping[str, str] = field(default_factory=dict)

    @property
    def names_a_study(self) -> bool:
        """Whether it asks for one that should be there."""
        return self.study.keys() <= _COLUMNS.keys() and not any(map(_PATTERN.search, self.study.values()))

    def __str__(self) -> str:
        """Name it, without what it asks of a patient."""
        if self.names_a_study:
            return " ".join(f"{keyword}={value}" for keyword, value in self.study.items())
        return f"query by {', '.join((*self.study, *self.series))}"


def parse_query(terms: Sequence[str]) -> Query:
    """Return the query of terms `KEYWORD=VALUE`, all of which have to match.

    Raises
    ------
    InvalidInputError
        A keyword is none, or none that studies and series are found by; a value is not of its kind; nothing is asked of
        the study.
    """
    found: dict[Level, dict[str, str]] = {"STUDY": {}, "SERIES": {}}
    for term in terms:
        keyword, equals, value = term.partition("=")
        if not (equals and value.strip()):
            raise _wrong(keyword, f"is {term!r}", "KEYWORD=VALUE")
        level = _level(keyword)
        if keyword in found[level]:
            raise _wrong(keyword, "is given twice", "each keyword once")
        _check_value(keyword, value)
        found[level][keyword] = value
    if not found["STUDY"]:
        raise _wrong("query", f"names no key of a study: {' '.join(terms)}", f"one of {', '.join(KEYS['STUDY'])}")
    return Query(found["STUDY"], found["SERIES"])


def study_query(uid: str) -> Query:
    """Return the query of one study. InvalidInputError where the UID is none."""
    if not is_uid(uid):
        raise _wrong("StudyInstanceUID", f"is {uid!r}", "numbers with dots between them, at most 64 characters")
    return Query({"StudyInstanceUID": uid})


def read_work_list(path: Path) -> list[Query]:
    """Return one query for each study of a list, in its order, each once.

    Parameters
    ----------
    path
        Lines of a StudyInstanceUID or an AccessionNumber each, but for those that begin with `#`. Or a CSV with a
        column of that name, `study_instance_uid` say; of a row with both the UID counts.

    Raises
    ------
    InvalidInputError
        It cannot be read, or is empty; a line holds neither.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong("work list", f"{path} cannot be read: {error}", "lines of text or a CSV, in UTF-8") from error
    numbered = [(number, text) for number, line in enumerate(lines, 1) if (text := line.strip())]
    numbered = [(number, text) for number, text in numbered if not text.startswith("#")]
    if not numbered:
        raise _wrong("work list", f"{path} is empty", f"in each line {_ENTRY}")
    titles = {column_name(title) for title in re.split(r"[,;\t]", numbered[0][1])}
    if any(titles.intersection(columns) for columns in _COLUMNS.values()):
        rows = read_table(path).rows
        entries = [_entry(row.place, {key: row.text(*columns) for key, columns in _COLUMNS.items()}) for row in rows]
    else:
        entries = [_entry(f"{path}, line {number}", {_kind(text): text}) for number, text in numbered]
    return [Query({keyword: value}) for keyword, value in dict.fromkeys(entries)]


def _level(keyword: str) -> Level:
    for level, keywords in KEYS.items():
        if keyword in keywords:
            return level
    known = [name for keywords in KEYS.values() for name in keywords]
    if keyword in keyword_dict:
        raise _wrong(keyword, "is no key that studies or series are found by", f"one of {', '.join(known)}")
    close = get_close_matches(keyword, known, 1) or get_close_matches(keyword, keyword_dict, 1)
    raise _wrong(keyword, "is no keyword of DICOM", f"{close[0]} perhaps" if close else f"one of {', '.join(known)}")


def _check_value(keyword: str, value: str) -> None:
    """Refuse a value that the PACS could only ignore; in text `*` and `?` stand for what will do."""
    representation = dictionary_VR(keyword)
    expected = {
        "DA": "a date as 20200131, or a range as 20200101-20201231",
        "TM": "a time as 0930, or a range as 0800-1200",
        "CS": "capitals, digits, blanks and underscores, at most 16",
        "UI": "numbers with dots between them, at most 64 characters",
    }.get(representation, f"a value of {representation} (PS3.5 6.2)")
    if not all(_fits(representation, part) for part in value.split("\\")):
        raise _wrong(keyword, f"is {value!r}", expected)


def _fits(representation: str, value: str) -> bool:
    if representation == "UI":
        return is_uid(value)
    if not value.isprintable():
        return False
    plain = value if representation in {"DA", "TM", "IS"} else re.sub(r"[*?]", "", value)
    try:
        validate_value(representation, plain, config.RAISE)
    except ValueError:
        return False
    return True


def _kind(value: str) -> str:
    return "StudyInstanceUID" if "." in value and is_uid(value) else "AccessionNumber"


def _entry(place: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Return keyword and value of the first that is there, and that names one study for certain."""
    keyword, value = next(((keyword, value) for keyword, value in values.items() if value), ("AccessionNumber", ""))
    right = is_uid(value) if keyword == "StudyInstanceUID" else len(value) <= _LONGEST_ACCESSION_NUMBER
    if not value or not right or not value.isprintable() or _PATTERN.search(value):
        raise _wrong(place, f"holds {value!r}", _ENTRY)
    return keyword, value


def _wrong(name: str, found: str, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{name} {found}; expected {expected}", field=name, expected=expected)
