"""docs/operate.md: its blocks with a title are run in their order, against a server and then its restored double."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from benchmarks.models import publish_untrained
from limner import Client
from tests.deploy.manifests import DEPLOY, ROOT
from tests.live import LiveServer

PAGE = (ROOT / "docs/operate.md").read_text()
BLOCKS = dict(re.findall(r'^```sh title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
MIGRATIONS = sorted((ROOT / "server/limner_server/state/migrations/versions").glob("[0-9]*.py"))


def run(title: str, folder: Path, server: LiveServer) -> str:
    """Run a block in a folder, with a server's own paths in place of the page's."""
    block = BLOCKS[title]
    for place, own in (("/var/lib/limner/data", server.data_dir), ("/var/lib/limner/models", server.model_repository)):
        block = block.replace(place, str(own))
    environment = {
        **os.environ,
        "LIMNER_SERVER": server.address,
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["bash", "-euo", "pipefail", "-c", block]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{block}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_the_page_is_true_from_release_to_restore(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    done = []
    with LiveServer(tmp_path / "old") as server, Client(server.address) as client:
        client.wait_ready()
        publish_untrained(server.model_repository, "cervix", size=32)
        shutil.copytree(server.model_repository / "cervix/1", server.model_repository / "cervix/2")
        client.promote_model("cervix:1")
        assert "cervix:2" in run("release", tmp_path, server)
        assert client.model("cervix:production").identity.version == "2"
        assert "cervix:1" in run("roll back", tmp_path, server)
        run("back up", tmp_path, server)
        done += ["release", "roll back", "back up"]
    restored = LiveServer(tmp_path / "new")
    run("restore", tmp_path, restored)
    done.append("restore")
    with restored, Client(restored.address) as client:
        client.wait_ready()
        assert client.model("cervix:production").identity.version == "1"
    assert done == list(BLOCKS)


@pytest.mark.parametrize("migration", MIGRATIONS, ids=[path.stem for path in MIGRATIONS])
def test_migrations_only_add(migration: Path) -> None:
    """Servers from before go on with a database that a newer one has migrated, while they are replaced."""
    assert not re.findall(r"op\.(?:drop|rename|alter|execute)\w*|batch\w*\.(?:drop|alter)\w*", migration.read_text())
