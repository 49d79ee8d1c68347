"""The model repository: a folder of versions in Triton's layout, each whole or not there.

Knows files only: what is loaded, and what an alias points at, is known elsewhere.
"""

import contextlib
import errno
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from pydantic import ValidationError

from limner_server.access.signature import SIGNATURE_FILE, load_public_key, problem
from limner_server.errors import NotFoundError, WrongStateError
from limner_server.files import storage_full_named, write_atomic
from limner_server.names import check_name
from limner_server.networks.card import ModelCard
from limner_server.networks.triton import Backend, model_config

ARTIFACT_FILE = "model.pt"
CARD_FILE = "card.json"
CONFIG_FILES: Mapping[str, Backend] = {"config.pbtxt": "pytorch", "configs/python.pbtxt": "python"}
"""Triton's configurations of a model, and the backend of each."""
CODE_FILE = "model.py"
"""What Triton's Python backend runs."""

_CODE = Path(__file__).with_name("triton_model.py")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class ModelVersion:
    """One version as it lies in the repository.

    Attributes
    ----------
    name, version
        Which.
    folder
        Where its files are.
    card
        Its card; None where the version is broken.
    error
        Why it is broken; empty otherwise. A wrong digest shows only when the artifact is loaded.
    """

    name: str
    version: int
    folder: Path
    card: ModelCard | None
    error: str = ""

    @property
    def artifact(self) -> Path:
        """The TorchScript file."""
        return self.folder / ARTIFACT_FILE


def check_artifacts(version: ModelVersion) -> None:
    """Raise WrongStateError where a file of a version that is not broken is another than its card says."""
    card = version.card
    assert card is not None  # noqa: S101 - it is not broken
    digests = {ARTIFACT_FILE: card.digest, **{half.file: half.digest for half in card.halves}}
    if card.sibling:
        digests[card.sibling.file] = card.sibling.digest
    for file, digest in digests.items():
        with (version.folder / file).open("rb") as artifact:
            found = hashlib.file_digest(artifact, "sha256").hexdigest()
        if found != digest:
            raise WrongStateError(f"{version.folder / file} has sha256 {found}; its card says {digest}")


