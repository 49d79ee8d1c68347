"""Choosing among the series of a folder, with the verdict of each rule on each series.

The rules are data (`rules.py`), what they are asked about is what the headers said (`series.py`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from limner.imaging.rules import Range, SelectionRules
from limner.imaging.series import PLANES, Series


@dataclass(frozen=True)
class Verdict:
    """What one rule makes of a series: "echo time is 12 ms; expected at least 60 ms".

    Attributes
    ----------
    known
        Whether the header says anything of it at all.
    """

    rule: str
    passed: bool
    found: str
    expected: str
    known: bool = True

    def __str__(self) -> str:
        return f"{self.rule} is {self.found}; expected {self.expected}"


@dataclass(frozen=True)
class Decision:
    """Whether a series is taken, and why: the verdict of every rule."""

    series: Series
    verdicts: tuple[Verdict, ...]

    @property
    def accepted(self) -> bool:
        """Whether it passes every rule."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against it, a sentence for each rule that it does not pass."""
        return tuple(str(verdict) for verdict in self.verdicts if not verdict.passed)

    @property
    def known_reasons(self) -> tuple[str, ...]:
        """What speaks against it whatever else there is to learn: a PACS tells less of a series than its headers."""
        return tuple(str(verdict) for verdict in self.verdicts if verdict.known and not verdict.passed)


def select(series: Iterable[Series], rules: SelectionRules | None = None) -> list[Decision]:
    """Judge each series by every rule, in the order given; by default by `default_rules`."""
    if rules is None:
        # Imported here: who brings rules of their own, or none, needs no YAML.
        from limner.imaging.rule_files import default_rules

        rules = default_rules()
    return [Decision(one, tuple(_verdicts(one, rules))) for one in series]


def _verdicts(series: Series, rules: SelectionRules) -> Iterator[Verdict]:
    if rules.modality:
        passed = series.modality in rules.modality
        found = series.modality
        yield Verdict("modality", passed, found or "missing", " or ".join(rules.modality), known=bool(found))
    if description := rules.description:
        text = series.description
        passed, found = description.holds(text), description.found(text)
        yield Verdict("description", passed, found, description.expected(), known=bool(text))
    for name, rule, words in (
        ("image type", rules.image_type, series.image_type),
        ("scanning sequence", rules.scanning_sequence, series.sequence),
    ):
        if rule:
            found = "\\".join(words)
            yield Verdict(name, rule.holds(words), found or "missing", rule.expected(), known=bool(found))
    yield from _within("echo time", series.echo_time_ms, rules.echo_time_ms, " ms")
    yield from _within("repetition time", series.repetition_time_ms, rules.repetition_time_ms, " ms")
    yield from _within("number of slices", len(series.slices) or None, rules.slices, "")
    yield from _within("pixel spacing", series.pixel_spacing_mm, rules.pixel_spacing_mm, " mm")
    yield from _within("slice thickness", series.slice_thickness_mm, rules.slice_thickness_mm, " mm")
    if planes := rules.planes:
        expected = " or ".join(plane for plane in PLANES if plane in planes)
        yield Verdict("plane", series.plane in planes, series.plane, expected, known=series.plane != "unknown")


def _within(name: str, found: float | tuple[float, ...] | None, rule: Range | None, unit: str) -> Iterator[Verdict]:
    if rule is None:
        return
    values = () if found is None else found if isinstance(found, tuple) else (found,)
    passed = bool(values) and all(rule.holds(value) for value in values)
    # Both pixel spacings are told only where they differ.
    told = " x ".join(dict.fromkeys(f"{value:g}" for value in values)) + unit if values else "missing"
    yield Verdict(name, passed, told, rule.expected(unit), known=bool(values))
