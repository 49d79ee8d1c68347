"""Pairs of runs: their order, their ratios, and the verdict on these."""

import pytest

from benchmarks.harness import Result, interleaved


def test_runs_take_turns_and_the_first_of_each_does_not_count() -> None:
    order: list[str] = []

    def run(name: str, figure: float) -> float:
        order.append(name)
        return figure * len(order)

    found = interleaved(lambda: run("ours", 1.0), lambda: run("reference", 10.0), pairs=3)
    assert order == ["ours", "reference", *("ours", "reference"), *("reference", "ours"), *("ours", "reference")]
    assert found.ours == (3, 6, 7)
    assert found.reference == (40, 50, 80)
    assert found.ratios == (3 / 40, 6 / 50, 7 / 80)
    assert found.of(lambda figure: figure + 1).ratios == (4 / 41, 7 / 51, 8 / 81)


@pytest.mark.parametrize(
    ("at_most", "pairs", "met"),
    [
        (False, (0.5, 1.2, 9.0), True),
        (False, (9.0, 1.1, 0.5), False),
        (True, (0.5, 1.2, 9.0), True),
        (True, (0.5, 1.3, 1.3), False),
    ],
)
def test_the_median_is_held_against_the_bar(at_most: bool, pairs: tuple[float, ...], met: bool) -> None:
    result = Result("W", "ours / theirs", 1.2, at_most, pairs)
    assert result.met is met
    assert result.to_dict()["met"] is met
    assert result.bound == ("at most 1.2" if at_most else "at least 1.2")
