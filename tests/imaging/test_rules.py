"""Rule files: what is written is what is read, and what is wrong is named with file, key, value and expectation."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limner.imaging import ImageError, Range, SelectionRules, default_rules, read_rules
from limner.imaging.rule_files import default_rules_text, parse_rules
from limner.imaging.series import PLANES


def test_the_defaults_are_the_file_that_is_shipped_and_printed(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(default_rules_text(), encoding="utf-8")
    assert read_rules(path) == default_rules()
    assert default_rules().echo_time_ms == Range(min=60)


def test_rules_are_frozen_and_hold_something() -> None:
    with pytest.raises(ValidationError):
        default_rules().slices = None  # type: ignore[misc]
    with pytest.raises(ValidationError):
        SelectionRules()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules r.yaml is None; expected keys with their values"),
        ("[]", "rules r.yaml is []; expected keys with their values"),
        ("{}", "rules r.yaml is {}; expected at least one of modality, description,"),
        (
            "echo_time: {min: 60}",
            "rules r.yaml: echo_time is {'min': 60}; expected one of the keys modality,",
        ),
        ("slices: {min: 5, least: 3}", "rules r.yaml: slices.least is 3; expected one of the keys min, max"),
        (
            "description: {drop: {}}",
            "rules r.yaml: description.drop is {}; expected one of the keys take, leave",
        ),
        ("echo_time_ms: 60", "rules r.yaml: echo_time_ms is 60; expected keys with their values"),
        ("echo_time_ms: {}", "rules r.yaml: echo_time_ms is {}; expected at least one of min, max"),
        ("echo_time_ms: {min: sixty}", "rules r.yaml: echo_time_ms.min is 'sixty'; expected a number"),
        ("echo_time_ms: {min: yes}", "rules r.yaml: echo_time_ms.min is True; expected a number"),
        ("echo_time_ms: {min: .nan}", "rules r.yaml: echo_time_ms.min is nan; expected a finite number"),
        (
            "echo_time_ms: {min: 9, max: 2}",
            "rules r.yaml: echo_time_ms is {'min': 9, 'max': 2}; expected min not over",
        ),
        ("modality: MR", "rules r.yaml: modality is 'MR'; expected a list, such as [MR]"),
        ("modality: []", "rules r.yaml: modality is []; expected at least one item"),
        ("modality: [no]", "rules r.yaml: modality.0 is False; expected text, in quotes"),
        ("modality: ['']", "rules r.yaml: modality.0 is ''; expected text that is not empty"),
        ("planes: [axial]", "rules r.yaml: planes.0 is 'axial'; expected 'transverse', 'sagittal',"),
        ("description: {leave: {a: '('}}", "rules r.yaml: description.leave.a is '('; expected a regular expression"),
        ("slices: {min: 5}\nslices: {min: 6}", "rules r.yaml, line 2 is no YAML: key 'slices' twice"),
        ("a: [", "rules r.yaml, line 1 is no YAML"),
        ("? [1]\n: 2", "rules r.yaml, line 1 is no YAML: found unhashable key"),
        ("1: 2", "rules r.yaml: 1 is 1; expected text"),
        ("2020-99-99", "rules r.yaml is no YAML: month must be in 1..12"),
        ("[" * 5000, "rules r.yaml is no YAML: maximum recursion depth exceeded"),
        ("!!python/object/apply:os.getcwd []", "rules r.yaml, line 1 is no YAML"),
        (b"\xff\xfe\x00", "rules r.yaml is no YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str | bytes, message: str) -> None:
    with pytest.raises(ImageError) as error:
        parse_rules(text, "r.yaml")
    assert str(error.value).startswith(message)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.yaml is unreadable: No such file"):
        read_rules(tmp_path / "none.yaml")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
RANGES = st.one_of(
    NUMBERS.map(lambda value: {"min": value}),
    NUMBERS.map(lambda value: {"max": value}),
    st.tuples(NUMBERS, NUMBERS).map(lambda pair: {"min": min(pair), "max": max(pair)}),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=10)
WORDS = st.lists(TEXTS, min_size=1, max_size=3)
PATTERNS = st.dictionaries(TEXTS, st.sampled_from(["t2", "sag|cor", r"b_?value", r"(^|[^a-z])adc"]), min_size=1)
TAKE_OR_LEAVE = {"take", "leave"}


def part(values: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.sampled_from(sorted(TAKE_OR_LEAVE)), values, min_size=1)


RULES: dict[str, st.SearchStrategy[object]] = {
    "modality": WORDS,
    "description": part(PATTERNS),
    "image_type": part(WORDS),
    "scanning_sequence": part(WORDS),
    "planes": st.lists(st.sampled_from(PLANES), min_size=1),
    **dict.fromkeys(("echo_time_ms", "repetition_time_ms", "slices", "pixel_spacing_mm", "slice_thickness_mm"), RANGES),
}


@given(st.fixed_dictionaries({}, optional=RULES).filter(bool))
def test_what_is_written_is_what_is_read(rules: dict[str, object]) -> None:
    assert set(RULES) == set(SelectionRules.model_fields)
    read = parse_rules(yaml.safe_dump(rules), "r.yaml")
    again = read.model_dump(exclude_none=True, mode="json")
    assert {key: sorted(set(value)) if key == "planes" else value for key, value in again.items()} == {
        key: sorted(set(value)) if key == "planes" else value  # type: ignore[call-overload]
        for key, value in rules.items()
    }


def outcome(content: str | bytes) -> SelectionRules | ImageError:
    try:
        return parse_rules(content, "r.yaml")
    except ImageError as error:
        return error


@given(st.text() | st.binary())
def test_whatever_a_file_holds_is_read_or_refused_with_its_name(content: str | bytes) -> None:
    found = outcome(content)
    assert isinstance(found, SelectionRules) or found.field.startswith("rules r.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(SelectionRules.model_fields)) | st.text(max_size=5)


@given(st.dictionaries(KEYS, VALUES, min_size=1))
def test_whatever_yaml_says_is_taken_whole_or_refused(content: dict[str, object]) -> None:
    found = outcome(yaml.safe_dump(content))
    if isinstance(found, ImageError):
        assert found.field.startswith("rules r.yaml")
        assert found.expected
    else:
        asked = {key for key, value in content.items() if value is not None}
        assert asked == found.model_dump(exclude_none=True).keys()
