"""The access file: how tokens are checked, who has which roles, and how much each may ask. YAML, read by pydantic.

deploy/access.example.yaml is one, with comments.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from limner.hosts import is_loopback

RoleName = Literal["read", "score", "train", "admin"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_PRINCIPAL = re.compile(r"(token|certificate):\S.*")


class AccessFileError(ValueError):
    """The access file is wrong; the message names file, line and field of everything that is."""


def _check_principal(name: str) -> str:
    if not _PRINCIPAL.fullmatch(name):
        raise PydanticCustomError("principal", "Input should be 'token:SUBJECT' or 'certificate:COMMON NAME or URI'")
    return name


def _check_jwks(source: str) -> str:
    url = urlsplit(source)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise PydanticCustomError("jwks", "Input should be a file or an https URL; http only on the loopback address")
    if url.scheme not in ("http", "https", "") or (url.scheme and not url.hostname):
        raise PydanticCustomError("jwks", "Input should be a file or an https URL")
    return source


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Section):
    """How much one principal may ask; what is left out has no limit. Each serving process counts for itself."""

    calls_per_s: Positive | None = None
    images_per_s: Positive | None = None
    message_mb: Positive | None = None
    """Largest message, in MiB; --max-message-mb holds for all."""


class Tokens(_Section):
    """How bearer tokens (JWT) are checked."""

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    jwks: Annotated[str, Field(min_length=1), AfterValidator(_check_jwks)]
    """The issuer's keys: a file, relative to the access file's folder, or a URL."""
    roles_claim: Annotated[str, Field(min_length=1)] = "roles"
    """Dots lead into objects: realm_access.roles."""
    leeway_s: Annotated[float, Field(ge=0, le=120)] = 10.0
    """Between the clocks of issuer and server."""


class Entry(_Section):
    """One principal."""

    roles: frozenset[RoleName] | None = None
    """In place of what its token says; None: what that says."""
    limits: Limits | None = None
    """In place of the file's; None: those."""


class AccessFile(_Section):
    """All of it."""

    tokens: Tokens | None = None
    limits: Limits = Limits()
    principals: dict[Annotated[str, AfterValidator(_check_principal)], Entry] = {}


def load_access_file(path: Path) -> AccessFile:
    """Read an access file.

    Raises
    ------
    AccessFileError
        It cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise AccessFileError(f"{path}: {reason}") from error
    problems = [f"line {node.start_mark.line + 1}: {node.value!r} is there twice" for node in _twice(tree)]
    if not problems:
        try:
            return AccessFile.model_validate(yaml.safe_load(text) or {})
        except ValidationError as error:
            problems = [_told(tree, problem["loc"], problem["msg"]) for problem in error.errors()]
    raise AccessFileError("; ".join(f"{path}, {problem}" for problem in problems))


def _told(tree: Node | None, place: Sequence[str | int], message: str) -> str:
    names = [str(part) for part in place if part != "[key]"]
    return f"line {_line(tree, place)}: {'.'.join(names) or 'the file'}: {message}"


def _line(node: Node | None, place: Sequence[str | int]) -> int:
    """Line of the innermost thing on the way to a place that is there."""
    line = 1
    for part in place:
        if isinstance(node, MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _twice(node: Node | None) -> Iterator[ScalarNode]:
    """Keys that stand twice in one mapping, of which YAML would silently take the last."""
    if isinstance(node, MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _twice(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _twice(item)
