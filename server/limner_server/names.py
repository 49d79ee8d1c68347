"""Names that callers give to things that become files: one rule for all of them."""

import re

from limner_server.errors import InvalidInputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(field: str, value: str, longest: int = 64) -> str:
    """Return `value` where it may name a file: no separators, no leading dot, at most `longest` characters.

    Raises
    ------
    InvalidInputError
        Naming `field` and the rule.
    """
    if len(value) > longest or not _NAME.fullmatch(value):
        raise InvalidInputError(
            field, value, f"1 to {longest} letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return value
