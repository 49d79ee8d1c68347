"""TCGA-CESC from the GDC portal: `clinical.tsv` and `follow_up.tsv` of a clinical cart.

Column names changed with the portal: `cases.submitter_id` was `case_submitter_id`, and no column began with
`diagnoses.` or `follow_ups.`. Both are read. Values are those of the GDC data dictionary
(https://docs.gdc.cancer.gov/Data_Dictionary).
"""

from collections.abc import Iterator

from limner.presets.outcomes import Finding, Record, Rule
from limner.presets.preset import Form, Preset
from limner.presets.tables import Row

SUBJECT = ("cases_submitter_id", "case_submitter_id")
PROGRESSION = {"yes": True, "yes - progression or recurrence": True, "no": False}
# What a diagnosis is of. A metastasis may have been there from the beginning: its day tells. Of an earlier or another
# cancer nothing is to be learnt.
TUMOURS = {
    "recurrence": Finding.RECURRENCE,
    "progression": Finding.RECURRENCE,
    "metastasis": Finding.EVENT,
    "subsequent primary": Finding.NEW_PRIMARY,
    "primary": Finding.TUMOUR,
    "prior primary": Finding.SILENT,
    "synchronous primary": Finding.SILENT,
    "other": Finding.SILENT,
}
RESPONSES = {
    "tf-tumor free": Finding.FREE,
    "cr-complete response": Finding.FREE,
    "scr-stringent complete response": Finding.FREE,
    "wt-with tumor": Finding.TUMOUR,
    "pd-progressive disease": Finding.TUMOUR,
    "rpd-radiographic progressive disease": Finding.TUMOUR,
    "cpd-clinical progression": Finding.TUMOUR,
    "ppd-pseudoprogression": Finding.SILENT,
    "pr-partial response": Finding.TUMOUR,
    "vgpr-very good partial response": Finding.TUMOUR,
    "sd-stable disease": Finding.TUMOUR,
    "du-disease unchanged": Finding.TUMOUR,
    "nr-no response": Finding.TUMOUR,
    "mr-minimal/marginal response": Finding.TUMOUR,
    "mx-mixed response": Finding.TUMOUR,
    "te-too early": Finding.SILENT,
}


def _clinical(subject: str, row: Row) -> Iterator[Record]:
    """Read a row of `clinical.tsv`: one diagnosis and one treatment of a case."""
    yield Record(subject, Finding.SILENT)
    tumour = row.choice(TUMOURS, "diagnoses_classification_of_tumor", "classification_of_tumor")
    progressed = row.choice(PROGRESSION, "diagnoses_progression_or_recurrence", "progression_or_recurrence")
    if tumour is Finding.SILENT:
        return
    if progressed:
        yield Record(subject, Finding.RECURRENCE, row.days("diagnoses_days_to_recurrence", "days_to_recurrence"))
    elif progressed is False:
        yield Record(subject, Finding.FREE, row.days("diagnoses_days_to_last_follow_up", "days_to_last_follow_up"))
    if tumour in {Finding.RECURRENCE, Finding.NEW_PRIMARY, Finding.EVENT}:
        found = row.days("diagnoses_days_to_diagnosis", "days_to_diagnosis")
        if tumour is not Finding.EVENT:
            yield Record(subject, tumour, found)
        elif found:
            yield Record(subject, Finding.RECURRENCE, found)
    if row.text("demographic_cause_of_death", "cause_of_death").lower() == "cancer related":
        yield Record(subject, Finding.TUMOUR, row.days("demographic_days_to_death", "days_to_death"))


def _follow_up(subject: str, row: Row) -> Iterator[Record]:
    """Read a row of `follow_up.tsv`: one contact, or one test made at it."""
    contact = row.days("follow_ups_days_to_follow_up", "days_to_follow_up")
    progressed = row.choice(PROGRESSION, "follow_ups_progression_or_recurrence", "progression_or_recurrence")
    response = row.choice(RESPONSES, "follow_ups_disease_response", "disease_response")
    if progressed:
        events = (
            row.days("follow_ups_days_to_recurrence", "days_to_recurrence"),
            row.days("follow_ups_days_to_progression", "days_to_progression"),
        )
        yield Record(subject, Finding.RECURRENCE, min((one for one in events if one is not None), default=contact))
    elif response in {Finding.FREE, Finding.TUMOUR}:
        yield Record(subject, response, contact)
    else:
        yield Record(subject, Finding.SILENT if progressed is None else Finding.FREE, contact)


GDC = Preset(
    name="tcga-cesc-gdc",
    title="TCGA-CESC, GDC portal",
    files="clinical.tsv and follow_up.tsv of the portal's clinical TSV download",
    rules=(
        Rule("subject", "The case's submitter id (TCGA-XX-XXXX), in capitals."),
        Rule("time", "Days since diagnosis, in months of 365.25/12 days."),
        Rule(
            "recurrence recorded",
            "progression_or_recurrence is 'Yes': at days_to_recurrence or days_to_progression, else "
            "at the day of that follow-up.",
        ),
        Rule(
            "further diagnosis",
            "A further diagnosis classified as recurrence or progression is a recurrence, and so is a metastasis that "
            "was found after the first day; a subsequent primary is a new primary tumour.",
        ),
        Rule(
            "free of tumour",
            "disease_response is 'TF-Tumor Free' or a complete response, or progression_or_recurrence is 'No'.",
        ),
        Rule(
            "with tumour",
            "disease_response is 'WT-With Tumor' or any response short of complete, or death is 'Cancer Related'.",
        ),
    ),
    forms=(
        Form(
            "follow_up.tsv",
            SUBJECT,
            (
                "follow_ups_days_to_follow_up days_to_follow_up",
                "follow_ups_progression_or_recurrence progression_or_recurrence",
                "follow_ups_disease_response disease_response",
            ),
            _follow_up,
        ),
        Form("clinical.tsv", SUBJECT, ("demographic_vital_status vital_status",), _clinical),
    ),
)
