"""The card as JSON."""

import pytest
from pydantic import ValidationError

from limner_server.networks.card import Metric, ModelCard
from tests.server.networks.cards import make_card, make_half


def test_json_round_trip_is_exact() -> None:
    card = make_card(halves=(make_half(),))
    assert ModelCard.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize(
    ("field", "value"),
    [("digest", "xyz"), ("labels", ["one"]), ("channels", [1]), ("grid", {"fov_mm": 0, "size": 32}), ("new", 1)],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    content = make_card().model_dump(mode="json") | {field: value}
    with pytest.raises(ValidationError, match=field):
        ModelCard.model_validate(content)


def test_figures_are_finite() -> None:
    with pytest.raises(ValidationError, match="low"):
        Metric(name="auc", value=0.5, low=float("nan"), high=1.0)
