"""Images on their way to the server and back: decoded here, sent under neutral names, returned under the caller's own.

No name that the caller gives to an image or a subject leaves the process: file names and patient ids often name people.
Whole DICOM files leave it only where the caller asks for that, and then de-identified (`limner.imaging.profile`) under
a key that nobody keeps, unless the caller says that they may go as they are.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from limner.errors import InternalError, InvalidInputError, local_failure
from limner.imaging.errors import ImageError
from limner.imaging.nifti import decode_nifti, is_nifti
from limner.imaging.slices import Slice
from limner.requests import grid_array, pixels
from limner.types import Failure, ItemResult, SubjectResult
from limner.v1 import common_pb2

if TYPE_CHECKING:
    from pydicom import Dataset

    Content: TypeAlias = str | Path | bytes | Dataset | NDArray[np.generic] | Slice
    Images: TypeAlias = "Iterable[Content | Image] | Content | Image"
    AsyncImages: TypeAlias = "Images | AsyncIterable[Content | Image]"

SendDicom: TypeAlias = bool | Literal["identified"]
"""False: pixels and geometry only; True: whole DICOM files, de-identified; "identified": whole files as they are."""

PARCEL_IMAGES = 16
PARCEL_BYTES = 2 * 1024 * 1024
"""Images that travel in one message of a stream, at most, and the size from which on none is added."""

_R = TypeVar("_R", bound=ItemResult)


@dataclass(frozen=True, eq=False)
class Image:
    """One image to be scored or explained.

    Attributes
    ----------
    content
        A DICOM file as path, bytes or pydicom `Dataset`; the path of a NIfTI volume; a `Slice`; or values
        `(size, size)` on the model's grid.
    id
        Your name for it, returned with its result. Default: the path, or the position in the call.
    subject
        Your name for the subject. Images that share one are rolled up. Default: no roll-up.
    frame
        Frame of a multi-frame DICOM file or slice of a volume, from 0. Default: the only one.
    center
        Row and column, in pixels of the image, where the grid is centred. Default: the middle. Not with grid values.
    """

    content: "Content"
    id: str = ""
    subject: str = ""
    frame: int | None = None
    center: tuple[float, float] | None = None


def each_image(images: "Images") -> Iterator[Image]:
    """Give every image as an `Image`; a single one stands for a list of one."""
    single = isinstance(images, str | Path | bytes | Image | Slice) or _is_dataset(images)
    if single or (isinstance(images, np.ndarray) and images.ndim == 2):
        images = [images]  # type: ignore[list-item]
    for item in images:  # type: ignore[union-attr]
        yield item if isinstance(item, Image) else Image(item)  # type: ignore[arg-type]


async def _each_image_async(images: "AsyncImages") -> AsyncIterator[Image]:
    if isinstance(images, AsyncIterable):
        async for item in cast("AsyncIterable[Content | Image]", images):
            yield item if isinstance(item, Image) else Image(item)
    else:
        for image in each_image(cast("Images", images)):
            yield image


def load(content: Any, frame: int | None = None) -> Slice | NDArray[np.generic]:
    """Decode DICOM and NIfTI; slices and grid values are returned as they are.

    Raises
    ------
    ImageError, OSError
        Where there is no usable image.
    """
    if isinstance(content, Slice | np.ndarray):
        return content
    if isinstance(content, str | Path) and is_nifti(content):
        return decode_nifti(Path(content), frame)
    # Imported here: pydicom takes a third of a second, and who sends arrays never needs it.
    from limner.imaging.dicom import decode

    if isinstance(content, str | Path):
        return decode(Path(content), frame)
    if isinstance(content, bytes) or _is_dataset(content):
        return decode(content, frame)
    raise ImageError("content", type(content).__name__, "a path, bytes, Dataset, Slice or array")


def _is_dataset(content: object) -> bool:
    # By name, so that pydicom need not be imported.
    return any(base.__module__ == "pydicom.dataset" and base.__name__ == "Dataset" for base in type(content).__mro__)


def _dicom_bytes(content: Any) -> bytes | None:
    """Return the whole DICOM file, or None where the content is not DICOM."""
    if isinstance(content, str | Path):
        return None if is_nifti(content) else Path(content).read_bytes()
    if isinstance(content, bytes):
        return content
    if _is_dataset(content):
        from limner.imaging.profile import encoded

        return encoded(content)
    return None


def fill_message(message: common_pb2.Image, image: Image, *, send_dicom: SendDicom = False) -> None:
    """Put an image into its message.

    Raises
    ------
    ImageError, InvalidInputError, OSError
        Where there is no usable image.
    """
    if image.center is not None:
        message.center.row, message.center.column = image.center
    if send_dicom and (dicom := _dicom_bytes(image.content)) is not None:
        message.dicom = dicom if send_dicom == "identified" else _deidentified(dicom)
        message.frame = image.frame or 0
        return
    loaded = load(image.content, image.frame)
    if isinstance(loaded, Slice):
        message.pixels.CopyFrom(pixels(loaded))
    else:
        message.grid.CopyFrom(grid_array(loaded))


def _deidentified(dicom: bytes) -> bytes:
    # Imported here, as pydicom is.
    from limner.imaging.deidentify import KEY_BYTES, Pseudonymiser
    from limner.imaging.profile import deidentified, encoded

    # A key for each image: the server needs no pseudonym, and two images cannot be linked by theirs.
    return encoded(deidentified(dicom, Pseudonymiser(token_bytes(KEY_BYTES))))


def _most_together(images: object) -> int:
    """How many images may travel in one message: one, where the next may be long in coming."""
    return PARCEL_IMAGES if isinstance(images, Sequence | np.ndarray) else 1


def _is_full(parcel: list[common_pb2.Image], most: int) -> bool:
    # The images of a call are about as large as each other; to add them all up for each would cost more than it saves.
    return len(parcel) >= most or len(parcel) * parcel[-1].ByteSize() >= PARCEL_BYTES


@dataclass(frozen=True)
class _Entry:
    """An image that was not answered yet: its name on the wire, its names here, and why it was not sent, if so."""

    wire_id: str
    id: str
    subject: str
    failure: Failure | None


class Ledger(Generic[_R]):
    """Follows the images of one call: what was sent, what failed here, and under which names.

    One thread sends while another takes answers: a stream is written and read at once.

    Parameters
    ----------
    kind
        Type of the results.
    send_dicom
        Whether whole DICOM files are sent.

    Attributes
    ----------
    source_error
        What the caller's own iterable raised. It ends the sending quietly, so that what came before it is still
        answered, and `close` raises it.
    """

    def __init__(self, kind: type[_R], *, send_dicom: SendDicom = False) -> None:
        self._kind = kind
        self._send_dicom = send_dicom
        self._count = 0
        self._waiting: deque[_Entry] = deque()
        self._subjects: dict[str, str] = {}
        self._failures: Counter[str] = Counter()
        self.source_error: Exception | None = None

    def messages(self, images: "Images") -> Iterator[common_pb2.Image]:
        """Give the messages of all images that can be read."""
        try:
            for image in each_image(images):
                if (message := self._admit(image)) is not None:
                    yield message
        except Exception as error:  # raised again by `close`
            self.source_error = error

    def all_messages(self, images: "Images") -> list[common_pb2.Image]:
        """As `messages`, all at once; raises what the caller's iterable raises."""
        messages = list(self.messages(images))
        if self.source_error is not None:
            raise self.source_error
        return messages

    @property
    def nothing_to_send(self) -> bool:
        """Whether there are images and none of them can be sent."""
        return bool(self._waiting) and all(entry.failure for entry in self._waiting)

    async def messages_async(self, images: "AsyncImages") -> AsyncIterator[common_pb2.Image]:
        """As `messages`, of an asynchronous iterable too; decodes off the event loop."""
        try:
            async for image in _each_image_async(images):
                if (message := await asyncio.to_thread(self._admit, image)) is not None:
                    yield message
        except Exception as error:  # raised again by `close`
            self.source_error = error

    def parcels(self, images: "Images") -> Iterator[list[common_pb2.Image]]:
        """As `messages`, several together where all are at hand; of an iterator each as it comes."""
        most = _most_together(images)
        parcel: list[common_pb2.Image] = []
        for message in self.messages(images):
            parcel.append(message)
            if _is_full(parcel, most):
                yield parcel
                parcel = []
        if parcel:
            yield parcel

    async def parcels_async(self, images: "AsyncImages") -> AsyncIterator[list[common_pb2.Image]]:
        """As `parcels`, of an asynchronous iterable too."""
        most = _most_together(images)
        parcel: list[common_pb2.Image] = []
        async for message in self.messages_async(images):
            parcel.append(message)
            if _is_full(parcel, most):
                yield parcel
                parcel = []
        if parcel:
            yield parcel

    def _admit(self, image: Image) -> common_pb2.Image | None:
        """Return the message of an image, or None where it cannot be read; its result then says why."""
        position = str(self._count)
        self._count += 1
        path = str(image.content) if isinstance(image.content, str | Path) else position
        message = common_pb2.Image(id=position, subject=self._wire_subject(image.subject))
        failure = None
        try:
            fill_message(message, image, send_dicom=self._send_dicom)
        except (ImageError, InvalidInputError, OSError) as error:
            failure = local_failure(error)
            self._failures[image.subject] += 1
        self._waiting.append(_Entry(position, image.id or path, image.subject, failure))
        return message if failure is None else None

    def _wire_subject(self, subject: str) -> str:
        return subject and self._subjects.setdefault(subject, f"subject-{len(self._subjects)}")

    def answered(self, result: _R) -> Iterator[_R]:
        """Give an answer of the server under the caller's names, after the images before it that were not sent."""
        yield from self.unsent()
        entry = self._waiting.popleft() if self._waiting else None
        if entry is None or entry.wire_id != result.id:
            raise InternalError(f"the server answered image {result.id!r} out of order")
        yield result.model_copy(update={"id": entry.id, "subject": entry.subject})

    def unsent(self) -> Iterator[_R]:
        """Give the results of images that were not sent and are next in order."""
        while self._waiting and (failure := self._waiting[0].failure) is not None:
            entry = self._waiting.popleft()
            yield self._kind(id=entry.id, subject=entry.subject, error=failure)

    def close(self) -> Iterator[_R]:
        """Give the last results, of images that were not sent.

        Raises
        ------
        Exception
            What the caller's iterable raised.
        InternalError
            Where the server left an image unanswered.
        """
        yield from self.unsent()
        if self.source_error is not None:
            raise self.source_error
        if self._waiting:
            raise InternalError(f"the server left {len(self._waiting)} images unanswered")

    def roll_up(self, answered: Iterable[SubjectResult]) -> tuple[SubjectResult, ...]:
        """Give the subjects under the caller's names, in order of first appearance, with what failed here."""
        by_name = {result.subject: result for result in answered}
        results = []
        for name, wire in self._subjects.items():
            result = by_name.get(wire) or SubjectResult(subject=wire, images=0, failed=0, prediction=None)
            failed = result.failed + self._failures[name]
            results.append(result.model_copy(update={"subject": name, "failed": failed}))
        return tuple(results)
