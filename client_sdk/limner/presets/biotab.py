"""TCGA-CESC from the Biospecimen Core Resource: the 'BCR Biotab' clinical supplements of the GDC.

`nationwidechildrens.org_clinical_*_cesc.txt`: `patient`, `follow_up_v2.0`, `follow_up_v4.0`, and the lists of new
tumour events `nte` and `follow_up_v4.0_nte`. They tell each contact, and of most events the kind.
"""

from collections.abc import Iterator

from limner.presets.outcomes import Finding, Record, Rule
from limner.presets.preset import Form, Preset
from limner.presets.tables import Row

SUBJECT = ("bcr_patient_barcode",)
YES_NO = {"yes": True, "no": False}
STATUS = {"tumor free": Finding.FREE, "with tumor": Finding.TUMOUR}
EVENTS = {
    "locoregional recurrence": Finding.RECURRENCE,
    "locoregional disease": Finding.RECURRENCE,
    "distant metastasis": Finding.RECURRENCE,
    "recurrence": Finding.RECURRENCE,
    "progression of disease": Finding.RECURRENCE,
    "new primary tumor": Finding.NEW_PRIMARY,
}


def _event(subject: str, row: Row) -> Record:
    kind = row.choice(EVENTS, "new_tumor_event_type")
    return Record(subject, kind or Finding.EVENT, row.days("new_tumor_event_dx_days_to"))


def _events(subject: str, row: Row) -> Iterator[Record]:
    """Read a row of a list of new tumour events."""
    yield _event(subject, row)


def _contact(subject: str, row: Row) -> Iterator[Record]:
    """Read a row of the patients or of a follow-up: one contact."""
    indicator = row.choice(YES_NO, "new_tumor_event_dx_indicator")
    contact = row.days("death_days_to", "last_contact_days_to")
    status = row.choice(STATUS, "tumor_status")
    if indicator:
        yield _event(subject, row)
    else:
        yield Record(subject, status or (Finding.SILENT if indicator is None else Finding.FREE), contact)


BIOTAB = Preset(
    name="tcga-cesc-biotab",
    title="TCGA-CESC, BCR biotabs of the GDC",
    files="nationwidechildrens.org_clinical_{patient,follow_up_v2.0,follow_up_v4.0,follow_up_v4.0_nte,nte}_cesc.txt",
    rules=(
        Rule("subject", "bcr_patient_barcode (TCGA-XX-XXXX), in capitals."),
        Rule(
            "time",
            "Days since diagnosis, in months of 365.25/12 days; a contact is at death_days_to, else at "
            "last_contact_days_to.",
        ),
        Rule(
            "recurrence recorded", "A new tumour event other than a new primary tumour, at new_tumor_event_dx_days_to."
        ),
        Rule(
            "event of unknown kind",
            "new_tumor_event_dx_indicator is 'YES' and no row says which: taken for a recurrence "
            "unless all events of the subject that have a kind are new primary tumours.",
        ),
        Rule(
            "free of tumour",
            "tumor_status is 'TUMOR FREE', or it is not told and new_tumor_event_dx_indicator is 'NO'.",
        ),
        Rule("with tumour", "tumor_status is 'WITH TUMOR', and no new tumour event is recorded."),
    ),
    forms=(
        Form("a follow_up or patient file", SUBJECT, ("new_tumor_event_dx_indicator", "tumor_status"), _contact),
        Form("an nte file", SUBJECT, ("new_tumor_event_type", "new_tumor_event_dx_days_to"), _events),
    ),
)
