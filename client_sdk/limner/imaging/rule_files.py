"""Selection rules from a YAML file, and the file of the defaults.

An error names the file, the key, the value and what was expected; what is not understood is refused, not skipped.
"""

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, ScalarNode

from limner.imaging.errors import ImageError
from limner.imaging.rules import SelectionRules

EXPECTED = "selection rules as `limner select --defaults` prints them"

# What is expected, by pydantic's type of the error, where its own words are those of Python.
_WORDS = {
    **dict.fromkeys(("dict_type", "model_type"), "keys with their values"),
    **dict.fromkeys(("tuple_type", "frozen_set_type"), "a list, such as [MR]"),
    **dict.fromkeys(("string_type", "invalid_key"), "text, in quotes where YAML sees something else in it"),
    "too_short": "at least one item",
    "string_too_short": "text that is not empty",
    "float_type": "a number",
}


class _Loader(yaml.SafeLoader):
    """Plain data only, and no key twice: YAML's own loader would take the last in silence."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        # A key that is no scalar, the loader itself refuses.
        for key in (key for key, _ in node.value if isinstance(key, ScalarNode)):
            if key.value in seen:
                raise ConstructorError(problem=f"key {key.value!r} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_rules(path: Path) -> SelectionRules:
    """Read selection rules from a file.

    Raises
    ------
    ImageError
        Where it cannot be read or is no such file, naming the first thing that is wrong.
    """
    try:
        return parse_rules(path.read_bytes(), str(path))
    except OSError as error:
        raise ImageError(f"rules {path}", f"unreadable: {error.strerror}", EXPECTED) from error


@cache
def default_rules() -> SelectionRules:
    """Return the rules for T2-weighted MR of the pelvis."""
    return parse_rules(default_rules_text(), "t2w_pelvis.yaml")


def default_rules_text() -> str:
    """Return the file of the default rules, to start from."""
    return files("limner.imaging").joinpath("t2w_pelvis.yaml").read_text(encoding="utf-8")


def parse_rules(text: str | bytes, name: str) -> SelectionRules:
    """Read selection rules from the content of a file called `name`.

    Raises
    ------
    ImageError
        As `read_rules`.
    """
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ImageError(f"rules {name}{place}", f"no YAML: {error.problem}", EXPECTED) from error
    # A scalar that looks like a date but is none raises ValueError, deep nesting RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ImageError(f"rules {name}", f"no YAML: {error}", EXPECTED) from error
    try:
        return SelectionRules.model_validate(content)
    except ValidationError as error:
        raise _first(error, name) from error


def _first(error: ValidationError, name: str) -> ImageError:
    """Tell the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    expected = _WORDS.get(first["type"]) or first["msg"].removeprefix("Input should be ")
    if first["type"] == "extra_forbidden":
        expected = "one of the keys " + ", ".join(_keys(first["loc"][:-1]))
    return ImageError(f"rules {name}" + (f": {key}" if key else ""), repr(first["input"]), expected)


def _keys(place: tuple[int | str, ...]) -> Iterable[str]:
    """Return the keys that there are at a place of the file."""
    model: type[BaseModel] = SelectionRules
    for key in place:
        model = get_args(model.model_fields[str(key)].annotation)[0]  # of Range | None
    return model.model_fields
