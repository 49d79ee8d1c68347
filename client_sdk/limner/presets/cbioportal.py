"""TCGA-CESC from cBioPortal: `data_clinical_patient.txt` of a study's archive, or the study page's clinical TSV.

The first has four lines of `#` before its header and short names (https://docs.cbioportal.org/file-formats), the
second long names. Statuses are `0:DiseaseFree` and the like; older studies lack the number.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from limner.presets.outcomes import Finding, Record, Rule
from limner.presets.preset import Form, Preset
from limner.presets.tables import DAYS_PER_MONTH, Row

T = TypeVar("T")

SUBJECT = ("patient_id",)
DFS = ("dfs_status", "disease_free_status")
DFS_MONTHS = ("dfs_months", "disease_free_months")
PFS = ("pfs_status", "progression_free_status")
PFS_MONTHS = ("pfs_months", "progress_free_survival_months")
DSS = ("dss_status", "disease_specific_survival_status")
DSS_MONTHS = ("dss_months", "months_of_disease_specific_survival")
OS_MONTHS = ("os_months", "overall_survival_months")
NEW_EVENT = ("new_tumor_event_after_initial_treatment", "new_neoplasm_event_post_initial_therapy_indicator")
CANCER = ("person_neoplasm_cancer_status", "tumor_status")

YES_NO = {"yes": True, "no": False}


def _numbered(vocabulary: Mapping[str, T]) -> dict[str, T]:
    """Return a vocabulary of statuses with and without their numbers."""
    return {**vocabulary, **{name.partition(":")[2]: meaning for name, meaning in vocabulary.items()}}


DISEASE_FREE = _numbered({"1:recurred/progressed": True, "1:recurred": True, "0:diseasefree": False})
PROGRESSION_FREE = _numbered({"1:progression": True, "0:censored": False})
DISEASE_SPECIFIC = _numbered({"1:dead with tumor": True, "0:alive or dead tumor free": False})
STATUS = {"with tumor": True, "tumor free": False}


def _patient(subject: str, row: Row) -> Iterator[Record]:
    """Read a row: one patient, or one of her samples."""
    recurred, event = row.choice(DISEASE_FREE, *DFS), row.choice(YES_NO, *NEW_EVENT)
    progressed, with_tumour = row.choice(PROGRESSION_FREE, *PFS), row.choice(STATUS, *CANCER)
    died_of_it = row.choice(DISEASE_SPECIFIC, *DSS)
    times = [row.months(DAYS_PER_MONTH, *columns) for columns in (DFS_MONTHS, PFS_MONTHS, DSS_MONTHS, OS_MONTHS)]
    last = max((time for time in times if time is not None), default=None)
    if recurred:
        yield Record(subject, Finding.RECURRENCE, times[0])
    elif event:
        yield Record(subject, Finding.RECURRENCE, times[1] if progressed else None)
    elif progressed or with_tumour or died_of_it:
        yield Record(subject, Finding.TUMOUR, last)
    elif recurred is False or progressed is False or event is False or with_tumour is False:
        yield Record(subject, Finding.FREE, last)
    else:
        yield Record(subject, Finding.SILENT)


CBIOPORTAL = Preset(
    name="tcga-cesc-cbioportal",
    title="TCGA-CESC, cBioPortal (PanCancer Atlas or Firehose study)",
    files="data_clinical_patient.txt of the study's archive, or the clinical TSV that the study page downloads",
    rules=(
        Rule("subject", "PATIENT_ID (TCGA-XX-XXXX), in capitals."),
        Rule("time", "Months since diagnosis, as published."),
        Rule(
            "recurrence recorded",
            "DFS_STATUS is 'Recurred/Progressed', at DFS_MONTHS; or "
            "NEW_TUMOR_EVENT_AFTER_INITIAL_TREATMENT is 'Yes', at PFS_MONTHS where PFS_STATUS is 'PROGRESSION'.",
        ),
        Rule("kind of event", "The tables do not tell a new primary tumour from a recurrence."),
        Rule(
            "with tumour",
            "No such event, and PFS_STATUS is 'PROGRESSION' (death with the cancer), DSS_STATUS 'DEAD WITH "
            "TUMOR' or PERSON_NEOPLASM_CANCER_STATUS 'With Tumor'.",
        ),
        Rule(
            "free of tumour",
            "None of these, and one of the columns says so; followed for the longest of DFS_MONTHS, "
            "PFS_MONTHS, DSS_MONTHS and OS_MONTHS.",
        ),
    ),
    forms=(
        Form(
            "data_clinical_patient.txt or the clinical TSV",
            SUBJECT,
            (" ".join((*DFS, *PFS, *NEW_EVENT)), " ".join((*DFS_MONTHS, *PFS_MONTHS, *OS_MONTHS))),
            _patient,
        ),
    ),
)
