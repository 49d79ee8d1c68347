"""Names that callers give to things that become files: one rule for all of them."""

import re

from limner.names import NAME
from limner_server.errors import InvalidInputError


def check_name(field: str, value: str, longest: int = 64) -> str:
    """Return `value` where it may name a file: no separators, no leading dot, at most `longest` characters.

    Raises
    ------
    InvalidInputError
        Naming `field` and the rule.
    """
    if len(value) > longest or not re.fullmatch(NAME, value):
        raise InvalidInputError(
            field, value, f"1 to {longest} letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return value
