"""Files and folders that are there whole or not at all. Knows nothing of what is in them."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from limner.imaging.files import replace_file
from limner_server.errors import StorageFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a hidden temporary name, flush it to disk and rename it.

    Raises
    ------
    StorageFullError
        The disk is full; the temporary file is gone, an older file of that name is untouched.
    """
    with storage_full_named(path.name), replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def stamp(files: Iterable[Path]) -> list[tuple[int, int, int] | None]:
    """Return of each file what changes when it does; None for one that is not there."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextlib.contextmanager
def storage_full_named(what: str) -> Iterator[None]:
    """Turn the operating system's 'no space left' into `StorageFullError`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"no space left to write {what}; nothing was kept of it") from error
        raise
