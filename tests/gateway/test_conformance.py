"""docs/conformance.md against the code."""

import inspect
import re
from pathlib import Path

import pynetdicom
from pydicom.uid import UID
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    Comprehensive3DSRStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from limner.cli import gateway
from limner.gateway import commitment, destinations, receiver
from limner.gateway.kinds import Kind

PAGE = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
TABLES = [
    [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in block.strip().splitlines()]
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
]


def table(*header: str) -> list[tuple[str, ...]]:
    """The rows of the table with this header."""
    (found,) = (rows[2:] for rows in TABLES if rows[0] == header)
    return found


def test_the_services_are_those_of_the_code() -> None:
    received = {Verification, *receiver.STORED_CLASSES, StorageCommitmentPushModel}
    sent = {Comprehensive3DSRStorage, ParametricMapStorage, SecondaryCaptureImageStorage}
    assert len(sent) == len(Kind)
    asked = {
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    }
    rows = table("SOP class", "UID", "role", "")
    assert {uid: role for _, uid, role, _ in rows} == dict.fromkeys(received, "SCP") | dict.fromkeys(
        sent | asked, "SCU"
    )
    assert all(name in UID(uid).name for name, uid, *_ in rows)


def test_the_transfer_syntaxes_are_those_of_the_code_in_their_order() -> None:
    assert [uid for _, uid in table("transfer syntax", "UID")] == receiver.transfer_syntaxes()


def test_the_statuses_are_those_of_the_code() -> None:
    stored = (receiver.SUCCESS, receiver.OUT_OF_RESOURCES, receiver.MISMATCH, receiver.NOT_UNDERSTOOD)
    rows = table("status", "when", "what the sender should do")
    assert [row[0] for row in rows] == [f"{status:04X}" for status in stored]
    asked = (commitment.SUCCESS, commitment.PROCESSING_FAILURE, commitment.NO_SUCH_ARGUMENT, commitment.NO_SUCH_ACTION)
    assert [row[0] for row in table("status", "when")] == [f"{status:04X}" for status in asked]


def test_reasons_and_answers_are_those_of_the_code() -> None:
    for reason in (commitment.NO_SUCH_INSTANCE, commitment.CLASS_CONFLICT, destinations.DUPLICATE):
        assert f"{reason:04X}" in PAGE
    for status in destinations.REFUSALS:
        assert f"{status.value}" in PAGE


def test_the_limits_are_the_defaults() -> None:
    defaults = {name: one.default for name, one in inspect.signature(gateway.run).parameters.items()}
    rows = table("", "value", "option")
    values = {option: value for _, value, option in rows} | {name: value for name, value, option in rows if not option}
    assert values["`--aet`"].startswith(f"`{defaults['ae_title']}`")
    assert values["`--port`"] == str(defaults["port"])
    assert values["`--associations`"] == str(defaults["associations"])
    assert values["`--peer-associations`"] == str(defaults["peer_associations"])
    assert values["`--max-instance-mib`"] == f"{defaults['max_instance_mib']} MiB"
    assert values["longest PDU received"] == f"{pynetdicom.AE().maximum_pdu_size} bytes"
    assert values["silence that ends an association"] == f"{receiver.ListenSettings().idle_s:g} s"
    assert f"{pynetdicom.PYNETDICOM_IMPLEMENTATION_UID}, `{pynetdicom.PYNETDICOM_IMPLEMENTATION_VERSION}`" in PAGE
