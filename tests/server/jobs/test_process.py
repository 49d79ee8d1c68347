"""The leash of a job: who started it holds the other end, where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOLDING = "from limner_server.jobs.process import hold_leash; hold_leash(); print('free')"


def test_a_leash_that_is_let_go_ends_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HOLDING], input=b"", capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, b"")


def test_without_a_leash_it_lives() -> None:
    """As in a container, where nobody is at the other end."""
    ended = subprocess.run([sys.executable, "-c", HOLDING], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"free\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("WrongStateError('not so')", '{"failure": "not so"}'),
        ("RuntimeError('a secret')", "RuntimeError; the job's log on the server has the details"),
    ],
)
def test_a_failure_is_told_and_is_the_exit_status(raised: str, said: str) -> None:
    program = f"""
from limner_server.errors import WrongStateError
from limner_server.jobs.process import run_job

def main(folder, reporter):
    raise {raised}

run_job(main)
"""
    command = [sys.executable, "-c", program, "folder"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
    assert ended.returncode == 1
    assert said in ended.stdout
    assert "secret" not in ended.stdout


def test_a_job_yields_to_the_server_that_runs_it() -> None:
    program = """
import os
from limner_server.jobs.process import run_job
run_job(lambda folder, reporter: reporter.result({"niceness": os.nice(0)}))
"""
    command = [sys.executable, "-c", program, "folder"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True)
    assert json.loads(ended.stdout)["result"]["niceness"] == min(os.nice(0) + 10, 19)


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="needs a kernel that groups by session")
@pytest.mark.parametrize("own_session", [True, False])
def test_a_session_that_is_the_jobs_own_yields_as_a_whole(own_session: bool) -> None:
    program = """
from pathlib import Path
from limner_server.jobs.process import run_job
run_job(lambda folder, reporter: reporter.result({"group": Path("/proc/self/autogroup").read_text()}))
"""
    before = Path("/proc/self/autogroup").read_text()
    command = [sys.executable, "-c", program, "folder"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True, start_new_session=own_session
    )
    group = json.loads(ended.stdout)["result"]["group"]
    assert group.endswith(" nice 10\n") if own_session else group == before
