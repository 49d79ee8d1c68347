"""Pseudonyms: repeatable under one key, unlinkable under another."""

import hashlib
import hmac
import stat
from base64 import b32encode
from pathlib import Path

import pytest

from limner.imaging import ImageError, Pseudonymiser, load_or_create_key

KEY = bytes(range(32))


def test_a_pseudonym_is_the_keyed_hash_that_is_documented() -> None:
    mac = hmac.new(KEY, b"S\\ProstateX-0000", hashlib.sha256).digest()
    assert Pseudonymiser(KEY).subject("ProstateX-0000") == "S-" + b32encode(mac[:10]).decode()


def test_one_key_repeats_and_another_does_not() -> None:
    assert Pseudonymiser(KEY).subject("a") == Pseudonymiser(KEY).subject("a")
    assert Pseudonymiser(KEY).subject("a") != Pseudonymiser(KEY[::-1]).subject("a")


def test_kinds_frames_and_ids_are_told_apart() -> None:
    names = Pseudonymiser(KEY)
    given = [names.subject("1.2"), names.subject("1.3"), names.series("1.2"), names.instance("1.2")]
    given += [names.instance("1.2", 1), names.instance("1.21"), names.instance("1.2", 11)]
    assert len({name[2:] for name in given}) == len(given)
    assert names.instance("1.2") == names.instance("1.2", 0)


def test_a_pseudonym_holds_nothing_of_the_id() -> None:
    name = Pseudonymiser(KEY).subject("Müller^Anna/../x")
    assert name[2:].isalnum()
    assert len(name) == 18


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ImageError, match="at least 16 bytes"):
        Pseudonymiser(b"short")


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_key(tmp_path / "other") != key
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("text", ["", "not hexadecimal", "abcd", "é"])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ImageError, match="32 bytes in hexadecimal"):
        load_or_create_key(path)
    assert path.read_text(encoding="utf-8") == text
