"""Files that are either whole or not there, and folders walked to their end."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex


@contextmanager
def replace_file(path: Path, private: bool = False, overwrite: bool = True) -> Iterator[Path]:
    """Give an empty temporary file beside `path`, and rename it to `path` when the block ends well.

    When the block raises (the disk is full, say), the temporary file is removed and `path` is left as it was.

    Parameters
    ----------
    path
        In a folder that exists.
    private
        Let the owner alone read and write the file.
    overwrite
        When False, a file that has appeared at `path` meanwhile is kept, and the new one dropped.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(8)}")
    temporary.touch(mode=0o600 if private else 0o666, exist_ok=False)
    try:
        yield temporary
        if overwrite:
            temporary.replace(path)
        else:
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_name(text: str) -> str:
    """Return text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._") or "_"


def each_file(folder: Path, unreadable: list[tuple[Path, str]]) -> Iterator[Path]:
    """Give everything under a folder that is no folder, by name; a folder that cannot be read is noted.

    Links to folders are not followed.
    """

    def note(error: OSError) -> None:
        unreadable.append((Path(error.filename), str(error)))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)
