"""Pulling from a PACS that speaks DIMSE: C-FIND, and C-GET or C-MOVE (PS3.4 annex C), by the Study Root model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from limner.gateway.peers import Node, PeerError, RefusedError, UnreachableError, UnsupportedError
from limner.gateway.pull.query import Level
from limner.gateway.pull.sources import Failure, Fetch, Instance
from limner.gateway.receiver import (
    STORED_CLASSES,
    Keeper,
    ListenSettings,
    Receiver,
    answer_store,
    transfer_syntaxes,
)

SUCCESS, PENDING, CANCELLED, UNKNOWN_DESTINATION = 0x0000, (0xFF00, 0xFF01), 0xFE00, 0xA801
"""Statuses of C-FIND, C-GET and C-MOVE (PS3.4 C.4)."""

MOST_CONTEXTS = 128
"""Of an association (PS3.8 9.3.2.2)."""


class PacsSource:
    """A PACS that is asked by C-FIND and sends by C-GET, over the association that it is asked on."""

    batch = 64

    def __init__(self, node: Node) -> None:
        self._node = node

    def find(self, level: Level, keys: Mapping[str, str], wanted: Sequence[str]) -> list[Dataset]:
        """Ask by C-FIND."""
        model = StudyRootQueryRetrieveInformationModelFind
        identifier = _identifier(level, dict.fromkeys(wanted, "") | dict(keys))
        found: list[Dataset] = []
        with self._asking(model) as association:
            for status, answer in association.send_c_find(identifier, model):
                match status.get("Status"):
                    case None:
                        raise UnreachableError(_ended(self._node))
                    case code if code in PENDING and answer is not None:
                        found.append(answer)
                    case code if code in PENDING:
                        raise PeerError(f"{self._node} answered what cannot be read")
                    case code if code == CANCELLED:
                        told = "gave a part of the answers only; expected a query that matches fewer"
                        raise PeerError(f"{self._node} {told}")
                    case code if code != SUCCESS:
                        raise PeerError(_told(self._node, status))
        return found

    @contextmanager
    def _asking(
        self, model: str, storage_classes: Sequence[str] = (), handlers: Sequence[EventHandlerType] = ()
    ) -> Iterator[Association]:
        """Associate to ask for something, and for taking what is sent over the same association."""
        contexts = [build_context(model), *_storage_contexts(storage_classes)]
        roles = [build_role(storage_class, scp_role=True) for storage_class in storage_classes]
        with self._node.associate(contexts, roles, handlers) as association:
            if model not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise UnsupportedError(f"{self._node} takes no {UID(model).name}")
            try:
                yield association
            except RuntimeError as error:  # it ended the association before
                raise UnreachableError(_ended(self._node)) from error

    @contextmanager
    def opened(self, keeper: Keeper) -> Iterator[Fetch]:
        """Fetch by C-GET."""
        yield partial(self._get, keeper)

    def _get(self, keeper: Keeper, instances: Sequence[Instance], whole: bool) -> Failure | None:
        model = StudyRootQueryRetrieveInformationModelGet
        classes = sorted({one.storage_class for one in instances} - {""}) or STORED_CLASSES
        try:
            with self._asking(model, classes, [(evt.EVT_C_STORE, answer_store, [keeper])]) as association:
                return self._outcome(association.send_c_get(_request(instances, whole), model))
        except UnreachableError as error:
            return Failure(str(error), passing=True)

    def _outcome(self, answers: Iterable[tuple[Dataset, Dataset | None]]) -> Failure | None:
        """Return what the last answer to a C-GET or C-MOVE says."""
        *_, (status, _) = answers
        match status.get("Status"):
            case None:
                return Failure(_ended(self._node), passing=True)
            case code if code == SUCCESS:
                return None
            case code if code == UNKNOWN_DESTINATION:
                raise RefusedError(f"{self._node} does not know where to move to; expected it to know this node")
            case _:
                return Failure(_told(self._node, status), passing=True)

    def __str__(self) -> str:
        return str(self._node)


class MovingPacsSource(PacsSource):
    """A PACS that is asked by C-FIND and sends by C-MOVE: it calls back, to where it was told that `listen` is."""

    def __init__(self, node: Node, listen: ListenSettings) -> None:
        super().__init__(node)
        self._listen = listen

    @contextmanager
    def opened(self, keeper: Keeper) -> Iterator[Fetch]:
        """Listen, and have the PACS send there."""
        classes = [context.abstract_syntax for context in AllStoragePresentationContexts if context.abstract_syntax]
        receiver = Receiver(keeper, self._listen, storage_classes=classes)
        try:
            yield self._move
        finally:
            receiver.close()

    def _move(self, instances: Sequence[Instance], whole: bool) -> Failure | None:
        model = StudyRootQueryRetrieveInformationModelMove
        try:
            with self._asking(model) as association:
                answers = association.send_c_move(_request(instances, whole), self._listen.ae_title, model)
                failure = self._outcome(answers)
        except UnreachableError as error:
            return Failure(str(error), passing=True)
        # Not every PACS has a status of its own for that.
        hint = f"expected it to know the address of {self._listen.ae_title!r} and the port {self._listen.port}"
        return failure and replace(failure, reason=f"{failure.reason}; {hint}")


def _request(instances: Sequence[Instance], whole: bool) -> Dataset:
    """Name what is wanted: a series, or a list of its instances (PS3.4 C.2.2.2.2)."""
    above = {"StudyInstanceUID": instances[0].study_uid, "SeriesInstanceUID": instances[0].series_uid}
    if whole:
        return _identifier("SERIES", above)
    return _identifier("IMAGE", {**above, "SOPInstanceUID": [one.uid for one in instances]})


def _identifier(level: Level, values: Mapping[str, str | list[str]]) -> Dataset:
    identifier = Dataset()
    identifier.SpecificCharacterSet = "ISO_IR 192"
    identifier.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(identifier, keyword, value)
    return identifier


def _storage_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    """Offer to take each class in each syntax: of one context with several the PACS would choose one for all."""
    contexts = [build_context(storage_class, syntax) for storage_class in classes for syntax in transfer_syntaxes()]
    return contexts[: MOST_CONTEXTS - 1]


def _ended(node: Node) -> str:
    return f"{node} ended the association; perhaps it allows {node.calling!r} no such thing"


def _told(node: Node, status: Dataset) -> str:
    return f"{node} answered status {status.Status:04X} {status.get('ErrorComment', '')}".rstrip()
