"""`limner score` and `limner merge` as commands: options, what they say, exit codes."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.live import LiveServer
from tests.scoring.tables import assert_same_tables, read
from tests.sdk.test_cli import NOTICE


def test_a_run_from_the_command_line(
    limner: Run, server: LiveServer, untrained: str, mixed: Path, tmp_path: Path
) -> None:
    command = ("score", untrained, mixed, "--every-slice", "--server", server.address, "--out", tmp_path / "run")
    code, out, err = limner(*command, "--format", "jsonl", "--json")
    assert code == 1
    fields = json.loads(out)
    images = len(list(mixed.rglob("*.dcm")))
    assert fields["notice"] == NOTICE
    assert (fields["images"], fields["failed"], fields["left_out"]) == (images, 1, 1)
    assert f"scored {images - 1} of {images} slices" in err
    assert f"failed: 1 slices; {tmp_path / 'run' / 'failures.jsonl'} says why" in err
    assert f"left out: 1 files; {tmp_path / 'run' / 'left-out.csv'} says why" in err
    assert err.endswith(f"{NOTICE}\n")
    code, _, err = limner(*command)
    assert code == 2
    assert f"holds a run with {images} images scored; expected to be asked to resume it (--resume)" in err
    assert err.count("\n") == 1
    (mixed / "PH-001" / "0099.dcm").unlink()
    assert limner(*command, "--resume")[0] == 2, "the source has changed"


def test_without_a_terminal_lines_say_how_far_it_is(
    limner: Run, server: LiveServer, untrained: str, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limner.cli.score.TOLD_EVERY_S", 0.0)
    _, _, err = limner("score", untrained, phantom, "--server", server.address, "--out", tmp_path / "run")
    assert "reading headers: 1, 0/s\n" in err
    assert re.search(r"^scoring: 72 of 72, [\d,]+/s$", err, re.MULTILINE)


def test_shards_from_the_command_line(
    limner: Run, server: LiveServer, untrained: str, phantom: Path, tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text("planes: [transverse]")
    for shard in ("0/2", "1/2"):
        out = tmp_path / f"part-{shard[0]}"
        command = ("score", untrained, phantom, "--server", server.address, "--rules", tmp_path / "rules.yaml")
        assert limner(*command, "--shard", shard, "--out", out)[0] == 0
    code, out, err = limner("merge", tmp_path / "scores", tmp_path / "part-0", tmp_path / "part-1", "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == len(read(tmp_path / "scores" / "images.csv")) == 72
    code, _, err = limner("merge", tmp_path / "again", tmp_path / "part-1")
    assert (code, err) == (2, "error: shards are missing: 0/2; expected all 2\n")


def test_a_dry_run_sends_nothing_and_leaves_a_manifest(
    limner: Run, server: LiveServer, untrained: str, mixed: Path, tmp_path: Path
) -> None:
    command = ("score", "m", mixed, "--out", tmp_path / "run", "--server", "localhost:1", "--dry-run")
    code, _, err = limner(*command)
    assert code == 0
    assert "left out, 1 times: not DICOM" in err
    assert f"25 slices would be scored: {tmp_path / 'run' / 'items.csv'}, which is a manifest" in err
    assert json.loads(limner(*command, "--json")[1])["images"] == 25
    where = ("--server", server.address)
    assert limner("score", untrained, tmp_path / "run" / "items.csv", "--out", tmp_path / "listed", *where)[0] == 1
    assert limner("score", untrained, mixed, "--out", tmp_path / "run", *where)[0] == 1
    assert_same_tables(tmp_path / "listed", tmp_path / "run")
    code, _, err = limner(*command)
    assert code == 2
    assert "holds a run already" in err


@pytest.mark.parametrize("shard", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_shard_is_one_of_so_many(limner: Run, phantom: Path, tmp_path: Path, shard: str) -> None:
    code, _, err = limner("score", "m", phantom, "--out", tmp_path / "run", f"--shard={shard}")
    assert code == 2
    assert "expected I/N with I from 0 to N - 1" in err


def test_wrong_sources_and_servers_end_in_one_line(
    limner: Run, server: LiveServer, untrained: str, tmp_path: Path
) -> None:
    code, _, err = limner("score", untrained, tmp_path / "none", "--out", tmp_path / "run", "--server", server.address)
    assert (code, err.count("\n")) == (2, 1)
    assert "none'; expected an existing folder, file or pattern" in err
    code, _, err = limner("score", untrained, tmp_path, "--out", tmp_path / "run", "--server", "localhost:1")
    assert (code, err.count("\n")) == (3, 1)
