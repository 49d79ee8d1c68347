"""A job that counts up to the "to" of its request, leaving one file for each number."""

import json
import os
import signal
from pathlib import Path

from limner_server.errors import LeftOffError, WrongStateError
from limner_server.jobs.process import Reporter, run_job


def run(folder: Path, reporter: Reporter) -> None:
    request = json.loads((folder / "request.json").read_text())
    print("this line is a library's, not an event")
    for number in range(request["to"]):
        done = folder / f"{number}"
        if done.exists():
            continue
        done.touch()
        reporter.progress("counting", number / request["to"], -1)
        if number in request.get("die_after", []):
            os.kill(os.getpid(), signal.SIGKILL)
        if reporter.told_to_leave_off.wait(request.get("pause_s", 0)):
            (folder / "left off").touch()
            raise LeftOffError
    if request.get("die_always"):
        os.kill(os.getpid(), signal.SIGKILL)
    if request.get("refuse"):
        raise WrongStateError("it was refused")
    if request.get("crash"):
        raise RuntimeError("a secret")
    reporter.result({"counted": request["to"]})


if __name__ == "__main__":
    run_job(run)
