"""Published tables into labels: real headers, invented women, each made for one rule."""

import csv
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.cohort_flow import read_flow
from limner.cohort_import import read_labels
from limner.errors import InvalidInputError
from limner.presets import PRESETS, LabelRules, find_preset, label_tables, write_labels
from limner.presets.outcomes import Evidence, Excluded, Finding, Labelled, Record, settle
from limner.presets.tables import read_table

DATA = Path(__file__).parents[1] / "data" / "clinical"
GDC = [DATA / "clinical.tsv", DATA / "follow_up.tsv"]
BIOTAB = sorted(DATA.glob("nationwidechildrens.org_*"))
CBIOPORTAL = DATA / "data_clinical_patient.txt"
CBIOPORTAL_PAGE = DATA / "cesc_tcga_pan_can_atlas_2018_clinical_data.tsv"
TCIA = DATA / "cc_tumor_heterogeneity_clinical.csv"
TCGA = {
    "A001": "recurrent",  # free at first, then a recurrence, then a metastasis: the first event counts
    "A002": "non-recurrent",  # two contacts, the later decides
    "A003": "censored early",
    "A004": "recurrence unknown",
    "A005": "new primary tumour only",
    "A006": "tumour at last contact, no recurrence recorded",
    "A007": "recurrent",  # at a time that nobody tells
    "A008": "recurrent",  # at 36 months
    "A009": "non-recurrent",  # barcode in small letters, an earlier cancer
    "A010": "length of follow-up unknown",
}


def decided(preset: str, tables: list[Path], rules: LabelRules | None = None) -> dict[str, str]:
    """What became of each subject, by the end of its name."""
    labelling = label_tables(preset, tables, rules)
    assert not labelling.evidence.unread
    outcomes = labelling.labels | {one.subject: str(one.reason) for one in labelling.excluded}
    assert len(outcomes) == len(labelling.labelled) + len(labelling.excluded)
    return {subject.rpartition("-")[2]: outcome for subject, outcome in outcomes.items()}


@pytest.mark.parametrize(("preset", "tables"), [("tcga-cesc-gdc", GDC), ("tcga-cesc-biotab", BIOTAB)])
def test_the_same_women_are_the_same_in_both_tables_of_the_gdc(preset: str, tables: list[Path]) -> None:
    assert decided(preset, tables) == TCGA
    assert decided(preset, tables[::-1]) == TCGA
    months = {one.subject[-4:]: one.months for one in label_tables(preset, tables).labelled}
    assert months == {"A001": 13.1, "A002": 49.3, "A007": None, "A008": 36.0, "A009": 65.7}


@pytest.mark.parametrize("table", [CBIOPORTAL, CBIOPORTAL_PAGE])
def test_cbioportal_tells_the_same_but_for_new_primaries(table: Path) -> None:
    # Its tables have no kind of event, so the woman with a new primary is not among these.
    expected = {name: outcome for name, outcome in TCGA.items() if name != "A005"}
    assert decided("tcga-cesc-cbioportal", [table]) == expected
    # 730 days are 24 months by either way to count them.
    assert {one.months for one in label_tables("tcga-cesc-cbioportal", [table]).labelled} >= {24.0, 13.2}


def test_within_months_a_later_recurrence_is_none_and_one_without_time_is_excluded() -> None:
    rules = LabelRules(within_months=24)
    changed = {"A007": "time of recurrence unknown", "A008": "non-recurrent"}
    assert decided("tcga-cesc-gdc", GDC, rules) == TCGA | changed
    later = decided("tcga-cesc-gdc", GDC, LabelRules(within_months=24, min_follow_up_months=48))
    assert later["A008"] == "recurrence after the months that count, follow-up too short"
    assert later["A002"] == "non-recurrent"
    assert decided("tcga-cesc-gdc", GDC, LabelRules(within_months=36))["A008"] == "recurrent"


