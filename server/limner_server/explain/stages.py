"""Stages of a simulation: each is done once, kept in the job's folder, and counted towards the progress.

Stages run side by side, one on each thread; what they compute is `simulation`'s business.
"""

import io
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner_server.files import write_atomic

Arrays = dict[str, NDArray[Any]]
Tell = Callable[[float], None]
"""Told the share that is done, 0 to 1."""
Progress = Callable[[str, float, float], None]
"""Told the phase, the share of the whole that is done, and the seconds left (-1: unknown)."""

_INTERVAL_S = 0.25


@dataclass(frozen=True)
class Stage:
    """One piece of work: what it is called, its share of the whole in any unit, and how it is done."""

    name: str
    cost: float
    compute: Callable[[Tell], Arrays]


def run_stages(stages: list[Stage], folder: Path, workers: int, progress: Progress) -> Mapping[str, Arrays]:
    """Do what is not yet in `folder`, and return the arrays of every stage by its name.

    Parameters
    ----------
    stages
        In the order in which they are begun; a stage may wait for one before it.
    folder
        Where a finished stage is kept as `<name>.npz`, written in one step.
    workers
        Stages that run at a time, at least 1.
    progress
        Called from the threads of the stages, one call at a time.

    Raises
    ------
    Exception
        What the first stage that failed raised, once those that had begun have ended.
    """
    meter = _Meter({stage.name: stage.cost for stage in stages}, progress)
    with ThreadPoolExecutor(workers, thread_name_prefix="stage") as pool:
        futures = {stage.name: pool.submit(_run, stage, folder, meter) for stage in stages}
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=False, cancel_futures=True)
        return {name: future.result() for name, future in futures.items()}


def load_arrays(path: Path) -> Arrays:
    """Read a file that `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays as one `.npz` in one step; StorageFullError where the disk is full."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _run(stage: Stage, folder: Path, meter: "_Meter") -> Arrays:
    path = folder / f"{stage.name}.npz"
    if path.is_file():
        arrays = load_arrays(path)
    else:
        arrays = stage.compute(lambda share: meter.tell(stage.name, share))
        save_arrays(path, arrays)
    meter.tell(stage.name, 1.0)
    return arrays


class _Meter:
    """Adds up the shares of stages that run side by side."""

    def __init__(self, costs: Mapping[str, float], progress: Progress) -> None:
        self._costs = costs
        self._progress = progress
        self._done = dict.fromkeys(costs, 0.0)
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._next = 0.0

    def tell(self, name: str, share: float) -> None:
        with self._lock:
            self._done[name] = share
            now = time.monotonic()
            if now < self._next and share < 1:
                return
            self._next = now + _INTERVAL_S
            fraction = sum(self._costs[stage] * done for stage, done in self._done.items()) / sum(self._costs.values())
            spent = now - self._started
            left = spent * (1 - fraction) / fraction if fraction > 0 else -1.0
            self._progress(name, min(fraction, 1.0), left)
