"""Parquet by pyarrow, the extra `limner[parquet]`; imported only where a table is Parquet."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

try:
    import pyarrow
    from pyarrow import parquet
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Parquet needs pyarrow: pip install 'limner[parquet]'", name=error.name) from error

# Rows that are held at a time.
_ROWS = 8192
_TYPES = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float32(), bool: pyarrow.bool_()}


def column_names(path: Path) -> list[str]:
    """Return the columns of a file. ValueError (pyarrow's) where it is no Parquet."""
    with parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def read(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Give the cells of each row."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=list(columns)):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def write(path: Path, columns: dict[str, type], rows: Iterable[Sequence[object]]) -> None:
    """Write rows in the order of the columns; None is null."""
    schema = pyarrow.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    remaining = iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(islice(remaining, _ROWS)):
            arrays = map(pyarrow.array, zip(*some, strict=True), schema.types)
            writer.write_batch(pyarrow.RecordBatch.from_arrays(list(arrays), schema=schema))