def test_an_earlier_cancer_and_a_metastasis_from_the_first_day_are_no_recurrence(tmp_path: Path) -> None:
    rows = [
        (
            "case_submitter_id",
            "vital_status",
            "classification_of_tumor",
            "progression_or_recurrence",
            "days_to_diagnosis",
        ),
        ("T1", "Alive", "Prior primary", "yes", "-900"),
        ("T2", "Alive", "metastasis", "'--", "0"),
        ("T3", "Alive", "metastasis", "'--", "61"),
        ("T4", "Alive", "metastasis", "'--", "'--"),
        ("T5", "Alive", "recurrence", "'--", "'--"),
    ]
    path = table(tmp_path, "\n".join(map("\t".join, rows)).encode())
    unknown = dict.fromkeys(("T1", "T2", "T4"), "recurrence unknown")
    assert decided("tcga-cesc-gdc", [path]) == {"T3": "recurrent", "T5": "recurrent", **unknown}


def test_without_a_least_follow_up_the_table_is_believed() -> None:
    believed = decided("tcga-cesc-gdc", GDC, LabelRules(min_follow_up_months=0))
    assert believed == TCGA | {"A003": "non-recurrent", "A010": "non-recurrent"}


def test_without_the_list_of_events_an_indicator_is_taken_for_a_recurrence() -> None:
    tables = [path for path in BIOTAB if "nte" not in path.name]
    assert decided("tcga-cesc-biotab", tables) == TCGA | {"A005": "recurrent"}


def test_only_the_subjects_asked_for_are_labelled_and_the_others_counted() -> None:
    labelling = label_tables("tcga-cesc-gdc", GDC, only=["tcga-zz-a001", "TCGA-ZZ-A003", "TCGA-ZZ-A002"])
    assert labelling.labels == {"TCGA-ZZ-A001": "recurrent", "TCGA-ZZ-A002": "non-recurrent"}
    assert [(reason, len(subjects)) for reason, subjects in labelling.reasons.items()] == [
        ("not asked for", 7),
        ("censored early", 1),
    ]
    assert any(rule.sentence == "Excluded: not among the 3 subjects asked for." for rule in labelling.rules)
    with pytest.raises(InvalidInputError, match="1 of 2 subjects asked for are in no table: TCGA-ZZ-A999"):
        label_tables("tcga-cesc-gdc", GDC, only=["TCGA-ZZ-A999", "TCGA-ZZ-A001"])


def test_cc_tumor_heterogeneity_as_idc_names_it_and_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    expected = {
        "Z01": "recurrent",
        "Z02": "length of follow-up unknown",
        "Z03": "non-recurrent",
        "Z04": "recurrence unknown",
        "Z05": "tumour at last contact, no recurrence recorded",
        "Z06": "recurrent",
    }
    assert decided("cc-tumor-heterogeneity", [TCIA]) == expected
    lines = TCIA.read_text().splitlines()
    header = (
        'Patient ID,Batch,"Case Name","Early Response\r\n(1-2 months post therapy)",Local Recurrence (Y/N),'
        "Time to Local Recurrence (weeks),Distant Metastasis (Y/N),Time to Distant Metastasis (weeks),"
        "Death from cervical cancer (Y/N),Time to Death from cervical cancer (weeks),Disease status at last contact"
    )
    saved = tmp_path / "clinical.csv"
    saved.write_bytes("\r\n".join([header, *lines[1:], ",,,,,,,,,,"]).encode("utf-8-sig"))
    assert decided("cc-tumor-heterogeneity", [saved]) == expected
    saved.write_text("\n".join([header, *lines[1:]]).replace(",", ";"))
    assert decided("cc-tumor-heterogeneity", [saved]) == expected


def test_the_older_headers_of_the_gdc_are_read(tmp_path: Path) -> None:
    clinical, follow_up = tmp_path / "clinical.tsv", tmp_path / "follow_up.tsv"
    for source, target in zip(GDC, (clinical, follow_up), strict=True):
        header, _, rest = source.read_text().partition("\n")
        old = header.replace("cases.submitter_id", "case_submitter_id")
        for group in ("cases.", "demographic.", "diagnoses.", "follow_ups."):
            old = old.replace(group, "")
        target.write_text(f"{old}\n{rest}")
    assert decided("tcga-cesc-gdc", [clinical, follow_up]) == TCGA


