"""Readings: who reads what in which order, and their verdicts. Rows in the database, images in a folder.

Knows nothing of the wire. A token is kept as its digest; verdicts are only ever added.
"""

import hashlib
import io
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from limner_server.errors import InvalidInputError, NotFoundError, WrongStateError
from limner_server.files import write_atomic
from limner_server.names import check_name
from limner_server.state.database import ReaderRow, ReadingItemRow, ReadingRow, VerdictRow, now, writing

MODEL = "model"
"""What the model is called among the readers."""
MAX_READERS = 50
IMAGES_FILE = "images.npy"


class Definition(BaseModel):
    """What a reading asks of which images.

    Attributes
    ----------
    lexicon
        Each feature with its options.
    seed
        Of the choice of slices and of the readers' orders.
    secret
        What the ids of cases are made with; not told.
    owner
        Principal who made it; None where nobody was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    title: str
    question: str
    label: str
    labels: tuple[str, ...]
    lexicon: tuple[tuple[str, tuple[str, ...]], ...]
    model: str
    version: int
    digest: str
    cohort: str
    cohort_digest: str
    seed: int
    fov_mm: float
    size: int
    secret: str
    owner: str | None = None


@dataclass(frozen=True)
class ReadingItem:
    """What an image is, and what the model says of it; fields are those of `ReadingItemRow`."""

    kind: str
    label: str
    subject: str
    instance: str
    simulation: int | None
    verdict: str | None
    probabilities: tuple[float, ...]
    out_of_fold: bool


@dataclass(frozen=True)
class Reader:
    """A reader of a reading, and the items in the order that this reader sees them."""

    reading: str
    name: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """A reading at one moment."""

    id: str
    definition: Definition
    created: datetime
    closed: datetime | None
    readers: tuple[Reader, ...]

    def case_id(self, reader: Reader, item: int) -> str:
        """Name an item for one reader: nothing can be told from it, nor from what another reader has."""
        text = f"{self.definition.secret}\0{reader.name}\0{item}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class NewVerdict:
    """What a reader says of an item, on the scales of `limner.v1.ReaderVerdict`."""

    id: str
    item: int
    likelihood: float
    realism: int
    confidence: int
    features: dict[str, str]
    comment: str
    seconds: float


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict as it was kept: its number in the order of coming, whose it is, and when it came."""

    sequence: int
    reader: str
    verdict: NewVerdict
    received: datetime


