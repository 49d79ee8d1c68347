"""`python -m benchmarks.score_kills`: ten kills of the client and ten of the server, each followed by --resume.

Not a measurement: it ends with an error unless every image has its row, no row that was kept was scored again, and the
tables are those of an undisturbed run.
"""

import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.models import publish_untrained
from limner.imaging.phantom import write_phantom
from tests.live import LiveServer
from tests.scoring.tables import assert_same_tables

_MODEL = "kills"
_NO_SERVER = 3


def main(
    kills: Annotated[int, typer.Option(min=1, help="Of the client, and as many of the server.")] = 10,
    images: Annotated[int, typer.Option(min=100, help="Slices to score.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill, resume, and compare with a run that nothing disturbed."""
    moments = random.Random(seed)  # noqa: S311
    victims = moments.sample(["client", "server"] * kills, 2 * kills)
    after = sorted(moments.randrange(images) for _ in victims)
    with TemporaryDirectory() as name:
        folder = Path(name)
        manifest, whole, killed = _manifest(folder, images), folder / "whole", folder / "killed"
        publish_untrained(folder / "model_repository", _MODEL, size=64)
        with LiveServer(folder, threads=0) as server:
            assert _begin(server, manifest, whole).wait() == 0
            for rows, victim in zip(after, victims, strict=True):
                client = _begin(server, manifest, killed)
                while _kept(killed) < rows and client.poll() is None:
                    time.sleep(0.05)
                if victim == "client":
                    client.kill()
                    client.wait()
                else:
                    server.kill()
                    assert client.wait() == _NO_SERVER
                    server.start()
                print(f"killed the {victim}; {_kept(killed):,} of {images:,} rows are kept", flush=True)
            assert _begin(server, manifest, killed).wait() == 0
        assert _kept(killed) == images, f"{_kept(killed):,} rows were kept for {images:,} images"
        assert_same_tables(killed, whole)
    print("each image has one row, and the tables are those of the undisturbed run")


def _manifest(folder: Path, images: int) -> Path:
    write_phantom(folder / "phantom", subjects=6)
    files = sorted((folder / "phantom").rglob("*.dcm"))
    rows = (f"{files[number % len(files)]},image {number},subject {number % 99}" for number in range(images))
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(["path,id,subject", *rows]))
    return manifest


def _begin(server: LiveServer, manifest: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "limner.cli.main", "score", _MODEL, str(manifest), "--out", str(out)]
    options = ["--server", server.address, "--resume", "--patience", "1"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kept(out: Path) -> int:
    rows = out / "rows.jsonl"
    return rows.read_bytes().count(b"\n") if rows.exists() else 0


if __name__ == "__main__":
    typer.run(main)
