"""`limner report` against a live server: what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic_core import to_json

from limner import Client
from limner.errors import InvalidInputError
from limner.report import collect, read_simulation
from limner.types import SimulationResult
from tests.conftest import Run
from tests.live import LiveServer
from tests.report.sample import FLOW, report_data


@pytest.fixture(scope="module")
def key_file(key: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "pseudonyms.key"
    path.write_text(key.hex() + "\n")
    return path


@pytest.fixture(scope="module")
def simulation(client: Client, cohort: str, model: str) -> SimulationResult:
    return client.simulate(model, cohort, steps=10, checks=False)


@pytest.fixture
def result(simulation: SimulationResult, tmp_path: Path) -> Path:
    """`result.json` as `limner simulate` writes it."""
    path = tmp_path / "result.json"
    path.write_bytes(to_json({"notice": "n", **simulation.to_dict()}, inf_nan_mode="null"))
    return path


def test_a_report_with_everything(
    limner: Run,
    server: LiveServer,
    cohort: str,
    model: str,
    phantom: Path,
    key_file: Path,
    result: Path,
    tmp_path: Path,
) -> None:
    flow = tmp_path / "labels.flow.json"
    flow.write_text(FLOW.model_dump_json())
    options = ("--images", phantom, "--key", key_file, "--simulation", result, "--flow", flow, "--examples", 1)
    code, out, err = limner(
        *("report", model, cohort, "--out", tmp_path / "report", *options, "--layer", "layer1"),
        *("--server", server.address, "--json"),
    )
    assert code == 0, err
    facts = json.loads(out)
    page = (tmp_path / "report" / "report.html").read_text()
    assert facts["model"]["digest"] in page
    assert facts["cohort_digest"] in page
    assert f"limner report {model} {cohort} --out" in page
    assert "Heat map of layer1 over the slice" in page
    assert "307</strong> subjects looked at" in page
    assert facts["verdict"] == "unchecked"
    assert "unchecked-simulated.svg" in {Path(path).name for path in facts["figures"]}
    assert all(Path(path).stat().st_size > 1000 for path in facts["figures"])
    assert "PH-00" not in page.replace(str(phantom), "")
    assert "Learning curve" in {gap["what"] for gap in facts["not_measured"]}
    assert "found 72 of the cohort's 72 slices" in err
    assert "verdict: unchecked" in err


def test_a_report_without_images_says_why_there_are_none(
    limner: Run, server: LiveServer, cohort: str, model: str, tmp_path: Path
) -> None:
    options = ("--no-simulate", "--no-figures", "--server", server.address)
    code, out, err = limner("report", model, cohort, "--out", tmp_path, *options)
    assert (code, out) == (0, "")
    assert "not measured: Heat maps; to get it: give --images DIR" in err
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "The server keeps no DICOM" in (tmp_path / "report.html").read_text()


def test_wrong_input_is_named(
    limner: Run,
    server: LiveServer,
    cohort: str,
    model: str,
    phantom: Path,
    key_file: Path,
    result: Path,
    tmp_path: Path,
) -> None:
    to_server = ("--server", server.address)
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [], "checks": []}')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other_key = tmp_path / "other.key"
    other_key.write_text("ab" * 32)
    facts = json.loads(result.read_text())
    facts["model"]["digest"] = "0" * 64
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(facts))
    images = ("--images", phantom, "--key")
    for options, said in (
        (("--simulation", tmp_path / "none.json"), "none.json': No such file"),
        (("--simulation", broken), "expected result.json as `limner simulate` writes it"),
        (("--simulation", key_file), "no such JSON"),
        (("--simulation", foreign), "simulation is of a model of digest 000000000000; expected this report's model"),
        (("--simulation", result, "--no-simulate"), "not with --no-simulate"),
        (("--flow", broken), "expected labels.flow.json"),
        ((*images, tmp_path / "no.key"), "no.key', which does not exist; expected the key"),
        ((*images, other_key), "72 slices are none of cohort 'pelvis'"),
        (("--images", elsewhere, "--key", key_file), "0 slices are none of cohort"),
        (("--images", tmp_path / "nowhere", "--key", key_file), "expected an existing folder"),
        ((*images, key_file, "--layer", "layer9", "--no-simulate"), "layer9"),
        (("--examples", 0), "--examples"),
    ):
        code, out, err = limner("report", model, cohort, "--out", tmp_path / "out", *to_server, *options)
        words = " ".join(err.replace("│", " ").split())
        assert (code, out) == (2, ""), (options, err)
        assert said in words, (options, err)
    assert limner("report", model, "nobody", "--out", tmp_path / "out", *to_server)[0] == 2
    assert limner("report", model, cohort)[0] == 2
    assert not (tmp_path / "out").exists()


def test_no_server_ends_with_3(limner: Run, tmp_path: Path) -> None:
    code, _, err = limner("report", "m", "c", "--out", tmp_path, "--server", "localhost:1")
    assert (code, err.count("\n")) == (3, 1)


def test_a_simulation_comes_back_from_its_file(simulation: SimulationResult, result: Path) -> None:
    read = read_simulation(result)
    for image, original in zip(read.images, simulation.images, strict=True):
        assert image.image.dtype == np.float32
        np.testing.assert_array_equal(image.image, original.image)
    assert read.model_dump(exclude={"images"}) == simulation.model_dump(exclude={"images"})


def test_infinite_figures_of_checks_survive_the_file(tmp_path: Path) -> None:
    simulation = report_data().simulation
    assert simulation is not None
    check = simulation.checks[2].model_copy(update={"value": float("inf"), "values": (float("inf"), 0.5)})
    path = tmp_path / "result.json"
    facts = simulation.model_copy(update={"checks": (check,)}).to_dict()
    path.write_bytes(to_json(facts, inf_nan_mode="null"))
    (read,) = read_simulation(path).checks
    assert (read.value, read.values) == (check.value, check.values)


def test_a_card_that_cannot_be_read_is_refused(client: Client, cohort: str, model: str) -> None:
    broken = client.model(model).model_copy(update={"card": {"out_of_fold": []}})
    with pytest.raises(InvalidInputError, match=r"small:\d+', whose card cannot be read: calibration: Field required"):
        collect(client, broken, client.cohort(cohort), None, command="x")


def test_the_report_is_not_imported_by_other_commands() -> None:
    """Matplotlib and jinja2 take a second, and are an extra."""
    code = "import sys, limner.cli.main; print('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
