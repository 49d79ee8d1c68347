"""docs/security.md: its matrix is the code's, the tests that it names are there, and its commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic_settings import CliApp

from benchmarks.models import publish_identity
from limner_server.access.config import load_access_file
from limner_server.access.matrix import MATRIX, Role
from limner_server.settings import Settings
from tests.gateway.real import OPENSSL
from tests.repository.test_docs import parse

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
BLOCKS = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))

needs_openssl = pytest.mark.skipif(not OPENSSL and not os.environ.get("CI"), reason="needs openssl")


def rows(heading: str) -> list[list[str]]:
    """Cells of the lines of the first table after a heading, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_matrix_is_the_code() -> None:
    told = {
        f"{service.strip('`')}/{method}": role
        for service, *cells in rows("Roles")
        for role, cell in zip(Role, cells, strict=True)
        for method in filter(None, map(str.strip, cell.split(",")))
    }
    assert told == MATRIX


def test_every_threat_has_a_test_that_is_there() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    functions = {name for text in sources.values() for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.M)}
    threats = rows("Threat model")
    assert len(threats) > 15
    for threat, against, tests in threats:
        named = re.findall(r"`([\w/.]+)`", tests)
        assert against, threat
        assert named, threat
        assert {name for name in named if name not in functions and name not in sources} == set(), threat


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page run, in their order; with a model to sign."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "access.yaml").write_text(BLOCKS["access.yaml"])
    publish_identity(folder / "model_repository", "cervix", 32)
    (folder / "bin").mkdir()
    server = folder / "bin" / "limner-server"
    server.write_text(f'#!/bin/sh\nexec {sys.executable} -m limner_server "$@"\n')
    server.chmod(0o755)
    return folder


def run(folder: Path, name: str) -> None:
    bash = shutil.which("bash")
    assert bash
    script = f"set -e\nPATH={folder}/bin:$PATH\n{BLOCKS[name]}"
    ended = subprocess.run([bash, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@needs_openssl
def test_the_commands_make_what_a_server_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, "certificates")
    monkeypatch.chdir(folder)
    program, *words = shlex.split(BLOCKS["server"])
    settings = CliApp.run(Settings, cli_args=words)
    assert (program, settings.host, settings.tls_client_ca) == ("limner-server", "0.0.0.0", Path("ca.pem"))  # noqa: S104
    program, *words = shlex.split(BLOCKS["client"])
    assert (program, parse(words)) == ("limner", (0, ["list"]))


@needs_openssl
def test_the_commands_sign_a_model(folder: Path) -> None:
    run(folder, "signing")


def test_the_commands_of_the_audit_are_its_own() -> None:
    for line in BLOCKS["audit"].splitlines():
        words = [sys.executable, "-m", "limner_server", *shlex.split(line)[1:]]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        assert "/var/lib/limner/data/limner.sqlite: no such file" in ended.stderr


def test_the_access_file_of_the_page_is_right(folder: Path) -> None:
    file = load_access_file(folder / "access.yaml")
    assert file.tokens is not None
    assert len(file.principals) == 2