class ReviewStore:
    """All readings of one database and one folder; safe to use from several threads and processes."""

    def __init__(self, engine: Engine, data_dir: Path) -> None:
        self._engine = engine
        self._root = data_dir / "readings"

    def create(
        self, definition: Definition, items: Sequence[ReadingItem], images: NDArray[np.uint16], readers: Sequence[str]
    ) -> tuple[Reading, list[str]]:
        """Keep a new reading, images first; return it, and the token of each reader, which is nowhere else.

        Parameters
        ----------
        items
            The images' meanings, by number.
        images
            `(n, s, s)` little-endian.
        readers
            Names, each once.
        """
        check_readers(readers)
        reading = secrets.token_hex(8)
        buffer = io.BytesIO()
        np.save(buffer, images, allow_pickle=False)
        folder = self._root / reading
        folder.mkdir(parents=True)
        write_atomic(folder / IMAGES_FILE, buffer.getvalue())
        tokens = [secrets.token_urlsafe(32) for _ in readers]
        with Session(self._engine) as session:
            session.add(ReadingRow(id=reading, definition=definition.model_dump(mode="json"), closed=None))
            session.flush()
            session.add_all(
                ReadingItemRow(
                    reading=reading,
                    number=number,
                    **{**vars(item), "probabilities": list(item.probabilities)},
                )
                for number, item in enumerate(items)
            )
            session.add_all(
                _reader_row(reading, name, place, token, definition.seed, len(items))
                for place, (name, token) in enumerate(zip(readers, tokens, strict=True))
            )
            session.commit()
        return self.get(reading), tokens

    def get(self, reading: str) -> Reading:
        """Return a reading; NotFoundError if there is none."""
        with Session(self._engine) as session:
            return self._reading(session, reading)

    def all(self) -> list[Reading]:
        """All readings, newest first."""
        with Session(self._engine) as session:
            query = select(ReadingRow.id).order_by(ReadingRow.created.desc(), ReadingRow.id)
            return [self._reading(session, reading) for reading in session.scalars(query).all()]

    def items(self, reading: str) -> list[ReadingItem]:
        """Return what each image of a reading is, by number."""
        query = select(ReadingItemRow).where(ReadingItemRow.reading == reading).order_by(ReadingItemRow.number)
        with Session(self._engine) as session:
            return [
                ReadingItem(
                    row.kind,
                    row.label,
                    row.subject,
                    row.instance,
                    row.simulation,
                    row.verdict,
                    tuple(row.probabilities),
                    row.out_of_fold,
                )
                for row in session.scalars(query)
            ]

    def image(self, reading: str, number: int) -> bytes:
        """Return the pixels of one image: every one by the same way, of one file."""
        images = np.load(self._root / reading / IMAGES_FILE, mmap_mode="r", allow_pickle=False)
        return images[number].tobytes()  # type: ignore[no-any-return]

    def issue_token(self, reading: str, name: str) -> str:
        """Make a new token for a reader, whose old one ends, or for a new reader; WrongStateError once closed."""
        token = secrets.token_urlsafe(32)
        with writing(self._engine, _lock(reading)) as session:
            found = self._reading(session, reading)
            _check_open(found)
            row = session.get(ReaderRow, (reading, name))
            if row is not None:
                row.token_sha256 = _digest(token)
                return token
            check_readers([*(reader.name for reader in found.readers), name])
            place, count = len(found.readers), len(found.readers[0].order)
            session.add(_reader_row(reading, name, place, token, found.definition.seed, count))
        return token

    def close(self, reading: str) -> Reading:
        """Close a reading, if it is not yet."""
        with writing(self._engine, _lock(reading)) as session:
            self._reading(session, reading)
            closing = update(ReadingRow).where(ReadingRow.id == reading, ReadingRow.closed.is_(None))
            session.execute(closing.values(closed=now()))
        return self.get(reading)

    def reader(self, token: str) -> tuple[Reading, Reader]:
        """Return whose token it is; NotFoundError, which does not repeat it, if nobody's."""
        with Session(self._engine) as session:
            row = session.scalars(select(ReaderRow).where(ReaderRow.token_sha256 == _digest(token))).first()
            if row is None:
                raise NotFoundError("reading", "with this token")
            return self._reading(session, row.reading), _reader(row)

    def done(self, reader: Reader) -> set[int]:
        """Return the items that a reader has given a verdict on."""
        query = select(VerdictRow.item).where(VerdictRow.reading == reader.reading, VerdictRow.reader == reader.name)
        with Session(self._engine) as session:
            return set(session.scalars(query.distinct()))

    def add(self, reader: Reader, verdict: NewVerdict) -> bool:
        """Keep a verdict for good; False, and nothing is added, where one of its id is there already.

        Raises
        ------
        WrongStateError
            The reading is closed.
        InvalidInputError
            The id is that of another verdict.
        """
        with writing(self._engine, _lock(reader.reading)) as session:
            known = session.scalars(
                select(VerdictRow).where(
                    VerdictRow.reading == reader.reading, VerdictRow.reader == reader.name, VerdictRow.id == verdict.id
                )
            ).first()
            if known is not None:
                if _stored(known).verdict != verdict:
                    raise InvalidInputError("verdict.id", verdict.id, "a new id for another verdict")
                return False
            _check_open(self._reading(session, reader.reading))
            session.add(VerdictRow(reading=reader.reading, reader=reader.name, **vars(verdict)))
        return True

    def verdicts(self, reading: str, reader: str = "", item: int | None = None) -> list[StoredVerdict]:
        """Return verdicts in the order of coming, of one reader and on one item where named."""
        query = select(VerdictRow).where(VerdictRow.reading == reading).order_by(VerdictRow.sequence)
        if reader:
            query = query.where(VerdictRow.reader == reader)
        if item is not None:
            query = query.where(VerdictRow.item == item)
        with Session(self._engine) as session:
            return [_stored(row) for row in session.scalars(query)]

    def _reading(self, session: Session, reading: str) -> Reading:
        row = session.get(ReadingRow, reading)
        if row is None:
            raise NotFoundError("reading", reading, session.scalars(select(ReadingRow.id)))
        readers = select(ReaderRow).where(ReaderRow.reading == reading).order_by(ReaderRow.place)
        return Reading(
            row.id,
            Definition.model_validate(row.definition),
            row.created,
            row.closed,
            tuple(map(_reader, session.scalars(readers))),
        )


def counting(verdicts: Iterable[StoredVerdict]) -> dict[tuple[str, int], StoredVerdict]:
    """Return the verdict that counts, the last, of each reader on each item."""
    return {(stored.reader, stored.verdict.item): stored for stored in verdicts}


def check_readers(names: Sequence[str]) -> None:
    """Refuse no readers, too many, the same twice, and names that are none."""
    if not 1 <= len(names) <= MAX_READERS:
        raise InvalidInputError("readers", f"{len(names)} of them", f"1 to {MAX_READERS}")
    for name in names:
        check_name("readers", name)
        if name == MODEL or names.count(name) > 1:
            raise InvalidInputError("readers", name, f"each reader once, and none called {MODEL!r}")


def _reader_row(reading: str, name: str, place: int, token: str, seed: int, count: int) -> ReaderRow:
    order: list[Any] = np.random.default_rng([seed, place]).permutation(count).tolist()
    return ReaderRow(reading=reading, name=name, place=place, token_sha256=_digest(token), order=order)


def _reader(row: ReaderRow) -> Reader:
    return Reader(row.reading, row.name, tuple(row.order))


def _stored(row: VerdictRow) -> StoredVerdict:
    verdict = NewVerdict(
        row.id, row.item, row.likelihood, row.realism, row.confidence, row.features, row.comment, row.seconds
    )
    return StoredVerdict(row.sequence, row.reader, verdict, row.received)


def _check_open(reading: Reading) -> None:
    if reading.closed is not None:
        raise WrongStateError(f"reading {reading.id} was closed at {reading.closed:%Y-%m-%d %H:%M} UTC")


def _digest(token: str) -> str:
    """Digest of a token; 256 random bits need no slow one."""
    return hashlib.sha256(token.encode()).hexdigest()


def _lock(reading: str) -> str:
    return f"reading {reading}"