def test_labels_exclusions_and_flow_are_written_and_add_up(tmp_path: Path) -> None:
    labelling = label_tables("tcga-cesc-gdc", GDC)
    files = write_labels(labelling, tmp_path / "new" / "labels.csv")
    assert [path.name for path in (files.labels, files.excluded, files.flow)] == [
        "labels.csv",
        "labels.excluded.csv",
        "labels.flow.json",
    ]
    assert read_labels(files.labels) == labelling.labels
    rows = {row["subject"][-4:]: row for row in csv.DictReader(files.labels.open(newline=""))}
    assert (rows["A001"]["recurrence_months"], rows["A001"]["follow_up_months"]) == ("13.1", "")
    assert (rows["A002"]["recurrence_months"], rows["A002"]["follow_up_months"]) == ("", "49.3")
    excluded = {row["subject"][-4:]: row["reason"] for row in csv.DictReader(files.excluded.open(newline=""))}
    assert excluded == {name: reason for name, reason in TCGA.items() if "recurrent" not in reason}
    flow = read_flow(files.flow)
    assert (flow.preset, flow.read) == ("tcga-cesc-gdc", 10)
    assert flow.labels == {"non-recurrent": 2, "recurrent": 3}
    assert flow.read == sum(flow.labels.values()) + sum(len(group.subjects) for group in flow.excluded)
    written = json.loads(files.flow.read_text())
    assert written["min_follow_up_months"] == 24
    assert written["tables"] == ["clinical.tsv", "follow_up.tsv"]
    assert all(rule["name"] and rule["sentence"].endswith(".") for rule in written["rules"])


def test_values_in_no_vocabulary_are_counted_and_mean_nothing(tmp_path: Path) -> None:
    changed = tmp_path / "follow_up.tsv"
    changed.write_text(GDC[1].read_text().replace("TF-Tumor Free", "Well").replace("\t400\t", "\t-4\t"))
    labelling = label_tables("tcga-cesc-gdc", [GDC[0], changed])
    assert labelling.evidence.unread["follow_ups_disease_response", "Well"] == 6
    assert labelling.evidence.unread["follow_ups_days_to_recurrence", "-4"] == 1
    assert "TCGA-ZZ-A002" not in labelling.labels
    # The recurrence stands; only its time is gone.
    assert labelling.labels["TCGA-ZZ-A001"] == "recurrent"
    assert {"column": "follow_ups_disease_response", "value": "Well", "rows": 6} in labelling.flow()["not_understood"]


