"""The real perf_analyzer, the load generator of the field, measures a live server as it measures Triton."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.live import LiveServer

TOOL = Path(__file__).parents[2] / "tools" / "perf_analyzer"
# A window of a few requests, and any spread between windows will do: what it measures is of no account here.
QUICK = ["--measurement-mode=count_windows", "--measurement-request-count=20", "--stability-percentage=100000"]
# Its first use installs it, by the pip of this environment: a bare Debian has none.
ENVIRONMENT = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
GUIDE = (TOOL.parents[1] / "docs" / "open-inference.md").read_text()
COMMANDS = re.findall(r"^tools/perf_analyzer (.*)$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def _perf_analyzer() -> None:
    """Skip where it cannot be installed, but not in CI."""
    installed = subprocess.run([TOOL, "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        reason = f"perf_analyzer cannot be installed: {installed.stderr.strip()[-500:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.mark.parametrize("options", COMMANDS)
def test_the_guides_commands_measure_the_server(server: LiveServer, model: str, options: str) -> None:
    here = options.replace("cervix", model).replace("localhost:8500", server.address).replace("1:8", "1:2")
    command = [TOOL, *here.split(), *QUICK]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    report = ended.stdout + ended.stderr
    assert ended.returncode == 0, report
    assert "Failed" not in report
    assert int(found(r"  Request count: (\d+)", report)) >= 20
    assert float(found(r"Throughput: ([\d.]+) infer/sec", report)) > 0
    assert int(found(r"Successful request count: (\d+)", report)) >= 20, "it takes the server's own statistics"
    assert "compute infer" in report


def found(pattern: str, report: str) -> str:
    match = re.search(pattern, report)
    assert match, report
    return match[1]


def test_random_bytes_are_refused_with_the_reason(server: LiveServer, model: str) -> None:
    command = [TOOL, "-m", model, "-i", "grpc", "-u", server.address, *QUICK]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode != 0
    assert "expected finite values" in ended.stdout + ended.stderr