class ModelRepository:
    """Versions of models under `root`, which need not exist yet.

    Any number of processes may read and publish at a time.

    Parameters
    ----------
    signing_key
        PEM public key: a version whose card is not signed by it counts as broken. None: signatures are not looked at.
    """

    def __init__(self, root: Path, signing_key: Path | None = None) -> None:
        self.root = root
        self._signer = load_public_key(signing_key) if signing_key else None

    def list_versions(self) -> list[ModelVersion]:
        """All versions by name and number, the broken ones too."""
        if not self.root.is_dir():
            return []
        models = sorted(folder.name for folder in self.root.iterdir() if folder.is_dir() and folder.name[0] != ".")
        return [self._read(name, version) for name in models for version in self.numbers(name)]

    def numbers(self, name: str) -> list[int]:
        """Numbers of the versions of a model, ascending; empty where there is no such model."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))

    def get(self, name: str, version: int) -> ModelVersion:
        """One version, broken or not.

        Raises
        ------
        InvalidInputError
            The name could be no model's.
        NotFoundError
            There is no such model, or no such version of it.
        """
        known = self.numbers(check_name("model.name", name))
        if not known:
            raise NotFoundError("model", name, {entry.name for entry in self.list_versions()})
        if version not in known:
            raise NotFoundError(f"version of model {name}", str(version), map(str, known))
        return self._read(name, version)

    def card(self, name: str, version: int) -> ModelCard:
        """The card of a version that is not broken.

        Raises
        ------
        InvalidInputError, NotFoundError
            As `get`.
        WrongStateError
            The version is broken.
        """
        found = self.get(name, version)
        if found.card is None:
            raise WrongStateError(f"model {name} version {version} is broken: {found.error}")
        return found.card

    def published(self, name: str, training: str) -> int | None:
        """Number of the version that a training made, None if it has made none that is whole."""
        return next((version for version, card in self._whole(name) if card.training == training), None)

    def publish(self, name: str, staging: Path) -> int:
        """Copy a staged version in as the next version of a model, and return its number.

        A training publishes once: where a version already bears the staged card's training id, its number is returned.

        Parameters
        ----------
        name
            The model; made if there is none.
        staging
            Folder with `model.pt`, `card.json` and, where trained, the halves and the sibling. Left as it is.

        Raises
        ------
        InvalidInputError
            The name cannot be a model's.
        StorageFullError
            The disk is full; nothing of the version is left.
        """
        folder = self.root / check_name("model.name", name)
        card = ModelCard.model_validate_json((staging / CARD_FILE).read_bytes())
        version = self.published(name, card.training)
        if version is None:
            with storage_full_named(f"model {name}"):
                folder.mkdir(parents=True, exist_ok=True)
                version = self._copy_in(name, staging, f".publishing-{card.training}")
        self._write_triton_files(name)
        return version

    def delete(self, name: str, version: int) -> None:
        """Delete a version, broken or not; a model without versions goes too.

        Raises
        ------
        InvalidInputError, NotFoundError
            As `get`.
        """
        folder = self.get(name, version).folder
        hidden = folder.with_name(f".deleted-{uuid.uuid4().hex}")
        folder.rename(hidden)
        shutil.rmtree(hidden)
        if self.numbers(name):
            self._write_triton_files(name)
            return
        files = [self.root / name / file for file in CONFIG_FILES]
        for file in files:
            file.unlink(missing_ok=True)
        for parent in sorted({file.parent for file in files}, reverse=True):
            with contextlib.suppress(OSError):  # not empty: somebody is publishing, or keeps files of their own there
                parent.rmdir()

    def _read(self, name: str, version: int) -> ModelVersion:
        folder = self.root / name / str(version)
        try:
            content = (folder / CARD_FILE).read_bytes()
            if self._signer and (unsigned := problem(content, folder / SIGNATURE_FILE, self._signer)):
                return ModelVersion(name, version, folder, None, unsigned)
            card = ModelCard.model_validate_json(content)
        except OSError as error:
            return ModelVersion(name, version, folder, None, f"{CARD_FILE}: {error.strerror}")
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "JSON"
            return ModelVersion(name, version, folder, None, f"{CARD_FILE}: {field}: {first['msg']}")
        siblings = [card.sibling.file] if card.sibling else []
        files = (ARTIFACT_FILE, *(half.file for half in card.halves), *siblings)
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            return ModelVersion(name, version, folder, None, f"{', '.join(missing)}: no such file")
        return ModelVersion(name, version, folder, card)

    def _whole(self, name: str) -> Iterator[tuple[int, ModelCard]]:
        """Versions of a model that are not broken, newest first."""
        for version in reversed(self.numbers(name)):
            if (card := self._read(name, version).card) is not None:
                yield version, card

    def _copy_in(self, name: str, staging: Path, hidden: str) -> int:
        temporary = self.root / name / hidden
        shutil.rmtree(temporary, ignore_errors=True)  # what a killed attempt of this training left
        try:
            temporary.mkdir()
            for file in sorted(staging.iterdir()):
                write_atomic(temporary / file.name, file.read_bytes())
            return self._claim_number(name, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _claim_number(self, name: str, temporary: Path) -> int:
        version = max(self.numbers(name), default=0) + 1
        while True:
            try:
                temporary.rename(temporary.with_name(str(version)))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                version += 1  # another process was first
            else:
                return version

    def _write_triton_files(self, name: str) -> None:
        """Write what Triton needs to serve each version that is not broken: code, and then configurations.

        Again until that is what there is, so that of several publishers at a time the last one leaves nobody out.
        """
        folder = self.root / name
        written: dict[int, ModelCard] = {}
        while (cards := dict(self._whole(name))) and cards != written:
            for version in cards:
                with contextlib.suppress(FileNotFoundError):  # another process has deleted the version
                    write_atomic(folder / str(version) / CODE_FILE, _CODE.read_bytes())
            for file, backend in CONFIG_FILES.items():
                (folder / file).parent.mkdir(exist_ok=True)
                write_atomic(folder / file, text_format.MessageToBytes(model_config(name, cards, backend)))
            written = cards
