"""One SQLite file that several threads share and other processes may look into: what is committed is on the disk.

Knows nothing of what is in it.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class JournalError(OSError):
    """The journal cannot be read or written: its disk is full, it is another version's, another gateway has it."""


class Database:
    """A file of tables.

    Parameters
    ----------
    file
        Made where it is missing.
    schema
        Statements that make what is missing.
    version
        Of the schema.

    Raises
    ------
    JournalError
        It is no such file, or one of another version.
    """

    def __init__(self, file: Path, schema: str, version: int) -> None:
        self._file = file
        self._lock = threading.Lock()
        with self._errors():
            self._connection = sqlite3.connect(file, timeout=10, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            # FULL: a commit is on the disk when it returns (sqlite.org/pragma.html#pragma_synchronous).
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
        with self.transaction() as connection:  # two processes may come first
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if tables and found != version:
                raise JournalError(f"{file} is a journal of version {found}; expected version {version}")
            for statement in schema.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")

    def close(self) -> None:
        """Close the file; everything is on the disk already."""
        self._connection.close()

    def select(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return rows. JournalError where the file cannot be read."""
        with self._errors(), self._lock:
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change the tables; on the disk at the end of the block, or, where it raises, undone.

        Raises
        ------
        JournalError
            The file cannot be written.
        """
        with self._errors(), self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self._file}: {error}") from error
