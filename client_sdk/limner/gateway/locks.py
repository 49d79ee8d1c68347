"""Locks on files and folders: they hold between threads and between processes, and end with who holds them.

By flock, so for POSIX systems and local disks.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from limner.imaging.files import flush

_CLAIM_WITHIN_S = 1.0


def claim(file: Path) -> TextIO | None:
    """Claim a file for this process until what is returned is closed; return None where another process has it."""
    claimed = file.open("a+", encoding="ascii")
    ends = time.monotonic() + _CLAIM_WITHIN_S  # `claimant` may hold it for a moment
    while not _locked(claimed.fileno(), fcntl.LOCK_EX):
        if time.monotonic() > ends:
            claimed.close()
            return None
        time.sleep(_CLAIM_WITHIN_S / 20)
    claimed.truncate(0)
    claimed.write(str(os.getpid()))
    claimed.flush()
    return claimed


def claimant(file: Path) -> int | None:
    """Return the process that has claimed a file, None where none has."""
    try:
        with file.open(encoding="ascii") as claimed:
            return None if _locked(claimed.fileno(), fcntl.LOCK_SH) else int(claimed.read() or 0)
    except FileNotFoundError:
        return None


@contextmanager
def shared_folder(folder: Path) -> Iterator[int]:
    """Have a folder there for the length of a block, made where it is missing; give its descriptor."""
    while True:
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            flush(folder.parent)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # removed meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is(folder, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


@contextmanager
def whole_folder(folder: Path) -> Iterator[bool]:
    """Have a folder to oneself for the length of a block; give False where somebody is in it, or it is not there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _locked(descriptor, fcntl.LOCK_EX) and _is(folder, descriptor)
    finally:
        os.close(descriptor)


def _is(folder: Path, descriptor: int) -> bool:
    try:
        return folder.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
