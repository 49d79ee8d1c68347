"""Signatures of model versions: `card.json.sig` beside `card.json`, Ed25519 (RFC 8032) over the card's bytes.

The card holds the sha256 of every artifact of its version, and an artifact is loaded only if that is its own: who
signs a card signs all of them. `openssl pkeyutl -sign -rawin` makes the same 64 bytes.
"""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from limner_server.files import write_atomic

SIGNATURE_FILE = "card.json.sig"


def load_public_key(file: Path) -> Ed25519PublicKey:
    """Read a PEM public key. OSError where it cannot be read, ValueError where it is none of Ed25519."""
    expected = f"{file}: expected a PEM public key of Ed25519 (openssl pkey -pubout)"
    try:
        key = load_pem_public_key(file.read_bytes())
    except ValueError as error:
        raise ValueError(expected) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(expected)
    return key


def load_private_key(file: Path) -> Ed25519PrivateKey:
    """Read a PEM private key. OSError where it cannot be read, ValueError where it is none of Ed25519 or encrypted."""
    expected = f"{file}: expected a PEM private key of Ed25519, not encrypted (openssl genpkey -algorithm ed25519)"
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise ValueError(expected) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(expected)
    return key


def sign(card: Path, key: Ed25519PrivateKey) -> None:
    """Write the signature of a card beside it."""
    write_atomic(card.with_name(SIGNATURE_FILE), key.sign(card.read_bytes()))


def problem(card: bytes, signature: Path, key: Ed25519PublicKey) -> str:
    """Return what is wrong with the signature of a card's bytes; empty where nothing is."""
    try:
        key.verify(signature.read_bytes(), card)
    except FileNotFoundError:
        return f"{SIGNATURE_FILE}: no such file, and this server takes signed models only"
    except OSError as error:
        return f"{SIGNATURE_FILE}: {error.strerror}"
    except InvalidSignature:
        return f"{SIGNATURE_FILE}: not a signature of this card by the key that this server takes"
    return ""
