"""The real Prometheus scrapes a running server by the configuration in deploy/, and promtool tests the rules."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from limner import Client
from tests.live import LiveServer
from tests.telemetry import obedient
from tests.telemetry.obedient import image
from tests.telemetry.test_documented import DASHBOARD, PANELS, RULES

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


def program(name: str) -> str:
    """Path of a program of Debian's package `prometheus`; skips without it, but not in CI."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: prometheus)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer; of an error None."""
        wanted = f"{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{wanted}", timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it is starting
                return None
            return pytest.fail(f"{path} {parameters}: {error.read().decode()}")
        except OSError:
            return None

    def value(self, expression: str) -> float | None:
        """The one value of an expression now; None where there is none."""
        found = (self.ask("query", query=expression) or {"result": []})["result"]
        return float(found[0]["value"][1]) if found else None


def until(condition: Any) -> Any:
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "Prometheus has not come to that in a minute"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def prometheus(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    # The files of deploy/, in another place and in a hurry.
    config = (DEPLOY / "prometheus.yml").read_text()
    assert config.count("localhost:8502") == 1
    (folder / "prometheus.yml").write_text(
        config.replace("localhost:8502", live.metrics_address).replace("15s", "200ms")
    )
    shutil.copy(DEPLOY / "limner.rules.yml", folder)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    command = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    running = Prometheus(port)
    until(lambda: process.poll() is not None or running.value("up == 1"))
    assert process.poll() is None, (folder / "prometheus.log").read_text()
    yield running
    process.terminate()
    process.wait(timeout=30)


def test_it_reads_the_whole_page(live: LiveServer, prometheus: Prometheus) -> None:
    (target,) = prometheus.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    with Client(live.address) as client:
        client.predict(obedient.NAME, [image(0)])
    before = prometheus.value("limner_images_total") or 0.0
    with Client(live.address) as client:
        client.predict(obedient.NAME, [image(0)] * 3)
    until(lambda: (prometheus.value("limner_images_total") or 0) >= before + 3)
    assert prometheus.value("limner_images_total") == prometheus.value("limner_batch_images_sum")
    assert prometheus.value('nv_inference_count{model="obedient"}')
    assert prometheus.value("nv_gpu_memory_total_bytes") == 2**34
    assert prometheus.value('limner_rpc_requests_total{method="Predict", code="OK"}')


def test_it_evaluates_every_rule_and_a_server_that_is_well_has_no_alert(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = prometheus.ask("rules")["groups"][0]["rules"]
        return found

    until(lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert {rule["name"] for rule in rules()} == {rule["alert"] for rule in RULES}
    assert [rule for rule in rules() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []


def test_it_understands_every_panel_of_the_dashboard(prometheus: Prometheus) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "result" in prometheus.ask("query", query=expression.replace("$model", ".*"))
    for annotation in DASHBOARD["annotations"]["list"]:
        assert prometheus.ask("query", query=annotation["expr"])["result"] == []


def test_promtool_passes_rules_and_configuration() -> None:
    promtool = program("promtool")
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "limner.rules.test.yml"]):
        ended = subprocess.run([promtool, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_tried_with_what_it_is_for_and_with_a_server_that_is_well() -> None:
    tests = yaml.safe_load((DEPLOY / "limner.rules.test.yml").read_text())["tests"]
    tried = [(each["alertname"], bool(each["exp_alerts"])) for test in tests for each in test["alert_rule_test"]]
    assert sorted(tried) == sorted((rule["alert"], fires) for rule in RULES for fires in (True, False))


def test_perf_analyzer_reads_the_figures_of_the_gpus(live: LiveServer, tmp_path: Path) -> None:
    """The real one; it measures as in `tests.e2e.test_perf_analyzer`."""
    from tests.e2e.test_perf_analyzer import ENVIRONMENT, QUICK, TOOL

    installed = subprocess.run([TOOL, "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        reason = f"perf_analyzer cannot be installed: {installed.stderr.strip()[-500:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    report = tmp_path / "report.csv"
    metrics = ["--collect-metrics", f"--metrics-url={live.metrics_address}/metrics", "--metrics-interval=50"]
    command = [TOOL, "-m", obedient.NAME, "-i", "grpc", "-u", live.address, "--input-data=zero", *metrics, *QUICK]
    ended = subprocess.run(
        [*command, "-f", report, "--verbose-csv"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line.split(",") for line in report.read_text().splitlines()]
    found = dict(zip(rows[0], rows[1], strict=True))
    assert found["Avg GPU Utilization"] == "GPU-a:0.37;GPU-b:0.37;"
    assert found["Avg GPU Power Usage"] == "GPU-a:61.5;"
    assert found["Max GPU Memory Usage"] == "GPU-a:1503238553;GPU-b:1503238553;"
    assert found["Total GPU Memory"] == "GPU-a:17179869184;GPU-b:17179869184;"
