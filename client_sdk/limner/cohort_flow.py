"""The flow of a cohort, from a published table to the subjects whose slices were imported, for the report.

The flow of the labels alone is `limner.presets.Labelling.flow`; here the folder of DICOM is added to it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from limner.cohort_import import FolderImport, compared
from limner.errors import InvalidInputError


class Exclusion(BaseModel):
    """Subjects that were left out for one reason; their names are not pseudonyms."""

    reason: str
    subjects: list[str]


class Flow(BaseModel):
    """How a cohort came about; what else stands in the file is kept.

    Attributes
    ----------
    preset
        Whose rules made the labels; empty where they came from elsewhere.
    rules
        Each with its name and a sentence.
    read
        Number of subjects that were looked at.
    excluded
        Who was left out, in the order of the steps.
    labels
        Number of the remaining subjects by label.
    """

    model_config = ConfigDict(extra="allow")

    preset: str = ""
    rules: list[dict[str, str]] = []
    read: int
    excluded: list[Exclusion] = []
    labels: dict[str, int]


def read_flow(path: Path) -> Flow:
    """Read a flow that `limner cohort labels` or `limner cohort import` wrote.

    Raises
    ------
    InvalidInputError
        Where the file is none, naming the first field that is wrong.
    """
    expected = "labels.flow.json as `limner cohort labels` writes it"
    try:
        return Flow.model_validate_json(path.read_bytes())
    except OSError as error:
        found = f"flow {path} cannot be read: {error.strerror}"
    except ValidationError as error:
        first = error.errors()[0]
        found = ": ".join([f"flow {path} is none", ".".join(map(str, first["loc"])), first["msg"]])
    raise InvalidInputError(f"{found}; expected {expected}", field="flow", expected=expected)


def import_flow(planned: FolderImport, labels: Flow | None) -> Flow:
    """Return the flow of an import: who was left out of it, after whom the labels had left out.

    Parameters
    ----------
    planned
        What is imported.
    labels
        The flow of its labels; None where they come from elsewhere: then their subjects are what was read.
    """
    before = labels or Flow(read=0, labels={})
    known = {compared(subject) for group in before.excluded for subject in group.subjects}
    groups: dict[str, list[str]] = {}
    for subject, reason in planned.left_out.items():
        # Whom the rules left out already is not left out again for having no label.
        if compared(subject) not in known:
            groups.setdefault(reason.partition(";")[0], []).append(subject)
    taken = Counter(planned.subjects.values())
    fields: dict[str, Any] = {
        **before.model_dump(),
        "read": taken.total() + sum(map(len, groups.values())) + len(known),
        "excluded": [*before.excluded, *(Exclusion(reason=reason, subjects=names) for reason, names in groups.items())],
        "labels": dict(sorted(taken.items())),
        "slices": len(planned.plan.slices),
    }
    return Flow(**fields)
