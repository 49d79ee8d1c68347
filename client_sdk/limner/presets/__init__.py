"""Recurrence labels from clinical tables as they are published: one preset for each place to download them from.

    labelling = label_tables("tcga-cesc-gdc", [Path("clinical.tsv"), Path("follow_up.tsv")])
    write_labels(labelling, Path("labels.csv"))

1. `tables.py` reads a table, whichever separator, comments and second headers it comes with.
2. A preset (`gdc.py`, `biotab.py`, `cbioportal.py`, `tcia.py`) turns each row into records: of whom, what, when.
3. `outcomes.py` settles the records of each subject by rules that hold for all presets, and labels or excludes her.
4. `files.py` writes the labels, the exclusions and the flow.

A new preset is a `Preset`: its rules in sentences, and a function from a row to records for each kind of table.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from limner.errors import InvalidInputError
from limner.presets.biotab import BIOTAB
from limner.presets.cbioportal import CBIOPORTAL
from limner.presets.files import write_labels
from limner.presets.gdc import GDC
from limner.presets.outcomes import Labelling, LabelRules, settle
from limner.presets.preset import Preset, read_records, subject_of
from limner.presets.tcia import CC_TUMOR_HETEROGENEITY

__all__ = ["PRESETS", "LabelRules", "Labelling", "Preset", "find_preset", "label_tables", "write_labels"]

PRESETS: tuple[Preset, ...] = (GDC, BIOTAB, CBIOPORTAL, CC_TUMOR_HETEROGENEITY)


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises
    ------
    InvalidInputError
        Where there is none.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    expected = "one of " + ", ".join(preset.name for preset in PRESETS)
    raise InvalidInputError(f"preset is {name!r}; expected {expected}", field="preset", expected=expected)


def label_tables(
    preset: str, tables: Sequence[Path], rules: LabelRules | None = None, only: Iterable[str] | None = None
) -> Labelling:
    """Label the subjects of published tables.

    Parameters
    ----------
    preset
        Name of one of `PRESETS`.
    tables
        The tables of one download; a subject may be in several.
    rules
        Until when a recurrence counts, and how long a subject without one must have been followed.
    only
        The subjects to label; the others are excluded. Default: all.

    Raises
    ------
    InvalidInputError
        Naming the table, the line and what was expected there, where a table cannot be read or is none of the preset's;
        or the subjects of `only` that are in no table.
    """
    chosen = find_preset(preset)
    asked = None if only is None else frozenset(map(subject_of, only))
    return settle(chosen.name, chosen.rules, read_records(chosen, tables), rules or LabelRules(), asked)
