"""Keyed pseudonyms in place of the names that DICOM gives to patients, series and instances.

Attribute confidentiality after PS3.15 annex E: the SDK keeps pixels and geometry only, and replaces the UIDs and
PatientID that it needs to tell things apart by keyed pseudonyms (E.1.1: consistent within a set). The same key gives
the same pseudonyms, so that importing twice adds nothing; without the key they can be neither reversed nor found by
guessing ids. It does not clean pixels of burned-in text.
"""

import secrets
from base64 import b32encode
from hmac import digest
from pathlib import Path

from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file

KEY_BYTES = 32
# 80 bits: among a million ids two are alike with a probability of 4e-13.
PSEUDONYM_BYTES = 10


class Pseudonymiser:
    """Gives pseudonyms under one key.

    Parameters
    ----------
    key
        Secret, at least 16 bytes; see `load_or_create_key`.

    Raises
    ------
    ImageError
        When the key is too short.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ImageError("key", f"{len(key)} bytes", "at least 16 bytes")
        self._key = key

    def subject(self, patient_id: str) -> str:
        """Return the pseudonym of a patient, such as `S-MZXW6YTBOI5DSMJQ`."""
        return self._pseudonym("S", patient_id)

    def series(self, uid: str) -> str:
        """Return the pseudonym of a SeriesInstanceUID."""
        return self._pseudonym("R", uid)

    def instance(self, sop_instance_uid: str, frame: int = 0) -> str:
        """Return the pseudonym of one frame of a SOPInstanceUID."""
        return self._pseudonym("I", f"{sop_instance_uid}\\{frame}")

    def _pseudonym(self, kind: str, identifier: str) -> str:
        mac = digest(self._key, f"{kind}\\{identifier}".encode(), "sha256")
        return f"{kind}-{b32encode(mac[:PSEUDONYM_BYTES]).decode()}"


def load_or_create_key(path: Path) -> bytes:
    """Return the key kept in a file, made at the first call, readable by its owner only.

    Raises
    ------
    ImageError
        When the file holds something else than a key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, private=True, overwrite=False) as temporary:
            temporary.write_text(secrets.token_hex(KEY_BYTES) + "\n", encoding="ascii")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ImageError("key", f"unreadable in {path}", f"{KEY_BYTES} bytes in hexadecimal")
    return key
