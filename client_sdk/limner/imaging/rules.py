"""The rules that a series has to pass, as data: what may be asked of it, and what each rule makes of a value.

Reading them from a file is `rule_files.py`'s, applying them to a series `selection.py`'s.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, Strict, model_validator
from pydantic_core import PydanticCustomError

from limner.imaging.series import Plane


def _checked_pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        message = "a regular expression of Python; this is none: {reason}"
        raise PydanticCustomError("pattern", message, {"reason": str(error)}) from None
    return text


Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[Text, AfterValidator(_checked_pattern)]
Number = Annotated[FiniteFloat, Strict()]


class _Rule(BaseModel):
    """A part of the file: frozen, without keys that nobody reads, and with at least one that somebody does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not any(value is not None for _, value in self):
            keys = ", ".join(type(self).model_fields)
            raise PydanticCustomError("empty", "at least one of {keys}", {"keys": keys})
        return self


class Range(_Rule):
    """Least and greatest value, each included; None: no limit."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise PydanticCustomError("order", "min not over max")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value lies within."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def expected(self, unit: str) -> str:
        """Say what is asked for: "at least 60 ms", "60 to 90 ms"."""
        if self.max is None:
            return f"at least {self.min:g}{unit}"
        return f"at most {self.max:g}{unit}" if self.min is None else f"{self.min:g} to {self.max:g}{unit}"


class Words(_Rule):
    """Words of which all have to be there, and words of which none may."""

    take: tuple[Text, ...] | None = Field(None, min_length=1)
    leave: tuple[Text, ...] | None = Field(None, min_length=1)

    def holds(self, words: Collection[str]) -> bool:
        """Whether words are as asked for."""
        return set(self.take or ()) <= set(words) and not set(self.leave or ()) & set(words)

    def expected(self) -> str:
        """Say what is asked for: "ORIGINAL and PRIMARY, no ADC or DIFFUSION"."""
        return _expected(" and ".join(self.take or ()), self.leave or ())


class Patterns(_Rule):
    """Regular expressions by name: of `take` one has to be found in a text, of `leave` none may."""

    take: dict[Text, Pattern] | None = Field(None, min_length=1)
    leave: dict[Text, Pattern] | None = Field(None, min_length=1)

    def holds(self, text: str) -> bool:
        """Whether a text is as asked for."""
        taken = self.take is None or any(_found(self.take, text))
        return taken and not any(_found(self.leave or {}, text))

    def found(self, text: str) -> str:
        """Say what a text is: "'t2 localizer' (localizer)"."""
        names = [*_found(self.take or {}, text), *_found(self.leave or {}, text)]
        return f"{text!r} ({', '.join(names)})" if names else repr(text)

    def expected(self) -> str:
        """Say what is asked for: "t2, no localizer or diffusion"."""
        return _expected(" or ".join(self.take or ()), self.leave or ())


def _found(patterns: dict[str, str], text: str) -> Iterator[str]:
    return (name for name, pattern in patterns.items() if re.search(pattern, text, re.IGNORECASE))


def _expected(take: str, leave: Iterable[str]) -> str:
    refused = " or ".join(leave)
    return ", ".join(filter(None, (take, refused and f"no {refused}")))


class SelectionRules(_Rule):
    """What a series has to be to be taken; a rule that is None is not asked, and one has to be there.

    `default_rules` returns those for T2-weighted MR of the pelvis; `t2w_pelvis.yaml`, from which they come, tells what
    each rule looks at. To change one: ``default_rules().model_copy(update={"slices": Range(min=3)})``.
    """

    modality: tuple[Text, ...] | None = Field(None, min_length=1)
    description: Patterns | None = None
    image_type: Words | None = None
    scanning_sequence: Words | None = None
    echo_time_ms: Range | None = None
    repetition_time_ms: Range | None = None
    slices: Range | None = None
    pixel_spacing_mm: Range | None = None
    slice_thickness_mm: Range | None = None
    planes: frozenset[Plane] | None = Field(None, min_length=1)
