"""From a folder of DICOM and a table of labels to a `CohortPlan`: which slices, of whom, under which label.

Reads headers only and sends nothing: `Client.import_cohort` does. `limner.imaging.selection` judges the series.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from limner.cohorts import CohortPlan, CohortSlice
from limner.errors import InvalidInputError, invalid_input
from limner.imaging import Pseudonymiser, find_series, load_or_create_key, select
from limner.imaging.errors import ImageError
from limner.imaging.rules import SelectionRules
from limner.imaging.selection import Decision
from limner.imaging.series import Series

MAX_NAMED = 10


@dataclass(frozen=True)
class FolderSurvey:
    """What a folder of DICOM holds. Names in it are not pseudonymous.

    Attributes
    ----------
    decisions
        Every series, and what speaks against it.
    unreadable
        Every file that belongs to none, and why.
    """

    folder: Path
    decisions: tuple[Decision, ...]
    unreadable: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class FolderImport:
    """What is to be imported from a folder, and what is not.

    Attributes
    ----------
    plan
        For `Client.import_cohort`; pseudonymous.
    survey
        The series, taken or not.
    skipped
        Files, series and subjects that are left out for another reason: name and reason, not pseudonymous.
    subjects
        The label of each subject of the plan; empty where slices are labelled. Not pseudonymous.
    left_out
        Why a subject that has a label or images is not in the plan. Not pseudonymous.
    """

    plan: CohortPlan
    survey: FolderSurvey
    skipped: tuple[tuple[str, str], ...]
    subjects: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def grouped(self) -> dict[str, list[str]]:
        """The names of `skipped` by their reason, without what a reason adds of its own case after a semicolon."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.skipped:
            groups.setdefault(reason.partition(";")[0], []).append(name)
        return groups


def default_key_file() -> Path:
    """Return where the pseudonymisation key is kept unless told otherwise: the user's configuration folder."""
    # Imported here since it is the command's library, and this module is the SDK's.
    from typer import get_app_dir

    return Path(get_app_dir("limner")) / "pseudonyms.key"


def plan_import(
    folder: Path,
    labels: Path | Mapping[str, str] | None = None,
    *,
    rules: SelectionRules | None = None,
    positive: str | None = None,
    allow_missing: bool = False,
    key: bytes | None = None,
) -> FolderImport:
    """Find the T2-weighted series of a folder and label their slices, as `survey_folder` and `label_slices` do."""
    return label_slices(survey_folder(folder, rules), labels, positive=positive, allow_missing=allow_missing, key=key)


def survey_folder(
    folder: Path, rules: SelectionRules | None = None, *, progress: Callable[[], None] | None = None
) -> FolderSurvey:
    """Read the headers of a folder and judge its series.

    Parameters
    ----------
    folder
        Of DICOM files, in any arrangement.
    rules
        What a series must be to be taken; default T2-weighted, in any plane.
    progress
        Called once after each file.

    Raises
    ------
    InvalidInputError
        Where there is no such folder.
    """
    try:
        found = find_series(folder, progress)
    except ImageError as error:
        raise invalid_input(error) from error
    decisions = select(found.series, rules)
    return FolderSurvey(folder, tuple(decisions), tuple(found.unreadable))


def label_slices(
    survey: FolderSurvey,
    labels: Path | Mapping[str, str] | None,
    *,
    positive: str | None = None,
    allow_missing: bool = False,
    key: bytes | None = None,
) -> FolderImport:
    """Give the slices of the series that were taken their labels and pseudonyms.

    Parameters
    ----------
    labels
        CSV with the columns `subject` (PatientID) and `label`, or the label of each subject. Subjects are matched
        without regard to case and surrounding space. None: each slice is labelled by its plane, and the label is then
        the slice's, not the subject's.
    positive
        The class of interest; default the last label in alphabetical order.
    allow_missing
        True to go on where a subject of the table has no usable series.
    key
        Of the pseudonyms, 32 bytes; default that of `default_key_file()`, made at the first use.

    Raises
    ------
    InvalidInputError
        Where the table cannot be used, or fewer than two classes are left.
    """
    table = read_labels(labels) if isinstance(labels, Path) else labels
    # The table of labels may lie among the images.
    skipped = [(str(path), reason) for path, reason in survey.unreadable if path != labels]
    spelled = _spellings(table or {})
    accepted = [decision.series for decision in survey.decisions if decision.accepted]
    chosen = [_spell(series, spelled) for series in accepted]
    left_out: dict[str, str] = {}
    usable = list(_usable(chosen, table, skipped, left_out))
    subjects = {series.patient_id: table[series.patient_id] for series in usable} if table is not None else {}
    if table is not None:
        seen = {_spell(decision.series, spelled).patient_id for decision in survey.decisions}
        left_out |= _missing(table, set(subjects), seen, allow_missing)
    skipped += [(f"subject {name}", reason) for name, reason in left_out.items()]
    labelled = [(series, series.plane if table is None else table[series.patient_id]) for series in usable]
    ordered = _ordered({label for _, label in labelled}, positive, survey.folder)
    pseudonyms = _pseudonymiser(key)
    patients = {} if table is None else _patients(accepted, spelled)
    slices = [
        one
        for series, label in labelled
        for one in _slices(series, patients.get(series.patient_id, series.patient_id), label, table is None, pseudonyms)
    ]
    return FolderImport(CohortPlan(ordered, slices), survey, tuple(skipped), subjects, left_out)


