"""CC-Tumor-Heterogeneity from TCIA or IDC: the collection's clinical spreadsheet saved as CSV, or IDC's table.

IDC's `cc_tumor_heterogeneity_clinical` names its columns after the spreadsheet's: one name reads both.
"""

from collections.abc import Iterator

from limner.presets.outcomes import Finding, Record, Rule
from limner.presets.preset import Form, Preset
from limner.presets.tables import DAYS_PER_WEEK, Row

YES_NO = {"y": True, "yes": True, "1": True, "n": False, "no": False, "0": False}
# What came back, and when, in weeks.
EVENTS = (
    ("local_recurrence_y_n", "time_to_local_recurrence_weeks"),
    ("distant_metastasis_y_n", "time_to_distant_metastasis_weeks"),
)
DEATH = ("death_from_cervical_cancer_y_n", "time_to_death_from_cervical_cancer_weeks")


def _case(subject: str, row: Row) -> Iterator[Record]:
    """Read a row: one case."""
    found = [(row.choice(YES_NO, event), row.months(DAYS_PER_WEEK, time)) for event, time in EVENTS]
    died, death = row.choice(YES_NO, DEATH[0]), row.months(DAYS_PER_WEEK, DEATH[1])
    events = [time for happened, time in found if happened]
    if events:
        known = [time for time in events if time is not None]
        yield Record(subject, Finding.RECURRENCE, min(known, default=None))
    elif died:
        yield Record(subject, Finding.TUMOUR, death)
    elif all(happened is False for happened, _ in found):
        times = [time for time in (*(time for _, time in found), death) if time is not None]
        yield Record(subject, Finding.FREE, max(times, default=None))
    else:
        yield Record(subject, Finding.SILENT)


CC_TUMOR_HETEROGENEITY = Preset(
    name="cc-tumor-heterogeneity",
    title="CC-Tumor-Heterogeneity, TCIA or IDC",
    files="the collection's clinical spreadsheet, saved as CSV, or IDC's table cc_tumor_heterogeneity_clinical as CSV",
    rules=(
        Rule("subject", "dicom_patient_id, else the case name, as it stands."),
        Rule("time", "Weeks as published, in months of 365.25/12 days."),
        Rule("recurrence recorded", "Local recurrence or distant metastasis is 'Y', at the earlier of the two times."),
        Rule("with tumour", "Neither, and death from cervical cancer is 'Y'."),
        Rule(
            "free of tumour",
            "Both are 'N'; a time beside an 'N' is taken for that of the last contact, of which the table "
            "has no column.",
        ),
    ),
    forms=(
        Form(
            "the clinical table",
            ("dicom_patient_id", "case_name", "patient_id", "subject_id", "case"),
            ("local_recurrence_y_n", "distant_metastasis_y_n"),
            _case,
        ),
    ),
)
