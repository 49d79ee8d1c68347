"""A small real PACS that breaks the association when it should send one instance, and sends what nobody asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydicom import FileDataset
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

_KEYWORDS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


@contextmanager
def fragile_pacs(
    series: Sequence[FileDataset], breaks_at: str = "", strangers: Sequence[FileDataset] = (), sends: bool = True
) -> Iterator[int]:
    """Serve one series on a free port of the loopback address, as FRAGILE: by C-FIND, and by C-GET where it `sends`."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        level = event.identifier.QueryRetrieveLevel
        for instance in series if level == "IMAGE" else series[:1]:
            answer = Dataset()
            for keyword in ("Modality", "SeriesDescription", _KEYWORDS[level]):
                setattr(answer, keyword, instance[keyword].value)
            yield 0xFF00, answer

    def get(event: evt.Event) -> Iterator[object]:
        wanted = event.identifier.get("SOPInstanceUID") or [one.SOPInstanceUID for one in series]
        chosen = [*strangers, *(one for one in series if one.SOPInstanceUID in wanted)]
        yield len(chosen)
        for instance in chosen:
            if instance.SOPInstanceUID == breaks_at:
                event.assoc.abort()
                return
            yield 0xFF00, instance

    node = AE(ae_title="FRAGILE")
    node.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    if sends:
        node.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    node.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    handlers: list[evt.EventHandlerType] = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)]
    server = node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
