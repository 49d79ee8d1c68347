"""What the tests of scoring share: an untrained model on the live server, and a folder that holds more than T2."""

import shutil
from pathlib import Path

import pytest

from benchmarks.models import publish_untrained
from tests.live import LiveServer

PROSTATEX = Path(__file__).parents[1] / "data" / "prostatex"


@pytest.fixture(scope="session")
def untrained(server: LiveServer) -> str:
    """Name of a model on the shared server, on a grid of 32 pixels, which answers as a trained one does."""
    return publish_untrained(server.model_repository, "untrained", size=32).name


@pytest.fixture
def mixed(phantom: Path, tmp_path: Path) -> Path:
    """A folder of two phantom subjects, real slices of several kinds, a broken file and a text."""
    folder = tmp_path / "mixed"
    for subject in ("PH-000", "PH-001"):
        shutil.copytree(phantom / subject, folder / subject)
    shutil.copytree(PROSTATEX / "ProstateX-0000", folder / "px")
    whole = (phantom / "PH-000" / "0001.dcm").read_bytes()
    (folder / "PH-001" / "0099.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("notes")
    return folder
