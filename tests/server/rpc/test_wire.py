"""Predictions on the wire: how far from home, and the roll-up of subjects."""

import numpy as np
import pytest

from limner.v1 import common_pb2
from limner_server.networks.card import ModelCard
from limner_server.rpc.wire import SubjectRollUp, prediction
from tests.server.networks.cards import REFERENCE, make_card

HOME = make_card(reference=REFERENCE)
"""Its reference has distances from 0 to 1, each as frequent as any other."""


def predicted(
    card: ModelCard, distance: float | None, logits: tuple[float, float] = (0.0, 1.0)
) -> common_pb2.Prediction:
    scores = np.array(logits, np.float32)
    found = None if distance is None else np.array([distance], np.float32)
    return prediction(card, scores, np.full(2, 0.5, np.float32), found)


def test_a_distance_has_its_percentile_and_its_flag() -> None:
    told = predicted(HOME, 0.25).distance
    assert (told.value, told.percentile, told.far) == (0.25, pytest.approx(25), False)
    told = predicted(HOME, 7.0).distance
    assert (told.value, told.percentile, told.far) == (7.0, 100, True)


@pytest.mark.parametrize(
    ("card", "distance"), [(make_card(), 0.5), (make_card(), None), (HOME, None), (HOME, float("nan"))]
)
def test_what_is_not_known_is_not_told(card: ModelCard, distance: float | None) -> None:
    """A card or an artifact of an older version, or a Triton that tells no distance."""
    assert not predicted(card, distance).HasField("distance")


def test_a_subject_counts_the_slices_that_lie_far() -> None:
    roll_up = SubjectRollUp(HOME)
    for distance, logits in ((0.5, (0.0, 2.0)), (2.0, (0.0, 4.0)), (None, (0.0, 0.0))):
        roll_up.add("one", predicted(HOME, distance, logits))
    roll_up.add("one", None)
    roll_up.add("two", None)
    roll_up.add("", predicted(HOME, 2.0))
    one, two = roll_up.results()
    assert (one.subject, one.images, one.failed, one.far) == ("one", 3, 1, 1)
    assert list(one.prediction.logits) == [0, 2]
    assert not one.prediction.HasField("distance")
    assert (two.subject, two.images, two.failed, two.far) == ("two", 0, 1, 0)
    assert not two.HasField("prediction")
