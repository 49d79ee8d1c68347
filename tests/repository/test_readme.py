"""The README: its blocks marked `run` are executed, in their order, against a live server; its links lead somewhere."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from limner import Client
from tests.live import LiveServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|python) run\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# What the defaults take minutes for is asked for in small: the commands are the README's, with these options added.
QUICKER = {
    "limner phantom": "--subjects 6",
    "limner train": "--epochs 1 --folds 2 --grid-size 32 --batch-size 16 --no-halves",
    "limner simulate": "--steps 10 --no-checks --allow-failed",
}


@pytest.fixture(scope="module")
def outputs(server: LiveServer, client: Client, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Standard output of each block, all run in one folder."""
    client.wait_ready()
    folder = tmp_path_factory.mktemp("readme")
    environment = {
        **os.environ,
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LIMNER_SERVER": server.address,
    }
    return [_run(language, _quick(block, server.address), folder, environment) for language, block in BLOCKS]


def test_blocks_say_what_the_readme_promises(outputs: list[str]) -> None:
    dry_run, walk, python, settings = outputs
    assert dry_run.count("taken") == 6
    assert "recurrent" in walk
    assert re.search(r"probabilities=\(.*\).* by [0-9a-f]{64}$", python.strip())
    assert "--max-batch-size" in settings


def test_simulated_images_are_there_to_look_at(outputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert outputs
    folder = max(tmp_path_factory.getbasetemp().glob("readme*"))
    assert len(list((folder / "simulated").rglob("*.png"))) >= 2


def test_report_is_there_to_look_at(outputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    assert outputs
    folder = max(tmp_path_factory.getbasetemp().glob("readme*"))
    assert "Heat map of layer3" in (folder / "report" / "report.html").read_text()
    assert list((folder / "report" / "figures").glob("*.svg"))


def test_a_second_import_adds_nothing(outputs: list[str], client: Client) -> None:
    assert outputs
    assert client.cohort("phantom").slices == 6 * 12


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets


def _quick(block: str, address: str) -> str:
    for command, options in QUICKER.items():
        block = re.sub(rf"^{command}.*$", rf"\g<0> {options}", block, flags=re.MULTILINE)
    return block.replace("localhost:8500", address)


def _run(language: str, block: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    return result.stdout
