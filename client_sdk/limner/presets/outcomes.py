"""From what tables say of a subject to her label: the rules that all presets share, each in one place.

Times are months since the table's origin (TCGA: the day of diagnosis). They are rounded to one decimal before they are
compared, as they are written.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from limner.errors import InvalidInputError

RECURRENT = "recurrent"
NON_RECURRENT = "non-recurrent"
# After primary treatment of cervical cancer the median time to recurrence is 7 to 36 months, and visits are densest in
# the first two years (Elit et al., Gynecol Oncol 2009, 114(3), 528-535, doi:10.1016/j.ygyno.2009.06.001).
MIN_FOLLOW_UP_MONTHS = 24.0


@dataclass(frozen=True)
class Rule:
    """One rule, stated once: a name, and a sentence that a report can print."""

    name: str
    sentence: str


class Finding(Enum):
    """What a row says of a subject."""

    RECURRENCE = "the tumour came back, or grew on"
    EVENT = "a new tumour event of unknown kind"
    NEW_PRIMARY = "a new primary tumour"
    TUMOUR = "a tumour is there; nothing is said of its coming back"
    FREE = "no recurrence, or free of tumour"
    SILENT = "nothing"


@dataclass(frozen=True)
class Record:
    """What a row says of a subject, and of when: the time of the event or of the contact, None where it is not told."""

    subject: str
    finding: Finding
    months: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything that was read: the names of the tables, their rows, the records, and cells in no vocabulary."""

    tables: tuple[str, ...]
    rows: int
    records: tuple[Record, ...]
    unread: Counter[tuple[str, str]]


class Reason(StrEnum):
    """Why a subject has no label."""

    NOT_ASKED = "not asked for"
    UNKNOWN = "recurrence unknown"
    NEW_PRIMARY = "new primary tumour only"
    TUMOUR = "tumour at last contact, no recurrence recorded"
    CENSORED = "censored early"
    NO_FOLLOW_UP = "length of follow-up unknown"
    UNTIMED = "time of recurrence unknown"
    LATE = "recurrence after the months that count, follow-up too short"


@dataclass(frozen=True)
class LabelRules:
    """Which recurrences count, and how long a subject without one must have been followed.

    Attributes
    ----------
    within_months
        A recurrence counts up to this time; None: at any time.
    min_follow_up_months
        A subject without recurrence counts from this length of follow-up on; at least `within_months`. 0 believes every
        table that says 'no recurrence'. None: 24, or `within_months` where that is more.
    """

    within_months: float | None = None
    min_follow_up_months: float | None = None

    def __post_init__(self) -> None:
        if self.within_months is not None and not self.within_months > 0:
            raise _bad_option("within_months", self.within_months, "a number of months over 0")
        least = self.within_months or 0.0
        if self.min_follow_up_months is not None and not self.min_follow_up_months >= least:
            expected = f"at least {least:g}" + (", the months within which a recurrence counts" if least else "")
            raise _bad_option("min_follow_up_months", self.min_follow_up_months, expected)

    @property
    def follow_up(self) -> float:
        """The least follow-up of a subject without recurrence, in months."""
        if self.min_follow_up_months is not None:
            return self.min_follow_up_months
        return max(MIN_FOLLOW_UP_MONTHS, self.within_months or 0.0)

    def sentences(self) -> tuple[Rule, ...]:
        """Return the shared rules with their numbers."""
        counted = "at any time" if self.within_months is None else f"within {self.within_months:g} months"
        rules = [
            Rule(
                "several rows",
                "A recurrence that one row reports stands, whatever others say, at the earliest time that any tells.",
            ),
            Rule(
                "last contact",
                "Of the other rows the latest that says whether there is tumour decides; one without a date is the "
                "earliest, and of two at one time the one with tumour holds.",
            ),
            Rule(RECURRENT, f"A recurrence {counted}."),
            Rule(
                NON_RECURRENT,
                f"No recurrence, and free of tumour at a contact after {self.follow_up:g} months or more.",
            ),
            Rule(Reason.UNKNOWN, "Excluded: no row says whether the tumour came back."),
            Rule(Reason.NEW_PRIMARY, "Excluded: the only new tumour is a new primary, which is no recurrence."),
            Rule(Reason.TUMOUR, "Excluded: a tumour at the last contact, and no row says that it came back."),
            Rule(Reason.CENSORED, f"Excluded: no recurrence, but followed for less than {self.follow_up:g} months."),
        ]
        if self.follow_up:
            rules.append(Rule(Reason.NO_FOLLOW_UP, "Excluded: no recurrence, but nobody says for how long."))
        if self.within_months is not None:
            late = f"Excluded: a recurrence after {self.within_months:g} and before {self.follow_up:g} months."
            if self.follow_up > self.within_months:
                rules.append(Rule(Reason.LATE, late))
            rules.append(Rule(Reason.UNTIMED, f"Excluded: a recurrence, but none says whether {counted}."))
            rules.append(
                Rule("later recurrence", "A recurrence after the months that count is a follow-up without one.")
            )
        return tuple(rules)


@dataclass(frozen=True)
class Labelled:
    """A subject's label; `months` to the recurrence or of follow-up without one, None where not told."""

    subject: str
    label: str
    months: float | None


@dataclass(frozen=True)
class Excluded:
    """A subject without label, and why; `months` as for `Labelled`."""

    subject: str
    reason: Reason
    months: float | None


