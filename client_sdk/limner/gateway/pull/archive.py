"""Where pulled instances go: a folder, or the journal of a gateway, which scores them as if sent to it."""

import fcntl
import os
from pathlib import Path
from typing import Protocol

from limner.gateway.journal import Journal
from limner.gateway.pull.sources import Instance
from limner.imaging.files import flush, replace_file


class Archive(Protocol):
    """Keeps instances for good; safe to use from several threads."""

    def holds(self, instance: Instance) -> bool:
        """Whether it is here already."""
        ...

    def keep(self, instance: Instance, peer: str, content: bytes) -> None:
        """Keep a whole file that came from `peer`. OSError where it cannot be written; nothing is left behind."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Folder:
    """A folder, as `STUDY/SERIES/INSTANCE.dcm` by their UIDs; what it makes there is readable by its owner only.

    A file is whole or not there, however this process ends; what another left half-written is removed at the start.

    Raises
    ------
    OSError
        It cannot be made, or another process is filling it.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError as error:
            os.close(self._lock)
            raise OSError(f"{path} is being filled by another pull") from error
        for half_written in path.glob("*/*/.*.dcm.*"):
            half_written.unlink()

    def close(self) -> None:
        """Let others fill the folder."""
        os.close(self._lock)

    def holds(self, instance: Instance) -> bool:
        """Whether its file is there."""
        return self._file(instance).exists()

    def keep(self, instance: Instance, peer: str, content: bytes) -> None:
        """Write its file."""
        path = self._file(instance)
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        with replace_file(path, private=True) as temporary:
            temporary.write_bytes(content)
            flush(temporary)  # else a power cut may leave an empty file under the right name

    def _file(self, instance: Instance) -> Path:
        return self._path / instance.study_uid / instance.series_uid / f"{instance.uid}.dcm"


class JournalArchive:
    """The journal of a gateway, which may be running."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def holds(self, instance: Instance) -> bool:
        """Whether the gateway has received it before."""
        return self._journal.holds(instance.uid)

    def keep(self, instance: Instance, peer: str, content: bytes) -> None:
        """Have the gateway receive it."""
        self._journal.receive(instance.uid, instance.study_uid, peer, content)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()
