"""Regions of POSIX shared memory that clients on the same machine registered: tensors go through them, not the wire.

Segments are files of `/dev/shm` and mapped as such: `multiprocessing.shared_memory` would have its resource tracker
unlink them when the server ends, and they are the clients'.
"""

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from limner_server.errors import InvalidInputError, NotFoundError, WrongStateError

_SEGMENTS = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
_NO_LINKS_NO_WAITING = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a segment. The mapping lives until the last view of it is gone, registered or not.

    Attributes
    ----------
    name
        What requests call it.
    key
        Name of the segment, as in shm_open(3).
    offset, byte_size
        Which part, in bytes.
    memory
        The segment from its start to the end of the part.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    memory: mmap.mmap

    def view(self, offset: int, byte_size: int) -> memoryview:
        """The memory of one tensor.

        Raises
        ------
        InvalidInputError
            It does not lie within the region.
        WrongStateError
            The segment was truncated since it was registered: touching what is missing would kill the server.
        """
        if offset + byte_size > self.byte_size:
            raise InvalidInputError(
                "shared_memory_byte_size",
                f"{byte_size} at offset {offset}",
                f"no more than the {self.byte_size} bytes of region {self.name!r}",
            )
        if self.memory.size() < len(self.memory):
            raise WrongStateError(
                f"segment {self.key!r} of shared memory region {self.name!r} has shrunk to {self.memory.size()} bytes;"
                f" expected {len(self.memory)}, as when it was registered"
            )
        start = self.offset + offset
        return memoryview(self.memory)[start : start + byte_size]


class SharedMemory:
    """The regions by their names."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map a part of a segment.

        Raises
        ------
        InvalidInputError
            There is no such segment, or it is smaller.
        WrongStateError
            The name is taken.
        """
        if not name:
            raise InvalidInputError("name", name, "a name for the region")
        if name in self._regions:
            raise WrongStateError(f"shared memory region {name!r} is registered already; unregister it first")
        if byte_size == 0:
            raise InvalidInputError("byte_size", byte_size, "1 or more")
        self._regions[name] = Region(name, key, offset, byte_size, _map(key, offset + byte_size))

    def unregister(self, name: str) -> None:
        """Forget a region, all of them where `name` is empty. It is no error if there is none."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def get(self, name: str) -> Region:
        """Return a region. NotFoundError if it is not registered."""
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError("shared memory region", name, self._regions)
        return region

    def regions(self, name: str) -> list[Region]:
        """The region of a name, all of them where it is empty. NotFoundError if it is not registered."""
        return [self.get(name)] if name else list(self._regions.values())


def _map(key: str, end: int) -> mmap.mmap:
    """Map a segment up to `end`, to read and write."""
    file = key.removeprefix("/")
    if not file or file in (".", "..") or "/" in file or "\0" in file:
        raise InvalidInputError("key", key, "the name of a POSIX shared memory segment, with no '/' but the first")
    try:
        descriptor = os.open(_SEGMENTS / file, os.O_RDWR | _NO_LINKS_NO_WAITING)
    except OSError as error:
        raise _not_mapped(key, error) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInputError("key", key, "a POSIX shared memory segment, not a file of another kind")
        if end > found.st_size:
            raise InvalidInputError(
                "byte_size", f"up to byte {end}", f"no more than the {found.st_size} bytes of segment {key!r}"
            )
        return mmap.mmap(descriptor, end)
    except OSError as error:
        raise _not_mapped(key, error) from None
    finally:
        os.close(descriptor)


def _not_mapped(key: str, error: OSError) -> InvalidInputError:
    return InvalidInputError("key", key, f"a segment that the server may read and write, but: {error.strerror}")