@dataclass(frozen=True)
class Labelling:
    """The labels of all subjects of some tables, and how they came about.

    Attributes
    ----------
    preset
        Its name.
    rules
        Those of the preset, then the shared ones.
    options
        What the shared rules were asked for.
    evidence
        What was read.
    labelled, excluded
        Every subject is in one of the two, in the order of names.
    """

    preset: str
    rules: tuple[Rule, ...]
    options: LabelRules
    evidence: Evidence
    labelled: tuple[Labelled, ...]
    excluded: tuple[Excluded, ...]

    @property
    def labels(self) -> dict[str, str]:
        """The label of each subject that has one."""
        return {one.subject: one.label for one in self.labelled}

    @property
    def counts(self) -> dict[str, int]:
        """Number of subjects of each label, 0 too."""
        counts = Counter(one.label for one in self.labelled)
        return {label: counts[label] for label in (NON_RECURRENT, RECURRENT)}

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The excluded subjects of each reason that occurs, in the order of `Reason`."""
        found = {reason: [one.subject for one in self.excluded if one.reason is reason] for reason in Reason}
        return {str(reason): subjects for reason, subjects in found.items() if subjects}

    def flow(self) -> dict[str, Any]:
        """Return the flow as it is written to `labels.flow.json`. Names of subjects in it are not pseudonyms."""
        return {
            "preset": self.preset,
            "tables": list(self.evidence.tables),
            "rows": self.evidence.rows,
            "within_months": self.options.within_months,
            "min_follow_up_months": self.options.follow_up,
            "rules": [{"name": rule.name, "sentence": rule.sentence} for rule in self.rules],
            "read": len(self.labelled) + len(self.excluded),
            "excluded": [{"reason": reason, "subjects": subjects} for reason, subjects in self.reasons.items()],
            "labels": self.counts,
            "not_understood": [
                {"column": column, "value": value, "rows": rows}
                for (column, value), rows in sorted(self.evidence.unread.items())
            ],
        }


def settle(
    preset: str,
    rules: Sequence[Rule],
    evidence: Evidence,
    options: LabelRules,
    only: frozenset[str] | None = None,
) -> Labelling:
    """Label or exclude each subject by what all rows say of her; with `only`, exclude everybody else first.

    Raises
    ------
    InvalidInputError
        Where a subject of `only` is in no table.
    """
    records: dict[str, list[Record]] = {}
    for record in evidence.records:
        records.setdefault(record.subject, []).append(record)
    asked: tuple[Rule, ...] = ()
    if only is not None:
        if missing := sorted(only - records.keys()):
            expected = "subjects of the tables"
            found = f"{len(missing)} of {len(only)} subjects asked for are in no table: {', '.join(missing)}"
            raise InvalidInputError(f"{found}; expected {expected}", field="only", expected=expected)
        asked = (Rule(Reason.NOT_ASKED, f"Excluded: not among the {len(only)} subjects asked for."),)
    decided = [
        Excluded(subject, Reason.NOT_ASKED, None)
        if only is not None and subject not in only
        else _decide(subject, records[subject], options)
        for subject in sorted(records)
    ]
    return Labelling(
        preset=preset,
        rules=(*rules, *asked, *options.sentences()),
        options=options,
        evidence=evidence,
        labelled=tuple(one for one in decided if isinstance(one, Labelled)),
        excluded=tuple(one for one in decided if isinstance(one, Excluded)),
    )


def _decide(subject: str, records: Sequence[Record], options: LabelRules) -> Labelled | Excluded:
    by_finding = {finding: [one for one in records if one.finding is finding] for finding in Finding}
    # Where there is a new primary, a row that says no more than 'new tumour event' may mean that.
    untyped = [] if by_finding[Finding.NEW_PRIMARY] else by_finding[Finding.EVENT]
    events = [*by_finding[Finding.RECURRENCE], *untyped]
    if events:
        return _recurred(subject, min((one.months for one in events if one.months is not None), default=None), options)
    if by_finding[Finding.NEW_PRIMARY]:
        return Excluded(subject, Reason.NEW_PRIMARY, None)
    return _contact(subject, by_finding, options)


def _recurred(subject: str, months: float | None, options: LabelRules) -> Labelled | Excluded:
    if options.within_months is None or (months is not None and months <= options.within_months):
        return Labelled(subject, RECURRENT, months)
    if months is None:
        return Excluded(subject, Reason.UNTIMED, None)
    if months >= options.follow_up:
        return Labelled(subject, NON_RECURRENT, months)
    return Excluded(subject, Reason.LATE, months)


def _contact(subject: str, by_finding: Mapping[Finding, Sequence[Record]], options: LabelRules) -> Labelled | Excluded:
    def last(finding: Finding) -> float:
        return max((-1.0 if one.months is None else one.months for one in by_finding[finding]), default=-2.0)

    free, tumour = last(Finding.FREE), last(Finding.TUMOUR)
    if free == tumour == -2.0:
        return Excluded(subject, Reason.UNKNOWN, None)
    months = max(free, tumour) if max(free, tumour) >= 0 else None
    if tumour >= free:
        return Excluded(subject, Reason.TUMOUR, months)
    if options.follow_up == 0 or (months is not None and months >= options.follow_up):
        return Labelled(subject, NON_RECURRENT, months)
    return Excluded(subject, Reason.NO_FOLLOW_UP if months is None else Reason.CENSORED, months)


def _bad_option(field: str, value: float, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{field} is {value:g}; expected {expected}", field=field, expected=expected)