def table(tmp_path: Path, content: bytes, name: str = "clinical.tsv") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows; expected a header and one row"),
        (b"# only\n# remarks\n", "has no rows"),
        (b"PK\x03\x04zip", "is a spreadsheet or archive; expected CSV: open it and save the sheet as 'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is an old spreadsheet; expected CSV"),
        (b"\x1f\x8b\x08", "is compressed; expected the table in it: unpack it"),
        (b"<?xml version='1.0'?>", "is XML; expected a table: download the same data as BCR Biotab"),
        (b"case_submitter_id\tvital_status\n\xff\tAlive\n", "cannot be read: .*; expected a CSV or TSV file in UTF-8"),
        (b"a,b\n1,2\n", "columns of .* are a, b; expected those of preset tcga-cesc-gdc: follow_up.tsv with"),
        (b"case_submitter_id\tvital_status\n\tAlive\n", "line 2: .*case_submitter_id is empty; expected the subject"),
        (b"case_submitter_id\tvital_status\nT\tAlive\tmore\n", "line 2 has 3 cells; expected at most the 2"),
        (
            b"case_submitter_id\tvital_status\tprogression_or_recurrence\tdays_to_recurrence\nT\tAlive\tyes\tsoon\n",
            "line 2: days_to_recurrence is 'soon'; expected a number, or nothing",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as error:
        label_tables("tcga-cesc-gdc", [table(tmp_path, content)])
    assert error.value.field == "table"


def test_no_table_no_such_file_and_no_such_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no table was given; expected clinical"):
        label_tables("tcga-cesc-gdc", [])
    with pytest.raises(InvalidInputError, match=r"none\.tsv cannot be read"):
        label_tables("tcga-cesc-gdc", [tmp_path / "none.tsv"])
    with pytest.raises(InvalidInputError, match="preset is 'tcga'; expected one of tcga-cesc-gdc, "):
        find_preset("tcga")


@pytest.mark.parametrize(
    ("within", "least", "said"),
    [
        (0, None, "within_months is 0; expected a number of months over 0"),
        (float("nan"), None, "within_months is nan"),
        (24, 12, "min_follow_up_months is 12; expected at least 24, the months within which a recurrence counts"),
        (None, -1, "min_follow_up_months is -1; expected at least 0"),
    ],
)
def test_months_that_contradict_each_other_are_refused(within: float | None, least: float | None, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        LabelRules(within, least)


def test_quotation_marks_in_tsv_and_line_breaks_in_csv_shift_no_line(tmp_path: Path) -> None:
    rows = b'patient_id\tdfs_status\tdfs_months\nA\t"0:DiseaseFree\t30\nB\t0:DiseaseFree\tx"\n'
    with pytest.raises(InvalidInputError, match="line 3: dfs_months is 'x'"):
        label_tables("tcga-cesc-cbioportal", [table(tmp_path, rows)])
    rows = b'patient_id,"dfs\nstatus",dfs_months\n"A\nB",0:DiseaseFree,x\n'
    with pytest.raises(InvalidInputError, match="line 4: dfs_months is 'x'"):
        label_tables("tcga-cesc-cbioportal", [table(tmp_path, rows)])


def test_every_real_header_is_whole_and_known() -> None:
    assert len(read_table(DATA / "nationwidechildrens.org_clinical_follow_up_v4.0_cesc.txt").columns) == 39
    assert len(read_table(CBIOPORTAL).columns) == 38
    assert len(read_table(CBIOPORTAL_PAGE).columns) == 61
    names = [preset.name for preset in PRESETS]
    assert len(set(names)) == len(names)
    assert all(rule.sentence.endswith(".") for preset in PRESETS for rule in preset.rules)


RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from("AB"),
        st.sampled_from(Finding),
        st.none() | st.floats(0, 120, allow_nan=False).map(lambda months: round(months, 1)),
    ),
    max_size=8,
)
RULES = st.builds(
    lambda within, more: LabelRules(within, None if more is None else (within or 0) + more),
    st.none() | st.integers(1, 60),
    st.none() | st.integers(0, 60),
)


def outcomes(records: list[Record], rules: LabelRules) -> dict[str, Labelled | Excluded]:
    labelling = settle("p", (), Evidence((), 0, tuple(records), Counter()), rules)
    return {one.subject: one for one in (*labelling.labelled, *labelling.excluded)}


@given(RECORDS, RULES, st.randoms())
def test_every_subject_has_one_outcome_that_the_order_of_rows_does_not_change(
    records: list[Record], rules: LabelRules, random: Random
) -> None:
    found = outcomes(records, rules)
    assert set(found) == {record.subject for record in records}
    shuffled = records.copy()
    random.shuffle(shuffled)
    assert outcomes(shuffled, rules) == found


def no_new_primary(records: list[Record]) -> bool:
    return all(one.finding is not Finding.NEW_PRIMARY for one in records)


@given(RECORDS, RULES)
def test_labels_keep_their_promises(records: list[Record], rules: LabelRules) -> None:
    for subject, outcome in outcomes(records, rules).items():
        if not isinstance(outcome, Labelled):
            continue
        mine = [one for one in records if one.subject == subject]
        counted = {Finding.RECURRENCE} | ({Finding.EVENT} if no_new_primary(mine) else set())
        recurrences = [one for one in mine if one.finding in counted]
        if outcome.label == "recurrent":
            assert recurrences
            assert rules.within_months is None or (outcome.months or 0) <= rules.within_months
        else:
            assert rules.follow_up == 0 or (outcome.months or 0) >= rules.follow_up
            assert all((one.months or 0) > (rules.within_months or 0) for one in recurrences if one.months is not None)
