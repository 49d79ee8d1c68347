"""simulation-memory: the most memory that a simulation's process ever held resident, by the number of slices."""

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import PAIRS, Result
from benchmarks.simulation import World

NAME = "simulation-memory"
SUMMARY = "peak resident memory of a simulation with all checks, from 10,000 slices / from 1,000 (ResNet-18, 64x64)"

_BAR = 1.1
_FEW, _MANY = 1_000, 10_000
_STEPS = 10
"""Of the optimiser, as few as there may be: they take time and the same memory, however many slices."""
_INTERVAL_S = 0.1


def run(pairs: int = PAIRS) -> Result:
    """Run each job once, in a process of its own as the server does, whatever `pairs`."""
    few, many = (_peak_mib(slices) for slices in (_FEW, _MANY))
    figures = {f"mib_from_{_FEW}": few, f"mib_from_{_MANY}": many}
    return Result(NAME, "peak memory from 10,000 / from 1,000 slices", _BAR, True, (many / few,), figures)


def _peak_mib(slices: int) -> float:
    """Simulate from so many slices; return the largest resident size of the process, mapped files with it, in MiB."""
    with TemporaryDirectory() as folder:
        world = World.make(Path(folder), slices)
        job = world.root / "job"
        world.request(job, _STEPS)
        command = [sys.executable, "-m", "limner_server.explain.job", str(job)]
        peak = 0.0
        # Its standard input is its leash: closed, it ends.
        with (
            (job / "said").open("wb") as said,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said) as process,
        ):
            while process.poll() is None:
                peak = _high_water_mib(process.pid) or peak
                time.sleep(_INTERVAL_S)
        assert process.returncode == 0, (job / "said").read_text()
        assert (job / "result.json").is_file()
    return peak


def _high_water_mib(pid: int) -> float:
    """VmHWM of proc_pid_status(5), the peak since the program began: the last one read counts. 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)
