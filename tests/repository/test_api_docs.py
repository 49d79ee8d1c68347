"""The API reference: its examples run, in order, against a live server, and type-check as the code of a user does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import LiveServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))


def examples(page: Path) -> str:
    """All the Python of a page, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))


RUNNABLE = [page for page in PAGES if examples(page)]


@pytest.mark.parametrize("page", RUNNABLE, ids=[page.stem for page in RUNNABLE])
def test_examples_run(page: Path, server: LiveServer, model: str, phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "cohort").symlink_to(phantom)
    code = examples(page).replace("localhost:8500", server.address).replace('"cervix"', f'"{model}"')
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout


def test_every_page_with_a_call_has_an_example() -> None:
    assert {page.stem for page in RUNNABLE} == {"client", "errors", "imaging"}


def test_code_that_uses_the_sdk_type_checks_strictly(tmp_path: Path) -> None:
    """As a user's mypy sees it, with none of our configuration."""
    for page in RUNNABLE:
        (tmp_path / f"{page.stem}_example.py").write_text(examples(page))
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from limner import Client\n\nnumber: int = Client("localhost:8500").model("m").labels\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    # mypy follows no editable install. An installed one it trusts by the marker, and says nothing of its inside.
    assert (ROOT / "client_sdk" / "limner" / "py.typed").exists()
    environment = {**os.environ, "MYPYPATH": str(ROOT / "client_sdk")}
    ended = subprocess.run([*command, "."], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    files = re.findall(r"^(\S+?):\d+: error", ended.stdout, re.MULTILINE)
    assert [file for file in files if not Path(file).is_absolute()] == ["wrong.py"], ended.stdout
    assert '"tuple[str, ...]"' in ended.stdout
