"""A job of several processes, as torchrun starts them: the first one tells how many there are."""

import json
import os
import time
from pathlib import Path

from limner_server.errors import WrongStateError
from limner_server.jobs.process import Reporter, run_job


def run(folder: Path, reporter: Reporter) -> None:
    request = json.loads((folder / "request.json").read_text())
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank-{rank}").touch()
    if rank == 1 and request.get("refuse"):
        raise WrongStateError("the second one refused")
    if rank == 0:
        reporter.progress("waiting", 0.0, -1)
    time.sleep(request.get("pause_s", 0))
    if rank == 0:
        reporter.result({"processes": int(os.environ.get("WORLD_SIZE", "1"))})


if __name__ == "__main__":
    run_job(run)
