"""Tables of runs as tests read and compare them."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

TABLES = ("images", "subjects", "failures")
FIGURES = ("p_", "logit_", "distance")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of any format."""
    match path.suffix:
        case ".parquet":
            return list(pyarrow.parquet.read_table(path).to_pylist())
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case _:
            with path.open(newline="") as file:
                return list(csv.DictReader(file))


def assert_same_tables(found: Path, expected: Path) -> None:
    """See that two folders say the same in the same order; figures may differ by how images were batched."""
    for name in TABLES:
        ours, theirs = read(found / f"{name}.csv"), read(expected / f"{name}.csv")
        assert [_names(row) for row in ours] == [_names(row) for row in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert _figures(mine) == pytest.approx(_figures(other), abs=1e-4, rel=1e-4)


def _names(row: dict[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if not name.startswith(FIGURES)}


def _figures(row: dict[str, str]) -> dict[str, float]:
    return {name: float(cell or "nan") for name, cell in row.items() if name.startswith(FIGURES) and cell}
