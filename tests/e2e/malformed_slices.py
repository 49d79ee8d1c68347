"""Malformed messages of ImportCohort, the same for the same number: a good slice with one to three things wrong."""

import random
from collections.abc import Callable

import numpy as np

from limner.v1 import cohort_pb2, common_pb2

Change = Callable[[random.Random, cohort_pb2.CohortSlice], None]

LABELS = ("no", "yes")
_NAMES = ("", "../../x", "x" * 500, "\0", "a\nb", "Müller", "💥", " ", "/", "con")
_EDGES = (0, 1, 2, 7, 9, 8192, 8193, 65_535, 2**31, 2**32 - 1)
_SPACINGS = (0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan"), 100.0, 101.0)


def malformed_slice(number: int) -> cohort_pb2.CohortSlice:
    """Return the message of a number; its instance id is `slice-NUMBER`, unless that is what is wrong."""
    chance = random.Random(number)  # noqa: S311 - no secret
    values = np.random.default_rng(number).integers(0, 1000, (40, 40), np.uint16)
    message = cohort_pb2.CohortSlice(
        instance=f"slice-{number}",
        subject=f"subject-{number % 50}",
        label=LABELS[number % 50 % 2],
        pixels=common_pb2.Pixels(data=values.tobytes(), data_type=common_pb2.DATA_TYPE_UINT16, rows=40, columns=40),
    )
    message.pixels.geometry.row_spacing_mm = message.pixels.geometry.column_spacing_mm = 1
    for change in chance.sample(_CHANGES, chance.choice((1, 1, 2, 3))):
        change(chance, message)
    return message


def _rename(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    field, name = chance.choice(("instance", "subject", "series", "label")), chance.choice(_NAMES)
    # The one name that a server takes: as the id of two messages it is a conflict, which says nothing of either.
    setattr(message, field, f"{name}-{message.instance}" if (field, name) == ("instance", "con") else name)


def _relabel(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    message.label = LABELS[1 - LABELS.index(message.label)] if message.label in LABELS else "no"


def _cut(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    data = message.pixels.data
    message.pixels.data = chance.choice((b"", data[:-1], data[: len(data) // 2], data * 2))


def _resize(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    setattr(message.pixels, chance.choice(("rows", "columns")), chance.choice(_EDGES))
    if chance.random() < 0.3:
        message.pixels.rows, message.pixels.columns = chance.choice(((1, 1600), (2, 800), (800, 2), (1600, 1)))


def _retype(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    message.pixels.data_type = chance.choice((0, 1, 3, 4, 99, -1))  # type: ignore[assignment]


def _unreal(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    values = np.full((40, 40), chance.choice((np.nan, np.inf, -np.inf, 3e38, 1e-40)), np.float32)
    message.pixels.data, message.pixels.data_type = values.tobytes(), common_pb2.DATA_TYPE_FLOAT32


def _misplace(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    geometry = message.pixels.geometry
    setattr(geometry, chance.choice(("row_spacing_mm", "column_spacing_mm")), chance.choice(_SPACINGS))
    geometry.image_orientation.extend([chance.choice((0.0, 1.0, float("nan")))] * chance.choice((0, 5, 6, 5000)))
    geometry.image_position.extend([chance.choice((0.0, 1e308, float("inf")))] * chance.choice((0, 2, 3)))


def _strip(chance: random.Random, message: cohort_pb2.CohortSlice) -> None:
    if chance.random() < 0.3:
        message.ClearField("pixels")
    else:
        message.pixels.ClearField(chance.choice(("geometry", "data", "data_type")))


_CHANGES: tuple[Change, ...] = (_rename, _relabel, _cut, _resize, _retype, _unreal, _misplace, _strip)
