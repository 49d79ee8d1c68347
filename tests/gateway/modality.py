"""A modality that asks for storage commitment."""

from collections.abc import Sequence

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from limner.gateway.commitment import SUCCESS


class Modality:
    """Sends instances, asks for their commitment on the same association, and keeps what it is told."""

    def __init__(self, port: int) -> None:
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        entity.add_requested_context(StorageCommitmentPushModel)
        self.told: list[tuple[int, Dataset]] = []
        handlers = [(evt.EVT_N_EVENT_REPORT, self._hear)]
        self.association: Association = entity.associate("127.0.0.1", port, ae_title="LIMNER", evt_handlers=handlers)
        assert self.association.is_established

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        self.told.append((event.request.EventTypeID, event.event_information))  # type: ignore[union-attr]
        return SUCCESS, None

    def store(self, instances: Sequence[FileDataset]) -> None:
        for one in instances:
            assert self.association.send_c_store(one).Status == SUCCESS

    def release(self) -> None:
        self.association.release()

    def ask(self, references: Sequence[tuple[str, str]], action: int = 1, transaction: str = "") -> int:
        information = Dataset()
        information.TransactionUID = transaction or generate_uid()
        information.ReferencedSOPSequence = []
        for storage_class, uid in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = storage_class, uid
            information.ReferencedSOPSequence.append(item)
        status, _ = self.association.send_n_action(
            information, action, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return int(status.Status)
