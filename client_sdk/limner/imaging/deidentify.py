"""Keyed pseudonyms in place of the names that DICOM gives to patients, series and instances.

The same key gives the same pseudonyms (PS3.15 E.1.1: consistent within a set), so that importing twice adds nothing;
without the key they can be neither reversed nor found by guessing ids. What of a file is replaced is the caller's: an
import keeps pixels and geometry only, `profile.py` rewrites whole files.
"""

import secrets
from base64 import b32encode
from hmac import digest
from pathlib import Path
from uuid import UUID

from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file

KEY_BYTES = 32
# 80 bits: among a million ids two are alike with a probability of 4e-13.
PSEUDONYM_BYTES = 10
# Dates of a patient go back by 1 to 11 years.
LEAST_DAYS, DAYS = 365, 3653


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

    def uid(self, uid: str) -> str:
        """Return the UID that stands for another, whatever it names: one made of a UUID (PS3.5 B.2)."""
        return f"2.25.{UUID(bytes=self._mac('U', uid)[:16], version=4).int}"

    def days(self, patient_id: str) -> int:
        """Return by how many days the dates of a patient are shifted: -365 to -4017."""
        return -LEAST_DAYS - int.from_bytes(self._mac("D", patient_id)[:8]) % DAYS

    def _pseudonym(self, kind: str, identifier: str) -> str:
        return f"{kind}-{b32encode(self._mac(kind, identifier)[:PSEUDONYM_BYTES]).decode()}"

    def _mac(self, kind: str, identifier: str) -> bytes:
        return digest(self._key, f"{kind}\\{identifier}".encode(), "sha256")


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
