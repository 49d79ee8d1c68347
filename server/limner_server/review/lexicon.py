"""What readers are asked about an image beside the likelihood: features, and what may be said of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from limner_server.errors import InvalidInputError

MAX_ENTRIES, MIN_OPTIONS, MAX_OPTIONS, LONGEST = 24, 2, 12, 64


class LexiconEntry(NamedTuple):
    """A feature and its options, in the order of showing."""

    name: str
    options: tuple[str, ...]


PRESENCE = ("absent", "possible", "present")

DEFAULT_LEXICON = (
    LexiconEntry("size", ("no lesion", "≤ 2 cm", "> 2 to 4 cm", "> 4 cm")),
    LexiconEntry("margin", ("well defined", "ill defined")),
    LexiconEntry("parametrial extension", PRESENCE),
    LexiconEntry("signal", ("low", "intermediate", "high", "mixed")),
    LexiconEntry("necrosis", PRESENCE),
    LexiconEntry("vaginal involvement", PRESENCE),
    LexiconEntry("nodal involvement", PRESENCE),
)
"""What is reported of cervical cancer on T2-weighted MRI, by the size steps of FIGO 2018 (doi:10.1002/ijgo.12749)."""


def check_lexicon(entries: Sequence[LexiconEntry]) -> tuple[LexiconEntry, ...]:
    """Return the lexicon, the default where there is none.

    Raises
    ------
    InvalidInputError
        A name or an option is empty, too long or there twice, or there are too many.
    """
    if len(entries) > MAX_ENTRIES:
        raise InvalidInputError("lexicon", f"{len(entries)} features", f"at most {MAX_ENTRIES}")
    _check_unique("lexicon.name", [entry.name for entry in entries])
    for entry in entries:
        if not MIN_OPTIONS <= len(entry.options) <= MAX_OPTIONS:
            found = f"{len(entry.options)} of {entry.name!r}"
            raise InvalidInputError("lexicon.options", found, f"{MIN_OPTIONS} to {MAX_OPTIONS} for each feature")
        _check_unique("lexicon.options", entry.options)
    return tuple(entries) or DEFAULT_LEXICON


def check_features(features: Mapping[str, str], lexicon: Sequence[LexiconEntry]) -> None:
    """Refuse a feature or an option that the lexicon does not have."""
    options = {entry.name: entry.options for entry in lexicon}
    for name, option in features.items():
        if name not in options:
            raise InvalidInputError("verdict.features", name, f"features of the lexicon: {', '.join(options)}")
        if option not in options[name]:
            raise InvalidInputError(f"verdict.features[{name}]", option, f"one of {', '.join(options[name])}")


def _check_unique(field: str, texts: Sequence[str]) -> None:
    for text, count in Counter(texts).items():
        if not 1 <= len(text.strip()) <= LONGEST:
            raise InvalidInputError(field, text, f"1 to {LONGEST} characters")
        if count > 1:
            raise InvalidInputError(field, text, "each of them once")
