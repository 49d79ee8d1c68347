"""The results of a run as they come: one line of JSON for each image, in the order of the answers.

A line is in the file once `append` has returned: a client that is killed then loses nothing. Against a loss of power
the file is flushed to the disk every few seconds. What a kill or a full disk leaves of a last line is cut off when the
journal is opened again, and its image is scored again.
"""

import json
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from limner.errors import WrongStateError
from limner.scoring.rows import Row

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not told apart there
    fcntl = None  # type: ignore[assignment]

FLUSH_S = 5.0


class KeptRows:
    """The whole lines of a journal; of a position that has several the last one counts.

    Parameters
    ----------
    forget_failures
        True to take what failed as not there.
    """

    def __init__(self, path: Path, *, forget_failures: bool = False) -> None:
        self._lines = path.open("rb")
        self._places = array("q")  # offset of each position's line, -1 without one: 8 bytes an image
        self._count = 0
        self._end = 0
        for line in self._lines:
            row = _parsed(line)
            if row is None:
                break
            if not (forget_failures and row.code):
                self._note(row.position)
            self._end += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def __len__(self) -> int:
        """Number of images that are in it."""
        return self._count

    def __contains__(self, position: int) -> bool:
        return position < len(self._places) and self._places[position] >= 0

    def __getitem__(self, position: int) -> Row:
        self._lines.seek(self._places[position])
        return Row(**json.loads(self._lines.readline()))

    @property
    def last(self) -> int:
        """The highest position in it, -1 where it is empty."""
        return len(self._places) - 1

    def rows(self) -> Iterator[Row]:
        """Give the rows by position."""
        return (self[position] for position in range(len(self._places)) if position in self)

    def _note(self, position: int) -> None:
        """Note that the line of a position is the next."""
        self._places.extend([-1] * (position + 1 - len(self._places)))
        self._count += self._places[position] < 0
        self._places[position] = self._end


class Journal(KeptRows):
    """The journal of one run, made where it is missing, to be written by one process at a time.

    Raises
    ------
    WrongStateError
        Where another process writes it.
    """

    def __init__(self, path: Path, *, forget_failures: bool = False) -> None:
        self._file = path.open("ab")
        try:
            if fcntl is not None:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise WrongStateError(f"another process is scoring into {path.parent}") from None
        super().__init__(path, forget_failures=forget_failures)
        self._file.truncate(self._end)
        self._flushed = time.monotonic()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._file.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows. OSError where the disk is full: the journal has then to be opened again."""
        for row in rows:
            line = json.dumps(row._asdict()).encode() + b"\n"
            self._file.write(line)
            self._note(row.position)
            self._end += len(line)
        self._file.flush()

    @property
    def flush_is_due(self) -> bool:
        """Whether it has not been on the disk for some seconds."""
        return time.monotonic() - self._flushed > FLUSH_S

    def flush(self) -> None:
        """Have it on the disk."""
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()


def _parsed(line: bytes) -> Row | None:
    """Return the row of a whole line, None of one that was torn."""
    try:
        return Row(**json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