def _spellings(table: Mapping[str, str]) -> dict[str, str]:
    """Return how the table spells each subject, by the form in which they are compared."""
    spelled: dict[str, str] = {}
    for subject in table:
        other = spelled.setdefault(compared(subject), subject)
        if other != subject:
            raise _bad_labels(f"subjects {other!r} and {subject!r} differ only in case", "one spelling of each subject")
    return spelled


def compared(subject: str) -> str:
    """Return a subject's name in the form in which the names of tables and of DICOM are compared."""
    return subject.strip().casefold()


def _spell(series: Series, spelled: Mapping[str, str]) -> Series:
    """Return the series under the table's spelling of its subject."""
    subject = spelled.get(compared(series.patient_id), series.patient_id)
    return series if subject == series.patient_id else replace(series, patient_id=subject)


def _patients(accepted: Iterable[Series], spelled: Mapping[str, str]) -> dict[str, str]:
    """Return the PatientID that each subject's pseudonym is made of: one, though the headers spell it in two ways."""
    patients: dict[str, str] = {}
    for patient in sorted({series.patient_id for series in accepted}):
        patients.setdefault(spelled.get(compared(patient), patient), patient)
    return patients


def _pseudonymiser(key: bytes | None) -> Pseudonymiser:
    try:
        return Pseudonymiser(load_or_create_key(default_key_file()) if key is None else key)
    except ImageError as error:
        raise invalid_input(error) from error


def read_labels(path: Path) -> dict[str, str]:
    """Read the label of each subject from a CSV with the columns `subject` and `label`; others are ignored.

    Raises
    ------
    InvalidInputError
        Naming the line where a column is missing, a field is empty, or a subject has two labels.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = {"subject", "label"} - set(rows.fieldnames or ())
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise _bad_labels(f"columns of {path} are {found}", "subject and label")
            return _labels_of(path, rows)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad_labels(f"{path} cannot be read: {error}", "a CSV file in UTF-8") from error


def _labels_of(path: Path, rows: "csv.DictReader[str]") -> dict[str, str]:
    table: dict[str, str] = {}
    for row in rows:
        subject, label = (row["subject"] or "").strip(), (row["label"] or "").strip()
        if not subject or not label:
            raise _bad_labels(f"line {rows.line_num} of {path} has an empty field", "a subject and its label")
        if table.setdefault(subject, label) != label:
            raise _bad_labels(
                f"subject {subject!r} has two labels in {path}, {table[subject]!r} and {label!r}", "one label a subject"
            )
    if not table:
        raise _bad_labels(f"{path} has no rows", "one for each subject")
    return table


def _bad_labels(found: str, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{found}; expected {expected}", field="labels", expected=expected)


def _usable(
    series: Iterable[Series],
    table: Mapping[str, str] | None,
    skipped: list[tuple[str, str]],
    left_out: dict[str, str],
) -> Iterator[Series]:
    """Give the series of known subjects; tell of the subjects of the others why they are left out."""
    unlabelled: Counter[str] = Counter()
    for one in series:
        if not one.patient_id:
            skipped.append((f"series {one.series_uid}", "PatientID is missing; expected the subject"))
        elif table is not None and one.patient_id not in table:
            unlabelled[one.patient_id] += len(one.slices)
        else:
            yield one
    for subject, slices in unlabelled.items():
        left_out[subject] = f"no label; {slices} slices left out"


def _missing(table: Mapping[str, str], usable: set[str], seen: set[str], allow_missing: bool) -> dict[str, str]:
    """Refuse labelled subjects without a usable series, or say why; `seen` are the subjects that have any series."""
    missing = sorted(set(table) - usable)
    if missing and not allow_missing:
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        unseen = sum(subject not in seen for subject in missing)
        found = f"{len(missing)} of {len(table)} labelled subjects have no usable series, {unseen} no images at all"
        raise _bad_labels(f"{found}: {named}", "images of every subject, or --allow-missing")
    return {name: "no usable series" if name in seen else "no images" for name in missing}


def _ordered(labels: set[str], positive: str | None, folder: Path) -> tuple[str, ...]:
    """Return the labels in alphabetical order, the class of interest last."""
    if len(labels) < 2:
        found = f"only the class {next(iter(labels))!r}" if labels else "no labelled slice"
        raise _bad_labels(f"{folder} has {found}", "slices of at least two classes")
    if positive is not None and positive not in labels:
        expected = "one of " + ", ".join(sorted(labels))
        raise InvalidInputError(f"positive is {positive!r}; expected {expected}", field="positive", expected=expected)
    return tuple(sorted(labels, key=lambda label: (label == positive, label)))


def _slices(
    series: Series, patient: str, label: str, slice_label: bool, pseudonyms: Pseudonymiser
) -> Iterator[CohortSlice]:
    for one in series.slices:
        yield CohortSlice(
            instance=pseudonyms.instance(one.instance_uid, one.frame),
            subject=pseudonyms.subject(patient),
            series=pseudonyms.series(series.series_uid),
            label=label,
            content=one.path,
            frame=one.frame,
            slice_label=slice_label,
        )
